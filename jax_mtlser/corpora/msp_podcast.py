"""MSP-Podcast (segments of podcasts; Lotfian & Busso, 2019), any release.

Labels are in ``Labels/labels_consensus.csv`` (in older releases ``labels_concensus.csv``), recordings in ``Audios``
or ``Audio``, texts, where a release has them, in ``Transcripts/NAME.txt``.
"""

import re
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import audio_files, index_by_stem, unique_utterances
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_rows, read_text

__all__ = ["find_msp_podcast", "read_msp_podcast"]

_LABELS = CORPUS_LABELS[CorpusKind.MSP_PODCAST]
_TABLES = ("labels_consensus.csv", "labels_concensus.csv")
_COLUMNS = ("FileName", "EmoClass", "Split_Set")
_SPLITS = {"train": "train", "development": "dev", "validation": "dev"}
_MEANS = {"activation": "EmoAct", "valence": "EmoVal", "dominance": "EmoDom"}
_GENDERS = {"female": "female", "male": "male"}
_EPISODE = re.compile(r"MSP-PODCAST_(?P<episode>[^_]+)_.*", re.IGNORECASE)


def read_msp_podcast(root: Path) -> Manifest:
    """Read the labels and texts and find the recordings.

    Args:
        root: folder of the release.

    Returns:
        The manifest "msp_podcast" in the order of the table, also segments without agreement, with group columns
        ``split`` (train, dev, test1, test2, ...; in the release Development or Validation for dev), ``dialogue``
        (the podcast's number), ``language`` and the means of ``activation``, ``valence`` and ``dominance`` (1 to 7).
        Segments whose speaker the release calls Unknown have none.

    Raises:
        ManifestError: no table, a missing column, a label that no release has, a recording twice.
    """
    table = find_msp_podcast(root)
    if table is None:
        raise ManifestError(
            f"there is no Labels/{' or '.join(_TABLES)} of MSP-Podcast in {root}; name the release with "
            "--config.corpus.path=PATH"
        )
    names, rows = read_rows(table)
    if absent := [name for name in _COLUMNS if name not in names]:
        raise ManifestError(f"{table} has no column {', '.join(absent)}; take the table of the release")
    release = table.parent.parent if table.parent.name == "Labels" else table.parent
    folders = [release / name for name in ("Audios", "Audio") if (release / name).is_dir()] or [release]
    recordings = index_by_stem((path for folder in folders for path in audio_files(folder)), "msp_podcast")
    texts = {path.stem: path for path in audio_files(release / "Transcripts", suffixes=(".txt",))}
    return unique_utterances(
        "msp_podcast",
        [_utterance(row, f"{table}, line {line}", folders[0], recordings, texts) for line, row in rows],
    )


def find_msp_podcast(root: Path) -> Path | None:
    """The table of labels; None where there is none."""
    places = (root / folder / name for folder in ("Labels", ".") for name in _TABLES)
    return next((path for path in places if path.is_file()), None)


def _utterance(
    row: dict[str, str], where: str, folder: Path, recordings: dict[str, Path], texts: dict[str, Path]
) -> Utterance:
    label = row["EmoClass"]
    if label and label not in _LABELS:
        raise ManifestError(f"{where}: EmoClass {label!r}; the releases have {', '.join(_LABELS)}")
    stem = Path(row["FileName"]).stem
    speaker, split = row.get("SpkrID", ""), row["Split_Set"].lower()
    episode = _EPISODE.fullmatch(stem)
    text = read_text(texts[stem], fallback="cp1252").strip() if stem in texts else ""
    return Utterance(
        id=stem,
        path=recordings.get(stem, folder / row["FileName"]),
        emotion=_LABELS[label] if label else None,
        gender=_GENDERS.get(row.get("Gender", "").lower()),
        speaker=None if speaker.lower() in ("", "unknown") else speaker,
        text=text or None,
        groups={
            "split": _SPLITS.get(split, split),
            **({"dialogue": episode["episode"]} if episode else {}),
            "language": "en",
            **{name: row[column] for name, column in _MEANS.items() if row.get(column)},
        },
    )
