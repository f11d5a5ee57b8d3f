"""Fold lists from files.

A table (CSV with a header, or JSONL) has a column with ids (``id``, ``key``, ``utterance``, ``file``, ``path``) and
one with either the part (``split``: train, dev, test) or the fold in which the utterance is tested (``fold``: any
names). A folder holds one folder per fold, with one file per part whose name says which part it is
(``iemocap_train_fold_1.jsonl``), or such files for a single fold: the layout of EmoBox (Ma et al., 2024).

An utterance is found by its id, by its id behind the name of its corpus (EmoBox: ``iemocap-Ses01F_impro01_F000``),
or by its recording: the file's name and, where several have the same, the folders that it lies in.
"""

import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.evaluation.natural_order import natural_order
from jax_mtlser.evaluation.protocols.fixed import FoldPart, part_named
from jax_mtlser.evaluation.protocols.folds import ProtocolError

__all__ = ["FoldLists", "read_fold_lists"]

_ID_COLUMNS = ("id", "key", "utterance", "utterance_id", "file", "filename", "path", "wav")
_VALUE_COLUMNS = ("split", "part", "partition", "split_set", "set", "fold")
_SUFFIXES = (".csv", ".tsv", ".jsonl")


@dataclasses.dataclass(frozen=True)
class FoldLists:
    """What the files say about a manifest.

    Attributes:
        folds: for each fold the part of each row; None: not listed.
        listed: number of different utterances in the files.
        absent: those that the manifest does not have.
    """

    folds: list[list[FoldPart | None]]
    listed: int
    absent: tuple[str, ...]


class _Entry:
    """One line of a list: the names under which the utterance may be known."""

    def __init__(self, line: Mapping[str, str], where: str) -> None:
        plain = _plain(line)
        self.names = [plain[column] for column in _ID_COLUMNS if plain.get(column)]
        if not self.names:
            raise ProtocolError(f"{where}: no id; name a column {', '.join(_ID_COLUMNS[:-1])} or {_ID_COLUMNS[-1]}")
        self.name = self.names[0]
        if corpus := plain.get("dataset"):
            self.names += [name.removeprefix(f"{corpus}-") for name in self.names]


class _Rows:
    """Finds the row of an entry."""

    def __init__(self, manifest: Manifest) -> None:
        self._by_id = {utterance.id: row for row, utterance in enumerate(manifest.utterances)}
        self._paths = [_steps(utterance.path) for utterance in manifest.utterances]
        self._by_recording: dict[str, list[int]] = {}
        for row, steps in enumerate(self._paths):
            self._by_recording.setdefault(steps[0], []).append(row)

    def __call__(self, entry: _Entry) -> int | None:
        for name in entry.names:
            if (row := self._by_id.get(name)) is not None:
                return row
        for name in entry.names:
            steps = _steps(PurePosixPath(name))
            rows = self._by_recording.get(steps[0], [])
            shared = [_shared(steps, self._paths[row]) for row in rows]
            best = [row for row, count in zip(rows, shared, strict=True) if count == max(shared)]
            # A recording with several utterances names none of them.
            if len(best) == 1:
                return best[0]
        return None


def _steps(path: PurePath) -> list[str]:
    """The parts of a path from its end, the file's name without suffix."""
    return [path.stem, *reversed(path.parts[:-1])]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    """Number of equal steps from the end of two paths."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def _plain(line: Mapping[str, Any]) -> dict[str, str]:
    """Cells by the lower-case names of their columns; empty ones are left out."""
    return {(name or "").strip().lower(): str(value).strip() for name, value in line.items() if value not in (None, "")}


def read_fold_lists(path: Path, manifest: Manifest) -> FoldLists:
    """Read a table or a folder of lists and find its utterances in the manifest.

    Raises:
        ProtocolError: no lists at ``path``; a line without id or value; an utterance in two parts of a fold; no
            listed utterance is in the manifest.
    """
    if path.is_dir():
        folds = _read_folder(path)
    elif path.is_file():
        folds = _read_table(path)
    else:
        raise ProtocolError(
            f"there are no fold lists at {path}; name a file or folder with --config.protocol.fold_lists"
        )
    row_of = _Rows(manifest)
    names = {entry.name for entries in folds for entry, _ in entries}
    absent = sorted({entry.name for entries in folds for entry, _ in entries if row_of(entry) is None})
    if len(absent) == len(names):
        example = manifest.utterances[0].id if len(manifest) else "nothing"
        raise ProtocolError(
            f"none of the {len(names)} utterances that {path} lists, such as {', '.join(absent[:1]) or 'none'}, is in "
            f"{manifest.name}, whose ids look like {example}"
        )
    return FoldLists([_parts(entries, row_of, len(manifest)) for entries in folds], len(names), tuple(absent))


def _parts(entries: Sequence[tuple["_Entry", FoldPart]], row_of: "_Rows", size: int) -> list[FoldPart | None]:
    parts: list[FoldPart | None] = [None] * size
    for entry, part in entries:
        row = row_of(entry)
        if row is None:
            continue
        if parts[row] not in (None, part):
            raise ProtocolError(
                f"{entry.name} is listed for {parts[row]} and for {part} of the same fold; list it once"
            )
        parts[row] = part
    return parts


def _read_table(path: Path) -> list[list[tuple[_Entry, FoldPart]]]:
    lines = [(_Entry(line, where), _value(line, where)) for line, where in _lines(path)]
    values = sorted({value for _, value in lines}, key=natural_order)
    parts = {value: part_named(value) for value in values}
    if all(parts.values()):
        return [[(entry, part) for entry, value in lines if (part := parts[value]) is not None]]
    if any(parts.values()):
        raise ProtocolError(f"{path} has both parts and folds in one column: {', '.join(values[:5])}")
    if len(values) < 2:
        raise ProtocolError(f"{path} names the fold {', '.join(values) or 'of no utterance'} only; two are needed")
    return [[(entry, "test" if value == tested else "train") for entry, value in lines] for tested in values]


def _value(line: Mapping[str, str], where: str) -> str:
    plain = _plain(line)
    value = next((plain[column] for column in _VALUE_COLUMNS if plain.get(column)), "")
    if not value:
        raise ProtocolError(f"{where}: no part or fold; name a column {', '.join(_VALUE_COLUMNS[:-1])} or fold")
    return value


def _read_folder(path: Path) -> list[list[tuple[_Entry, FoldPart]]]:
    folders = sorted((p for p in path.iterdir() if p.is_dir() and _part_files(p)), key=lambda p: natural_order(p.name))
    if _part_files(path):
        folders = [path]
    if not folders:
        raise ProtocolError(
            f"{path} has no folders with files such as train.csv and test.csv, or NAME_train_fold_1.jsonl, in them"
        )
    return [
        [(_Entry(line, where), part) for part, file in _part_files(folder).items() for line, where in _lines(file)]
        for folder in folders
    ]


def _part_files(folder: Path) -> dict[FoldPart, Path]:
    """The file of each part; a part has one file."""
    found: dict[FoldPart, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in _SUFFIXES or not file.is_file():
            continue
        words = re.split(r"[^a-z]+", file.stem.lower())
        for part in {part for word in words if (part := part_named(word))}:
            if part in found:
                raise ProtocolError(
                    f"{folder} has two lists for {part}: {found[part].name} and {file.name}; remove one"
                )
            found[part] = file
    return found


def _lines(path: Path) -> Iterator[tuple[Mapping[str, str], str]]:
    """Each line as a mapping, and where it stands."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ProtocolError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if path.suffix == ".jsonl":
        yield from _json_lines(text.splitlines(), path)
        return
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    for line in reader:
        yield line, f"{path}, line {reader.line_num}"


def _json_lines(lines: Iterable[str], path: Path) -> Iterator[tuple[Mapping[str, str], str]]:
    for number, line in enumerate(lines, start=1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            raise ProtocolError(f"{where}: not JSON ({error.msg})") from None
        if not isinstance(values, dict):
            raise ProtocolError(f"{where}: not an object with an id")
        yield values, where
