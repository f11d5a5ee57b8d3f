"""Folds of whole groups."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from jax_mtlser.config import Mates
from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError, generator_of, make_fold

__all__ = ["grouped_folds", "grouped_part"]

# Sets of groups that come equally near to the validation fraction, of which the one with the most
# representative emotions is taken: scenarios and dialogues often have a single one.
_VALIDATION_DRAWS = 16


def grouped_folds(
    groups: Sequence[str | None],
    labels: Sequence[str | None],
    folds: int,
    seed: int,
    validation_fraction: float,
    *,
    column: str = "group",
    mates: Sequence[str | None] | None = None,
    use_of_mates: Mates = Mates.VALIDATION,
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
            at least one group; 0: none. Not used where mates are the validation part.
        column: name of the groups, for messages.
        mates: what each row has in common with its group's mates (the session of a speaker); None: groups have
            none. A group with one such row in the test part is a mate as a whole.
        use_of_mates: what becomes of them.

    Raises:
        ProtocolError: rows without a group, or fewer groups than the folds and parts need.
    """
    rows = _rows_by_group(range(len(groups)), groups, column)
    fraction = validation_fraction
    if mates is not None and use_of_mates is Mates.VALIDATION:
        fraction = 0.0
    _require_enough_groups(rows, folds, fraction, column)
    generator = generator_of(seed)
    tests = [[group] for group in rows] if folds == 0 else _dealt(rows, folds, generator)
    drawn = []
    for test in map(set, tests):
        rest = [group for group in rows if group not in test]
        tied: list[str] = []
        if mates is not None and use_of_mates is not Mates.TRAIN:
            tied = _mates_of(test, rest, rows, mates, column)
            rest = [group for group in rest if group not in tied]
        if tied and use_of_mates is Mates.VALIDATION:
            held_out = tied
        else:
            held_out = _validation_groups(rest, rows, labels, fraction, generator, column)
        drawn.append(make_fold(_rows_of(rest, rows), _rows_of(held_out, rows), _rows_of(test, rows), seed))
    return drawn


def grouped_part(
    part: Sequence[int],
    groups: Sequence[str | None],
    labels: Sequence[str | None],
    fraction: float,
    generator: np.random.Generator,
    *,
    column: str,
) -> list[int]:
    """Rows of the groups that are held out of a given training part.

    Args:
        part: the rows to choose from.
        groups, labels: of all rows.
        fraction: share of the part, at least one group; 0: none.
        generator: of the draw.
        column: name of the groups, for messages.

    Raises:
        ProtocolError: rows without a group, or only one group.
    """
    rows = _rows_by_group(part, groups, column)
    return _rows_of(_validation_groups(list(rows), rows, labels, fraction, generator, column), rows)


def _rows_by_group(part: Sequence[int], groups: Sequence[str | None], column: str) -> dict[str, list[int]]:
    """Rows of each group, groups in sorted order."""
    if absent := sum(not groups[row] for row in part):
        raise ProtocolError(
            f"column {column!r} is empty for {absent} of {len(part)} utterances, so these belong to no group; "
            "fill it in or set another --config.protocol.group_column"
        )
    rows: dict[str, list[int]] = {group: [] for group in sorted({groups[row] or "" for row in part})}
    for row in part:
        rows[groups[row] or ""].append(row)
    return rows


def _mates_of(
    test: Iterable[str],
    rest: Sequence[str],
    rows: Mapping[str, list[int]],
    mates: Sequence[str | None],
    column: str,
) -> list[str]:
    """Groups outside the test part that have something in common with it; at least one, not all."""
    tested = sorted(test)
    shared = {mates[row] for row in _rows_of(tested, rows)} - {None}
    tied = [group for group in rest if not shared.isdisjoint(mates[row] for row in rows[group])]
    if not tied:
        raise ProtocolError(
            f"{column} {', '.join(tested)} shares no --config.protocol.mate_column with another {column}, so the fold "
            "has no mates; name another column or leave it empty"
        )
    if len(tied) == len(rest):
        raise ProtocolError(
            f"every other {column} is a mate of {', '.join(tested)}, so nothing is left to train on; "
            "name another --config.protocol.mate_column"
        )
    return tied


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
            f"raise --config.protocol.folds (at most {len(rows)}), set it to 0 for one fold per group, or use "
            "--config.protocol.validation_fraction=0 with --config.training.selection=last"
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
