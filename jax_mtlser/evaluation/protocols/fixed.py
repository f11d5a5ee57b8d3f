"""Folds whose parts are given: by a column of the corpus, or by lists."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError, generator_of, make_fold
from jax_mtlser.evaluation.protocols.grouped import grouped_part
from jax_mtlser.evaluation.protocols.stratified import stratified_part

__all__ = ["FoldPart", "fold_of_parts", "part_named", "parts_of_column"]

FoldPart = Literal["train", "validation", "test"]

# As corpora spell them: MELD dev, MSP-Podcast Development (later releases: Validation) and Test1 to Test3.
_NAMES: dict[FoldPart, str] = {
    "train": r"train(ing)?",
    "validation": r"dev|devel|development|val|valid|validation",
    "test": r"(test(ing)?|eval|evaluation)[ _-]?\d*",
}


def part_named(name: str) -> FoldPart | None:
    """The part that a corpus calls by this name; None for other words."""
    plain = name.strip().lower()
    return next((part for part, pattern in _NAMES.items() if re.fullmatch(pattern, plain)), None)


def parts_of_column(values: Sequence[str | None], column: str) -> list[FoldPart | None]:
    """The part of each row; None where the cell is empty.

    Raises:
        ProtocolError: for words that name no part.
    """
    parts = [part_named(value) if value else None for value in values]
    unknown = Counter(value for value, part in zip(values, parts, strict=True) if value and part is None)
    if unknown:
        named = ", ".join(f"{name!r} ({count})" for name, count in sorted(unknown.items())[:5])
        raise ProtocolError(
            f"column {column!r} holds {named}, which is not train, dev or test; leave these utterances out with "
            f"--config.protocol.filter_column={column} and --config.protocol.filter_values=NAME,NAME"
        )
    return parts


def fold_of_parts(
    parts: Sequence[FoldPart | None],
    labels: Sequence[str | None],
    seed: int,
    validation_fraction: float,
    *,
    groups: Sequence[str | None] | None = None,
    column: str = "group",
    source: str,
) -> Fold:
    """A fold with given parts; where none is for validation, one is cut from training.

    Args:
        parts: of each row; None: in no part.
        labels: class of each row.
        seed: of the cut.
        validation_fraction: share of the training part, when no row is for validation; 0: none.
        groups: the cut takes whole groups of these; None: stratified.
        column: name of the groups, for messages.
        source: what gave the parts, for messages.

    Raises:
        ProtocolError: no row to train or test on, or none for validation.
    """
    rows: dict[FoldPart, list[int]] = {"train": [], "validation": [], "test": []}
    for row, part in enumerate(parts):
        if part is not None:
            rows[part].append(row)
    if empty := [part for part in ("train", "test") if not rows[part]]:
        raise ProtocolError(
            f"{source} gives {len(rows['train'])} utterances to train on and {len(rows['test'])} to test; it needs some "
            f"for {' and '.join(empty)}"
        )
    validation = rows["validation"]
    if not validation:
        generator = generator_of(seed)
        if groups is None:
            validation = stratified_part(rows["train"], labels, validation_fraction, generator)
        else:
            validation = grouped_part(rows["train"], groups, labels, validation_fraction, generator, column=column)
    return make_fold(rows["train"], validation, rows["test"], seed)
