"""A reader learns from the words what was done."""

import pytest

from jax_mtlser.config import Mates, ProtocolConfig, ProtocolKind, to_dict
from jax_mtlser.evaluation.protocol_text import protocol_sentence, protocol_title, protocol_warnings

GROUPED = ProtocolKind.GROUPED


def summary(config, selection="last", folds=5, notes=()):
    return {**to_dict(config), "folds": folds, "selection": selection, "notes": list(notes)}


@pytest.mark.parametrize(
    ("config", "title", "said"),
    [
        (ProtocolConfig(), "5-fold cross-validation, stratified random, seed 0", "drawn at random"),
        (ProtocolConfig(repeats=3, seed=2), "stratified random, 3 repeats, seed 2", "3 repeats with seeds 2 to 4"),
        (
            ProtocolConfig(kind=GROUPED, group_column="session"),
            "5-fold cross-validation, grouped by session, seed 0",
            "same session in the same part. 10 % of each training part is held out for validation; the",
        ),
        (
            ProtocolConfig(kind=GROUPED, group_column="id", group_pattern="^x"),
            "grouped by id (^x)",
            "all utterances with the same id (^x) in the same part",
        ),
        (
            ProtocolConfig(kind=GROUPED, group_column="speaker", mate_column="session"),
            "grouped by speaker",
            "Who shares a session with the tested is validated on; the",
        ),
        (
            ProtocolConfig(kind=GROUPED, group_column="speaker", mate_column="session", mates=Mates.DROP),
            "grouped by speaker",
            "Who shares a session with the tested is in no part; 10 % of each",
        ),
        (
            ProtocolConfig(kind=GROUPED, group_column="speaker", mate_column="session", mates=Mates.TRAIN),
            "grouped by speaker",
            "Who shares a session with the tested is trained on; 10 % of each",
        ),
        (
            ProtocolConfig(validation_fraction=0.0),
            "stratified random",
            "kept. Nothing of each training part is held out for validation; the parameters of the last epoch are tested.",
        ),
        (
            ProtocolConfig(filter_column="improvised", filter_values=("yes", "so")),
            "stratified random, improvised yes or so only, seed 0",
            "Only utterances with improvised yes or so are used.",
        ),
        (
            ProtocolConfig(kind=ProtocolKind.LISTS, fold_lists="emobox/iemocap"),
            "5-fold cross-validation, lists emobox/iemocap",
            "Validation as listed, else 10 % of each",
        ),
    ],
)
def test_kinds(config, title, said):
    assert title in protocol_title(summary(config))
    assert said in protocol_sentence(summary(config))


def test_one_division():
    config = ProtocolConfig(kind=ProtocolKind.FIXED, split_column="Split_Set")
    assert protocol_title(summary(config, folds=1)) == "one division, parts from column Split_Set, seed 0"
    said = protocol_sentence(summary(config, folds=1, notes=["3 of 9 utterances are in no part of a fold."]))
    assert said.startswith("One division, seed 0: the parts that column Split_Set names. Validation as named there")
    assert said.endswith("3 of 9 utterances are in no part of a fold.")


def test_what_has_to_be_said_beside_a_score():
    grouped = ProtocolConfig(kind=GROUPED, group_column="session")
    assert protocol_warnings(summary(grouped)) == {}
    assert list(protocol_warnings(summary(ProtocolConfig()))) == ["Random folds"]
    chosen = summary(grouped, selection="best_test")
    assert list(protocol_warnings(chosen)) == ["Optimistic"]
    assert protocol_title(chosen).startswith("OPTIMISTIC: ")
    assert "highest UA on the test part itself" in protocol_sentence(chosen)
