"""From the configuration to the folds of every repeat."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

from jax_mtlser.config import ProtocolConfig, ProtocolKind
from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.evaluation.protocols.fixed import fold_of_parts, parts_of_column
from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError
from jax_mtlser.evaluation.protocols.grouped import grouped_folds
from jax_mtlser.evaluation.protocols.lists import read_fold_lists
from jax_mtlser.evaluation.protocols.stratified import stratified_folds

__all__ = ["draw_folds", "fold_notes"]


def draw_folds(
    manifest: Manifest, config: ProtocolConfig, transcripts: Sequence[str | None] | None = None
) -> list[list[Fold]]:
    """The folds of every repeat; repeat ``r`` uses ``config.seed + r``.

    Args:
        manifest: the utterances.
        config: the protocol.
        transcripts: normalised, by row; needed where ``text`` is grouped by.

    Raises:
        ProtocolError: an unknown column, too few utterances or groups, lists that do not fit, or a fold in
            ``only_folds`` that is not drawn.
    """
    kept = _kept_rows(manifest, config)
    subset = manifest.subset(kept)
    spoken = None if transcripts is None else [transcripts[row] for row in kept]
    draw = _drawing(subset, config, spoken)
    drawn = [[_moved(fold, kept) for fold in draw(config.seed + repeat)] for repeat in range(config.repeats)]
    if outside := [index for index in config.only_folds if index >= len(drawn[0])]:
        raise ProtocolError(
            f"--config.protocol.only_folds names {outside}, but there are {len(drawn[0])} folds, counted from 0"
        )
    return drawn


def fold_notes(manifest: Manifest, config: ProtocolConfig, drawn: Sequence[Sequence[Fold]]) -> list[str]:
    """Sentences on utterances that are in no part, and on listed ones that the corpus does not have."""
    notes = []
    outside = sorted({len(manifest) - fold.size for folds in drawn for fold in folds})
    if outside and outside[-1]:
        count = f"{outside[0]:,}" if len(outside) == 1 else f"{outside[0]:,} to {outside[-1]:,}"
        reasons = [
            *([f"{config.filter_column} is not {' or '.join(config.filter_values)}"] if config.filter_column else []),
            *(["mates of the tested are dropped"] if config.mate_column and config.mates.value == "drop" else []),
            *(["not listed"] if config.kind is ProtocolKind.LISTS else []),
            *(["no part given"] if config.kind is ProtocolKind.FIXED else []),
        ]
        notes.append(
            f"{count} of {len(manifest):,} utterances are in no part of a fold"
            + (f" ({'; '.join(reasons)})." if reasons else ".")
        )
    if config.kind is ProtocolKind.LISTS:
        lists = read_fold_lists(Path(config.fold_lists).expanduser(), manifest)
        if lists.absent:
            notes.append(
                f"{len(lists.absent):,} of {lists.listed:,} listed utterances are not in the corpus, such as "
                f"{', '.join(lists.absent[:3])}: the scores are not those of the full lists."
            )
    return notes


def _drawing(
    manifest: Manifest, config: ProtocolConfig, transcripts: Sequence[str | None] | None
) -> Callable[[int], list[Fold]]:
    """The function from a seed to the folds of one repeat."""
    labels, fraction, column = manifest.column("emotion"), config.validation_fraction, config.group_column
    if config.kind is ProtocolKind.STRATIFIED:
        return lambda seed: stratified_folds(labels, config.folds, seed, fraction)
    groups = _groups(manifest, config, transcripts) if column else None
    match config.kind:
        case ProtocolKind.GROUPED:
            assert groups is not None, "validate() asks for a group column"
            mates = _column(manifest, config.mate_column, "mate_column") if config.mate_column else None
            return lambda seed: grouped_folds(
                groups, labels, config.folds, seed, fraction, column=column, mates=mates, use_of_mates=config.mates
            )
        case ProtocolKind.FIXED:
            given = [parts_of_column(_column(manifest, config.split_column, "split_column"), config.split_column)]
            source = f"column {config.split_column!r}"
        case ProtocolKind.LISTS:
            given = read_fold_lists(Path(config.fold_lists).expanduser(), manifest).folds
            source = config.fold_lists
    return lambda seed: [
        fold_of_parts(parts, labels, seed, fraction, groups=groups, column=column, source=source) for parts in given
    ]


def _kept_rows(manifest: Manifest, config: ProtocolConfig) -> Sequence[int]:
    if not config.filter_column:
        return range(len(manifest))
    values = _column(manifest, config.filter_column, "filter_column")
    present = {value for value in values if value is not None}
    if absent := [value for value in config.filter_values if value not in present]:
        raise ProtocolError(
            f"no utterance has {' or '.join(map(repr, absent))} in column {config.filter_column!r}; it holds "
            f"{', '.join(sorted(present)[:8])}. Set --config.protocol.filter_values to some of these."
        )
    return [row for row, value in enumerate(values) if value in config.filter_values]


def _moved(fold: Fold, rows: Sequence[int]) -> Fold:
    """The fold of a subset, as rows of the whole."""

    def moved(part: Sequence[int]) -> tuple[int, ...]:
        return tuple(rows[row] for row in part)

    return Fold(moved(fold.train), moved(fold.validation), moved(fold.test), fold.seed)


def _column(manifest: Manifest, name: str, setting: str) -> list[str | None]:
    if name != "id" and name not in manifest.columns():
        raise ProtocolError(
            f"{manifest.name} has no column {name!r}; it has {', '.join(manifest.columns()) or 'none'}. Set "
            f"--config.protocol.{setting} to one of these."
        )
    return manifest.column(name)


def _groups(manifest: Manifest, config: ProtocolConfig, transcripts: Sequence[str | None] | None) -> list[str | None]:
    """Group of each row, by column and pattern."""
    column, pattern = config.group_column, config.group_pattern
    if column == "text":
        if transcripts is None:
            raise ValueError("grouping by text takes the normalised transcripts")
        # Where no word is said there is no text to share: such an utterance is a group of its own.
        values = [f"<{row}>" if text == "" else text for row, text in enumerate(transcripts)]
    else:
        values = _column(manifest, column, "group_column")
    if not pattern:
        return values
    found = [None if value is None else re.search(pattern, value) for value in values]
    if unfit := [value for value, match in zip(values, found, strict=True) if value is not None and match is None]:
        raise ProtocolError(
            f"--config.protocol.group_pattern={pattern} is not found in {len(unfit)} of {len(values)} values of column "
            f"{column!r}, such as {unfit[0]!r}"
        )
    return [match and match[1 if match.re.groups else 0] for match in found]
