"""Recordings to try a model on: those that its run tested it with, or a folder's."""

import contextlib
import dataclasses
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile

from jax_mtlser.corpora.manifest import Utterance, read_manifest
from jax_mtlser.data.audio import SAMPLE_RATE, AudioError, to_int16
from jax_mtlser.data.ffmpeg import open_recording
from jax_mtlser.evaluation.predictions import Prediction, read_predictions
from jax_mtlser.inference.requests import find_recordings
from jax_mtlser.run_folder import RunFolder

__all__ = ["Example", "examples_in_folder", "examples_of_run", "in_a_row"]

_MOST = 8
_PAUSE_SECONDS = 0.5


@dataclasses.dataclass(frozen=True)
class Example:
    """A recording that lies in memory.

    Attributes:
        name: to be shown.
        reference: what the corpus says it is; None where nothing is known.
        wav: the file, mono, 16 bits, 16 kHz.
    """

    name: str
    reference: str | None
    wav: bytes


def examples_of_run(workdir: Path, member: str, emotions: Sequence[str], max_seconds: float) -> list[Example]:
    """One test recording of a member for each emotion, as far as the corpus is still there.

    Args:
        workdir: run folder, or the folder of one of its members, or that member's ``model``.
        member: its name.
        emotions: in this order; without any, the first few test recordings.
        max_seconds: longer ones are left out.
    """
    run = next(
        (RunFolder(at) for at in (workdir, *workdir.resolve().parents[:3]) if RunFolder(at).corpus.is_file()), None
    )
    if run is None or not run.member(member).predictions.is_file():
        return []
    utterances = {utterance.id: utterance for utterance in read_manifest(run.corpus, name=None).utterances}
    tested = [said for said in read_predictions(run.member(member).predictions) if said.part == "test"]
    if not emotions:
        return list(_usable(tested, utterances, max_seconds))[:_MOST]
    chosen = [
        next(_usable([said for said in tested if said.emotion == emotion], utterances, max_seconds), None)
        for emotion in emotions[:_MOST]
    ]
    return [example for example in chosen if example is not None]


def examples_in_folder(folder: Path, max_seconds: float) -> list[Example]:
    """The first few recordings of a folder that can be decoded and are not too long."""
    examples = []
    for request in find_recordings([folder]).requests:
        with contextlib.suppress(AudioError):
            examples.append(Example(request.path.stem, None, _wav(request.path, max_seconds)))
        if len(examples) == _MOST:
            break
    return examples


def in_a_row(examples: Sequence[Example], max_seconds: float) -> list[Example]:
    """All examples one after the other, with pauses, for a timeline; none where that is a single one or too long."""
    pause = np.zeros(round(_PAUSE_SECONDS * SAMPLE_RATE), np.int16)
    parts = [part for example in examples for part in (_samples(example.wav), pause)][:-1]
    if len(examples) < 2 or sum(map(len, parts)) > max_seconds * SAMPLE_RATE:
        return []
    return [Example("all of these in a row", None, _as_wav(np.concatenate(parts)))]


def _usable(tested: Iterable[Prediction], utterances: dict[str, Utterance], max_seconds: float) -> Iterator[Example]:
    for said in tested:
        utterance = utterances.get(said.id)
        if utterance is not None:
            with contextlib.suppress(AudioError):
                wav = _wav(utterance.path, max_seconds, utterance.start, utterance.end)
                yield Example(utterance.text or utterance.id, said.emotion, wav)


def _wav(path: Path, max_seconds: float, start: float = 0.0, end: float | None = None) -> bytes:
    with open_recording(path) as recording:
        first, last = recording.span(start, end)
        if last - first > max_seconds * recording.rate:
            raise AudioError(f"too long: {(last - first) / recording.rate:.6g} s")
        return _as_wav(to_int16(recording.samples(first, last)))


def _as_wav(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return file.getvalue()


def _samples(wav: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(wav), dtype="int16")[0]
