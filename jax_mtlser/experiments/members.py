"""What an experiment trains: one member per fold and repeat."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jax_mtlser.config import ProtocolConfig
from jax_mtlser.evaluation.protocols import Fold

__all__ = ["Member", "members_of"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One training.

    Attributes:
        name: of its folder.
        repeat, fold: indices, from 0.
        parts: rows of the manifest.
        seed: of weights, dropout and batch order.
    """

    name: str
    repeat: int
    fold: int
    parts: Fold
    seed: int


def members_of(config: ProtocolConfig, seed: int, drawn: Sequence[Sequence[Fold]]) -> list[Member]:
    """The members that the configuration asks for, by repeat and fold."""
    return [
        Member(
            name=f"r{repeat}_f{fold}",
            repeat=repeat,
            fold=fold,
            parts=parts,
            # Hashed: seeds of neighbouring members must not overlap with those of a run with seed + 1.
            seed=int(np.random.SeedSequence([seed, repeat, fold]).generate_state(1)[0] >> 1),
        )
        for repeat, folds in enumerate(drawn)
        for fold, parts in enumerate(folds)
        if (not config.only_repeats or repeat in config.only_repeats)
        and (not config.only_folds or fold in config.only_folds)
    ]
