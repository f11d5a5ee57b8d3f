"""From recordings to pieces that a model takes: windows of a timeline, or the whole, in parts where it is too long."""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int16

from jax_mtlser.config import AudioConfig
from jax_mtlser.data.audio import ArrayRecording, AudioError, Recording, usable
from jax_mtlser.data.ffmpeg import open_recording
from jax_mtlser.inference.recognition import Piece

__all__ = ["Heard", "Source", "Windows", "WindowsError", "equal_parts", "hear", "open_source", "window_spans"]

Source = str | Path | tuple[Any, int] | Recording
"""A path, an array with its sampling rate, or a recording that the caller has opened and will close."""


class WindowsError(ValueError):
    """A timeline that cannot be cut so; the message names the value and the limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Windows:
    """How a timeline is cut.

    Attributes:
        seconds: length of a window.
        hop: seconds from the start of one to the start of the next.
        smooth: windows over which probabilities are averaged; odd, 1 for none.
    """

    seconds: float
    hop: float
    smooth: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.hop <= self.seconds:
            raise WindowsError(
                f"hop is {self.hop:g} s; it must be greater than 0 and at most the window's {self.seconds:g} s"
            )
        if self.smooth < 1 or self.smooth % 2 == 0:
            raise WindowsError(f"smooth is {self.smooth}; it must be an odd number of windows, 1 for no smoothing")

    def check(self, limits: AudioConfig) -> None:
        """Refuse windows that the model was not trained on.

        Raises:
            WindowsError: too short or too long.
        """
        if not limits.min_seconds <= self.seconds <= limits.max_seconds:
            raise WindowsError(
                f"window is {self.seconds:g} s; the model was trained on {limits.min_seconds:g} to "
                f"{limits.max_seconds:g} s"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heard:
    """A piece and what is to be heard in it.

    Attributes:
        piece: where it lies; None when not even that is known.
        samples: int16 at 16 kHz, or the reason why there are none.
        fatal: the recording cannot be read any further.
    """

    piece: Piece | None
    samples: Int16[np.ndarray, " S"] | str
    fatal: bool = False


@contextlib.contextmanager
def open_source(source: Source) -> Iterator[Recording]:
    """Open a path, or take an array with its rate, or what is open already.

    Raises:
        AudioError: neither usable audio nor a readable file.
    """
    if isinstance(source, Recording):
        yield source
    elif isinstance(source, tuple):
        yield ArrayRecording(*source)
    else:
        with open_recording(source) as recording:
            yield recording


def hear(
    source: Source,
    limits: AudioConfig,
    windows: Windows | None = None,
    start: float = 0.0,
    end: float | None = None,
) -> Iterator[Heard]:
    """The pieces of a recording, in order, read as they are asked for.

    A piece that is too silent or too short gives a reason. So does whatever ends the reading early, as the last
    piece: the window that could not be read, or the whole.

    Args:
        source: where from.
        limits: of the model.
        windows: cut a timeline; None: the whole, in equal parts where it is longer than the limit.
        start, end: seconds; the segment that counts as the whole.
    """
    piece = None
    try:
        with open_source(source) as recording:
            rate = recording.rate
            first, last = recording.span(start, end)
            piece = Piece(start=first / rate, end=last / rate)
            if windows:
                window, hop = max(1, round(windows.seconds * rate)), max(1, round(windows.hop * rate))
                spans = window_spans(first, last, window, hop)
            else:
                spans = equal_parts(first, last, max(1, int(limits.max_seconds * rate)))
            for begin, stop in spans:
                part = Piece(start=begin / rate, end=stop / rate)
                piece = part if windows else piece
                samples = recording.samples(begin, stop)
                try:
                    yield Heard(piece=part, samples=usable(samples, limits))
                except AudioError as error:
                    yield Heard(piece=part, samples=str(error))
    except AudioError as error:
        yield Heard(piece=piece, samples=str(error), fatal=True)


def window_spans(first: int, last: int, window: int, hop: int) -> Iterator[tuple[int, int]]:
    """Windows of a segment, in frames; together they cover it.

    All have the same length. The last one ends where the segment ends, so its distance to the one before may be
    less than a hop. A segment that is not longer than a window is one window.
    """
    start = first
    while start + window < last:
        yield start, start + window
        start += hop
    yield max(first, last - window), last


def equal_parts(first: int, last: int, longest: int) -> Iterator[tuple[int, int]]:
    """The fewest parts of a segment that are not longer than ``longest``, of equal length within a frame."""
    count = -(-(last - first) // longest)
    for number in range(count):
        yield first + (last - first) * number // count, first + (last - first) * (number + 1) // count
