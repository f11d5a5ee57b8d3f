"""Leakage and selection from a run and from a configuration, as a user meets them."""

import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console
from tiny import tiny_config, write_corpus

from jax_mtlser import cli
from jax_mtlser.config import ProtocolConfig, ProtocolKind, Selection
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[2]


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=120))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    """Thirty tones, one of which is there under another name once more."""
    folder = write_corpus(tmp_path_factory.mktemp("tones"))
    shutil.copy(folder / "wav" / "tone00.wav", folder / "wav" / "tone99.wav")
    with (folder / "manifest.csv").open("a") as table:
        table.write("tone99,wav/tone99.wav,,,angry,male,S9,A B,9\n")
    return folder


@pytest.fixture(scope="module")
def optimistic(corpus, tmp_path_factory) -> tuple[RunFolder, str]:
    """One of two folds of whole sessions, the epoch chosen on its test part; this seed parts the two copies."""
    config = tiny_config(corpus, epochs=3)
    config.training.selection = Selection.BEST_TEST
    config.protocol = ProtocolConfig(
        kind=ProtocolKind.GROUPED, folds=2, group_column="session", seed=3, validation_fraction=0.0, only_folds=(0,)
    )
    screen = display()
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    assert train_run(config, run.path, screen) == 0
    return run, screen.console.file.getvalue()


def test_the_epoch_with_the_best_test_score_is_reported(optimistic):
    member = optimistic[0].member("r0_f0")
    lines = [line for line in read_json_lines(member.metrics) if line["kind"] == "test"]
    scores = [line["ua"] for line in lines]
    assert [line["epoch"] for line in lines] == [1, 2, 3]
    result = read_json(member.result)
    assert result["selected_epoch"] == 1 + scores.index(max(scores))
    assert result["metrics"]["ua"] == max(scores)
    assert not any(row.part == "validation" for row in read_predictions(member.predictions))


def test_such_a_run_says_everywhere_that_it_is_optimistic(optimistic):
    run, shown = optimistic
    results = read_json(run.results)
    assert results["optimistic"] is True
    assert results["protocol"]["selection"] == "best_test"
    assert "OPTIMISTIC: 2-fold cross-validation" in shown
    assert "Optimistic: The tested epoch was chosen by its score on the test part" in shown
    page = (run.report / "index.html").read_text()
    assert page.count('class="stamp">optimistic') > 2
    assert "<strong>Optimistic.</strong>" in page
    assert "best_test" in page


def test_a_run_holds_its_leakage_and_its_groups(optimistic):
    run, shown = optimistic
    results, leakage = read_json(run.results), read_json(run.results)["leakage"]
    fold = read_json(run.folds)["repeats"][0]["folds"][0]
    by_id = {utterance.id: utterance for utterance in read_manifest(run.corpus).utterances}
    train, test = ([by_id[name] for name in fold[part]] for part in ("train", "test"))
    assert leakage["tested"] == len(test)
    for column in ("speaker", "session", "text"):
        known = {utterance.column(column) for utterance in train}
        assert leakage["known"][column] == sum(u.column(column) in known for u in test) / len(test)
    assert leakage["known"]["session"] == 0
    assert leakage["copies"]["count"] == 1
    assert set(leakage["copies"]["examples"][0]) == {"tone00", "tone99"}
    assert leakage["verdict"] in " ".join(shown.split())
    tested = {speaker: sum(u.speaker == speaker for u in test) for speaker in ("S0", "S1", "S2", "S9")}
    shown_groups = {entry["value"]: entry["count"] for entry in results["groups"]["speaker"]}
    assert shown_groups == {speaker: count for speaker, count in tested.items() if count}
    page = (run.report / "index.html").read_text()
    assert "What training knows without hearing" in page
    assert "<h2>Groups</h2>" in page


def leakage(*flags: str) -> int:
    return cli.main(["jax-mtlser", "leakage", *flags])


def test_the_command_shows_a_runs_leakage_beside_its_score(optimistic, capsys):
    run, _ = optimistic
    assert leakage("--workdir", str(run.path)) == 0
    shown = capsys.readouterr().out
    results = read_json(run.results)
    counts = results["folds"][0]["counts"]
    assert f"1 fold: {counts['train']} for train, 0 for validation, {counts['test']} for test" in shown
    assert f"this model – {100 * results['pooled']['wa']:.1f} {100 * results['pooled']['ua']:.1f}" in " ".join(
        shown.split()
    )
    assert results["leakage"]["verdict"] in " ".join(shown.split())
    assert leakage(f"--workdir={run.path}", "--noaudio") == 0
    assert "recordings that training has too" not in capsys.readouterr().out


def test_the_command_takes_a_configuration_without_its_encoder(corpus, capsys):
    tiny = f"--config={ROOT}/tests/experiments/tiny.py"
    protocol = ["--config.protocol.kind=grouped", "--config.protocol.group_column=session", "--config.protocol.folds=0"]
    protocol += ["--config.protocol.validation_fraction=0", "--config.training.selection=last"]
    encoder = "--config.model.encoder.checkpoint=nowhere/to-be-found"
    assert leakage(tiny, f"--config.corpus.path={corpus}", *protocol, encoder) == 0
    shown = capsys.readouterr().out
    assert "6-fold cross-validation, grouped by session, seed 0" in shown
    assert "session 0.0" in " ".join(shown.split())
    assert "2 test utterances are recordings that training has too" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "name either a configuration or a run folder"),
        (["--workdir=nowhere"], "nowhere is no run folder"),
        (["--workdir=x", f"--config={ROOT}/configs/demo.py"], "--config and --workdir are two ways"),
        (["--workdir=x", "y"], "name either a configuration or a run folder"),
        ([f"--config={ROOT}/configs/protocols.py:foo"], "there is no protocol 'foo'; there are session, speaker,"),
        ([f"--config={ROOT}/configs/loso.py"], "no Session1..5/dialog/EmoEvaluation"),
    ],
)
def test_a_wrong_command_is_answered_in_a_few_lines(flags, message, capsys):
    assert leakage(*flags) in (1, 2)
    assert message in capsys.readouterr().err


def test_nemo_under_two_protocols(real_data, capsys):
    flags = [f"--config={ROOT}/configs/whisper_tiny.py", f"--config.corpus.path={real_data / 'nemo16k'}", "--noaudio"]
    assert leakage(*flags) == 0
    held_out = " ".join(capsys.readouterr().out.split())
    assert "7 folds: 1,997 to 2,159 for train, 0 for validation, 198 to 360 for test" in held_out
    assert "speaker 0.0 24.1 22.7" in held_out
    assert "Training has the exact text of 100 %" in held_out
    random = [
        "--config.protocol.kind=stratified",
        "--config.protocol.folds=5",
        "--config.protocol.validation_fraction=0.1",
    ]
    assert leakage(*flags, *random) == 0
    assert "Training has heard the speakers of 100 %" in " ".join(capsys.readouterr().out.split())
