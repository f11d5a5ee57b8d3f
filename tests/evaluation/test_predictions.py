"""The table of predictions gives back what was put in, exactly."""

import csv
import dataclasses
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.evaluation.predictions import (
    Prediction,
    PredictionsError,
    read_predictions,
    write_predictions,
)

CLASSES = {"emotion": ("angry", "happy"), "gender": ("female", "male"), "speaker": ("s1", "s2")}


def _prediction(**changes):
    base = Prediction(
        id="Ses01F_impro01_F000",
        member="r0_f3",
        repeat=0,
        fold=3,
        part="test",
        emotion="angry",
        emotion_predicted="happy",
        emotion_probabilities=(0.1, 0.9),
        gender="female",
        gender_predicted="female",
        gender_probabilities=(0.75, 0.25),
        speaker="s1",
        speaker_predicted="s2",
        text="HELLO THERE",
        text_predicted="HELLO",
        groups={"session": "1"},
    )
    return dataclasses.replace(base, **changes)


def test_columns_stand_in_the_documented_order(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, [_prediction()], CLASSES)
    with path.open(encoding="utf-8", newline="") as file:
        header, row = csv.reader(file)
    assert header == [
        "id",
        "member",
        "repeat",
        "fold",
        "part",
        "emotion",
        "emotion_predicted",
        "p_angry",
        "p_happy",
        "gender",
        "gender_predicted",
        "p_gender_female",
        "p_gender_male",
        "speaker",
        "speaker_known",
        "speaker_predicted",
        "text",
        "text_predicted",
        "session",
    ]
    assert row[:9] == ["Ses01F_impro01_F000", "r0_f3", "0", "3", "test", "angry", "happy", "0.1", "0.9"]
    assert row[13:] == ["s1", "1", "s2", "HELLO THERE", "HELLO", "1"]


def test_nothing_heard_is_not_the_same_as_no_head(tmp_path):
    heard_nothing, no_head = tmp_path / "a.csv", tmp_path / "b.csv"
    write_predictions(heard_nothing, [_prediction(text_predicted="")], CLASSES)
    write_predictions(no_head, [_prediction(text_predicted=None)], CLASSES)
    assert read_predictions(heard_nothing)[0].text_predicted == ""
    assert read_predictions(no_head)[0].text_predicted is None


def test_emotion_alone(tmp_path):
    path = tmp_path / "predictions.csv"
    rows = [
        _prediction(
            gender=None,
            gender_predicted=None,
            gender_probabilities=(),
            speaker_predicted=None,
            text_predicted=None,
        )
    ]
    write_predictions(path, rows, CLASSES)
    assert read_predictions(path) == rows


def test_a_speaker_unseen_in_training_keeps_the_name_but_is_no_reference(tmp_path):
    path = tmp_path / "predictions.csv"
    write_predictions(path, [_prediction(speaker="s9", speaker_known=False)], CLASSES)
    (row,) = read_predictions(path)
    assert (row.speaker, row.speaker_known, row.speaker_reference) == ("s9", False, None)


@pytest.mark.parametrize("name", ["fold", "corpus_fold", "corpus_corpus_text", "p_happy", "corpus_x", "text_predicted"])
def test_group_columns_named_like_ours_stay_apart(tmp_path, name):
    path = tmp_path / "predictions.csv"
    rows = [_prediction(groups={name: "7"}, text_predicted=None)]
    write_predictions(path, rows, CLASSES)
    with path.open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file))
    assert len(set(header)) == len(header)
    assert read_predictions(path) == rows


def test_classes_named_like_columns(tmp_path):
    path = tmp_path / "predictions.csv"
    classes = {"emotion": ("gender_male", "gender"), "gender": ("gender", "speaker")}
    rows = [_prediction(emotion="gender", emotion_predicted="gender_male", gender="speaker", gender_predicted="gender")]
    write_predictions(path, rows, classes)
    assert read_predictions(path) == rows


def test_no_rows(tmp_path):
    write_predictions(tmp_path / "p.csv", [], CLASSES)
    assert read_predictions(tmp_path / "p.csv") == []


_label = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
_maybe = st.none() | _label
_share = st.floats(0, 1)


@st.composite
def _tables(draw):
    heads = {task: draw(st.booleans()) for task in ("emotion", "gender", "speaker", "text")}
    classes = {task: tuple(draw(st.lists(_label, max_size=4, unique=True))) for task in ("emotion", "gender")}

    def row():
        values = {"id": draw(_label), "member": draw(_label)}
        values |= {"repeat": draw(st.integers(0, 99)), "fold": draw(st.integers(0, 99))}
        values |= {
            "part": draw(st.sampled_from(["validation", "test"])),
            "speaker_known": draw(st.booleans()),
        }
        for task, head in heads.items():
            values[task] = draw(_maybe)
            values[f"{task}_predicted"] = draw(st.text(max_size=5) if task == "text" else _label) if head else None
        for task, names in classes.items():
            values[f"{task}_probabilities"] = tuple(draw(_share) for _ in names) if heads[task] else ()
        values["groups"] = draw(st.dictionaries(_label, _label, max_size=3))
        return Prediction(**values)

    return [row() for _ in range(draw(st.integers(1, 4)))], classes


@settings(max_examples=40, deadline=None)
@given(_tables())
def test_round_trip_of_anything(tmp_path_factory, table):
    rows, classes = table
    path = tmp_path_factory.mktemp("table") / "predictions.csv"
    write_predictions(path, rows, classes)
    assert read_predictions(path) == rows


def test_probabilities_come_back_to_the_last_bit(tmp_path):
    row = _prediction(emotion_probabilities=(1 / 3, math.nextafter(2 / 3, 1)))
    write_predictions(tmp_path / "p.csv", [row], CLASSES)
    assert read_predictions(tmp_path / "p.csv")[0].emotion_probabilities == row.emotion_probabilities


def test_rows_must_have_the_same_heads(tmp_path):
    rows = [_prediction(), _prediction(id="other", text_predicted=None)]
    with pytest.raises(PredictionsError, match="other: text_predicted is None"):
        write_predictions(tmp_path / "p.csv", rows, CLASSES)


def test_probabilities_must_match_the_classes(tmp_path):
    with pytest.raises(PredictionsError, match="1 emotion probabilities for 2 classes"):
        write_predictions(tmp_path / "p.csv", [_prediction(emotion_probabilities=(1.0,))], CLASSES)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"id"', '"name"', "not a table of predictions"),
        ('"test"', '"train"', "line 2: part is 'train'"),
        ("0.9", "much", "line 2: could not convert"),
        ('"angry",', "", "line 2: 18 cells under 19 columns"),
    ],
)
def test_damaged_tables_are_refused(tmp_path, old, new, message):
    path = tmp_path / "p.csv"
    write_predictions(path, [_prediction()], CLASSES)
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(PredictionsError, match=message):
        read_predictions(path)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "p.csv").write_text("")
    with pytest.raises(PredictionsError, match="columns are missing"):
        read_predictions(tmp_path / "p.csv")


def test_predictions_are_immutable():
    with pytest.raises(dataclasses.FrozenInstanceError):
        _prediction().emotion = "sad"
