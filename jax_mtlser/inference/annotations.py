"""Answers as annotations of the time axis: RTTM for diarization tools, TextGrid for Praat.

A timeline's windows overlap, an annotation's intervals may not: each window stands for the time that is nearer to its
middle than to any other window's. Neighbours with the same label become one interval.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePath

from jax_mtlser.inference.rows import Row
from jax_mtlser.inference.tables import put_into_place

__all__ = ["Interval", "intervals", "text_grids", "write_rttm", "write_text_grid"]

_TIERS = {"emotion": "confidence", "gender": None, "speaker": "speaker_confidence", "transcript": None}
_LONGEST_NAME = 200  # bytes; file systems allow 255, and a temporary name is longer


@dataclasses.dataclass(frozen=True)
class Interval:
    """A label and the time it holds, in seconds; None for a label that is not there."""

    start: float
    end: float
    label: str | None
    confidence: float | None = None


def intervals(rows: Iterable[Row], tier: str = "emotion") -> Iterator[Interval]:
    """Intervals of one recording, without overlap and gap.

    Args:
        rows: its answers, in order.
        tier: the column of labels. Transcripts are never joined.
    """
    held: Interval | None = None
    for start, end, row in _cells(rows):
        label, confidence = row.get(tier), row.get(_TIERS[tier] or "")
        assert label is None or isinstance(label, str)
        own = Interval(start, end, label, confidence if isinstance(confidence, float) else None)
        if held is not None and held.label == own.label and tier != "transcript":
            held = _joined(held, own)
        else:
            if held is not None:
                yield held
            held = own
    if held is not None:
        yield held


def _cells(rows: Iterable[Row]) -> Iterator[tuple[float, float, Row]]:
    """The time that each row stands for."""
    begin: float | None = None
    placed = (row for row in rows if isinstance(row["end"], float))
    for row, following in itertools.pairwise(itertools.chain(placed, [None])):
        assert row is not None
        start, end = _times(row)
        begin = start if begin is None else begin
        if following is not None:
            end = (start + end + sum(_times(following))) / 4
        yield begin, end, row
        begin = end


def _times(row: Row) -> tuple[float, float]:
    start, end = row["start"], row["end"]
    assert isinstance(end, float)
    return float(start or 0.0), end


def _joined(one: Interval, other: Interval) -> Interval:
    confidence = None
    if one.confidence is not None and other.confidence is not None:
        lengths = one.end - one.start, other.end - other.start
        confidence = (one.confidence * lengths[0] + other.confidence * lengths[1]) / sum(lengths)
    return Interval(one.start, other.end, one.label, confidence)


def write_rttm(path: Path, recordings: Iterable[Iterable[Row]]) -> None:
    """Write one line for each interval of an emotion: NIST's Rich Transcription Time Marked format (RT-09).

    The emotion stands where diarization has the speaker. Blanks in file names are written as ``%20``, because fields
    end at blanks.
    """
    with put_into_place(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
        for rows in recordings:
            first, rows = _peek(rows)
            name = re.sub(r"[\s%]", lambda match: f"%{ord(match[0]):02X}", str(first["file"]))
            for interval in intervals(rows):
                if interval.label is None:
                    continue
                confidence = "<NA>" if interval.confidence is None else f"{interval.confidence:.6f}"
                label = re.sub(r"\s", "_", interval.label)
                seconds = f"{interval.start:.3f} {interval.end - interval.start:.3f}"
                file.write(f"SPEAKER {name} 1 {seconds} <NA> <NA> {label} {confidence} <NA>\n")


def write_text_grid(path: Path, rows: Sequence[Row]) -> bool:
    """Write one recording's answers, a tier for each task.

    Returns:
        Whether there was anything to write: a recording that could not be judged has no TextGrid.
    """
    from praatio import textgrid

    rows = [row for row in rows if isinstance(row["end"], float)]
    if all(row["error"] is not None for row in rows):
        return False
    start, end = _times(rows[0])[0], _times(rows[-1])[1]
    grid = textgrid.Textgrid(start, end)
    for tier in _TIERS:
        if tier in rows[0]:
            entries = [(i.start, i.end, i.label) for i in intervals(rows, tier) if i.label]
            grid.addTier(textgrid.IntervalTier(tier, entries, start, end))
    path.parent.mkdir(parents=True, exist_ok=True)
    with put_into_place(path) as temporary:
        grid.save(str(temporary), format="long_textgrid", includeBlankSpaces=True)
    return True


def text_grids(files: Sequence[str], folder: Path) -> Iterator[Path]:
    """Where each recording's TextGrid lies: below ``folder`` as the recordings lie below the folder they share."""
    absolute = [os.path.abspath(file) for file in files]
    shared = os.path.commonpath([os.path.dirname(file) for file in absolute])
    taken: set[Path] = set()
    for file in absolute:
        place = folder / os.path.relpath(os.path.dirname(file), shared)
        stem = PurePath(file).stem.encode()[:_LONGEST_NAME].decode(errors="ignore")
        names = (place / f"{stem}{f'_{number}' if number > 1 else ''}.TextGrid" for number in itertools.count(1))
        path = next(name for name in names if name not in taken)
        taken.add(path)
        yield path


def _peek(rows: Iterable[Row]) -> tuple[Row, Iterator[Row]]:
    rows = iter(rows)
    first = next(rows)
    return first, itertools.chain([first], rows)
