"""ESD, the emotional speech dataset (ten Chinese, ten English speakers; Zhou et al., 2022).

Recordings are ``0011/Angry/0011_000351.wav``, in some archives one folder deeper (``train``, ``evaluation``,
``test``); ``0011/0011.txt`` has their texts: id, text and emotion between tabs.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_text

__all__ = ["ESD_NAME", "read_esd"]

_LABELS = CORPUS_LABELS[CorpusKind.ESD]
_SPLITS = {"train": "train", "evaluation": "dev", "test": "test"}
_WOMEN = frozenset((1, 2, 3, 7, 9, 15, 16, 17, 18, 19))
_SENTENCES = 350  # each speaker reads as many, in every emotion anew
ESD_NAME = re.compile(r"(?P<speaker>00(?:0[1-9]|1\d|20))_(?P<number>00\d{4})")


def read_esd(root: Path) -> Manifest:
    """Read the recordings and texts below a folder that holds ``0001`` to ``0020``.

    Returns:
        The manifest "esd" with group columns ``sentence_id``, ``language`` (``zh`` for 0001 to 0010, else ``en``)
        and, where the archive has these folders, ``split`` (train, dev, test).

    Raises:
        ManifestError: no such recording, one twice, or one outside an emotion's folder.
    """
    texts: dict[Path, Mapping[str, str]] = {}

    def utterance(path: Path, name: re.Match[str]) -> Utterance:
        emotion, split = path.parent.name, None
        if emotion.lower() in _SPLITS:
            emotion, split = path.parent.parent.name, _SPLITS[emotion.lower()]
        if emotion.capitalize() not in _LABELS:
            raise ManifestError(f"{path} is in no folder of an emotion ({', '.join(_LABELS)}); keep ESD's folders")
        folder = path.parents[2 if split else 1]
        if folder not in texts:
            texts[folder] = _read_texts(folder / f"{name['speaker']}.txt")
        speaker = int(name["speaker"])
        language = "zh" if speaker <= 10 else "en"
        sentence = (int(name["number"]) - 1) % _SENTENCES + 1
        return Utterance(
            id=path.stem,
            path=path,
            emotion=_LABELS[emotion.capitalize()],
            gender="female" if speaker in _WOMEN else "male",
            speaker=name["speaker"],
            text=texts[folder].get(path.stem) or None,
            groups={
                "sentence_id": f"{language}{sentence:03d}",
                "language": language,
                **({"split": split} if split else {}),
            },
        )

    return read_named_files(root, "esd", ESD_NAME, utterance, "0011/Angry/0011_000351.wav")


def _read_texts(path: Path) -> dict[str, str]:
    """Text by id; empty where the speaker's file is absent. Files come in UTF-8, UTF-16 and Chinese encodings."""
    if not path.is_file():
        return {}
    cells = (line.rstrip("\r").split("\t") for line in read_text(path, fallback="gb18030").split("\n"))
    return {row[0].strip(): row[1].strip() for row in cells if len(row) >= 2}
