"""The real audio that an export is verified on: the member's own test recordings, or a folder of others."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from jax_mtlser.config import AudioConfig
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.data.audio import from_int16
from jax_mtlser.evaluation.predictions import Prediction, read_predictions
from jax_mtlser.inference.exports.formats import ExportError
from jax_mtlser.inference.hearing import hear
from jax_mtlser.inference.recognizer import Segment
from jax_mtlser.inference.requests import find_recordings
from jax_mtlser.run_folder import MemberFolder, RunFolder

__all__ = ["Spoken", "Utterances", "find_utterances"]

_MOST = 100  # utterances, evenly over the test part


@dataclasses.dataclass(frozen=True)
class Spoken:
    """One utterance.

    Attributes:
        samples: as a model hears them.
        emotion: reference; None where it is not known.
        said: what training wrote down about it; None for other recordings.
    """

    samples: Float32[np.ndarray, " S"]
    emotion: str | None
    said: Prediction | None


@dataclasses.dataclass(frozen=True)
class Utterances:
    """What there is to verify on.

    Attributes:
        spoken: by length, shortest first.
        source: where they are from, in a few words.
    """

    spoken: tuple[Spoken, ...]
    source: str

    def up_to(self, samples: int) -> "Utterances":
        """Those that are not longer.

        Raises:
            ExportError: there is none.
        """
        kept = tuple(one for one in self.spoken if len(one.samples) <= samples + 1)
        if not kept:
            raise ExportError(
                f"every recording of {self.source} is longer than {samples / 16_000:g} s, so none can verify the "
                "export; use a larger --seconds"
            )
        return dataclasses.replace(self, spoken=kept)


def find_utterances(member: MemberFolder, limits: AudioConfig, audio: Path | None) -> Utterances:
    """Up to a hundred utterances, decoded.

    Args:
        member: whose test part is used.
        limits: of its training.
        audio: a folder or a file instead.

    Raises:
        ExportError: no usable audio, with what is missing.
    """
    wanted: list[tuple[Segment, Prediction | None]]
    if audio is not None:
        wanted = [(request.segment, None) for request in find_recordings([audio]).requests]
        source = str(audio.name)
    else:
        wanted = list(_test_part(member))
        source = f"the test part of {member.path.name}"
    chosen = (
        [wanted[i] for i in np.unique(np.linspace(0, len(wanted) - 1, _MOST).round().astype(int))] if wanted else []
    )
    spoken, reasons = [], []
    for segment, said in chosen:
        # A longer recording is judged in parts; the first of them will do.
        heard = next(hear(segment.source, limits, None, segment.start, segment.end))
        if isinstance(heard.samples, str):
            reasons.append(f"{segment.source}: {heard.samples}")
        else:
            spoken.append(Spoken(from_int16(heard.samples), said and said.emotion, said))
    if not spoken:
        raise ExportError(
            f"an export is verified on real audio, and {source} has none that can be used "
            f"({reasons[0] if reasons else 'no recordings found'}); restore it, or name other recordings with --audio"
        )
    return Utterances(tuple(sorted(spoken, key=lambda one: len(one.samples))), source)


def _test_part(member: MemberFolder) -> Iterator[tuple[Segment, Prediction | None]]:
    run = RunFolder(member.path.parents[1])
    if not (run.corpus.is_file() and member.predictions.is_file()):
        raise ExportError(
            f"{member.path} is not in a run folder with {run.corpus.name} and {member.predictions.name}, which name the "
            "recordings that an export is verified on; name some with --audio"
        )
    utterances = {utterance.id: utterance for utterance in read_manifest(run.corpus).utterances}
    tested: Sequence[Prediction] = [p for p in read_predictions(member.predictions) if p.part == "test"]
    for prediction in tested:
        if (found := utterances.get(prediction.id)) is not None:
            yield Segment(found.path, found.start, found.end), prediction
