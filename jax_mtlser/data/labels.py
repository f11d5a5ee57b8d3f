"""Labels as numbers: class lists of a fold, and the targets of every utterance."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.data.vocabulary import Vocabulary, normalize_transcript

__all__ = ["MISSING", "LabelMaps", "Targets", "encode_targets", "normalized_transcripts"]

MISSING = -1  # the utterance says nothing about this task


@dataclasses.dataclass(frozen=True)
class LabelMaps:
    """Class names of each head, in the order of its logits; empty where the corpus has no such labels.

    Attributes:
        emotion: chosen in the configuration or all that occur.
        gender, speaker: those of the training part; a speaker who occurs only in the test part has no class.
    """

    emotion: tuple[str, ...]
    gender: tuple[str, ...]
    speaker: tuple[str, ...]

    @classmethod
    def of(cls, manifest: Manifest, train_rows: Iterable[int], emotions: Sequence[str]) -> "LabelMaps":
        """The class lists of a fold."""
        train = manifest.subset(train_rows)
        return cls(
            emotion=tuple(emotions) or tuple(manifest.counts("emotion")),
            gender=tuple(train.counts("gender")),
            speaker=tuple(train.counts("speaker")),
        )

    def to_dict(self) -> dict[str, list[str]]:
        """For JSON."""
        return {"emotion": list(self.emotion), "gender": list(self.gender), "speaker": list(self.speaker)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "LabelMaps":
        """The inverse of :meth:`to_dict`."""
        return cls(**{name: tuple(values[name]) for name in ("emotion", "gender", "speaker")})


@dataclasses.dataclass(frozen=True)
class Targets:
    """What the losses compare with, one row per utterance of the manifest.

    Attributes:
        emotion, gender, speaker: int32 [rows], ``MISSING`` where not known.
        transcript: int32 [rows, N] symbol ids, zero behind each transcript.
        transcript_lengths: int32 [rows]; 0 where there is no transcript.
    """

    emotion: np.ndarray
    gender: np.ndarray
    speaker: np.ndarray
    transcript: np.ndarray
    transcript_lengths: np.ndarray


def normalized_transcripts(manifest: Manifest, language: str) -> list[str | None]:
    """Each utterance's transcript as it is trained on and scored; None where there is none."""
    return [None if text is None else normalize_transcript(text, language) for text in manifest.column("text")]


def encode_targets(
    manifest: Manifest, maps: LabelMaps, transcripts: Sequence[str | None], vocabulary: Vocabulary | None
) -> Targets:
    """Number every label; values outside the class lists become ``MISSING``."""

    def numbered(name: str, classes: tuple[str, ...]) -> np.ndarray:
        index = {value: number for number, value in enumerate(classes)}
        return np.array([index.get(value, MISSING) for value in manifest.column(name)], np.int32)  # type: ignore[arg-type]

    symbols = [vocabulary.encode(text) if vocabulary and text else [] for text in transcripts]
    lengths = np.array([len(ids) for ids in symbols], np.int32)
    transcript = np.zeros((len(symbols), max(1, lengths.max(initial=0))), np.int32)
    for row, ids in enumerate(symbols):
        transcript[row, : len(ids)] = ids
    return Targets(
        emotion=numbered("emotion", maps.emotion),
        gender=numbered("gender", maps.gender),
        speaker=numbered("speaker", maps.speaker),
        transcript=transcript,
        transcript_lengths=lengths,
    )
