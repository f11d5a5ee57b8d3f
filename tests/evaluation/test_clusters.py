"""What is resampled, and what is said about it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mtlser.evaluation.clusters import UTTERANCE, ClusterError, choose_clusters, cluster_columns
from jax_mtlser.evaluation.predictions import Prediction


def rows_of(size=40, **columns):
    """Predictions with columns given as functions of their number; None: empty."""
    rows = []
    for i in range(size):
        values = {name: value(i) for name, value in columns.items()}
        speaker = values.pop("speaker", None)
        groups = {name: value for name, value in values.items() if value is not None}
        rows.append(Prediction(id=f"u{i}", member="m", repeat=0, fold=0, part="test", speaker=speaker, groups=groups))
    return rows


def test_sessions_come_before_dialogues_and_speakers():
    everything = {"speaker": lambda i: f"S{i % 8}", "dialogue": lambda i: f"D{i % 10}", "session": lambda i: f"{i % 4}"}
    for expected, count in (("session", 4), ("dialogue", 10), ("speaker", 8)):
        found = choose_clusters(rows_of(**everything))
        assert (found.column, found.count, found.title) == (expected, count, f"{count} {expected}s")
        everything.pop(expected)
    assert choose_clusters(rows_of()).column == UTTERANCE


def test_a_column_that_does_not_divide_everything_is_passed_over_and_the_reason_is_said():
    found = choose_clusters(
        rows_of(
            session=lambda i: "only one", dialogue=lambda i: None if i == 3 else f"D{i}", speaker=lambda i: f"S{i % 25}"
        )
    )
    assert found.column == "speaker"
    assert found.warning is None
    assert found.reason == (
        "as session is only one throughout, dialogue is not known for 1 of 40 predictions"
    )  # fmt: skip


def test_few_clusters_and_none_at_all_are_warned_about():
    few = choose_clusters(rows_of(session=lambda i: f"{i % 5}"))
    assert "5 sessions are few" in few.warning
    assert choose_clusters(rows_of(session=lambda i: f"{i % 20}")).warning is None
    assert "19 sessions are few" in choose_clusters(rows_of(session=lambda i: f"{i % 19}")).warning
    none = choose_clusters(rows_of())
    assert "Every utterance counts as independent" in none.warning
    assert none.reason == "as session is not known, dialogue is not known, speaker is not known"


def test_any_column_can_be_asked_for():
    rows = rows_of(session=lambda i: f"{i % 4}", room=lambda i: f"R{i % 30}")
    found = choose_clusters(rows, "room")
    assert (found.column, found.title, found.reason) == ("room", "30 values of room", "as asked")
    assert choose_clusters(rows, "utterance").count == 40
    assert cluster_columns(rows) == {"session": 4, "room": 30, "utterance": 40}
    with pytest.raises(ClusterError, match=r"by rom: it is not known; there are session \(4\), room \(30\)"):
        choose_clusters(rows, "rom")
    with pytest.raises(ClusterError, match="it is 1 throughout"):
        choose_clusters(rows_of(session=lambda i: "1"), "session")


@given(st.lists(st.sampled_from(["a", "b", "c"]), min_size=2, max_size=20).filter(lambda n: len(set(n)) > 1))
def test_every_prediction_is_in_the_cluster_that_it_names(names):
    found = choose_clusters(rows_of(len(names), dialogue=lambda i: names[i]))
    assert found.names == tuple(names)
    assert found.count == len(set(names))
