"""EMO-DB, the Berlin database of emotional speech (ten German actors; Burkhardt et al., 2005).

One recording per utterance, named like ``03a01Fa.wav``: speaker, sentence, emotion, version.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["EMO_DB_NAME", "read_emo_db"]

_LABELS = CORPUS_LABELS[CorpusKind.EMO_DB]
_GENDERS = {
    "03": "male", "08": "female", "09": "female", "10": "male", "11": "male", "12": "male", "13": "female",
    "14": "female", "15": "male", "16": "female",
}  # fmt: skip
_SENTENCES = {
    "a01": "Der Lappen liegt auf dem Eisschrank.",
    "a02": "Das will sie am Mittwoch abgeben.",
    "a04": "Heute abend könnte ich es ihm sagen.",
    "a05": "Das schwarze Stück Papier befindet sich da oben neben dem Holzstück.",
    "a07": "In sieben Stunden wird es soweit sein.",
    "b01": "Was sind denn das für Tüten, die da unter dem Tisch stehen?",
    "b02": "Sie haben es gerade hochgetragen und jetzt gehen sie wieder runter.",
    "b03": "An den Wochenenden bin ich jetzt immer nach Hause gefahren und habe Agnes besucht.",
    "b09": "Ich will das eben wegbringen und dann mit Karl was trinken gehen.",
    "b10": "Die wird auf dem Platz sein, wo wir sie immer hinlegen.",
}
EMO_DB_NAME = re.compile(
    rf"(?P<speaker>{'|'.join(_GENDERS)})(?P<sentence>{'|'.join(_SENTENCES)})(?P<emotion>[{''.join(_LABELS)}])[a-z]?"
)


def read_emo_db(root: Path) -> Manifest:
    """Read the recordings below a folder, such as ``wav`` of the release.

    Returns:
        The manifest "emo_db" with group columns ``sentence_id`` and ``language``; texts are the ten sentences.

    Raises:
        ManifestError: no such recording, or one twice.
    """
    return read_named_files(root, "emo_db", EMO_DB_NAME, _utterance, "03a01Fa.wav")


def _utterance(path: Path, name: re.Match[str]) -> Utterance:
    return Utterance(
        id=path.stem,
        path=path,
        emotion=_LABELS[name["emotion"]],
        gender=_GENDERS[name["speaker"]],
        speaker=name["speaker"],
        text=_SENTENCES[name["sentence"]],
        groups={"sentence_id": name["sentence"], "language": "de"},
    )
