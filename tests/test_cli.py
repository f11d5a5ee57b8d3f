"""The command line as a newcomer meets it: short messages, no tracebacks, nothing loaded before flags are judged."""

import re
from pathlib import Path

import pytest

from jax_mtlser import cli
from jax_mtlser.commands.train import parse_train_flags, train_command
from jax_mtlser.run_folder import RunFolder, read_json

ROOT = Path(__file__).parents[1]
DEMO = f"--config={ROOT}/configs/demo.py"


def train(*flags: str) -> int:
    return train_command(["train.py", *flags])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workdir=x"], "--config is missing"),
        ([f"--config={ROOT}/configs/dem.py", "--workdir=x"], "there is no configuration file .*configs/demo.py"),
        ([f"--config={ROOT}/configs/fig2.py:hubert", "--workdir=x"], "there is no encoder 'hubert'; there are .*hubert-base"),
        ([DEMO, "--workdir=x", "--config.model.encoder.freeze_layers=2"], "freeze=layers and .*freeze_layers=n"),
        ([DEMO, "--workdir=x", "--config.model.encoder.lora_rank=2"], "use --config.model.encoder.freeze=encoder"),
        ([DEMO, "--workdir=x", "--config.optimizer.layer_decay=1.5"], r"layer_decay is 1.5; it must lie in \(0, 1\]"),
        ([DEMO, "--workdir=x", "--config.optimizer.learnin_rate=1"], "has no setting 'learnin_rate'; did you mean learning_rate"),
        ([DEMO, "--workdir=x", "--config.optimiser.eps=1"], "has no setting 'optimiser'; did you mean optimizer"),
        ([DEMO, "--workdir=x", "--config.name.eps=1"], "config.name is a value, not a group"),
        ([DEMO, "--workdir=x", "--config.optimizer.learning_rate=fast"], "learning_rate=fast"),
        ([DEMO, "--workdir=x", "--config.batching.residency=gpu"], r"<auto\|device\|host>"),
        ([DEMO, "--workdir=x", "--config.training.epochs=0"], "training.epochs is 0"),
        ([DEMO, "--workdir=x", "--wrkdir=y"], "Did you mean: workdir"),
        ([DEMO, "--workdir=x", "epochs=3"], "what is 'epochs=3'"),
        ([DEMO, "--workdir=x", "--epochs=3"], r"there is no flag --epochs; did you mean --config\.training\.epochs\?"),
        ([DEMO, "--workdir=x", "--config.epochs=3"], r"has no setting 'epochs'; did you mean --config\.training\.epochs\?"),
        ([DEMO, "--workdir=x", "--config.zzz=3"], "has no setting 'zzz'; it has name, corpus"),
        ([f"--config={ROOT}/configs", "--workdir=x"], "there is no configuration file .*configs; there are .*configs/demo.py"),
    ],
)  # fmt: skip
def test_a_wrong_flag_is_answered_in_a_few_lines(flags, message, capsys):
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert re.search(message, error, re.DOTALL), error
    assert "Traceback" not in error
    assert error.startswith("error: ")


def test_a_config_file_with_a_mistake_is_named_with_its_line(tmp_path, capsys):
    (tmp_path / "bad.py").write_text("def get_config():\n    return undefined_name\n")
    assert train(f"--config={tmp_path}/bad.py", "--workdir=x") == 2
    error = capsys.readouterr().err
    assert "undefined_name" in error
    assert "bad.py, line 2" in error


def test_a_config_of_another_type_is_refused(tmp_path, capsys):
    (tmp_path / "other.py").write_text("def get_config():\n    return {'a': 1}\n")
    assert train(f"--config={tmp_path}/other.py", "--workdir=x") == 2
    assert "not a jax_mtlser Config" in capsys.readouterr().err


def test_missing_corpus_and_checkpoint_are_both_told_with_their_options(tmp_path, capsys):
    flags = [f"--config={ROOT}/configs/ten_fold.py", f"--workdir={tmp_path}/run"]
    flags += [f"--config.corpus.path={tmp_path}/nowhere", f"--config.model.encoder.checkpoint={tmp_path}/no_weights"]
    assert train(*flags) == 2
    error = capsys.readouterr().err
    assert "nowhere" in error
    assert "--config.corpus.path" in error
    assert "no_weights" in error
    assert "--config.model.encoder.checkpoint" in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_a_run_folder_that_is_a_file_is_refused_before_anything_is_loaded(tmp_path, capsys):
    (tmp_path / "run").touch()
    assert train(DEMO, f"--workdir={tmp_path}/run") == 1
    shown = capsys.readouterr()
    assert f"error: {tmp_path}/run is a file; name a folder" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("flags", [["--wrokdir", "runs/x"], ["--workdir=x", "--audio"]])
def test_what_leakage_does_not_understand_is_named(flags, capsys):
    assert cli.main(["jax-mtlser", "leakage", *flags]) == 2
    assert f"error: cannot understand {' '.join(flags)}; name either" in capsys.readouterr().err


def test_ml_collections_spellings_work():
    argv = [
        "train.py",
        "--config",
        f"{ROOT}/configs/demo.py",
        "--workdir",
        "runs/x",
        "--config.optimizer.learning_rate=2e-5",
    ]
    argv += [
        "--config.optimizer.schedule=linear",
        "--config.protocol.only_folds=0,2",
        "--noconfig.training.tensorboard",
    ]
    argv += ["--config.optimizer.head_learning_rate", "0.5"]
    config, workdir = parse_train_flags(argv)
    assert workdir == Path("runs/x")
    assert config.optimizer.learning_rate == 2e-5
    assert config.optimizer.schedule.value == "linear"
    assert config.optimizer.head_learning_rate == 0.5
    assert config.protocol.only_folds == (0, 2)
    assert config.training.tensorboard is False


def test_the_run_folder_is_named_after_the_configuration_by_default():
    _, workdir = parse_train_flags(["train.py", "--config", f"{ROOT}/configs/ten_fold.py"])
    assert workdir == Path("runs/ten_fold")


def test_help_and_unknown_commands(capsys):
    assert cli.main(["jax-mtlser", "--help"]) == 0
    assert "jax-mtlser train --config FILE" in capsys.readouterr().out
    assert cli.main(["jax-mtlser", "trian"]) == 2
    assert "did you mean train?" in capsys.readouterr().err
    assert train("--help") == 0
    assert "--workdir DIR" in capsys.readouterr().out


def test_evaluating_nothing_is_answered_shortly(tmp_path, capsys):
    assert cli.main(["jax-mtlser", "eval", "--workdir", str(tmp_path)]) == 1
    assert "is no run folder" in capsys.readouterr().err


@pytest.mark.slow  # test_readme.py runs the same demo by the README's command
def test_the_demo_runs_end_to_end_in_small(tmp_path, capsys, monkeypatch):
    pytest.importorskip("espeakng_loader")
    flags = [
        DEMO,
        f"--workdir={tmp_path}/run",
        "--config.corpus.demo.sentences_per_style=2",
        "--config.training.epochs=1",
    ]
    flags += ["--config.batching.num_buckets=1", "--config.training.data_devices=1"]
    assert cli.main(["jax-mtlser", "train", *flags]) == 0
    shown = capsys.readouterr().out
    assert "demo: 80 utterances" in shown
    assert "pooled" in shown
    results = read_json(RunFolder(tmp_path / "run").results)
    assert all(value is not None for value in results["pooled"].values())
    assert "Random folds" in (tmp_path / "run" / "report" / "index.html").read_text()
    assert list((tmp_path / "run" / "members" / "r0_f0" / "tensorboard").iterdir())
    assert cli.main(["jax-mtlser", "eval", "--workdir", f"{tmp_path}/run"]) == 0
    assert "all recomputed numbers equal" in capsys.readouterr().out


@pytest.mark.slow
def test_the_demo_reaches_what_the_readme_says(tmp_path):
    """The README's first command in full; about five minutes on two cores."""
    pytest.importorskip("espeakng_loader")
    assert train(DEMO, f"--workdir={tmp_path}/run", "--config.training.data_devices=1") == 0
    pooled = read_json(RunFolder(tmp_path / "run").results)["pooled"]
    assert pooled["ua"] >= 0.85
    assert pooled["gender_accuracy"] >= 0.95
    assert pooled["speaker_accuracy"] >= 0.85
    assert pooled["wer"] <= 0.5
