"""The manifest: one row per utterance, whatever corpus it came from.

A manifest is read from CSV or JSONL and written to CSV. The columns are ``id, path, start, end, emotion,
gender, speaker, text`` and any number of group columns (``session``, ``dialogue``, ``sentence_id``, ...). Only
the audio is required: an empty cell, or a missing column, means that the utterance says nothing about that
task, and its loss and metric skip the row.
"""

import csv
import dataclasses
import io
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.tables import read_rows, seconds_of
from jax_mtlser.run_folder import write_text

__all__ = [
    "AUDIO_COLUMNS",
    "Manifest",
    "ManifestError",
    "Utterance",
    "find_table",
    "keep_emotions",
    "read_manifest",
    "write_manifest",
]

_COLUMNS = ("id", "path", "start", "end", "emotion", "gender", "speaker", "text")
AUDIO_COLUMNS = ("path", "file", "filename", "file_name", "audio", "audio_filepath", "audio_path", "wav")
_TABLE_NAMES = ("manifest.csv", "metadata.csv", "manifest.jsonl", "metadata.jsonl")
# Other spellings met in users' tables, audformat, Hugging Face's folders, NeMo and EmoBox; a table may use one
# spelling per column.
_ALIASES = {
    "path": AUDIO_COLUMNS[1:],
    "emotion": ("label", "emo"),
    "text": ("transcript", "transcription", "sentence"),
    "gender": ("sex",),
    "speaker": ("speaker_id", "spk"),
    "id": ("utterance", "utterance_id", "key"),
}
_GENDERS = {"f": "female", "female": "female", "m": "male", "male": "male"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Utterance:
    """One utterance.

    Attributes:
        id: unique within the manifest.
        path: audio file.
        start: seconds into the file.
        end: seconds into the file; None: to its end.
        emotion, gender, speaker: label, or None where it is not known.
        text: transcript as spelled in the corpus, or None where it is not known.
        groups: further columns by name.
    """

    id: str
    path: Path
    start: float = 0.0
    end: float | None = None
    emotion: str | None = None
    gender: str | None = None
    speaker: str | None = None
    text: str | None = None
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def column(self, name: str) -> str | None:
        """The value of a label or group column; None where it is empty or absent."""
        if name in ("emotion", "gender", "speaker", "text", "id"):
            return getattr(self, name)
        return self.groups.get(name) or None


@dataclasses.dataclass(frozen=True)
class Manifest:
    """Utterances in a fixed order.

    Attributes:
        name: of the corpus, for reports.
        utterances: the rows.
    """

    name: str
    utterances: tuple[Utterance, ...]

    def __len__(self) -> int:
        return len(self.utterances)

    def column(self, name: str) -> list[str | None]:
        """One column, by row."""
        return [utterance.column(name) for utterance in self.utterances]

    def columns(self) -> list[str]:
        """Names of the label and group columns that have at least one value."""
        names = list(dict.fromkeys(["emotion", "gender", "speaker", *(k for u in self.utterances for k in u.groups)]))
        return [name for name in names if any(u.column(name) for u in self.utterances)]

    def subset(self, rows: Iterable[int]) -> "Manifest":
        """A manifest of the given rows, in the given order."""
        return Manifest(self.name, tuple(self.utterances[row] for row in rows))

    def with_emotions(self, rename: Callable[[str], str | None]) -> "Manifest":
        """A manifest whose emotions are renamed, or taken away; rows without one stay as they are."""
        return Manifest(
            self.name,
            tuple(
                u if u.emotion is None else dataclasses.replace(u, emotion=rename(u.emotion)) for u in self.utterances
            ),
        )

    def counts(self, name: str) -> dict[str, int]:
        """How often each value of a column occurs, in sorted order."""
        return dict(sorted(Counter(value for value in self.column(name) if value is not None).items()))


def keep_emotions(manifest: Manifest, emotions: Sequence[str]) -> Manifest:
    """The rows whose emotion is one of ``emotions`` (all rows, when that is empty).

    Rows without an emotion label are kept: they still teach the other tasks.

    Raises:
        ManifestError: when a wanted class does not occur at all.
    """
    if not emotions:
        return manifest
    present = manifest.counts("emotion")
    if absent := [emotion for emotion in emotions if emotion not in present]:
        raise ManifestError(
            f"{manifest.name} has no utterance with emotion {', '.join(absent)}; it has "
            f"{', '.join(f'{k} ({v})' for k, v in present.items()) or 'no emotion labels'}. "
            "Set --config.corpus.emotions to some of these."
        )
    wanted = {None, *emotions}
    return manifest.subset(i for i, utterance in enumerate(manifest.utterances) if utterance.emotion in wanted)


def read_manifest(path: Path, *, name: str | None = None) -> Manifest:
    """Read a table of utterances.

    Args:
        path: a CSV file (comma, semicolon or tab separated, UTF-8 with or without byte-order mark), a JSONL
            file, or a folder that holds ``manifest`` or ``metadata`` in one of these. Relative audio paths
            start from the table's folder. ``start`` and ``end`` are seconds or audformat's time spans
            (``0 days 00:00:01.500000``, ``NaT``).
        name: of the corpus; default the name of the table's folder.

    Raises:
        ManifestError: no such file, no audio column, an unreadable number, an id that occurs twice.
    """
    table = find_table(path)
    if table is None:
        there = f"no {', '.join(_TABLE_NAMES)} in {path}" if path.is_dir() else f"no file {path}"
        raise ManifestError(
            f"there is {there}; point --config.corpus.path at a CSV or JSONL file with at least a column 'path'"
        )
    names, rows = read_rows(table)
    columns = _column_names(names, table)
    root = table.parent
    utterances: list[Utterance] = []
    seen: dict[str, int] = {}
    for line, row in rows:
        cells = {columns[key]: value for key, value in row.items()}
        utterance = _utterance(cells, root, f"{table}, line {line}")
        if utterance.id in seen:
            raise ManifestError(
                f"{table}, line {line}: id {utterance.id!r} stands on line {seen[utterance.id]} already; ids must be unique"
            )
        seen[utterance.id] = line
        utterances.append(utterance)
    if not utterances:
        raise ManifestError(f"{table} has a header but no rows")
    return Manifest(name or table.resolve().parent.name, tuple(utterances))


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write a manifest as CSV; audio below the table's folder is written relative to it."""
    groups = list(dict.fromkeys(key for utterance in manifest.utterances for key in utterance.groups))
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow([*_COLUMNS, *groups])
    root = path.resolve().parent
    for u in manifest.utterances:
        audio = u.path.resolve()
        cells: list[str | float | Path] = [
            u.id,
            audio.relative_to(root) if audio.is_relative_to(root) else audio,
            repr(u.start) if u.start else "",
            "" if u.end is None else repr(u.end),
            u.emotion or "",
            u.gender or "",
            u.speaker or "",
            u.text or "",
        ]
        writer.writerow([*cells, *(u.groups.get(key, "") for key in groups)])
    write_text(path, buffer.getvalue())


def find_table(path: Path) -> Path | None:
    """The table of utterances at a path: the file itself or one of the usual names in the folder; None: neither."""
    candidates = [path / name for name in _TABLE_NAMES] if path.is_dir() else [path]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _column_names(fieldnames: Sequence[str], table: Path) -> dict[str, str]:
    """Map the table's own column names to ours; names we do not know stay and become group columns."""
    columns: dict[str, str] = {}
    for field in fieldnames:
        plain = field.strip().lower()
        target = next((ours for ours, others in _ALIASES.items() if plain == ours or plain in others), plain)
        if target in columns.values():
            twin = next(theirs for theirs, ours in columns.items() if ours == target)
            # "sentence" beside "text" is a group, not a second transcript.
            if target == plain:
                columns[twin] = twin.strip().lower()
            else:
                target = plain
        columns[field] = target
    if "path" not in columns.values():
        raise ManifestError(
            f"{table} has no audio column; name one of its columns ({', '.join(fieldnames) or 'none found'}) 'path' or 'file'"
        )
    return columns


def _utterance(cells: Mapping[str, str], root: Path, where: str) -> Utterance:
    if not cells.get("path"):
        raise ManifestError(f"{where}: the audio path is empty")
    start, end = _seconds(cells, "start", where), _seconds(cells, "end", where)
    if end is not None and end <= (start or 0.0):
        raise ManifestError(f"{where}: end {end} s is not after start {start or 0.0} s")
    gender = cells.get("gender", "").lower()
    if gender and gender not in _GENDERS:
        raise ManifestError(
            f"{where}: gender {cells['gender']!r} is not female, male, f or m; leave it empty if unknown"
        )
    # The cell itself where it is a plain number: 1.50 and 1.5 have been different ids.
    written = cells.get("start", "")
    suffix = f"@{written if re.fullmatch(r'[0-9.]+', written) else start}" if start else ""
    return Utterance(
        id=cells.get("id") or f"{Path(cells['path']).with_suffix('').as_posix()}{suffix}",
        path=root / Path(cells["path"]).expanduser(),
        start=start or 0.0,
        end=end,
        emotion=cells.get("emotion") or None,
        gender=_GENDERS[gender] if gender else None,
        speaker=cells.get("speaker") or None,
        text=cells.get("text") or None,
        groups={key: value for key, value in cells.items() if key not in _COLUMNS and value},
    )


def _seconds(cells: Mapping[str, str], column: str, where: str) -> float | None:
    cell = cells.get(column, "")
    if cell.lower() in ("", "nat", "nan"):  # how pandas writes that a segment lasts to the end
        return None
    value = seconds_of(cell)
    if value is None or not (math.isfinite(value) and value >= 0):
        raise ManifestError(
            f"{where}: {column} is {cell!r}; it must be seconds, 0 or greater, or a time span such as 0 days 00:00:01.5"
        )
    return value
