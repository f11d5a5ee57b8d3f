"""A question about an uploaded recording, and its answer as JSON values."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_mtlser.data.audio import AudioError, FileRecording, TooLongError
from jax_mtlser.data.ffmpeg import open_recording
from jax_mtlser.inference.hearing import Windows, WindowsError
from jax_mtlser.inference.recognition import Asked, Recognition
from jax_mtlser.inference.recognizer import Answer, Recognizer, Segment
from jax_mtlser.serving.refusal import Refusal

__all__ = ["MOST_WINDOWS", "Question", "answer"]

MOST_WINDOWS = 2000
"""Of one timeline."""

_POINTS = (50, 4000)
_DECIMALS = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """What is asked beside the answer for the whole recording.

    Attributes:
        window: seconds of a timeline's windows; None for no timeline.
        hop: seconds between their starts; None for a third of the window, or more where that gives too many windows.
        smooth: windows over which probabilities are averaged.
        outline: points of the waveform's outline; 0 for none.
    """

    window: float | None = None
    hop: float | None = None
    smooth: int = 3
    outline: int = 0

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> "Question":
        """Read a query string.

        Raises:
            Refusal: an unknown name, or a value that is no number or outside its limits.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        for name in query:
            if name not in names:
                raise Refusal(422, f"there is no parameter {name[:40]!r}; there are {', '.join(names)}")
        values: dict[str, Any] = {name: _number(name, query[name]) for name in ("window", "hop") if name in query}
        values |= {name: _whole(name, query[name]) for name in ("smooth", "outline") if name in query}
        question = cls(**values)
        if question.window is None and ("hop" in query or "smooth" in query):
            raise Refusal(422, "hop and smooth belong to a timeline; add window=SECONDS")
        if question.outline and not _POINTS[0] <= question.outline <= _POINTS[1]:
            raise Refusal(422, f"outline is {question.outline}; it must be 0 or {_POINTS[0]} to {_POINTS[1]} points")
        return question

    def windows(self, seconds: float) -> Windows | None:
        """The windows for a recording of so many seconds.

        Raises:
            Refusal: windows that cannot be, or too many.
        """
        if self.window is None:
            return None
        least = max(0.0, seconds - self.window) / (MOST_WINDOWS - 1)
        hop = max(self.window / 3, least) if self.hop is None else self.hop
        try:
            windows = Windows(seconds=self.window, hop=hop, smooth=self.smooth)
        except WindowsError as error:
            raise Refusal(422, str(error)) from None
        if hop < least:
            raise Refusal(
                422,
                f"window {self.window:g} s and hop {hop:g} s give more than {MOST_WINDOWS} windows in {seconds:.6g} s; "
                f"use a hop of at least {math.ceil(1000 * least) / 1000:g} s",
            )
        return windows


def answer(recognizer: Recognizer, path: Path, question: Question, max_seconds: float) -> dict[str, Any]:
    """Judge a recording that came from anywhere.

    Args:
        recognizer: the models; one call at a time.
        path: of the recording.
        question: what to tell.
        max_seconds: longer recordings are refused before they are decoded.

    Returns:
        JSON values: ``seconds``, the answer for the whole, and where asked for ``timeline`` and ``outline``.

    Raises:
        Refusal: no audio, too long, or nothing in it that can be judged.
    """
    try:
        with open_recording(path, max_seconds=max_seconds) as recording:
            return _answer(recognizer, recording, question)
    except TooLongError as error:
        raise Refusal(
            413, f"{error}; send a shorter part, or start jax-mtlser demo with a greater --max-seconds"
        ) from None
    except AudioError as error:
        raise Refusal(415, f"{error}; send WAV, FLAC, MP3 or OGG") from None


def _answer(recognizer: Recognizer, recording: FileRecording, question: Question) -> dict[str, Any]:
    seconds = recording.frames / recording.rate
    windows = question.windows(seconds)
    try:
        recognizer.require(Asked(), windows)
        asked = Asked(transcript="asr" in recognizer.tasks)
        whole = next(recognizer.each([recording], asked))
        if isinstance(whole, AudioError):
            raise whole
        said: dict[str, Any] = {"seconds": _rounded(seconds), **_values(whole), "parts": whole.parts}
        if windows:
            events = recognizer.stream([Segment(recording)], windows=windows)
            said["window"], said["hop"] = windows.seconds, _rounded(windows.hop)
            said["timeline"] = [_window(event) for event in events if isinstance(event, Answer)]
        if question.outline:
            said["outline"] = [round(float(peak), 4) for peak in recording.outline(question.outline)]
    except (AudioError, WindowsError) as error:
        raise Refusal(422, str(error)) from None
    return said


def _window(event: Answer) -> dict[str, Any]:
    times = {} if event.piece is None else {"start": _rounded(event.piece.start), "end": _rounded(event.piece.end)}
    if isinstance(event.recognition, str):
        return times | {"error": event.recognition}
    return times | {name: value for name, value in _values(event.recognition).items() if name != "transcript"}


def _values(said: Recognition) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if said.probabilities:
        values |= {"emotion": said.emotion, "confidence": _rounded(said.confidence)}
        values |= {"probabilities": {name: _rounded(share) for name, share in said.probabilities.items()}}
    if said.gender_probabilities:
        shares = {name: _rounded(share) for name, share in said.gender_probabilities.items()}
        values |= {"gender": said.gender, "gender_probabilities": shares}
    if said.transcript is not None:
        values["transcript"] = said.transcript
    return values


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value > 0):
        raise Refusal(422, f"{name} is {text[:40]!r}; it must be seconds, greater than 0")
    return value


def _whole(name: str, text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise Refusal(422, f"{name} is {text[:40]!r}; it must be a whole number")
    return int(text)
