"""CREMA-D (91 actors; Cao et al., 2014).

One recording per utterance, named like ``1001_DFA_ANG_XX.wav``: actor, sentence, emotion that was played,
intensity. ``VideoDemographics.csv`` of the release says who is a woman.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import read_named_files
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_rows

__all__ = ["CREMA_D_NAME", "read_crema_d"]

_LABELS = CORPUS_LABELS[CorpusKind.CREMA_D]
_SENTENCES = {
    "DFA": "Don't forget a jacket.",
    "IEO": "It's eleven o'clock.",
    "IOM": "I'm on my way to the meeting.",
    "ITH": "I think I have a doctor's appointment.",
    "ITS": "I think I've seen this before.",
    "IWL": "I would like a new alarm clock.",
    "IWW": "I wonder what this is about.",
    "MTI": "Maybe tomorrow it will be cold.",
    "TAI": "The airplane is almost full.",
    "TIE": "That is exactly what happened.",
    "TSI": "The surface is slick.",
    "WSI": "We'll stop in a couple of minutes.",
}
_LEVELS = {"LO": "low", "MD": "medium", "HI": "high", "XX": "", "X": ""}
CREMA_D_NAME = re.compile(
    rf"(?P<actor>1\d\d\d)_(?P<sentence>{'|'.join(_SENTENCES)})_(?P<emotion>{'|'.join(_LABELS)})_(?P<level>LO|MD|HI|XX?)"
)
_GENDERS = {"female": "female", "male": "male"}


def read_crema_d(root: Path) -> Manifest:
    """Read the recordings of the release.

    Args:
        root: the release, or a folder of recordings. Of a release's ``AudioWAV`` and ``AudioMP3``, the same
            utterances twice, the first is read.

    Returns:
        The manifest "crema_d" with group columns ``sentence_id``, ``intensity`` (where it was asked for) and
        ``language``. Without ``VideoDemographics.csv`` in the release's folder there are no genders.

    Raises:
        ManifestError: no such recording, one twice, or actors without gender in the table.
    """
    folder = next((root / name for name in ("AudioWAV", "AudioMP3") if (root / name).is_dir()), root)
    genders = _read_genders(root)

    def utterance(path: Path, name: re.Match[str]) -> Utterance:
        level = _LEVELS[name["level"]]
        return Utterance(
            id=path.stem,
            path=path,
            emotion=_LABELS[name["emotion"]],
            gender=genders.get(name["actor"]),
            speaker=name["actor"],
            text=_SENTENCES[name["sentence"]],
            groups={"sentence_id": name["sentence"], **({"intensity": level} if level else {}), "language": "en"},
        )

    manifest = read_named_files(folder, "crema_d", CREMA_D_NAME, utterance, "1001_DFA_ANG_XX.wav")
    if genders and (unknown := sorted({u.speaker or "" for u in manifest.utterances if u.gender is None})):
        raise ManifestError(
            f"{root / 'VideoDemographics.csv'} has no actor {', '.join(unknown[:5])}; take the table of the release"
        )
    return manifest


def _read_genders(root: Path) -> dict[str, str]:
    for table in (root / "VideoDemographics.csv", root.parent / "VideoDemographics.csv"):
        if table.is_file():
            _, rows = read_rows(table, fallback="cp1252")
            return {
                row["ActorID"]: _GENDERS[row["Sex"].lower()]
                for _, row in rows
                if row.get("Sex", "").lower() in _GENDERS
            }
    return {}
