"""The heads' start equals scikit-learn's logistic regression behind its scaler, and tells the classes it was shown."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from jax_mtlser.data.labels import Targets
from jax_mtlser.training.regression import fit_heads, logistic_regression


def _utterances(seed, count=90, width=7, classes=3):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    x = rng.normal(size=(classes, width))[labels] + rng.normal(size=(count, width))
    return (x * rng.uniform(0.01, 100.0, width) + 5.0 * rng.normal(size=width)).astype(np.float32), labels


def _probabilities(x, kernel, bias):
    logits = x @ kernel + bias
    shares = np.exp(logits - logits.max(1, keepdims=True))
    return shares / shares.sum(1, keepdims=True)


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("classes", [3, 5])
def test_it_is_scikit_learn_s_regression(c, classes):
    x, labels = _utterances(0, classes=classes)
    theirs = make_pipeline(StandardScaler(), LogisticRegression(C=c, tol=1e-9, max_iter=5000))
    expected = theirs.fit(x.astype(np.float64), labels).predict_proba(x.astype(np.float64))
    found = _probabilities(x.astype(np.float64), *logistic_regression(x, labels, classes, c=c))
    np.testing.assert_allclose(found, expected, atol=1e-4)


@hypothesis.given(seed=st.integers(0, 2**16), shift=st.floats(-50, 50), scale=st.floats(0.1, 10))
def test_the_scale_of_what_is_read_does_not_matter(seed, shift, scale):
    x, labels = _utterances(seed)
    x = x.astype(np.float64)
    found = _probabilities(x, *logistic_regression(x, labels, 3, c=0.1))
    moved = _probabilities(scale * x + shift, *logistic_regression(scale * x + shift, labels, 3, c=0.1))
    np.testing.assert_allclose(moved, found, atol=2e-3)


def test_what_does_not_vary_is_not_used():
    x, labels = _utterances(1)
    x = np.concatenate([x, np.full((len(x), 1), 3.7, np.float32)], axis=1)
    kernel, bias = logistic_regression(x, labels, 3, c=1.0)
    assert not kernel[-1].any()
    assert np.isfinite(kernel).all()
    assert np.isfinite(bias).all()


def test_a_class_that_nobody_names_is_finite_and_never_chosen():
    x, labels = _utterances(2)
    kernel, bias = logistic_regression(x, labels, 4, c=0.1)
    assert np.isfinite(kernel).all()
    assert np.isfinite(bias).all()
    assert (_probabilities(x, kernel, bias)[:, 3] < 0.01).all()


def _targets(**labels):
    none = np.full(90, -1, np.int32)
    empty = Targets(none, none, none, np.zeros((90, 1), np.int32), np.zeros(90, np.int32))
    return dataclasses.replace(empty, **labels)


def test_copies_of_utterances_have_their_labels():
    (x, labels), (other, _) = _utterances(3), _utterances(3)
    moved = other + np.random.default_rng(1).normal(0, 0.3, other.shape).astype(np.float32)
    found = fit_heads([x, moved], _targets(emotion=labels.astype(np.int32)), range(80), {"emotion": 3}, c=1.0)
    kernel, bias = logistic_regression(np.concatenate([x[:80], moved[:80]]), np.tile(labels[:80], 2), 3, c=0.5)
    np.testing.assert_allclose(found["emotion"][0]["kernel"], kernel, atol=1e-6)
    assert found["emotion"][1] == np.mean(np.argmax(x[:80] @ kernel + bias, axis=1) == labels[:80])
    sizes, targets = {"emotion": 3}, _targets(emotion=labels.astype(np.int32))
    once, twice = (fit_heads([x] * copies, targets, range(80), sizes, c=0.1)["emotion"][0] for copies in (1, 2))
    np.testing.assert_allclose(twice["kernel"], once["kernel"], atol=1e-4, err_msg="equal copies add nothing")


def test_heads_are_fitted_on_their_rows_and_their_labels():
    x, labels = _utterances(3)
    strange = np.where(np.arange(90) < 60, labels, (labels + 1) % 3).astype(np.int32)
    strange[:5] = -1
    sizes = {"emotion": 3, "gender": 2, "speaker": 3, "asr": 9}
    found = fit_heads([x], _targets(emotion=strange, speaker=np.zeros(90, np.int32)), range(60), sizes, c=1.0)
    assert list(found) == ["emotion"], "nobody's gender is known, and all have one speaker"
    parameters, accuracy = found["emotion"]
    kernel, bias = logistic_regression(x[5:60], labels[5:60], 3, c=1.0)
    np.testing.assert_allclose(parameters["kernel"], kernel, atol=1e-6)
    np.testing.assert_allclose(parameters["bias"], bias, atol=1e-6)
    assert accuracy == np.mean(np.argmax(x[5:60] @ kernel + bias, axis=1) == labels[5:60])
