"""What a fold is, and how randomness comes into it."""

import dataclasses
from collections.abc import Iterable

import numpy as np

__all__ = ["Fold", "ProtocolError", "generator_of", "make_fold"]


class ProtocolError(ValueError):
    """Folds that cannot be drawn; the message names the numbers."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """One division of a manifest's rows.

    Attributes:
        train, validation, test: row indices, sorted; no row twice. Rows may be in none: those that the filter
            leaves out, dropped mates, and what lists do not name.
        seed: that the fold was drawn with; kept for the record, no part of comparisons.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    seed: int | None = dataclasses.field(default=None, compare=False)

    @property
    def size(self) -> int:
        """Number of rows in any part."""
        return len(self.train) + len(self.validation) + len(self.test)


def generator_of(seed: int) -> np.random.Generator:
    """PCG64, whose stream is the same on every machine."""
    return np.random.Generator(np.random.PCG64(seed))


def make_fold(rest: Iterable[int], validation: Iterable[int], test: Iterable[int], seed: int) -> Fold:
    """A fold whose training part is what validation leaves of the rest."""
    held_out = set(validation)
    return Fold(tuple(sorted(set(rest) - held_out)), tuple(sorted(held_out)), tuple(sorted(test)), seed)
