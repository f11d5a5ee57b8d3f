"""Labels of one corpus against the classes of another's model, and the scores over what both have."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, recall_score

from jax_mtlser.evaluation.cross_corpus import (
    CrossCorpusError,
    ensemble,
    match_labels,
    shared_scores,
    summarise_members,
)
from jax_mtlser.evaluation.predictions import Prediction

CLASSES = ("angry", "happy", "neutral", "sad")


def row(emotion: str, shares: tuple[float, ...], **other) -> Prediction:
    return Prediction(
        id="u", member="m", repeat=0, fold=0, part="test", emotion=emotion,
        emotion_predicted=CLASSES[int(np.argmax(shares))], emotion_probabilities=shares, **other,
    )  # fmt: skip


def test_labels_meet_by_name_or_by_map():
    match = match_labels(
        {"joy": 3, "sad": 2, "excited": 1, "disgust": 7}, CLASSES, {"joy": "happy", "excited": "happy"}
    )
    assert match.mapping == {"joy": "happy", "sad": "sad", "excited": "happy"}
    assert match.unknown == {"disgust": 7}
    assert match.shared == ("happy", "sad")
    assert match.absent == ("angry", "neutral")


def test_a_map_overrides_an_equal_name():
    assert match_labels({"neutral": 1, "sad": 1, "calm": 1}, CLASSES, {"sad": "angry"}).mapping["sad"] == "angry"


@pytest.mark.parametrize(
    ("counts", "renamed", "message"),
    [
        ({"joy": 1}, {}, "share 0 emotions.*corpus has joy; the model has angry, happy, neutral, sad.*--map joy=happy"),
        ({"sad": 1}, {}, "share 1 emotions"),
        ({}, {}, "the corpus has no emotion labels"),
        ({"joy": 1, "sad": 1}, {"joi": "happy"}, "the corpus has no emotion 'joi'; did you mean joy?"),
        ({"joy": 1, "sad": 1}, {"joy": "hapy"}, "the model has no emotion 'hapy'; did you mean happy?"),
    ],
)
def test_labels_that_do_not_meet_are_told_with_both_lists(counts, renamed, message):
    with pytest.raises(CrossCorpusError, match=message):
        match_labels(counts, CLASSES, renamed)


def test_scores_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    shared = ["happy", "sad"]
    match = match_labels({"happy": 1, "sad": 1}, CLASSES, {})
    shares = random.dirichlet(np.ones(4), 200)
    reference = random.choice(shared, 200)
    scores = shared_scores([row(str(r), tuple(s)) for r, s in zip(reference, shares, strict=True)], match, shared)
    free = np.array(CLASSES)[shares.argmax(axis=1)]
    restricted = np.where(shares[:, 1] > shares[:, 3], "happy", "sad")
    assert set(free) > set(shared)  # the free choice falls outside the shared classes at times
    for choice, predicted in (("free", free), ("restricted", restricted)):
        assert scores[f"{choice}_wa"] == pytest.approx(accuracy_score(reference, predicted))
        recalls = recall_score(reference, predicted, labels=shared, average="macro")
        assert scores[f"{choice}_ua"] == pytest.approx(recalls)
        assert scores[f"{choice}_f1"] == pytest.approx(f1_score(reference, predicted, labels=shared, average="macro"))
    assert scores["restricted_wa"] > scores["free_wa"]
    assert scores["gender_accuracy"] is None
    assert scores["wer"] is None


def test_an_ensemble_judges_by_mean_probabilities():
    gender = {"gender": "male", "gender_predicted": "male", "gender_probabilities": (0.4, 0.6)}
    one = [row("sad", (0.6, 0.0, 0.0, 0.4), text_predicted="A", **gender)]
    two = [row("sad", (0.1, 0.0, 0.0, 0.9), text_predicted="B", **gender | {"gender_probabilities": (0.8, 0.2)})]
    (judged,) = ensemble([one, two], CLASSES, ("female", "male"))
    assert judged.emotion_predicted == "sad"
    assert judged.emotion_probabilities == pytest.approx((0.35, 0, 0, 0.65))
    assert judged.gender_predicted == "female"
    assert judged.text_predicted is None
    assert ensemble([one, two], CLASSES, ())[0].gender_predicted is None


def test_means_and_deviations_are_over_the_members():
    scores = {name: dict.fromkeys(("free_ua", "free_wa", "free_f1", "restricted_wa", "restricted_ua", "restricted_f1",
              "gender_accuracy", "wer"), value) for name, value in (("a", 0.2), ("b", 0.4))}  # fmt: skip
    scores["b"]["wer"] = None
    found = summarise_members(scores)
    assert found["mean"]["free_ua"] == pytest.approx(0.3)
    assert found["std"]["free_ua"] == pytest.approx(0.02**0.5)
    assert (found["mean"]["wer"], found["std"]["wer"]) == (0.2, None)
