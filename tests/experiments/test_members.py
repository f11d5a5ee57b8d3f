"""The table of members: names, order, seeds, and the parts that processes take."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jax_mtlser.config import Config, ConfigError, CorpusConfig, CorpusKind, ProtocolConfig, grid
from jax_mtlser.evaluation.protocols import Fold
from jax_mtlser.experiments.members import choose, members_of, settings_of

DRAWN = [[Fold((0,), (), (1,)), Fold((1,), (), (0,))], [Fold((2,), (), (3,)), Fold((3,), (), (2,))]]


def test_members_are_named_by_variant_repeat_and_fold_and_the_first_repeat_comes_first():
    plain = members_of(ProtocolConfig(), 0, DRAWN)
    assert [member.name for member in plain] == ["r0_f0", "r0_f1", "r1_f0", "r1_f1"]
    varied = members_of(ProtocolConfig(only_folds=(1,)), 0, DRAWN, ["alpha0", "alpha0.4"])
    assert [member.name for member in varied] == ["alpha0_r0_f1", "alpha0.4_r0_f1", "alpha0_r1_f1", "alpha0.4_r1_f1"]
    assert [member.variant for member in varied[:2]] == ["alpha0", "alpha0.4"]


def test_variants_of_a_fold_share_parts_and_seed():
    members = members_of(ProtocolConfig(), 3, DRAWN, ["a", "b"])
    by_place = {}
    for member in members:
        by_place.setdefault((member.repeat, member.fold), set()).add((member.seed, member.parts))
    assert all(len(own) == 1 for own in by_place.values())
    assert len({member.seed for member in members}) == 4


def test_settings_of_each_variant():
    config = Config(name="x", corpus=CorpusConfig(kind=CorpusKind.DEMO))
    assert settings_of(config) == {"": config}
    config.variants = grid({"weights.alpha": (0, 0.5), "optimizer.learning_rate": (1e-5,)})
    settings = settings_of(config)
    assert list(settings) == ["alpha0_learning_rate1e-05", "alpha0.5_learning_rate1e-05"]
    assert [own.weights.alpha for own in settings.values()] == [0, 0.5]
    assert all(own.variants == () and own.weights.beta == 0.6 for own in settings.values())


@given(st.integers(1, 12), st.integers(1, 9))
def test_parts_divide_the_members_among_processes(variants, parts):
    members = members_of(ProtocolConfig(), 0, DRAWN, [f"v{number}" for number in range(variants)])
    taken = [member.name for part in range(1, parts + 1) for member in choose(members, f"{part}/{parts}")]
    assert sorted(taken) == sorted(member.name for member in members)
    sizes = [len(choose(members, f"{part}/{parts}")) for part in range(1, parts + 1)]
    assert max(sizes) - min(sizes) <= 1


def test_patterns_choose_by_name_in_the_members_order():
    members = members_of(ProtocolConfig(), 0, DRAWN, ["alpha0", "alpha0.4"])
    assert [m.name for m in choose(members, "*_r1_f0, alpha0.4_r0_*")] == [
        "alpha0.4_r0_f0", "alpha0.4_r0_f1", "alpha0_r1_f0", "alpha0.4_r1_f0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("0/4", "parts are numbered from 1 to 4; in a SLURM array, use --array=1-4"),
        ("5/4", "parts are numbered from 1 to 4"),
        ("1/0", "parts are numbered from 1 to 0"),
        ("r9_*", r"'r9_\*' fits no member; there are r0_f0"),
        ("r0_f0,r0_f9", "'r0_f9' fits no member; there are r0_f1"),
        ("", "is empty; use i/n or names such as r0_f0"),
    ],
)
def test_a_part_that_does_not_exist_is_refused(pattern, message):
    with pytest.raises(ConfigError, match=message):
        choose(members_of(ProtocolConfig(), 0, DRAWN), pattern)
