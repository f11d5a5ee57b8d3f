"""ShEMO, the Sharif emotional speech database (87 Persian speakers; Mohamad Nezami et al., 2019).

One recording per utterance, named like ``F01A02.wav``: gender and speaker, emotion, number. Texts are in
``shemo.json``, which is distributed beside the recordings.
"""

import json
import re
from pathlib import Path
from typing import Any

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_text

__all__ = ["SHEMO_NAME", "read_shemo"]

_LABELS = CORPUS_LABELS[CorpusKind.SHEMO]
SHEMO_NAME = re.compile(rf"(?P<speaker>[FM]\d\d)(?P<emotion>[{''.join(_LABELS)}])\d\d\d?")


def read_shemo(root: Path) -> Manifest:
    """Read the recordings below a folder, such as one with ``female`` and ``male``.

    Returns:
        The manifest "shemo" with the column ``language``. The emotion is the one in the name, which ``shemo.json``
        corrects for some utterances; without ``shemo.json`` in the folder there are no texts.

    Raises:
        ManifestError: no such recording, one twice, or a ``shemo.json`` of another form.
    """
    texts = _read_texts(root / "shemo.json")

    def utterance(path: Path, name: re.Match[str]) -> Utterance:
        return Utterance(
            id=path.stem,
            path=path,
            emotion=_LABELS[name["emotion"]],
            gender="female" if name["speaker"].startswith("F") else "male",
            speaker=name["speaker"],
            text=texts.get(path.stem) or None,
            groups={"language": "fa"},
        )

    return read_named_files(root, "shemo", SHEMO_NAME, utterance, "F01A02.wav")


def _read_texts(path: Path) -> dict[str, str]:
    """Transcript by id, from a list of objects or from an object of objects; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        content: Any = json.loads(read_text(path))
        items = (
            [(key, item) for key, item in content.items()]
            if isinstance(content, dict)
            else [(item["id"], item) for item in content]
        )
        return {str(key): str(item["transcript"]).replace("\ufeff", "").strip() for key, item in items}
    except (ValueError, TypeError, KeyError) as error:
        raise ManifestError(
            f"{path} is not a list of utterances with id and transcript ({type(error).__name__}: {error}); "
            "take the file of the release, or move it away to go without texts"
        ) from None
