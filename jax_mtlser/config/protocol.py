"""Settings of cross-validation."""

import dataclasses
import enum

__all__ = ["ProtocolConfig", "ProtocolKind"]


class ProtocolKind(enum.Enum):
    """How utterances are divided into folds."""

    STRATIFIED = "stratified"  # random utterances, class shares kept: the paper's protocol
    GROUPED = "grouped"  # whole groups (speakers, sessions, ...): nothing of a test group is trained on


@dataclasses.dataclass(kw_only=True)
class ProtocolConfig:
    """Cross-validation.

    Attributes:
        kind: how folds are drawn.
        folds: number of folds; 0 with GROUPED: one per group.
        repeats: the whole cross-validation is repeated with as many different seeds.
        seed: of the first repeat; repeat r uses seed + r.
        group_column: manifest column whose values stay together (GROUPED): speaker, session, ...
        validation_fraction: share of each fold's training part held out for validation, drawn by the
            same rule (stratified, or whole groups). 0 only with ``Selection.LAST``.
        only_folds, only_repeats: train only these; empty: all.
    """

    kind: ProtocolKind = ProtocolKind.STRATIFIED
    folds: int = 10
    repeats: int = 1
    seed: int = 0
    group_column: str = ""
    validation_fraction: float = 0.1
    only_folds: tuple[int, ...] = ()
    only_repeats: tuple[int, ...] = ()
