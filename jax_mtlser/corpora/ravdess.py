"""RAVDESS, audio-only speech (24 North American actors; Livingstone & Russo, 2018).

One recording per utterance, named like ``03-01-06-01-02-01-12.wav``: modality (03: audio only), channel (01:
speech), emotion, intensity, statement, repetition, actor. Songs (channel 02) and films are left out.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["RAVDESS_NAME", "read_ravdess"]

_LABELS = CORPUS_LABELS[CorpusKind.RAVDESS]
_STATEMENTS = {"01": "Kids are talking by the door.", "02": "Dogs are sitting by the door."}
RAVDESS_NAME = re.compile(
    r"03-01-(?P<emotion>0[1-8])-(?P<intensity>0[12])-(?P<statement>0[12])-(?P<repetition>0[12])"
    r"-(?P<actor>0[1-9]|1\d|2[0-4])"
)


def read_ravdess(root: Path) -> Manifest:
    """Read the recordings below a folder that holds ``Actor_01`` to ``Actor_24``.

    Returns:
        The manifest "ravdess" with group columns ``sentence_id``, ``intensity`` (``normal`` or ``strong``),
        ``repetition`` and ``language``.

    Raises:
        ManifestError: no such recording, or one twice (some archives hold all actors a second time).
    """
    return read_named_files(root, "ravdess", RAVDESS_NAME, _utterance, "03-01-06-01-02-01-12.wav")


def _utterance(path: Path, name: re.Match[str]) -> Utterance:
    return Utterance(
        id=path.stem,
        path=path,
        emotion=_LABELS[name["emotion"]],
        gender="male" if int(name["actor"]) % 2 else "female",
        speaker=name["actor"],
        text=_STATEMENTS[name["statement"]],
        groups={
            "sentence_id": name["statement"],
            "intensity": "normal" if name["intensity"] == "01" else "strong",
            "repetition": name["repetition"],
            "language": "en",
        },
    )
