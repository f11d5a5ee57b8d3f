"""Which utterances are trained on, validated on and tested on: pure functions of the manifest and a seed.

Folds are drawn with PCG64 from sorted labels and row indices alone, so that the same manifest and seed give
the same folds on every machine. Test parts are drawn before validation parts: another validation fraction
leaves them as they are.
"""

import dataclasses
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_mtlser.config import ProtocolConfig, ProtocolKind
from jax_mtlser.corpora.manifest import Manifest

__all__ = [
    "Fold",
    "ProtocolError",
    "draw_folds",
    "folds_from_record",
    "folds_record",
    "grouped_folds",
    "stratified_folds",
]

# Sets of groups that come equally near to the validation fraction, of which the one with the most
# representative emotions is taken: scenarios and dialogues often have a single one.
_VALIDATION_DRAWS = 16


class ProtocolError(ValueError):
    """Folds that cannot be drawn; the message names the numbers."""


@dataclasses.dataclass(frozen=True)
class Fold:
    """One division of a manifest's rows.

    Attributes:
        train, validation, test: row indices, sorted; together each row once.
        seed: that the fold was drawn with; kept for the record, no part of comparisons.
    """

    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    seed: int | None = dataclasses.field(default=None, compare=False)


def draw_folds(manifest: Manifest, config: ProtocolConfig) -> list[list[Fold]]:
    """The folds of every repeat; repeat ``r`` uses ``config.seed + r``.

    Raises:
        ProtocolError: unknown group column, or too few utterances or groups.
    """
    labels = manifest.column("emotion")
    seeds = range(config.seed, config.seed + config.repeats)
    match config.kind:
        case ProtocolKind.STRATIFIED:
            return [stratified_folds(labels, config.folds, seed, config.validation_fraction) for seed in seeds]
        case ProtocolKind.GROUPED:
            column = config.group_column
            if column not in manifest.columns():
                raise ProtocolError(
                    f"{manifest.name} has no column {column!r} to group by; it has "
                    f"{', '.join(manifest.columns()) or 'none'}. Set --config.protocol.group_column to one of these."
                )
            groups = manifest.column(column)
            return [
                grouped_folds(groups, labels, config.folds, seed, config.validation_fraction, column=column)
                for seed in seeds
            ]


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
    generator = _generator(seed)
    # Dealing the concatenated classes in turn balances each class and the whole at once.
    order = _shuffled_by_class(range(len(labels)), labels, generator)
    tests = [sorted(order[fold::folds]) for fold in range(folds)]
    drawn = []
    for test in tests:
        rest = sorted(set(range(len(labels))) - set(test))
        validation = _stratified_part(rest, labels, validation_fraction, generator)
        drawn.append(_fold(rest, validation, test, seed))
    return drawn


def grouped_folds(
    groups: Sequence[str | None],
    labels: Sequence[str | None],
    folds: int,
    seed: int,
    validation_fraction: float,
    *,
    column: str = "group",
) -> list[Fold]:
    """Folds of whole groups: no group lies on two sides, validation included.

    Args:
        groups: group of each row.
        labels: class of each row; among equally large validation parts, the one whose classes are most
            like the training part's is preferred.
        folds: their number; groups are dealt, largest first, to the fold with the fewest utterances. 0: one
            fold per group, in sorted order.
        seed: of the draw.
        validation_fraction: share of the training part that is held out, as nearly as whole groups allow,
            at least one group; 0: none.
        column: name of the groups, for messages.

    Raises:
        ProtocolError: rows without a group, or fewer groups than the folds and parts need.
    """
    if absent := sum(not group for group in groups):
        raise ProtocolError(
            f"column {column!r} is empty for {absent} of {len(groups)} utterances, so these belong to no group; "
            "fill it in or set another --config.protocol.group_column"
        )
    rows: dict[str, list[int]] = {group: [] for group in sorted({group for group in groups if group})}
    for row, group in enumerate(groups):
        rows[group or ""].append(row)
    _require_enough_groups(rows, folds, validation_fraction, column)
    generator = _generator(seed)
    tests = [[group] for group in rows] if folds == 0 else _dealt(rows, folds, generator)
    drawn = []
    for test in map(set, tests):
        rest = [group for group in rows if group not in test]
        held_out = _validation_groups(rest, rows, labels, validation_fraction, generator, column)
        drawn.append(_fold(_rows_of(rest, rows), _rows_of(held_out, rows), _rows_of(test, rows), seed))
    return drawn


def _generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def _fold(rest: Sequence[int], validation: Sequence[int], test: Sequence[int], seed: int) -> Fold:
    train = sorted(set(rest) - set(validation))
    return Fold(tuple(train), tuple(sorted(validation)), tuple(sorted(test)), seed)


# --- Stratified ------------------------------------------------------------------------------------------


def _shuffled_by_class(rows: Sequence[int], labels: Sequence[str | None], generator: np.random.Generator) -> list[int]:
    """Rows sorted by class (no label first), in random order within each."""
    classes: dict[tuple[bool, str], list[int]] = {}
    for row in rows:
        label = labels[row]
        classes.setdefault((label is not None, label or ""), []).append(row)
    return [classes[key][i] for key in sorted(classes) for i in generator.permutation(len(classes[key]))]


def _stratified_part(
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


# --- Grouped ---------------------------------------------------------------------------------------------


def _rows_of(groups: Iterable[str], rows: Mapping[str, list[int]]) -> list[int]:
    return [row for group in groups for row in rows[group]]


def _require_enough_groups(rows: Mapping[str, list[int]], folds: int, fraction: float, column: str) -> None:
    if fraction > 0 and len(rows) < 3:
        raise ProtocolError(
            f"column {column!r} has {len(rows)} groups ({', '.join(rows)}), but training, validation and test need one "
            "each; group by another column, or use --config.protocol.validation_fraction=0 "
            "with --config.training.selection=last"
        )
    if len(rows) < 2:
        raise ProtocolError(
            f"column {column!r} has {len(rows)} group, but training and test need one each; "
            "set another --config.protocol.group_column"
        )
    if folds != 0 and not 2 <= folds <= len(rows):
        raise ProtocolError(
            f"column {column!r} has {len(rows)} groups, which cannot make {folds} folds; "
            f"set --config.protocol.folds between 2 and {len(rows)}, or 0 for one per group"
        )


def _dealt(rows: Mapping[str, list[int]], folds: int, generator: np.random.Generator) -> list[list[str]]:
    """Groups by fold: largest first (ties in random order), each to the fold with the fewest utterances."""
    names = list(rows)
    shuffled = [names[i] for i in generator.permutation(len(names))]
    dealt: list[list[str]] = [[] for _ in range(folds)]
    sizes = [0] * folds
    for group in sorted(shuffled, key=lambda name: -len(rows[name])):
        smallest = sizes.index(min(sizes))
        dealt[smallest].append(group)
        sizes[smallest] += len(rows[group])
    return dealt


def _validation_groups(
    rest: Sequence[str],
    rows: Mapping[str, list[int]],
    labels: Sequence[str | None],
    fraction: float,
    generator: np.random.Generator,
    column: str,
) -> list[str]:
    """Groups of a training part whose utterances come nearest to the fraction."""
    if fraction == 0:
        return []
    if len(rest) < 2:
        raise ProtocolError(
            f"a fold leaves only {len(rest)} group of column {column!r} ({', '.join(rest)}) to train and validate on; "
            f"raise --config.protocol.folds (at most {len(rows)}) or set it to 0 for one fold per group"
        )
    whole = Counter(labels[row] for row in _rows_of(rest, rows))
    best: list[str] = []
    best_distance = -1
    for _ in range(_VALIDATION_DRAWS):
        order = [rest[i] for i in generator.permutation(len(rest))]
        chosen = _nearest_subset(order, [len(rows[group]) for group in order], fraction)
        distance = _share_distance(Counter(labels[row] for row in _rows_of(chosen, rows)), whole)
        if not best or distance < best_distance:
            best, best_distance = chosen, distance
    return best


def _nearest_subset(groups: Sequence[str], sizes: Sequence[int], fraction: float) -> list[str]:
    """Some, not all, of the groups, whose sizes add up as nearly as possible to a fraction of the whole.

    Bit ``s`` of an integer says that the groups so far can add up to ``s``: exact, and quick for thousands
    of groups. Which of the equally near sets comes out depends on the order of the groups.
    """
    total = sum(sizes)
    target = int(fraction * total + 0.5)
    # Nothing above this can be nearer than the smallest group alone, or than a set below the target.
    limit = (1 << max(2 * target, min(sizes)) + 1) - 1
    reachable = [1]
    for size in sizes:
        reachable.append((reachable[-1] | reachable[-1] << size) & limit)
    outwards = (target + sign * distance for distance in range(total + 1) for sign in (-1, 1))
    left = next(size for size in outwards if 0 < size < total and reachable[-1] >> size & 1)
    chosen = []
    for group, size, before in zip(reversed(groups), reversed(sizes), reversed(reachable[:-1]), strict=True):
        if not before >> left & 1:
            chosen.append(group)
            left -= size
    return chosen


def _share_distance(part: Counter[str | None], whole: Counter[str | None]) -> int:
    """How far the class shares of a part are from the whole's, up to a factor, in exact integers.

    Parts compared with each other have the same size.
    """
    return sum(abs(part[label] * whole.total() - whole[label] * part.total()) for label in whole)


# --- Record ----------------------------------------------------------------------------------------------


def folds_record(manifest: Manifest, drawn: Sequence[Sequence[Fold]]) -> dict[str, Any]:
    """Folds as utterance ids, ready for JSON, with a hash over all of them."""
    names = [utterance.id for utterance in manifest.utterances]

    def ids(rows: Sequence[int]) -> list[str]:
        return [names[row] for row in rows]

    repeats = [
        {
            "repeat": repeat,
            "seed": folds[0].seed if folds else None,
            "folds": [
                {"train": ids(fold.train), "validation": ids(fold.validation), "test": ids(fold.test)} for fold in folds
            ],
        }
        for repeat, folds in enumerate(drawn)
    ]
    return {"hash": _hash(repeats), "repeats": repeats}


def folds_from_record(manifest: Manifest, record: Mapping[str, Any]) -> list[list[Fold]]:
    """The inverse of :func:`folds_record`; rows that the record does not name are in no fold.

    Raises:
        ProtocolError: when the record was changed, or names utterances that the manifest does not have.
    """
    try:
        found = _hash(record["repeats"])
        matches = found == record["hash"]
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"not a record of folds ({type(error).__name__}: {error}); draw the folds anew") from None
    if not matches:
        raise ProtocolError(
            f"the recorded folds were changed: they hash to {found[:12]}, the record says {str(record['hash'])[:12]}; "
            "restore the file or start a new --workdir"
        )
    row_of = {utterance.id: row for row, utterance in enumerate(manifest.utterances)}
    named = {name for repeat in record["repeats"] for fold in repeat["folds"] for part in _PARTS for name in fold[part]}
    if gone := sorted(named - row_of.keys()):
        raise ProtocolError(
            f"{len(gone)} of {len(named)} utterances of the recorded folds are not in {manifest.name} any more "
            f"({', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}); restore them or start a new --workdir"
        )

    def rows(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(row_of[name] for name in names))

    return [
        [
            Fold(rows(fold["train"]), rows(fold["validation"]), rows(fold["test"]), repeat["seed"])
            for fold in repeat["folds"]
        ]
        for repeat in record["repeats"]
    ]


_PARTS = ("train", "validation", "test")


def _hash(repeats: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the canonical JSON of the ids."""
    ids = [[{part: fold[part] for part in _PARTS} for fold in repeat["folds"]] for repeat in repeats]
    return hashlib.sha256(json.dumps(ids, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
