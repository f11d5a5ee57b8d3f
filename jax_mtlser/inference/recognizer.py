"""A trained run, ready to be asked about recordings."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Self, cast, overload

import jax
import jax.numpy as jnp
import numpy as np

from jax_mtlser.config import AudioConfig, Precision
from jax_mtlser.data.audio import SAMPLE_RATE, AudioError
from jax_mtlser.data.batches import prefetch
from jax_mtlser.experiments.experiment import compute_dtype
from jax_mtlser.inference.assembly import Assembly
from jax_mtlser.inference.ensemble import Ensemble
from jax_mtlser.inference.hearing import Heard, Source, Windows, hear
from jax_mtlser.inference.recognition import (
    EMOTION_AND_GENDER,
    Asked,
    Piece,
    Recognition,
    Scores,
)
from jax_mtlser.inference.trained_model import ModelError, TrainedModel, find_models

__all__ = ["UNKNOWN", "Answer", "Checkpoint", "Recognizer", "Segment"]

UNKNOWN = "unknown"
"""Emotion of a recording whose confidence is below the threshold."""

# Audio that is collected before it is judged, in batches: what is left over of each length fills no batch.
_BATCHES_TOGETHER = 32
_MOST_PIECES, _MOST_RECORDINGS = 8192, 4096
_READ_AHEAD = 32  # pieces


@dataclasses.dataclass(frozen=True)
class Segment:
    """A recording, or a part of one that counts as a recording.

    Attributes:
        source: a path, an array with its rate, or an open recording.
        start, end: seconds; None: to the end.
        error: why it cannot even be tried; None for all others.
    """

    source: Source
    start: float = 0.0
    end: float | None = None
    error: str | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What is said of a recording or of one of its windows.

    Attributes:
        recording: its number, from 0.
        piece: where it lies; None for a recording that cannot be opened.
        recognition: the answer, or the reason why there is none.
    """

    recording: int
    piece: Piece | None
    recognition: Recognition | str


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Between two recordings: what follows is computed in batches of its own.

    So a stream that begins with recording ``recordings`` gives, bit for bit, the answers that would have followed.

    Attributes:
        recordings: that lie behind.
    """

    recordings: int


class Recognizer:
    """Answers for recordings, with the audio path and the numbers of the training's own evaluation.

    An utterance's answer does not depend on what it is asked together with. Emotion probabilities are calibrated
    where the run holds temperatures. Recordings longer than any in training are judged in equal parts, and their
    probabilities averaged.

    >>> recognizer = Recognizer.load("runs/demo", member="all")  # doctest: +SKIP
    >>> recognizer("call.wav").emotion  # doctest: +SKIP
    'happy'
    """

    def __init__(self, ensemble: Ensemble, *, calibrated: bool, unknown_below: float | None) -> None:
        """Use :meth:`load`."""
        self._ensemble, self._asked_calibrated, self._unknown_below = ensemble, calibrated, unknown_below
        self.members = ensemble.members
        self.tasks = ensemble.tasks
        self.calibrated = calibrated and all(member.temperature is not None for member in self.members)
        self._temperatures = ensemble.temperatures

    @classmethod
    def load(
        cls,
        folder: str | Path,
        member: str | Sequence[str] | None = None,
        *,
        calibrated: bool = True,
        unknown_below: float | None = None,
        precision: Precision = Precision.FLOAT32,
        batch_seconds: float | None = None,
    ) -> Self:
        """Read a trained run.

        Args:
            folder: a run folder (``--workdir`` of a training), or the folder of one of its members.
            member: name or names; ``"all"`` for the mean of all finished ones; None for the only one.
            calibrated: apply the members' temperatures, where they have one.
            unknown_below: emotions with less confidence are called ``unknown``; in (0, 1].
            precision: of the computation. In bfloat16, probabilities differ in the third decimal.
            batch_seconds: padded audio that is computed at once, for memory; None: 32 on a CPU, 256 on a GPU or TPU.

        Raises:
            ModelError: no such run or member, members that do not fit together, a threshold outside its range.
        """
        names: Sequence[str] | Literal["all"] | None
        names = [member] if isinstance(member, str) and member != "all" else cast(Any, member)
        members = [TrainedModel.read(path) for path in find_models(Path(folder), names, several=True)]
        if unknown_below is not None and not 0 < unknown_below <= 1:
            raise ModelError(f"unknown_below is {unknown_below:g}; a probability from 0 (not included) to 1 is needed")
        if unknown_below is not None and UNKNOWN in members[0].labels.emotion:
            raise ModelError(f"the model has an emotion {UNKNOWN!r} of its own, so unknown_below would be ambiguous")
        if batch_seconds is not None and batch_seconds <= 0:
            raise ModelError(f"batch_seconds is {batch_seconds:g}; it must be greater than 0")
        ensemble = Ensemble(members, calibrated=calibrated, dtype=compute_dtype(precision), batch_seconds=batch_seconds)
        return cls(ensemble, calibrated=calibrated, unknown_below=unknown_below)

    @property
    def emotions(self) -> tuple[str, ...]:
        """Classes, in the order of the probabilities; empty without the head."""
        return self.members[0].labels.emotion if "emotion" in self.tasks else ()

    @property
    def genders(self) -> tuple[str, ...]:
        """Likewise."""
        return self.members[0].labels.gender if "gender" in self.tasks else ()

    @property
    def limits(self) -> AudioConfig:
        """Recordings that the training took: shorter and more silent ones are refused, longer ones cut in parts."""
        return self.members[0].limits

    @property
    def settings(self) -> dict[str, Any]:
        """JSON values of everything beside the models that answers depend on."""
        return {
            "calibrated": self._asked_calibrated,
            "unknown_below": self._unknown_below,
            "dtype": jnp.dtype(self._ensemble.dtype).name,
            "batch_seconds": self._ensemble.batch_seconds,
        }

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the models that answers depend on."""
        digest = hashlib.blake2b(digest_size=16)
        for member, temperature in zip(self.members, self._temperatures, strict=True):
            digest.update(json.dumps([member.description, temperature], sort_keys=True).encode())
            for path, leaf in jax.tree_util.tree_leaves_with_path(member.params):
                digest.update(jax.tree_util.keystr(path).encode())
                digest.update(np.ascontiguousarray(leaf).tobytes())
        return digest.hexdigest()

    @property
    def calibration(self) -> str:
        """One line on what was done to the probabilities."""
        applied = [
            f"{member.name} {temperature:.3g}" if member.temperature is not None else f"{member.name} none"
            for member, temperature in zip(self.members, self._temperatures, strict=True)
        ]
        if self.calibrated:
            return f"emotion probabilities are calibrated (temperature: {', '.join(applied)})"
        if all(member.temperature is None for member in self.members):
            return "emotion probabilities are not calibrated: the run holds no temperature"
        if set(self._temperatures) == {1.0}:
            return "emotion probabilities are not calibrated, as asked"
        return f"emotion probabilities are calibrated in part (temperature: {', '.join(applied)})"

    @overload
    def __call__(
        self, sources: Source, *, speaker: bool = ..., transcript: bool = ..., embedding: bool = ...
    ) -> Recognition: ...

    @overload
    def __call__(
        self, sources: list[Source], *, speaker: bool = ..., transcript: bool = ..., embedding: bool = ...
    ) -> list[Recognition]: ...

    def __call__(
        self,
        sources: Source | list[Source],
        *,
        speaker: bool = False,
        transcript: bool = False,
        embedding: bool = False,
    ) -> Recognition | list[Recognition]:
        """Judge a recording, or a list of them.

        Args:
            sources: a path; an array with its rate, ``(samples, 16000)``, where the samples are ``[frames]`` or
                ``[frames, channels]``, floats with full scale 1.0 or integers; or a list of these.
            speaker, transcript, embedding: what to tell beside emotion and gender.

        Raises:
            AudioError: a recording that cannot be used; see :meth:`each` to go on with the others.
            ModelError: something is asked that the members cannot tell.
        """
        asked = Asked(speaker=speaker, transcript=transcript, embedding=embedding)
        if not isinstance(sources, list):
            return _or_raise(next(self.each([sources], asked)))
        return [
            _or_raise(answer, f"{source}: " if isinstance(source, str | Path) else f"{number}: ")
            for number, (source, answer) in enumerate(zip(sources, self.each(sources, asked), strict=True))
        ]

    def each(self, sources: Iterable[Source], asked: Asked = EMOTION_AND_GENDER) -> Iterator[Recognition | AudioError]:
        """Judge recordings as they come; one that cannot be used gives its error in its place."""
        for event in self.stream(map(Segment, sources), asked):
            if isinstance(event, Answer):
                answer = event.recognition
                yield AudioError(answer) if isinstance(answer, str) else answer

    def timeline(self, source: Source, windows: Windows, asked: Asked = EMOTION_AND_GENDER) -> list[Answer]:
        """Judge a recording window by window, probabilities smoothed.

        Silent windows have a reason instead of an answer, and so has the last one of a recording that cannot be read
        to its end.

        Raises:
            AudioError: no window could be judged.
            ModelError: something is asked that the members cannot tell.
            WindowsError: windows shorter or longer than recordings in training.
        """
        answers = [event for event in self.stream([Segment(source)], asked, windows) if isinstance(event, Answer)]
        if all(isinstance(answer.recognition, str) for answer in answers):
            raise AudioError(answers[-1].recognition)
        return answers

    def stream(
        self, segments: Iterable[Segment], asked: Asked = EMOTION_AND_GENDER, windows: Windows | None = None
    ) -> Iterator[Answer | Checkpoint]:
        """Judge any number of recordings of any length in constant memory.

        Args:
            segments: what to judge; read ahead by a thread.
            asked: what to tell beside emotion and gender.
            windows: give a timeline of each; None: one answer each.

        Returns:
            Answers in order, with checkpoints between them; the last event is a checkpoint.

        Raises:
            ModelError: something is asked that the members cannot tell.
            WindowsError: windows shorter or longer than recordings in training.
        """
        self.require(asked, windows)
        return self._stream(segments, asked, windows)

    def require(self, asked: Asked, windows: Windows | None = None) -> None:
        """Refuse what :meth:`stream` would refuse, before anything is done.

        Raises:
            ModelError: something is asked that the members cannot tell.
            WindowsError: windows shorter or longer than recordings in training.
        """
        self._ensemble.require(asked)
        if windows:
            windows.check(self.limits)

    def _stream(
        self, segments: Iterable[Segment], asked: Asked, windows: Windows | None
    ) -> Iterator[Answer | Checkpoint]:
        together = _BATCHES_TOGETHER * self._ensemble.batch_seconds
        held: list[tuple[int, Heard | None]] = []
        held_seconds = passed_seconds = 0.0
        assembly = Assembly(windows)
        behind = done = 0
        pieces = prefetch(lambda piece: piece, _pieces(segments, self.limits, windows), _READ_AHEAD)
        for _, (number, heard) in pieces:
            held.append((number, heard))
            if heard is not None and not isinstance(heard.samples, str):
                held_seconds += len(heard.samples) / SAMPLE_RATE
                passed_seconds += len(heard.samples) / SAMPLE_RATE
            done = number + (heard is None)
            # Only at the end of a recording, and by what lies between here and the last one.
            checkpoint = heard is None and (passed_seconds >= together or done - behind >= _MOST_RECORDINGS)
            if checkpoint or held_seconds >= together or len(held) >= _MOST_PIECES:
                yield from self._answers(held, asked, assembly)
                held, held_seconds = [], 0.0
            if checkpoint:
                yield Checkpoint(done)
                behind, passed_seconds = done, 0.0
        yield from self._answers(held, asked, assembly)
        yield Checkpoint(done)

    def _answers(self, held: Sequence[tuple[int, Heard | None]], asked: Asked, assembly: Assembly) -> Iterator[Answer]:
        usable = [heard.samples for _, heard in held if heard is not None and not isinstance(heard.samples, str)]
        scores = iter(self._ensemble.scores(usable, asked))
        for number, heard in held:
            if heard is None:
                complete = assembly.end()
            else:
                complete = assembly.add(heard, heard.samples if isinstance(heard.samples, str) else next(scores))
            for piece, said, parts in complete:
                recognition = said if isinstance(said, str) or piece is None else self._recognition(piece, said, parts)
                yield Answer(number, piece, cast(Recognition | str, recognition))

    def _recognition(self, piece: Piece, scores: Scores, parts: int) -> Recognition:
        labels = self.members[0].labels
        emotion, confidence, probabilities = _decided(scores.emotion, labels.emotion)
        if confidence is not None and self._unknown_below is not None and confidence < self._unknown_below:
            emotion = UNKNOWN
        gender, _, gender_probabilities = _decided(scores.gender, labels.gender)
        speaker, speaker_confidence, _ = _decided(scores.speaker, labels.speaker)
        return Recognition(
            start=piece.start,
            end=piece.end,
            emotion=emotion,
            probabilities=probabilities,
            confidence=confidence,
            calibrated=self.calibrated,
            gender=gender,
            gender_probabilities=gender_probabilities,
            speaker=speaker,
            speaker_confidence=speaker_confidence,
            transcript=scores.transcript,
            embedding=scores.embedding,
            parts=parts,
        )


def _pieces(
    segments: Iterable[Segment], limits: AudioConfig, windows: Windows | None
) -> Iterator[tuple[int, Heard | None]]:
    """Numbered pieces of every recording; None behind the last of each."""
    for number, segment in enumerate(segments):
        if segment.error is not None:
            yield number, Heard(piece=None, samples=segment.error, fatal=True)
        else:
            for heard in hear(segment.source, limits, windows, segment.start, segment.end):
                yield number, heard
        yield number, None


def _decided(
    probabilities: np.ndarray | None, classes: Sequence[str]
) -> tuple[str | None, float | None, dict[str, float]]:
    """Most probable class, its probability, and all of them."""
    if probabilities is None:
        return None, None, {}
    best = int(np.argmax(probabilities))
    shares = dict(zip(classes, map(float, probabilities), strict=True))
    return classes[best], float(probabilities[best]), shares


def _or_raise(answer: Recognition | AudioError, where: str = "") -> Recognition:
    if isinstance(answer, AudioError):
        raise AudioError(f"{where}{answer}")
    return answer
