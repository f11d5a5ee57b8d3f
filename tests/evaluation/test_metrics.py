"""Scores agree with scikit-learn and jiwer, and merged sums are the sums of the whole."""

import statistics
import warnings

import jiwer
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix, f1_score

from jax_mtlser.evaluation.metrics import (
    SUMMARY_KEYS,
    ConfusionSums,
    TaskMetrics,
    WordErrorSums,
    mean_and_std,
    score,
)
from jax_mtlser.evaluation.predictions import Prediction

_emotions = st.sampled_from(["angry", "happy", "neutral", "sad"])
_pairs = st.lists(st.tuples(_emotions, _emotions), min_size=1, max_size=40)
_words = st.lists(st.sampled_from("abcd"), max_size=8).map(" ".join)
_texts = st.lists(st.tuples(_words, _words), min_size=1, max_size=12)


def _sums(pairs, labels=()):
    return ConfusionSums.from_labels([r for r, _ in pairs], [p for _, p in pairs], labels)


def _prediction(**values):
    return Prediction(**{"id": "u", "member": "r0_f0", "repeat": 0, "fold": 0, "part": "test"} | values)


def test_weighted_and_unweighted_accuracy_are_not_swapped():
    # 8 angry, all found; 2 sad, none found.
    reference = ["angry"] * 8 + ["sad"] * 2
    sums = ConfusionSums.from_labels(reference, ["angry"] * 10)
    assert sums.accuracy == pytest.approx(0.8)
    assert sums.unweighted_accuracy == pytest.approx(0.5)
    assert sums.macro_f1 == pytest.approx((16 / 18) / 2)


def test_an_imbalanced_case_equals_scikit_learn():
    reference = ["neutral"] * 12 + ["happy"] * 5 + ["sad"] * 2 + ["angry"]
    predicted = ["neutral"] * 9 + ["sad"] * 3 + ["happy"] * 3 + ["neutral"] * 2 + ["sad", "angry"] + ["neutral"]
    sums = ConfusionSums.from_labels(reference, predicted, ["angry", "happy", "neutral", "sad"])
    assert sums.accuracy == pytest.approx(accuracy_score(reference, predicted))
    assert sums.unweighted_accuracy == pytest.approx(balanced_accuracy_score(reference, predicted))
    assert sums.macro_f1 == pytest.approx(f1_score(reference, predicted, average="macro"))
    assert len({round(x, 6) for x in (sums.accuracy, sums.unweighted_accuracy, sums.macro_f1)}) == 3


@settings(max_examples=50, deadline=None)
@given(_pairs)
def test_scores_equal_scikit_learn(pairs):
    reference, predicted = [r for r, _ in pairs], [p for _, p in pairs]
    sums = _sums(pairs, ["sad", "never", "angry"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="y_pred contains classes not in y_true")
        warnings.filterwarnings("ignore", message="A single label was found")
        ua = balanced_accuracy_score(reference, predicted)
        matrix = confusion_matrix(reference, predicted, labels=sums.labels)
    assert sums.count == len(pairs)
    assert sums.accuracy == pytest.approx(accuracy_score(reference, predicted))
    assert sums.unweighted_accuracy == pytest.approx(ua)
    assert sums.macro_f1 == pytest.approx(f1_score(reference, predicted, average="macro", zero_division=0))
    np.testing.assert_array_equal(sums.matrix, matrix)


@settings(max_examples=50, deadline=None)
@given(_pairs, _pairs)
def test_merged_confusions_are_the_whole(one, other):
    labels = ("angry", "happy", "neutral", "sad")
    assert _sums(one, labels) + _sums(other, labels) == _sums(one + other, labels)


@settings(max_examples=50, deadline=None)
@given(_pairs, _pairs)
def test_merging_different_classes_loses_nothing(one, other):
    merged, whole = _sums(one) + _sums(other), _sums(one + other)
    assert merged.accuracy == pytest.approx(whole.accuracy)
    assert merged.unweighted_accuracy == pytest.approx(whole.unweighted_accuracy)
    assert merged.macro_f1 == pytest.approx(whole.macro_f1)


def test_nothing_counted_has_no_score():
    empty = ConfusionSums.from_labels([], [], ["angry", "sad"])
    assert (empty.count, empty.accuracy, empty.unweighted_accuracy, empty.macro_f1) == (0, None, None, None)


def test_a_matrix_must_go_with_its_classes():
    with pytest.raises(ValueError, match=r"shape \(1, 1\)"):
        ConfusionSums(("a", "b"), np.zeros((1, 1)))
    with pytest.raises(ValueError, match="classes"):
        ConfusionSums(("a", "a"), np.zeros((2, 2)))


def test_word_error_rate_is_pooled_over_the_corpus():
    reference, predicted = ["one", "a b c d e f g h i"], ["two", "a b c d e f g h i"]
    sums = WordErrorSums.from_texts(reference, predicted)
    assert sums == WordErrorSums(substitutions=1, hits=9)
    assert sums.wer == pytest.approx(0.1) == jiwer.wer(reference, predicted)
    mean_of_utterances = statistics.fmean(map(jiwer.wer, reference, predicted))
    assert mean_of_utterances == pytest.approx(0.5)


def test_empty_prediction_deletes_every_word():
    assert WordErrorSums.from_texts(["a b c"], [""]) == WordErrorSums(deletions=3)


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_empty_references_are_left_out(blank):
    assert WordErrorSums.from_texts([blank], ["a b"]) == WordErrorSums()
    assert WordErrorSums.from_texts([blank, "a"], ["x", "a"]).wer == 0
    assert WordErrorSums().wer is None


def test_white_space_of_any_kind_separates_words():
    assert WordErrorSums.from_texts(["a\tb \n c"], [" a b  c"]).wer == 0


@settings(max_examples=50, deadline=None)
@given(_texts, _texts)
def test_word_errors_equal_jiwer_and_merge_to_the_whole(one, other):
    def sums(pairs):
        return WordErrorSums.from_texts([r for r, _ in pairs], [p for _, p in pairs])

    merged = sums(one) + sums(other)
    assert merged == sums(one + other)
    spoken = [(r, p) for r, p in one + other if r]
    assert merged.reference_words == sum(len(r.split()) for r, _ in spoken)
    if spoken:
        assert merged.wer == pytest.approx(jiwer.wer([r for r, _ in spoken], [p for _, p in spoken]))


def test_score_counts_only_what_is_labelled():
    metrics = score(
        [
            _prediction(
                emotion="angry",
                emotion_predicted="angry",
                gender=None,
                gender_predicted="male",
                speaker="s1",
                speaker_predicted="s1",
                text="A B",
                text_predicted="A",
            ),
            _prediction(
                emotion=None,
                emotion_predicted="sad",
                gender="male",
                gender_predicted="female",
                speaker="s9",
                speaker_known=False,
                speaker_predicted="s1",
                text=None,
                text_predicted="NOISE",
            ),
        ],
        {"emotion": ["sad", "angry"], "gender": ["female", "male"], "speaker": ["s1", "s2"]},
    )
    assert metrics.emotion == ConfusionSums(("sad", "angry"), np.array([[0, 0], [0, 1]]))
    assert metrics.summary() == {
        "wa": 1.0,
        "ua": 1.0,
        "macro_f1": 1.0,
        "gender_accuracy": 0.0,
        "speaker_accuracy": 1.0,
        "wer": 0.5,
    }
    assert tuple(metrics.summary()) == SUMMARY_KEYS


def test_absent_heads_have_no_score():
    metrics = score([_prediction(emotion="sad", emotion_predicted="sad", gender="male", speaker="s1", text="A")])
    assert (metrics.gender, metrics.speaker, metrics.words) == (None, None, None)
    assert [metrics.summary()[key] for key in SUMMARY_KEYS] == [1.0, 1.0, 1.0, None, None, None]


def test_unseen_speakers_alone_have_no_accuracy():
    metrics = score([_prediction(speaker="s9", speaker_known=False, speaker_predicted="s1")])
    assert metrics.summary()["speaker_accuracy"] is None


def test_class_that_the_model_does_not_know_counts_as_an_error():
    assert score([_prediction(emotion="fear", emotion_predicted="sad")], {"emotion": ["sad"]}).summary()["wa"] == 0


_rows = st.lists(
    st.builds(
        _prediction,
        emotion=st.none() | _emotions,
        emotion_predicted=_emotions,
        gender=st.none() | st.sampled_from(["f", "m"]),
        gender_predicted=st.sampled_from(["f", "m"]),
        speaker=st.sampled_from("xyz"),
        speaker_known=st.booleans(),
        speaker_predicted=st.sampled_from("xyz"),
        text=st.none() | _words,
        text_predicted=_words,
    ),
    max_size=12,
)


@settings(max_examples=50, deadline=None)
@given(_rows, _rows)
def test_merged_tasks_are_the_whole(one, other):
    labels = {
        "emotion": ["angry", "happy", "neutral", "sad"],
        "gender": ["f", "m"],
        "speaker": ["x", "y", "z"],
    }
    whole = score(one + other, labels)
    assert score(one, labels) + score(other, labels) == whole
    assert sum([score(one, labels), score(other, labels)], start=TaskMetrics()) == whole


def test_mean_and_std_use_the_sample_deviation():
    mean, std = mean_and_std([0.8, 0.9, 0.7])
    assert mean == pytest.approx(0.8)
    assert std == pytest.approx(np.std([0.8, 0.9, 0.7], ddof=1))
    assert mean_and_std([0.4]) == (0.4, None)
    assert mean_and_std([]) == (None, None)
