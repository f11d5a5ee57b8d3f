import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.config import ProtocolConfig, ProtocolKind
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.evaluation.protocols import (
    Fold,
    ProtocolError,
    draw_folds,
    folds_from_record,
    folds_record,
    grouped_folds,
    stratified_folds,
)

LABELS = st.lists(st.sampled_from(["ang", "hap", "neu", None]), min_size=2, max_size=80)
SEEDS = st.integers(0, 2**32)
FRACTIONS = st.sampled_from([0.0, 0.01, 0.1, 0.25, 0.5, 0.9])


def manifest_of(size=60, **columns):
    """Rows of four classes, three sentences and five speakers of different sizes."""
    return Manifest(
        "test",
        tuple(
            Utterance(
                id=f"u{i:03}",
                path=Path(f"{i}.wav"),
                emotion=("ang", "hap", "neu", "sad")[i * i % 7 % 4],
                speaker=f"s{i * i % 11 % 5}",
                groups={"sentence": str(i % 3), **{name: value(i) for name, value in columns.items()}},
            )
            for i in range(size)
        ),
    )


def assert_parts(folds, size):
    """Each fold has every row once; each row is tested once."""
    for fold in folds:
        assert sorted(fold.train + fold.validation + fold.test) == list(range(size))
        assert fold.train
        assert fold.test
        for part in (fold.train, fold.validation, fold.test):
            assert list(part) == sorted(part)
            assert all(type(row) is int for row in part)
    assert sorted(row for fold in folds for row in fold.test) == list(range(size))


def spread(counts):
    return max(counts) - min(counts)


@given(labels=LABELS, folds=st.integers(2, 12), seed=SEEDS, fraction=FRACTIONS)
def test_stratified(labels, folds, seed, fraction):
    try:
        drawn = stratified_folds(labels, folds, seed, fraction)
    except ProtocolError:
        rest = len(labels) - -(-len(labels) // folds)
        assert folds > len(labels) or max(1, int(fraction * rest + 0.5)) >= rest
        return
    assert len(drawn) == folds
    assert_parts(drawn, len(labels))
    assert spread([len(fold.test) for fold in drawn]) <= 1
    for label in set(labels):
        assert spread([sum(labels[row] == label for row in fold.test) for fold in drawn]) <= 1
    for fold in drawn:
        rest = Counter(labels[row] for row in fold.train + fold.validation)
        held_out = Counter(labels[row] for row in fold.validation)
        share = len(fold.validation) / rest.total()
        assert (share > 0) == (fraction > 0)
        assert abs(len(fold.validation) - fraction * rest.total()) <= 0.5 or len(fold.validation) == 1
        assert all(abs(held_out[label] - share * count) < 1 for label, count in rest.items())
    assert drawn == stratified_folds(labels, folds, seed, fraction)
    assert [fold.test for fold in drawn] == [fold.test for fold in stratified_folds(labels, folds, seed, 0.0)]


@settings(max_examples=150)
@given(data=st.data(), folds=st.integers(0, 7), seed=SEEDS, fraction=FRACTIONS)
def test_grouped(data, folds, seed, fraction):
    groups = data.draw(st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=60))
    labels = data.draw(st.lists(st.sampled_from(["x", "y", None]), min_size=len(groups), max_size=len(groups)))
    names = set(groups)
    try:
        drawn = grouped_folds(groups, labels, folds, seed, fraction)
    except ProtocolError:
        # Some fold's training part may lack a second group when there are fewer than two per fold.
        assert folds == 1 or len(names) < max(folds, 2) or (fraction > 0 and (len(names) < 3 or folds == 2))
        return
    assert len(drawn) == (folds or len(names))
    assert_parts(drawn, len(groups))
    for fold in drawn:
        sides = [{groups[row] for row in part} for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(names)
        assert bool(fold.validation) == (fraction > 0)
    if folds:
        # Dealing the largest first leaves no two folds further apart than the largest group.
        assert spread([len(fold.test) for fold in drawn]) <= max(Counter(groups).values())
    else:
        assert [groups[fold.test[0]] for fold in drawn] == sorted(names)
    assert drawn == grouped_folds(groups, labels, folds, seed, fraction)


@given(sizes=st.lists(st.integers(1, 9), min_size=3, max_size=7), seed=SEEDS, fraction=FRACTIONS.filter(bool))
def test_validation_groups_come_nearest_to_the_fraction(sizes, seed, fraction):
    groups = [str(index) for index, size in enumerate(sizes) for _ in range(size)]
    for test, fold in enumerate(grouped_folds(groups, ["x"] * len(groups), 0, seed, fraction)):
        rest = [size for index, size in enumerate(sizes) if index != test]
        target = int(fraction * sum(rest) + 0.5)
        sums = {0}
        for size in rest:
            sums |= {size + other for other in sums}
        assert abs(len(fold.validation) - target) == min(abs(s - target) for s in sums - {0, sum(rest)})


def test_equal_groups_are_dealt_equally_and_by_seed():
    groups = [f"g{i % 12:02}" for i in range(120)]
    labels = ["x"] * 120
    drawn = [grouped_folds(groups, labels, 4, seed, 0.1) for seed in range(5)]
    assert all(len(fold.test) == 30 and len(fold.validation) == 10 for folds in drawn for fold in folds)
    assert len({tuple(fold.test for fold in folds) for folds in drawn}) == 5
    assert len({tuple(fold.validation for fold in grouped_folds(groups, labels, 0, s, 0.1)) for s in range(5)}) == 5


def test_validation_groups_have_all_classes_where_they_can():
    # Each group has one class, as acted scenarios often do; 4 of 40 groups are held out.
    groups = [f"g{i % 40:02}" for i in range(400)]
    labels = [("ang", "hap", "neu", "sad")[i % 4] for i in range(400)]
    for seed in range(5):
        for fold in grouped_folds(groups, labels, 10, seed, 0.15):
            assert len({labels[row] for row in fold.validation}) == 4


def test_thousands_of_groups_are_quick():
    groups = [f"g{i % 3000}" for i in range(20_000)]
    assert_parts(grouped_folds(groups, ["x"] * len(groups), 5, 0, 0.1), len(groups))


def test_no_knowledge_of_a_test_group_in_training_for_rows_in_any_order():
    groups = ["b", "a", "c", "b", "a", "c"]
    assert [fold.test for fold in grouped_folds(groups, [None] * 6, 0, 0, 0.0)] == [(1, 4), (0, 3), (2, 5)]


@pytest.mark.parametrize(
    ("groups", "folds", "fraction", "message"),
    [
        (["a", "b", None, "c", None], 0, 0.1, "column 'session' is empty for 2 of 5 utterances"),
        (["a", "b", "c"], 5, 0.1, "has 3 groups, which cannot make 5 folds"),
        (["a", "b", "c"], 1, 0.1, "which cannot make 1 folds"),
        (["a", "b"], 0, 0.1, r"has 2 groups \(a, b\), but training, validation and test need one each"),
        (["a", "a"], 0, 0.0, "has 1 group, but training and test need one each"),
        (["a", "b", "c"], 2, 0.1, "a fold leaves only 1 group of column 'session'"),
    ],
)
def test_groups_that_cannot_be_divided(groups, folds, fraction, message):
    with pytest.raises(ProtocolError, match=message):
        grouped_folds(groups, [None] * len(groups), folds, 0, fraction, column="session")


@pytest.mark.parametrize(
    ("rows", "folds", "fraction", "message"),
    [
        (3, 4, 0.1, "3 utterances cannot make 4 folds"),
        (3, 1, 0.1, "3 utterances cannot make 1 folds"),
        (2, 2, 0.1, "a training part of 1 utterances cannot give 1 for validation"),
    ],
)
def test_utterances_that_cannot_be_divided(rows, folds, fraction, message):
    with pytest.raises(ProtocolError, match=message):
        stratified_folds(["x"] * rows, folds, 0, fraction)


def test_rare_class_is_merely_absent_from_some_folds():
    drawn = stratified_folds(["rare", *["x"] * 19], 10, 0, 0.1)
    assert sum(0 in fold.test for fold in drawn) == 1


def test_repeats_use_successive_seeds():
    manifest = manifest_of()
    labels = manifest.column("emotion")
    drawn = draw_folds(manifest, ProtocolConfig(folds=5, repeats=3, seed=7))
    assert drawn == [stratified_folds(labels, 5, seed, 0.1) for seed in (7, 8, 9)]
    assert [folds[0].seed for folds in drawn] == [7, 8, 9]
    assert drawn[0] != drawn[1]


def test_grouped_by_a_column():
    manifest = manifest_of()
    config = ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="sentence", validation_fraction=0.2)
    (drawn,) = draw_folds(manifest, config)
    assert [{row % 3 for row in fold.test} for fold in drawn] == [{0}, {1}, {2}]


def test_unknown_column():
    config = ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="session")
    with pytest.raises(ProtocolError, match="no column 'session'; it has emotion, speaker, sentence"):
        draw_folds(manifest_of(), config)


# Recorded once. If one of these changes, folds of finished runs can no longer be drawn again.
GOLDEN = [
    (ProtocolConfig(folds=5, repeats=2, seed=3), "5fa7f7017805d77ea016015fd55acef36fc4394c01c939482b4bb840d8368dbb"),
    (
        ProtocolConfig(kind=ProtocolKind.GROUPED, folds=3, group_column="speaker", validation_fraction=0.2, seed=3),
        "89de0e3cb602f282b3ca7bb22bb63df3c22546e3ac0a14aa174d6dbe07f5f0c9",
    ),
]


@pytest.mark.parametrize(("config", "expected"), GOLDEN)
def test_folds_are_the_same_everywhere(config, expected):
    manifest = manifest_of()
    assert folds_record(manifest, draw_folds(manifest, config))["hash"] == expected


def test_record_round_trip():
    manifest = manifest_of()
    drawn = draw_folds(manifest, ProtocolConfig(folds=4, repeats=2, seed=5))
    record = json.loads(json.dumps(folds_record(manifest, drawn)))
    assert [(repeat["repeat"], repeat["seed"]) for repeat in record["repeats"]] == [(0, 5), (1, 6)]
    assert record["repeats"][0]["folds"][0]["test"] == [f"u{row:03}" for row in drawn[0][0].test]
    again = folds_from_record(manifest, record)
    assert again == drawn
    assert again[1][0].seed == 6
    # Ids, not positions, are what counts.
    order = list(reversed(range(len(manifest))))
    turned = folds_from_record(manifest.subset(order), record)
    assert turned[0][0].test == tuple(sorted(order.index(row) for row in drawn[0][0].test))


def test_record_that_was_changed():
    manifest = manifest_of()
    record = folds_record(manifest, draw_folds(manifest, ProtocolConfig(folds=4)))
    fold = record["repeats"][0]["folds"][0]
    fold["train"].append(fold["test"].pop())
    with pytest.raises(ProtocolError, match="the recorded folds were changed: they hash to"):
        folds_from_record(manifest, record)
    with pytest.raises(ProtocolError, match="not a record of folds"):
        folds_from_record(manifest, {"hash": "x"})


def test_record_of_utterances_that_are_gone():
    manifest = manifest_of()
    record = folds_record(manifest, draw_folds(manifest, ProtocolConfig(folds=4)))
    message = r"5 of 60 utterances of the recorded folds are not in test any more \(u000, u001, u002, \.\.\.\)"
    with pytest.raises(ProtocolError, match=message):
        folds_from_record(manifest.subset(range(5, 60)), record)


def test_seed_is_no_part_of_a_comparison():
    assert Fold((0,), (1,), (2,), seed=1) == Fold((0,), (1,), (2,), seed=2)
