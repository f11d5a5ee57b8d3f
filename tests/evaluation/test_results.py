"""Members are put together from their predictions, and from nothing else."""

import json
import math

import pytest
from scipy import stats

from jax_mtlser.config import Config, CorpusConfig, CorpusKind, to_dict
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.evaluation.results import ResultsError, gather_results
from jax_mtlser.run_folder import RunFolder, write_json

LABELS = {"emotion": ["angry", "sad"], "gender": [], "speaker": []}
FOLDS = 2


@pytest.fixture
def run(tmp_path):
    run = RunFolder(tmp_path / "run")
    config = Config(name="small", corpus=CorpusConfig(kind=CorpusKind.DEMO))
    config.protocol.folds, config.protocol.repeats, config.protocol.seed = FOLDS, 2, 5
    write_json(run.config, to_dict(config))
    parts = {"train": ["c"], "validation": ["b"], "test": ["a"]}
    repeats = [{"repeat": r, "seed": 5 + r, "folds": [parts] * FOLDS} for r in range(2)]
    write_json(run.folds, {"hash": "ab12", "repeats": repeats})
    return run


def add_member(run, repeat, fold, correct, wrong, *, jax="0.10.2", predictions=True):
    """A member that is tested on ``correct`` + ``wrong`` angry utterances."""
    name = f"r{repeat}_f{fold}"
    folder = run.member(name)
    if predictions:
        rows = [
            Prediction(
                id=f"{name}_{part}_{i}",
                member=name,
                repeat=repeat,
                fold=fold,
                part=part,
                emotion="angry",
                emotion_predicted="angry" if part == "test" and i < correct else "sad",
                emotion_probabilities=(0.5, 0.5),
            )
            for part in ("validation", "test")
            for i in range(correct + wrong)
        ]
        write_predictions(folder.predictions, rows, LABELS)
    result = {
        "name": name,
        "repeat": repeat,
        "fold": fold,
        "seed": 10 * repeat + fold,
        "epochs": 3,
        "selected_epoch": 2,
        "selection": "best_validation",
        "labels": LABELS,
        "parameters": 7,
        "counts": {"train": 1, "validation": 1, "test": correct + wrong, "skipped_ctc": 0},
        "seconds": {"compile": 1.0, "train": 2.0},
        "audio_seconds_per_second": 3.0,
        # Deliberately wrong: the predictions are what counts.
        "metrics": dict.fromkeys(SUMMARY_KEYS, 0.123),
        "versions": {"jax": jax, "python": "3.11"},
    }
    write_json(folder.result, result)


def test_pooled_is_over_utterances_and_not_the_mean_of_members(run):
    add_member(run, 0, 0, correct=9, wrong=1)
    add_member(run, 0, 1, correct=0, wrong=2)
    results = gather_results(run)
    assert results["pooled"]["wa"] == pytest.approx(9 / 12)
    assert [fold["metrics"]["wa"] for fold in results["folds"]] == [pytest.approx(0.9), 0.0]
    assert results["confusion"] == {"labels": ["angry", "sad"], "matrix": [[9, 3], [0, 0]]}
    assert tuple(results["pooled"]) == SUMMARY_KEYS
    assert results["pooled"]["wer"] is None


def test_folds_and_pooled_scores_have_intervals(run):
    add_member(run, 0, 0, correct=9, wrong=1)
    add_member(run, 0, 1, correct=0, wrong=2)
    results = gather_results(run)
    for fold, hits, count in zip(results["folds"], (9, 0), (10, 2), strict=True):
        wanted = stats.binomtest(hits, count).proportion_ci(method="wilson")
        assert fold["wa_interval"] == pytest.approx(list(wanted))
    intervals = results["intervals"]
    # Without groups each of the 12 utterances is one cluster, so counts of right ones are binomial.
    assert (intervals["column"], intervals["clusters"], intervals["draws"]) == ("utterance", 12, 10_000)
    assert intervals["wa"] == pytest.approx([q / 12 for q in stats.binom(12, 0.75).ppf([0.025, 0.975])])
    assert "Every utterance counts as independent" in intervals["warning"]


def test_temperatures_come_from_the_validation_predictions(run):
    add_member(run, 0, 0, correct=40, wrong=20)
    add_member(run, 0, 1, correct=5, wrong=5)
    results = gather_results(run)
    first, second = (fold["calibration"] for fold in results["folds"])
    # Even probabilities: no temperature changes them.
    assert (first["temperature"], first["validation"]["count"]) == (None, 60)
    assert "no more than chance" in first["reason"]
    assert first["test"]["nll"] == pytest.approx(math.log(2))
    assert second["reason"] == "10 labelled utterances in the validation part, fewer than 50"
    assert results["calibration"]["before"]["count"] == 70
    assert results["calibration"]["after"] is None
    assert set(results["calibration"]["without"]) == {"r0_f0", "r0_f1"}


def test_repeats_are_pooled_over_their_folds(run):
    add_member(run, 0, 0, correct=3, wrong=1)
    add_member(run, 0, 1, correct=3, wrong=1)
    add_member(run, 1, 0, correct=1, wrong=0)
    add_member(run, 1, 1, correct=1, wrong=2)
    repeats = gather_results(run)["repeats"]
    assert [value["wa"] for value in repeats["values"]] == [0.75, 0.5]
    assert repeats["mean"]["wa"] == pytest.approx(0.625)
    assert repeats["std"]["wa"] == pytest.approx(0.25 / 2**0.5)
    assert (repeats["complete"], repeats["incomplete"]) == ([0, 1], [])
    assert repeats["mean"]["wer"] is repeats["std"]["wer"] is None


def test_incomplete_repeats_and_missing_members_are_named(run):
    add_member(run, 0, 0, correct=1, wrong=1)
    add_member(run, 0, 1, correct=1, wrong=1)
    add_member(run, 1, 1, correct=1, wrong=1)
    run.member("r1_f0").path.mkdir()  # begun, not finished
    results = gather_results(run, expected=["r0_f0", "r0_f1", "r1_f0", "r1_f1"])
    assert results["repeats"]["complete"] == [0]
    assert results["repeats"]["incomplete"] == [1]
    assert results["repeats"]["std"]["wa"] is None
    assert results["missing"] == ["r1_f0"]
    assert len(results["folds"]) == 3


def test_protocol_and_versions_are_carried_along(run):
    add_member(run, 0, 1, correct=1, wrong=1, jax="0.11.2")
    add_member(run, 0, 0, correct=1, wrong=1)
    results = gather_results(run)
    assert {
        "kind": "stratified",
        "folds": 2,
        "repeats": 2,
        "seed": 5,
        "group_column": "",
        "validation_fraction": 0.1,
        "selection": "best_validation",
        "fold_hash": "ab12",
    }.items() <= results["protocol"].items()
    assert results["versions"] == {"jax": "0.10.2, 0.11.2", "python": "3.11"}
    first = results["folds"][0]
    assert (first["name"], first["repeat"], first["fold"], first["seed"]) == ("r0_f0", 0, 0, 0)
    assert (first["selected_epoch"], first["counts"]["test"]) == (2, 2)


def test_the_number_of_folds_is_that_of_the_drawn_ones(run):
    config = json.loads(run.config.read_text())
    config["protocol"] |= {"kind": "grouped", "folds": 0, "group_column": "speaker"}
    write_json(run.config, config)
    assert gather_results(run)["protocol"]["folds"] == FOLDS


def test_members_are_ordered_by_number_and_not_by_name(run):
    write_json(run.folds, {"hash": "", "repeats": [{"repeat": 0, "seed": 0, "folds": [{}] * 11}]})
    for fold in (10, 2, 0):
        add_member(run, 0, fold, correct=1, wrong=0)
    assert [fold["name"] for fold in gather_results(run)["folds"]] == ["r0_f0", "r0_f2", "r0_f10"]


def test_nothing_finished_yet(run):
    results = gather_results(run, expected=["r0_f0"])
    assert results["pooled"] == dict.fromkeys(SUMMARY_KEYS)
    assert results["confusion"] is results["intervals"] is results["calibration"] is None
    assert (results["folds"], results["missing"]) == ([], ["r0_f0"])


def test_the_result_is_strict_json(run):
    add_member(run, 0, 0, correct=1, wrong=1)
    write_json(run.results, results := gather_results(run))
    assert json.loads(run.results.read_text()) == results


def test_two_members_of_one_fold_are_refused(run):
    add_member(run, 0, 0, correct=1, wrong=1)
    run.member("r0_f0").path.rename(run.member("copy").path)
    add_member(run, 0, 0, correct=1, wrong=1)
    with pytest.raises(ResultsError, match="2 members are fold 0 of repeat 0"):
        gather_results(run)


def test_a_finished_member_needs_its_predictions(run):
    add_member(run, 0, 0, correct=1, wrong=1, predictions=False)
    with pytest.raises(ResultsError, match=r"r0_f0 is finished but has no predictions\.csv"):
        gather_results(run)
