"""Random folds that keep the classes' shares."""

from collections.abc import Sequence

import numpy as np

from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError, generator_of, make_fold

__all__ = ["stratified_folds", "stratified_part"]


def stratified_folds(labels: Sequence[str | None], folds: int, seed: int, validation_fraction: float) -> list[Fold]:
    """Random folds that keep the classes' shares.

    In the test parts of any two folds, the counts of each class, and the sizes, differ by at most 1.
    Validation parts are cut from training parts with the same care.

    Args:
        labels: class of each row; rows without a label are a class of their own.
        folds: their number.
        seed: of the draw.
        validation_fraction: share of the training part that is held out; 0: none.

    Raises:
        ProtocolError: fewer utterances than folds, or none left to train on.
    """
    if not 2 <= folds <= len(labels):
        raise ProtocolError(
            f"{len(labels)} utterances cannot make {folds} folds; set --config.protocol.folds between 2 and that number"
        )
    generator = generator_of(seed)
    # Dealing the concatenated classes in turn balances each class and the whole at once.
    order = _shuffled_by_class(range(len(labels)), labels, generator)
    tests = [sorted(order[fold::folds]) for fold in range(folds)]
    drawn = []
    for test in tests:
        rest = sorted(set(range(len(labels))) - set(test))
        validation = stratified_part(rest, labels, validation_fraction, generator)
        drawn.append(make_fold(rest, validation, test, seed))
    return drawn


def _shuffled_by_class(rows: Sequence[int], labels: Sequence[str | None], generator: np.random.Generator) -> list[int]:
    """Rows sorted by class (no label first), in random order within each."""
    classes: dict[tuple[bool, str], list[int]] = {}
    for row in rows:
        label = labels[row]
        classes.setdefault((label is not None, label or ""), []).append(row)
    return [classes[key][i] for key in sorted(classes) for i in generator.permutation(len(classes[key]))]


def stratified_part(
    rows: Sequence[int], labels: Sequence[str | None], fraction: float, generator: np.random.Generator
) -> list[int]:
    """A share of rows, at least one, in which each class has its share rounded up or down."""
    if fraction == 0:
        return []
    size = max(1, int(fraction * len(rows) + 0.5))
    if size >= len(rows):
        raise ProtocolError(
            f"a training part of {len(rows)} utterances cannot give {size} for validation "
            f"(--config.protocol.validation_fraction={fraction}) and keep one to train on"
        )
    # Evenly spaced picks from a random start: a run of n rows gets n * size / len(rows), rounded either way.
    order = _shuffled_by_class(rows, labels, generator)
    start = int(generator.integers(len(rows)))
    return [order[(pick * len(rows) + start) // size] for pick in range(size)]
