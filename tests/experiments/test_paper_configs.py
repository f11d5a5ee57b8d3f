"""The configurations of the paper's experiments: what each one trains, and that it runs, in small."""

import importlib.util
import re
from pathlib import Path

import pytest

from jax_mtlser.commands.train import parse_train_flags, train_command
from jax_mtlser.config import Config, ProtocolKind, validate
from jax_mtlser.experiments.smoke import smoke_config
from jax_mtlser.run_folder import RunFolder, read_json

ROOT = Path(__file__).parents[2]
# Configuration, with its argument: number of variants, repeats, and members as its docstring says.
EXPERIMENTS = {
    "five_fold.py": (0, 5, 25),
    "ten_fold.py": (0, 10, 100),
    "fig2.py": (3, 5, 75),
    "figs3_8.py:alpha": (5, 1, 25),
    "figs3_8.py:beta": (5, 1, 25),
    "figs3_8.py:gamma": (5, 1, 25),
    "figs9_11.py:alpha_beta": (16, 1, 80),
    "figs9_11.py:alpha_gamma": (15, 1, 75),
    "figs9_11.py:gamma_beta": (12, 1, 60),
    "table3.py": (18, 5, 450),
    "table4.py": (8, 5, 200),
    "table5.py": (4, 5, 100),
}
FILES = sorted({name.partition(":")[0] for name in EXPERIMENTS})


def load(name: str) -> Config:
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(Path(file).stem, ROOT / "configs" / file)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument) if argument else module.get_config()


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_is_the_papers_recipe_with_as_many_members_as_it_says(name):
    config = load(name)
    validate(config)
    variants, repeats, members = EXPERIMENTS[name]
    folds = 10 if name == "ten_fold.py" else 5
    assert (len(config.variants), config.protocol.repeats, config.protocol.folds) == (variants, repeats, folds)
    assert config.protocol.kind is ProtocolKind.STRATIFIED
    assert (config.training.epochs, config.optimizer.learning_rate, config.batching.batch_size) == (100, 1e-5, 8)
    assert members == max(variants, 1) * folds * repeats
    text = (ROOT / "configs" / name.partition(":")[0]).read_text()
    assert re.search(rf"\b{members}\b", text), "the docstring does not say how many members there are"
    assert "ublished" in text
    assert re.search(r"\b100\s+epochs", text)
    assert "benchmarks/protocol.py" in text


def test_the_docstrings_name_commands_that_are_understood():
    for file in FILES:
        commands = re.findall(r"python train\.py ([^\\\n]*(?:\\\n[^\\\n]*)*)", (ROOT / "configs" / file).read_text())
        assert commands, file
        for command in commands:
            flags = command.replace("\\\n", " ").replace("configs/", f"{ROOT}/configs/").split()
            parse_train_flags(["train.py", *flags])


def test_the_weights_are_the_papers():
    def weights(name):
        config = load(name)
        own = [config.under(variant).weights for variant in config.variants]
        return {(w.alpha, w.beta, w.gamma) for w in own}

    assert weights("figs3_8.py:beta") == {(0, b, 0) for b in (0, 0.2, 0.6, 0.8, 1)}
    assert weights("figs9_11.py:gamma_beta") == {(0, b, c) for b in (0.4, 0.6, 0.8) for c in (0, 0.1, 0.2, 0.3)}
    assert (0.4, 0.6, 0.1) in weights("table3.py")
    subsets = {(a, b, c) for a in (0, 0.4) for b in (0, 0.6) for c in (0, 0.1)}
    assert weights("table4.py") == subsets
    assert [variant.name for variant in load("table4.py").variants] == [
        "SER", "SER+GR", "SER+SR", "SER+ASR", "SER+GR+SR", "SER+GR+ASR", "SER+SR+ASR", "SER+GR+SR+ASR",
    ]  # fmt: skip


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem)
def test_every_configuration_can_be_run_in_small(path):
    small = smoke_config(load(path.name))
    validate(small)
    assert small.smoke
    assert small.name.endswith("_smoke")


def test_what_is_asked_for_beside_smoke_is_done():
    flags = ["train.py", f"--config={ROOT}/configs/table4.py", "--config.smoke=true", "--config.training.epochs=3"]
    config, workdir = parse_train_flags(flags)
    assert config.training.epochs == 3
    assert config.protocol.folds == 2
    assert len(config.variants) == 8
    assert workdir == Path("runs/table4_smoke")


def smoke(name: str, workdir: Path, *flags: str) -> dict:
    pytest.importorskip("espeakng_loader")
    command = ["train.py", f"--config={ROOT}/configs/{name}", f"--workdir={workdir}", "--config.smoke=true", *flags]
    assert train_command(command) == 0
    return read_json(RunFolder(workdir).results)


# One or two variants of each, on one fold: the programs and paths are those of all. In every run there is a table of
# subsets and a weighting method; the others, and every curve, are slow.
@pytest.mark.parametrize(
    ("name", "members"),
    [
        pytest.param("five_fold.py", "r0_f0", marks=pytest.mark.slow),
        pytest.param("ten_fold.py", "r0_f1", marks=pytest.mark.slow),
        pytest.param("fig2.py", "wav2vec2-base_r0_f0,hubert-base_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs3_8.py:alpha", "alpha0_r0_f0,alpha1_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs3_8.py:beta", "beta0.2_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs3_8.py:gamma", "gamma0.4_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs9_11.py:alpha_beta", "alpha0_beta0.2_r0_f0,alpha0.6_beta0.8_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs9_11.py:alpha_gamma", "alpha0.8_gamma0.3_r0_f0", marks=pytest.mark.slow),
        pytest.param("figs9_11.py:gamma_beta", "gamma0_beta0.4_r0_f0", marks=pytest.mark.slow),
        pytest.param("table3.py", "alpha0.4_beta0.6_gamma0.1_r0_f0", marks=pytest.mark.slow),
        ("table4.py", "SER_r0_f0,SER+GR+SR+ASR_r0_f0"),
        pytest.param("table5.py", "uncertainty_r0_f0", marks=pytest.mark.slow),
    ],
)
def test_each_experiment_runs_in_small(name, members, tmp_path, capsys):
    results = smoke(name, tmp_path / "run", f"--members={members}")
    output = capsys.readouterr().out
    assert "A smoke run" in output
    variants = EXPERIMENTS[name][0]
    entries = results.get("variants", [results])
    assert len(entries) == max(variants, 1)
    trained = [fold for entry in entries for fold in entry["folds"]]
    assert len(trained) == members.count(",") + 1
    assert all(fold["metrics"]["wa"] is not None for fold in trained)
    report = RunFolder(tmp_path / "run").report
    assert "A smoke run" in (report / "index.html").read_text()
    assert "Published" not in (report / "scores.md").read_text()
    assert {path.suffix for path in report.iterdir()} == {".html", ".svg", ".png", ".csv", ".md", ".tex"}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_each_experiment_runs_to_its_end_in_small(name, tmp_path):
    results = smoke(name, tmp_path / "run")
    assert results["missing"] == []
    assert all(len(entry["folds"]) == 2 for entry in results.get("variants", [results]))
