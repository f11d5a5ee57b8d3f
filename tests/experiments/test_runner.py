"""A run from a folder of recordings to results: what is written, what is refused, what is recomputed."""

import dataclasses
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console
from tiny import tiny_config, write_corpus

from jax_mtlser.config import ConfigError, OptimizerConfig, ProtocolConfig, ProtocolKind, Selection
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments.runner import RunError, evaluate_run, train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.progress import Display


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=120))


def shown(display: Display) -> str:
    return display.console.file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    folder = write_corpus(tmp_path_factory.mktemp("tones"))
    # One recording that cannot be used: listed, left out, and the rest goes on.
    (folder / "wav" / "broken.wav").write_bytes(b"no audio")
    with (folder / "manifest.csv").open("a") as table:
        table.write("broken,wav/broken.wav,,,angry,male,S0,A,0\n")
    return folder


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> tuple[RunFolder, str]:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    screen = display()
    assert train_run(tiny_config(corpus), run.path, screen) == 0
    return run, shown(screen)


def test_a_run_folder_holds_everything_the_report_needs(finished, corpus):
    run, output = finished
    results = read_json(run.results)
    assert set(results["pooled"]) == {"wa", "ua", "macro_f1", "gender_accuracy", "speaker_accuracy", "wer"}
    assert all(value is not None for value in results["pooled"].values())
    assert [fold["name"] for fold in results["folds"]] == ["r0_f0", "r0_f1"]
    assert results["versions"]["jax"]
    assert len(read_manifest(run.corpus)) == 30
    assert "broken" in run.skipped.read_text()
    assert "1 left out" in output
    assert (run.report / "index.html").exists()
    assert results["intervals"]["column"] == "session"
    for name, fold in zip(("r0_f0", "r0_f1"), results["folds"], strict=True):
        member = run.member(name)
        calibration = read_json(member.result)["calibration"]
        assert calibration == fold["calibration"]
        assert calibration["reason"] == "3 labelled utterances in the validation part, fewer than 50"
        assert not member.checkpoints.exists()
        lines = list(read_json_lines(member.metrics))
        assert [line["epoch"] for line in lines if line["kind"] == "validation"] == [1, 2]
        assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")


def test_every_utterance_is_tested_once_by_a_model_that_did_not_train_on_it(finished):
    run, _ = finished
    folds = read_json(run.folds)["repeats"][0]["folds"]
    tested = []
    for number, parts in enumerate(folds):
        rows = read_predictions(run.member(f"r0_f{number}").predictions)
        by_part = {part: [row.id for row in rows if row.part == part] for part in ("validation", "test")}
        assert sorted(by_part["test"]) == sorted(parts["test"])
        assert sorted(by_part["validation"]) == sorted(parts["validation"])
        assert not set(by_part["test"]) & set(parts["train"])
        tested += by_part["test"]
        assert all(abs(sum(row.emotion_probabilities) - 1) < 1e-5 for row in rows)
    assert len(tested) == len(set(tested)) == 30


def test_evaluating_again_from_the_saved_models_gives_the_same_numbers(finished):
    run, _ = finished
    stored = run.results.read_text()
    predictions = run.member("r0_f0").predictions.read_text()
    assert evaluate_run(run.path, display()) == []
    assert run.results.read_text() == stored
    assert run.member("r0_f0").predictions.read_text() == predictions


def test_evaluating_again_tells_when_a_stored_number_is_not_what_the_model_says(finished):
    run, _ = finished
    result = read_json(run.member("r0_f1").result)
    spoiled = {**result, "metrics": {**result["metrics"], "wa": 0.123456}}
    run.member("r0_f1").result.write_text(json.dumps(spoiled))
    differences = evaluate_run(run.path, display())
    assert len(differences) == 1
    assert "r0_f1: wa stored 0.123456" in differences[0]


def test_other_settings_are_not_mixed_into_a_run_folder(finished, corpus):
    run, _ = finished
    config = tiny_config(corpus)
    config.optimizer.learning_rate = 5e-4
    with pytest.raises(RunError, match=r"optimizer.learning_rate: 0.001 there, 0.0005 now"):
        train_run(config, run.path, display())


def test_evaluating_something_else_than_a_run_says_so(tmp_path):
    with pytest.raises(RunError, match="is no run folder"):
        evaluate_run(tmp_path, display())


def test_a_loss_that_is_not_finite_stops_the_member_and_names_its_utterances(corpus, tmp_path):
    config = tiny_config(corpus, epochs=3)
    config.optimizer = OptimizerConfig(learning_rate=1e38, clip_norm=None)
    screen = display()
    assert train_run(config, tmp_path / "run", screen) == 2
    assert "is not finite at step" in shown(screen)
    assert "tone" in shown(screen)
    member = RunFolder(tmp_path / "run").member("r0_f0")
    assert not member.result.exists()
    # What was kept must be usable: no state with NaN is ever saved.
    logged = [line["step"] for line in read_json_lines(member.metrics) if line["kind"] == "train"]
    kept = [int(path.name) for path in member.checkpoints.iterdir()] if member.checkpoints.exists() else []
    assert all(step <= max(logged, default=0) for step in kept)


@pytest.mark.parametrize(
    ("dropped", "absent"),
    [
        pytest.param({"text": None}, {"wer"}, marks=pytest.mark.slow),
        pytest.param(
            {"gender": None, "speaker": None}, {"gender_accuracy", "speaker_accuracy"}, marks=pytest.mark.slow
        ),
        ({"emotion": None}, {"wa", "ua", "macro_f1"}),
    ],
)
def test_a_corpus_without_some_labels_trains_the_other_tasks(tmp_path, dropped, absent):
    corpus = write_corpus(tmp_path / "corpus", **dropped)
    config = tiny_config(corpus, epochs=1)
    config.protocol = dataclasses.replace(config.protocol, only_folds=(0,))
    assert train_run(config, tmp_path / "run", display()) == 0
    pooled = read_json(RunFolder(tmp_path / "run").results)["pooled"]
    assert {name for name, value in pooled.items() if value is None} == absent


def test_a_corpus_without_any_label_is_refused_before_training(tmp_path):
    corpus = write_corpus(tmp_path / "corpus", emotion=None, gender=None, speaker=None, text=None)
    with pytest.raises(ConfigError, match="no labels to learn from"):
        train_run(tiny_config(corpus), tmp_path / "run", display())


def test_group_wise_folds_mask_speakers_that_training_has_not_heard(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, epochs=1)
    config.protocol = ProtocolConfig(
        kind=ProtocolKind.GROUPED, folds=0, group_column="speaker", validation_fraction=0.3, only_folds=(0,)
    )
    assert train_run(config, tmp_path / "run", display()) == 0
    run = RunFolder(tmp_path / "run")
    rows = read_predictions(run.member("r0_f0").predictions)
    assert {row.speaker for row in rows if row.part == "test"} == {"S0"}
    assert not any(row.speaker_known for row in rows)
    assert read_json(run.results)["pooled"]["speaker_accuracy"] is None


def test_the_last_epoch_needs_no_validation_part_and_not_every_epoch_a_checkpoint(tmp_path, monkeypatch):
    saved = []
    save = TrainingCheckpoints.save

    def noted(self, state, progress):
        saved.append(progress["step"])
        save(self, state, progress)

    monkeypatch.setattr(TrainingCheckpoints, "save", noted)
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, epochs=3)
    config.protocol = ProtocolConfig(folds=2, validation_fraction=0.0, only_folds=(1,))
    config.training = dataclasses.replace(
        config.training, selection=Selection.LAST, checkpoint_every_steps=1_000, checkpoint_every_epochs=2
    )
    assert train_run(config, tmp_path / "run", display()) == 0
    member = RunFolder(tmp_path / "run").member("r0_f1")
    steps = [line["step"] for line in read_json_lines(member.metrics) if line["kind"] == "train"]
    assert saved == [max(steps) * 2 // 3]
    result = read_json(member.result)
    assert result["selected_epoch"] == 3
    assert result["counts"]["validation"] == 0


def test_a_changed_corpus_is_noticed(tmp_path):
    corpus = write_corpus(tmp_path / "corpus")
    config = tiny_config(corpus, epochs=1)
    config.protocol = dataclasses.replace(config.protocol, only_folds=(0,))
    train_run(config, tmp_path / "run", display())
    soundfile.write(corpus / "wav" / "tone00.wav", np.zeros(8000), 16_000)
    with pytest.raises(RunError, match="the corpus has changed"):
        train_run(config, tmp_path / "run", display())
