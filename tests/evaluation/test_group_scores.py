"""Scores of groups add up to the whole."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mtlser.evaluation.group_scores import group_columns, merged_groups, score_groups, summarised_groups
from jax_mtlser.evaluation.predictions import Prediction


def prediction(emotion, predicted, speaker=None, **groups):
    return Prediction(
        id="u", member="m", repeat=0, fold=0, part="test", emotion=emotion, emotion_predicted=predicted,
        speaker=speaker, groups=groups,
    )  # fmt: skip


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["x", "y", None]), st.sampled_from("xy"), st.sampled_from(["A", "B", None]), st.booleans()
    )
)


@given(rows=ROWS)
def test_groups_of_all_members_are_the_groups_of_all_predictions(rows):
    made = [prediction(e, p, s, session="1" if first else "2") for e, p, s, first in rows]
    columns = group_columns({"group_column": "session", "split_column": ""})
    assert columns == ("corpus", "session", "speaker", "gender")
    parts = [score_groups(made[:3], columns), score_groups(made[3:], columns)]
    # Members' predictions are merged with the classes in any order.
    merged, whole = (summarised_groups(groups) for groups in (merged_groups(parts), score_groups(made, columns)))
    assert merged == whole
    for column, values in whole.items():
        labelled = [r for r in made if r.emotion and (r.speaker if column == "speaker" else True)]
        assert sum(entry["count"] for entry in values) == len(labelled)
        assert len(values) > 1
        hits = sum(r.emotion == r.emotion_predicted for r in labelled)
        assert sum(entry["wa"] * entry["count"] for entry in values) == pytest.approx(hits)


def test_columns_of_the_protocol_are_told_apart_and_numbers_sorted_as_numbers():
    rows = [prediction("x", "x" if n % 2 else "y", Split_Set=f"Test{n}") for n in (10, 9, 1)]
    columns = group_columns({"group_column": "text", "split_column": "Split_Set"})
    assert columns[-1] == "Split_Set"
    assert "text" not in columns
    (entries,) = summarised_groups(score_groups(rows, columns)).values()
    assert [(entry["value"], entry["wa"]) for entry in entries] == [("Test1", 1), ("Test9", 1), ("Test10", 0)]
