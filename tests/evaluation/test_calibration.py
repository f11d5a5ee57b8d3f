"""Calibration against scikit-learn, hand-made examples, and temperatures that were put in."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special
from sklearn.metrics import brier_score_loss, log_loss

from jax_mtlser.evaluation.calibration import Trust, calibrate_member, fit_temperature, trust_of
from jax_mtlser.evaluation.certainty import calibration_record
from jax_mtlser.evaluation.predictions import Prediction

CLASSES = ("angry", "happy", "neutral", "sad")
_seeds = st.integers(0, 2**32 - 1)


def drawn(seed, size, *, sharpness=1.5, too_sure=1.0):
    """Logits, and references that follow their softmax; then the logits are multiplied by ``too_sure``."""
    random = np.random.default_rng(seed)
    logits = sharpness * random.standard_normal((size, 4))
    cumulated = np.cumsum(special.softmax(logits, axis=1), axis=1)
    reference = np.minimum((random.random((size, 1)) > cumulated).sum(1), 3)
    return too_sure * logits, reference


def trust(confidence, correct):
    zeros = np.zeros(len(confidence))
    return Trust(np.array(confidence), np.array(correct, float), zeros, zeros)


def predictions(logits, reference, part, *, member="r0_f0"):
    shares = special.softmax(logits, axis=1)
    return [
        Prediction(
            id=f"{part}{i}", member=member, repeat=0, fold=0, part=part, emotion=CLASSES[r],
            emotion_predicted=CLASSES[int(row.argmax())], emotion_probabilities=tuple(map(float, row)),
        )
        for i, (row, r) in enumerate(zip(shares, reference, strict=True))
    ]  # fmt: skip


# --- Scores ----------------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(_seeds)
def test_brier_and_log_likelihood_agree_with_scikit_learn(seed):
    logits, reference = drawn(seed, 50)
    shares = special.softmax(logits, axis=1)
    summary = trust_of(np.log(shares), reference).summary()
    labels = list(range(4))
    assert summary["nll"] == pytest.approx(log_loss(reference, shares, labels=labels))
    theirs = brier_score_loss(reference, shares, labels=labels, scale_by_half=False)
    assert summary["brier"] == pytest.approx(theirs)


def test_the_calibration_error_by_hand():
    # Two bins of 1/15: (14/15, 1] holds 0.95 and 1.0, half of them right; (8/15, 9/15] holds 0.6, right.
    found = trust([0.95, 1.0, 0.6], [1, 0, 1]).expected_calibration_error
    assert found == pytest.approx((2 * abs(0.5 - 0.975) + 1 * abs(1 - 0.6)) / 3)
    assert trust([0.75] * 4, [1, 1, 1, 0]).expected_calibration_error == 0
    # Bounds belong to the bin below: 2/15 and 0.07 share the second bin, where they cancel out.
    assert trust([2 / 15, 0.07], [0, 1]).expected_calibration_error == pytest.approx((1 - 2 / 15 - 0.07) / 2)


@settings(max_examples=25)
@given(_seeds)
def test_the_calibration_error_is_that_of_a_plain_loop(seed):
    logits, reference = drawn(seed, 80, too_sure=2.0)
    found = trust_of(logits, reference)
    wanted = 0.0
    for low in range(15):
        inside = (found.confidence > low / 15) & (found.confidence <= (low + 1) / 15)
        if inside.any():
            wanted += inside.mean() * abs(found.correct[inside].mean() - found.confidence[inside].mean())
    assert found.expected_calibration_error == pytest.approx(wanted)


@given(_seeds, st.integers(1, 30))
def test_parts_add_up_to_the_whole_in_any_order(seed, cut):
    logits, reference = drawn(seed, 31)
    whole = trust_of(logits, reference).summary()
    one, other = trust_of(logits[:cut], reference[:cut]), trust_of(logits[cut:], reference[cut:])
    assert (one + other).summary() == pytest.approx(whole)
    assert (other + one).summary() == pytest.approx(whole)


def test_no_utterance_has_no_score():
    nothing = trust_of(np.zeros((0, 4)), np.zeros(0, int)).summary()
    assert nothing == {"count": 0, "ece": None, "brier": None, "nll": None}


# --- Temperature -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("too_sure", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_put_in_is_found(too_sure):
    logits, reference = drawn(1, 20_000, too_sure=too_sure)
    assert fit_temperature(logits, reference).value == pytest.approx(too_sure, rel=0.04)


@settings(max_examples=15)
@given(_seeds)
def test_no_other_temperature_is_likelier(seed):
    logits, reference = drawn(seed, 120, too_sure=2.0)
    found = fit_temperature(logits, reference).value
    theirs = optimize.minimize_scalar(
        lambda u: log_loss(reference, special.softmax(logits / np.exp(u), axis=1), labels=range(4)), bounds=(-3, 3),
        method="bounded", options={"xatol": 1e-8},
    )  # fmt: skip
    assert found == pytest.approx(np.exp(theirs.x), rel=1e-3)


@given(_seeds)
def test_probabilities_tell_as_much_as_logits(seed):
    logits, reference = drawn(seed, 100, too_sure=2.0)
    logs = np.log(special.softmax(logits, axis=1))
    assert fit_temperature(logs, reference).value == pytest.approx(fit_temperature(logits, reference).value)
    np.testing.assert_allclose(
        trust_of(logs, reference, 1.7).surprise, trust_of(logits, reference, 1.7).surprise, atol=1e-9
    )


def test_a_temperature_changes_confidence_and_no_decision():
    logits, reference = drawn(3, 200)
    before, after = trust_of(logits, reference), trust_of(logits, reference, 4.0)
    np.testing.assert_array_equal(before.correct, after.correct)
    assert (after.confidence < before.confidence).all()


def test_where_no_temperature_can_be_fitted_the_reason_is_said():
    logits, reference = drawn(0, 100)
    assert (
        "49 labelled utterances in the validation part, fewer than 50"
        in fit_temperature(logits[:49], reference[:49]).reason
    )
    assert "no labelled utterances" in fit_temperature(logits[:0], reference[:0]).reason
    right = fit_temperature(logits, logits.argmax(1))
    assert (right.value, right.reason[:40]) == (None, "the model is right on the whole validati")
    wrong = fit_temperature(logits, logits.argmin(1))
    assert (wrong.value, "no more than chance" in wrong.reason) == (None, True)


# --- Members ---------------------------------------------------------------------------------------------


def test_a_member_is_calibrated_on_validation_and_judged_on_test():
    validation, test = drawn(1, 2000, too_sure=2.5), drawn(2, 2000, too_sure=2.5)
    rows = predictions(*validation, "validation") + predictions(*test, "test")
    record = calibrate_member(rows, CLASSES).record()
    assert record["temperature"] == pytest.approx(2.5, rel=0.1)
    assert record["reason"] is None
    assert record["test"]["nll"] > 1.2 * record["test_after"]["nll"]
    assert record["test"]["ece"] > 0.1 > 0.05 > record["test_after"]["ece"]
    shares = special.softmax(test[0] / record["temperature"], axis=1)
    assert record["test_after"]["nll"] == pytest.approx(log_loss(test[1], shares, labels=range(4)))
    # The test part has no say in the temperature.
    other = predictions(*validation, "validation") + predictions(*drawn(5, 100, too_sure=0.2), "test")
    assert calibrate_member(other, CLASSES).record()["temperature"] == record["temperature"]


def test_labels_that_are_missing_or_no_class_of_the_model_are_left_out():
    rows = predictions(*drawn(1, 60), "validation") + predictions(*drawn(2, 60), "test")
    more = [Prediction(id=f"x{i}", member="r0_f0", repeat=0, fold=0, part="test", emotion=emotion,
                       emotion_predicted="sad", emotion_probabilities=(0.1, 0.1, 0.1, 0.7))
            for i, emotion in enumerate((None, "bored"))]  # fmt: skip
    assert calibrate_member(rows + more, CLASSES).record() == calibrate_member(rows, CLASSES).record()


def test_probabilities_that_were_rounded_to_zero_are_finite():
    rows = predictions(*drawn(1, 60), "validation")
    rows.append(Prediction(id="z", member="r0_f0", repeat=0, fold=0, part="test", emotion="sad",
                           emotion_predicted="angry", emotion_probabilities=(1.0, 0.0, 0.0, 0.0)))  # fmt: skip
    record = calibrate_member(rows, CLASSES).record()
    assert record["test"]["nll"] == pytest.approx(126 * np.log(2), rel=1e-6)


def test_without_an_emotion_head_there_is_nothing_to_calibrate():
    rows = [Prediction(id="a", member="r0_f0", repeat=0, fold=0, part="test", emotion="sad")]
    assert calibrate_member(rows, CLASSES) is None
    assert calibration_record({"r0_f0": None}) is None


def test_members_without_a_temperature_count_as_they_are():
    good = calibrate_member(
        predictions(*drawn(1, 500, too_sure=2.0), "validation") + predictions(*drawn(2, 500, too_sure=2.0), "test"),
        CLASSES,
    )
    bare = calibrate_member(predictions(*drawn(3, 500, too_sure=2.0), "test"), CLASSES)
    record = calibration_record({"r0_f0": good, "r0_f1": bare})
    assert record["before"]["count"] == record["after"]["count"] == 1000
    assert record["before"]["nll"] == pytest.approx((good.record()["test"]["nll"] + bare.record()["test"]["nll"]) / 2)
    assert record["after"]["nll"] == pytest.approx(
        (good.record()["test_after"]["nll"] + bare.record()["test"]["nll"]) / 2
    )
    assert list(record["temperatures"]) == ["r0_f0"]
    assert record["without"] == {"r0_f1": "no labelled utterances in the validation part, fewer than 50"}
    alone = calibration_record({"r0_f1": bare})
    assert alone["after"] is None
    assert bare.record()["test_after"] is None
