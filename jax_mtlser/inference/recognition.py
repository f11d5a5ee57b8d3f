"""What is said of a stretch of speech: scores as they come from the models, and the answer that follows from them."""

import dataclasses
from collections import deque
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32

__all__ = ["EMOTION_AND_GENDER", "Asked", "Piece", "Recognition", "Scores", "Smoother", "mean_scores"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Asked:
    """What is wanted beside emotion and gender.

    Attributes:
        speaker: which of the training speakers it sounds like.
        transcript: what was said.
        embedding: the encoder's frames, averaged.
    """

    speaker: bool = False
    transcript: bool = False
    embedding: bool = False


EMOTION_AND_GENDER = Asked()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Piece:
    """A stretch of a recording.

    Attributes:
        start, end: seconds from the start of the file.
    """

    start: float
    end: float

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.end - self.start


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scores:
    """Probabilities; None where there is no trained head or where it was not asked for.

    Attributes:
        emotion, gender, speaker: float32 [C].
        transcript: decoded, possibly empty.
        embedding: float32 [D].
    """

    emotion: Float32[np.ndarray, " C"] | None = None
    gender: Float32[np.ndarray, " C"] | None = None
    speaker: Float32[np.ndarray, " C"] | None = None
    transcript: str | None = None
    embedding: Float32[np.ndarray, " D"] | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recognition:
    """The answer for a recording, or for a window of it.

    Attributes:
        start, end: seconds from the start of the file.
        emotion: most probable class, or ``unknown`` below the chosen threshold; None without the head.
        probabilities: of emotion, by class.
        confidence: of the most probable emotion; None without the head.
        calibrated: ``probabilities`` are corrected by the temperatures that were fitted on validation parts.
        gender, gender_probabilities: likewise; None and empty without the head.
        speaker, speaker_confidence: the training speaker it sounds like most; None when not asked for.
        transcript: what was said, in the form of training transcripts; None when not asked for.
        embedding: float32 [D] frames of the encoder, averaged; None when not asked for.
        parts: pieces that were judged one by one and averaged, because the recording is longer than any in training.
    """

    start: float
    end: float
    emotion: str | None
    probabilities: Mapping[str, float]
    confidence: float | None
    calibrated: bool
    gender: str | None
    gender_probabilities: Mapping[str, float]
    speaker: str | None = None
    speaker_confidence: float | None = None
    transcript: str | None = None
    embedding: Float32[np.ndarray, " D"] | None = None
    parts: int = 1


def mean_scores(scores: Sequence[Scores], weights: Sequence[float]) -> Scores:
    """Weighted mean of all numbers; transcripts one after the other."""
    if len(scores) == 1:
        return scores[0]
    shares = np.asarray(weights, np.float64) / np.sum(weights)

    def mean(name: str) -> np.ndarray | None:
        values = [getattr(one, name) for one in scores]
        return None if values[0] is None else np.tensordot(shares, np.stack(values), 1).astype(np.float32)

    transcripts = [one.transcript for one in scores]
    return Scores(
        emotion=mean("emotion"),
        gender=mean("gender"),
        speaker=mean("speaker"),
        transcript=None if transcripts[0] is None else " ".join(filter(None, transcripts)),
        embedding=mean("embedding"),
    )


class Smoother:
    """Centred moving average over the windows of one recording, as they come.

    Window ``i`` gets the mean of windows ``i - k .. i + k`` with ``2 k + 1 = width``, as far as they exist: fewer at
    both ends, and without those that could not be judged. Transcripts and embeddings stay each window's own.
    """

    def __init__(self, width: int) -> None:
        """Start a recording; a width of 1 changes nothing."""
        self._reach = width // 2
        self._windows: deque[tuple[Piece, Scores | str]] = deque()
        self._next = 0  # place in the deque of the window that is smoothed next

    def add(self, piece: Piece, scores: Scores | str) -> list[tuple[Piece, Scores | str]]:
        """Take a window's scores, or why there are none; returns the windows that are now smoothed."""
        self._windows.append((piece, scores))
        return self._smoothed(len(self._windows) - self._reach)

    def end(self) -> list[tuple[Piece, Scores | str]]:
        """The rest of the recording."""
        return self._smoothed(len(self._windows))

    def _smoothed(self, until: int) -> list[tuple[Piece, Scores | str]]:
        done: list[tuple[Piece, Scores | str]] = []
        while self._next < until:
            piece, own = self._windows[self._next]
            if isinstance(own, Scores):
                near = range(max(0, self._next - self._reach), min(len(self._windows), self._next + self._reach + 1))
                around = [scores for i in near if isinstance(scores := self._windows[i][1], Scores)]
                mean = mean_scores(around, [1.0] * len(around))
                own = dataclasses.replace(mean, transcript=own.transcript, embedding=own.embedding)
            done.append((piece, own))
            if self._next < self._reach:
                self._next += 1
            else:
                self._windows.popleft()
                until -= 1
        return done
