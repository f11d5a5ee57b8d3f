"""nEMO (nine Polish actors; Christop, 2024), the release of amu-cai/nEMO: ``data.tsv`` and ``samples/``."""

from pathlib import Path, PurePosixPath

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import unique_utterances
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_rows

__all__ = ["read_nemo"]

_LABELS = CORPUS_LABELS[CorpusKind.NEMO]
_COLUMNS = ("file_id", "emotion", "raw_text", "speaker_id", "gender", "age")


def read_nemo(root: Path) -> Manifest:
    """Read the table and name the recordings of a release.

    Returns:
        The manifest "nemo" in the order of the table, with group columns ``sentence_id`` (every actor reads the
        same 90 sentences), ``age`` and ``language``.

    Raises:
        ManifestError: no ``data.tsv``, a missing column, or a label that the release does not have.
    """
    table = root / "data.tsv"
    if not table.is_file():
        raise ManifestError(f"there is no data.tsv of nEMO in {root}; name the release with --config.corpus.path=PATH")
    names, rows = read_rows(table)
    if absent := [name for name in _COLUMNS if name not in names]:
        raise ManifestError(f"{table} has no column {', '.join(absent)}; take the table of the release")
    return unique_utterances("nemo", (_utterance(row, root, f"{table}, line {line}") for line, row in rows))


def _utterance(row: dict[str, str], root: Path, where: str) -> Utterance:
    if row["emotion"] not in _LABELS:
        raise ManifestError(f"{where}: emotion {row['emotion']!r}; the release has {', '.join(_LABELS)}")
    stem = PurePosixPath(row["file_id"]).stem
    return Utterance(
        id=stem,
        path=root / "samples" / row["file_id"],
        emotion=_LABELS[row["emotion"]],
        gender=row["gender"] or None,
        speaker=row["speaker_id"] or None,
        text=row["raw_text"] or None,
        groups={"sentence_id": stem.rpartition("_")[2], "age": row["age"], "language": "pl"},
    )
