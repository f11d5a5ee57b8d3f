"""TESS, the Toronto emotional speech set (two actresses; Pichora-Fuller & Dupuis, 2020).

One recording per utterance, named like ``OAF_back_angry.wav``: actress (older, younger), word, emotion.
Both say "Say the word ..." with the same 200 words in each emotion: random folds have heard every text and voice.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["TESS_NAME", "read_tess"]

_LABELS = CORPUS_LABELS[CorpusKind.TESS]
# One file of the release is called OA_bite_neutral.
TESS_NAME = re.compile(rf"(?P<speaker>OAF?|YAF)_(?P<word>[A-Za-z]+)_(?P<emotion>{'|'.join(_LABELS)})")


def read_tess(root: Path) -> Manifest:
    """Read the recordings below a folder.

    Returns:
        The manifest "tess" with group columns ``sentence_id`` (the word) and ``language``.

    Raises:
        ManifestError: no such recording, or one twice.
    """
    return read_named_files(root, "tess", TESS_NAME, _utterance, "OAF_back_angry.wav")


def _utterance(path: Path, name: re.Match[str]) -> Utterance:
    return Utterance(
        id=path.stem,
        path=path,
        emotion=_LABELS[name["emotion"]],
        gender="female",
        speaker="YAF" if name["speaker"] == "YAF" else "OAF",
        text=f"Say the word {name['word'].lower()}.",
        groups={"sentence_id": name["word"].lower(), "language": "en"},
    )
