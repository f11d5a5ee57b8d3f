"""SAVEE, Surrey audio-visual expressed emotion (four British men; Haq & Jackson, 2010).

One recording per utterance: ``DC/a01.wav`` in the release, ``DC_a01.wav`` in copies: speaker, emotion, sentence.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["SAVEE_NAME", "read_savee"]

_LABELS = CORPUS_LABELS[CorpusKind.SAVEE]
_SPEAKERS = ("DC", "JE", "JK", "KL")
SAVEE_NAME = re.compile(rf"((?P<speaker>{'|'.join(_SPEAKERS)})_)?(?P<sentence>(?P<emotion>{'|'.join(_LABELS)})\d\d)")


def read_savee(root: Path) -> Manifest:
    """Read the recordings below a folder, such as ``AudioData``.

    Returns:
        The manifest "savee" with group columns ``sentence_id`` and ``language``. The four men speak the same
        sentence under the same id; that some sentences were spoken in all emotions is not in the names.

    Raises:
        ManifestError: no such recording, one twice, or one that belongs to no speaker.
    """
    return read_named_files(root, "savee", SAVEE_NAME, _utterance, "DC/a01.wav or DC_a01.wav")


def _utterance(path: Path, name: re.Match[str]) -> Utterance:
    speaker = name["speaker"] or path.parent.name.upper()
    if speaker not in _SPEAKERS:
        raise ManifestError(f"{path} is in no folder of a speaker ({', '.join(_SPEAKERS)}); keep SAVEE's folders")
    return Utterance(
        id=f"{speaker}_{name['sentence']}",
        path=path,
        emotion=_LABELS[name["emotion"]],
        gender="male",
        speaker=speaker,
        groups={"sentence_id": name["sentence"], "language": "en"},
    )
