"""MELD (scenes of a TV series; Poria et al., 2019).

Labels and texts are in ``train_sent_emo.csv``, ``dev_sent_emo.csv`` and ``test_sent_emo.csv``. The release has films
(``train_splits/dia0_utt0.mp4``); their sound has to be taken out first, in the same folders or a copy of them.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import audio_files, unique_utterances
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_rows

__all__ = ["find_meld", "read_meld"]

_LABELS = CORPUS_LABELS[CorpusKind.MELD]
_SPLITS = ("train", "dev", "test")
_COLUMNS = ("Utterance", "Speaker", "Emotion", "Dialogue_ID", "Utterance_ID")
# The main cast; the tables do not say who the others are.
_GENDERS = {
    "Chandler": "male", "Joey": "male", "Monica": "female", "Phoebe": "female", "Rachel": "female", "Ross": "male",
}  # fmt: skip
# "All", "Both", "Rachel and Ross", "Joey/Ross", "Everyone except Ross": not one voice.
_SEVERAL = re.compile(r"all|both|everyone.*|everybody.*|.*(?:[/&,]| and ).*", re.IGNORECASE)
_RECORDING = re.compile(r"dia\d+_utt\d+")
_FOLDERS = {
    "train": ("train_splits", "train"),
    "dev": ("dev_splits_complete", "dev_splits", "dev"),
    "test": ("output_repeated_splits_test", "test_splits", "test"),
}


def read_meld(root: Path) -> Manifest:
    """Read the three tables and find the recordings.

    Args:
        root: folder with the tables, at most two levels below it, and with the recordings in folders named as in
            the release, or ``train``, ``dev`` and ``test``.

    Returns:
        The manifest "meld" with ids such as ``train_dia0_utt0`` and group columns ``split`` (train, dev, test),
        ``dialogue``, ``season``, ``episode``, ``sentiment`` and ``language``. Lines of several people have no
        speaker; genders are known of the six main characters.

    Raises:
        ManifestError: no tables, a missing column, an unknown label, or films without sound files.
    """
    tables = find_meld(root)
    if len(tables) < len(_SPLITS):
        absent = ", ".join(f"{split}_sent_emo.csv" for split in _SPLITS if split not in tables)
        raise ManifestError(f"there is no {absent} of MELD in {root}; name the release with --config.corpus.path=PATH")
    recordings = _recordings(root)
    utterances = [u for split in _SPLITS for u in _read_table(tables[split], split, recordings, root)]
    return unique_utterances("meld", utterances)


def find_meld(root: Path) -> dict[str, Path]:
    """The tables that are there, by split."""
    found = {}
    for split in _SPLITS:
        name = f"{split}_sent_emo.csv"
        tables = [path for pattern in (name, f"*/{name}", f"*/*/{name}") for path in sorted(root.glob(pattern))]
        if tables:
            found[split] = tables[0]
    return found


def _recordings(root: Path) -> dict[tuple[str, str], Path]:
    """Sound files by split and name."""
    recordings: dict[tuple[str, str], Path] = {}
    for path in audio_files(root):
        if not _RECORDING.fullmatch(path.stem):
            continue
        folders = [part.lower() for part in path.relative_to(root).parts[:-1]]
        split = next((s for part in reversed(folders) for s, names in _FOLDERS.items() if part in names), None)
        if split is not None and recordings.setdefault((split, path.stem), path) is not path:
            raise ManifestError(
                f"meld has {path.stem} of {split} twice:\n  {recordings[split, path.stem]}\n  {path}\nremove one of them"
            )
    if not recordings and next(audio_files(root, suffixes=(".mp4",)), None):
        raise ManifestError(
            f"{root} has MELD's films, but not their sound; take it out beside each film, for example with\n"
            f"  find {root} -name 'dia*.mp4' -exec sh -c "
            '\'ffmpeg -i "$1" -vn -ac 1 -ar 16000 "${1%.mp4}.wav"\' sh {} \\;'
        )
    return recordings


def _read_table(table: Path, split: str, recordings: dict[tuple[str, str], Path], root: Path) -> Iterator[Utterance]:
    names, rows = read_rows(table, fallback="cp1252")
    if absent := [name for name in _COLUMNS if name not in names]:
        raise ManifestError(f"{table} has no column {', '.join(absent)}; take the table of the release")
    for line, row in rows:
        stem = f"dia{row['Dialogue_ID']}_utt{row['Utterance_ID']}"
        if row["Emotion"].lower() not in _LABELS:
            raise ManifestError(
                f"{table}, line {line}: emotion {row['Emotion']!r}; the release has {', '.join(_LABELS)}"
            )
        several = _SEVERAL.fullmatch(row["Speaker"])
        more = {"season": row.get("Season"), "episode": row.get("Episode"), "sentiment": row.get("Sentiment")}
        yield Utterance(
            id=f"{split}_{stem}",
            path=recordings.get((split, stem), root / _FOLDERS[split][0] / f"{stem}.wav"),
            emotion=_LABELS[row["Emotion"].lower()],
            gender=_GENDERS.get(row["Speaker"]),
            speaker=None if several else row["Speaker"] or None,
            text=row["Utterance"] or None,
            groups={
                "split": split,
                "dialogue": f"{split}_dia{row['Dialogue_ID']}",
                "language": "en",
                **{name: value for name, value in more.items() if value},
            },
        )
