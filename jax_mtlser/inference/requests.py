"""Which recordings are to be judged: files, folders searched through, the rows of a table, or a microphone's sound."""

import dataclasses
import hashlib
import json
import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import soundfile

from jax_mtlser.corpora.manifest import AUDIO_COLUMNS, ManifestError
from jax_mtlser.corpora.tables import read_rows, seconds_of
from jax_mtlser.data.microphone import record
from jax_mtlser.inference.recognizer import Segment

__all__ = ["Found", "Request", "find_recordings", "from_microphone", "read_requests"]

# Names that recordings have; a folder's other files are counted and left alone. First what libsndfile's own list does
# not spell out, then what needs ffmpeg.
_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw", ".mat4", ".mat5"}
    | {".wave", ".aif", ".aifc", ".oga", ".opus", ".snd", ".sph", ".sf"}
    | {".m4a", ".m4b", ".mp4", ".aac", ".wma", ".amr", ".3gp", ".webm", ".mka", ".mkv", ".mov", ".ac3", ".ape", ".wv"}
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """One recording, or one segment of it.

    Attributes:
        file: as it is written in the output.
        path: where it is.
        start, end: seconds; None: to the end.
        cells: the list's further columns.
        error: why it cannot be tried; None for all others.
        recorded: samples and their rate, instead of what lies at ``path``.
    """

    file: str
    path: Path
    start: float = 0.0
    end: float | None = None
    cells: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str | None = None
    recorded: tuple[np.ndarray, int] | None = None

    @property
    def segment(self) -> Segment:
        """For the recognizer."""
        return Segment(self.recorded or self.path, self.start, self.end, self.error)


@dataclasses.dataclass(frozen=True)
class Found:
    """What there is to do.

    Attributes:
        requests: in the order of the output.
        columns: names of the list's further columns.
        passed_over: files without an audio file's name, by suffix.
    """

    requests: tuple[Request, ...]
    columns: tuple[str, ...] = ()
    passed_over: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of the requests."""
        digest = hashlib.blake2b(digest_size=16)
        for request in self.requests:
            values = [request.file, str(request.path), request.start, request.end, dict(request.cells), request.error]
            digest.update(json.dumps(values).encode())
            if request.recorded is not None:
                digest.update(np.ascontiguousarray(request.recorded[0]).tobytes())
        return digest.hexdigest()


def find_recordings(paths: Sequence[Path]) -> Found:
    """Files as they are named, and in folders, at any depth, those with an audio file's suffix, sorted.

    Hidden files and folders are left alone; links to folders are followed, each folder is entered once. A folder that
    cannot be read becomes a request with an error.
    """
    requests: list[Request] = []
    passed_over: Counter[str] = Counter()
    for path in paths:
        if not path.is_dir():
            requests.append(Request(file=_shown(path), path=path))
            continue
        for found in _walk(path, set()):
            if isinstance(found, Request):
                requests.append(found)
            elif found.suffix.lower() in _SUFFIXES:
                requests.append(Request(file=_shown(found), path=found))
            else:
                passed_over[found.suffix.lower() or "no suffix"] += 1
    return Found(tuple(requests), passed_over=dict(passed_over.most_common()))


def _walk(folder: Path, entered: set[tuple[int, int]]) -> Iterator[Path | Request]:
    try:
        status = folder.stat()
        if (status.st_dev, status.st_ino) in entered:
            return
        entered.add((status.st_dev, status.st_ino))
        names = sorted(entry.name for entry in os.scandir(folder))
    except OSError as error:
        reason = f"the folder cannot be read: {error.strerror}"
        yield Request(file=_shown(folder), path=folder, error=reason)
        return
    for name in names:
        path = folder / name
        if name.startswith("."):
            continue
        if path.is_dir():
            yield from _walk(path, entered)
        else:
            yield path


def from_microphone(seconds: float) -> Found:
    """One recording of the microphone, made now and kept in memory only.

    Raises:
        MicrophoneError: the library or a device is missing, or a length that cannot be recorded.
    """
    name = "microphone"
    return Found((Request(file=name, path=Path(name), recorded=record(seconds)),))


def read_requests(table: Path) -> Found:
    """One request for each row of a CSV table.

    The table has a column ``file`` (or ``path``, ``filename``, ``audio``, ``wav``), with paths relative to the table's
    folder, and may have ``start`` and ``end``: in seconds, or as audformat writes them (``0 days 00:00:01.5``).

    Raises:
        ManifestError: no such table, or no column of audio files in it.
    """
    if not table.is_file():
        raise ManifestError(f"there is no table {table}")
    names, rows = read_rows(table)
    plain = {name.strip().lower(): name for name in reversed(names)}
    audio = next((plain[name] for name in ("file", *AUDIO_COLUMNS) if name in plain), None)
    if audio is None:
        raise ManifestError(
            f"{table} has no audio column; name one of its columns ({', '.join(names) or 'none found'}) 'file'"
        )
    start, end = plain.get("start"), plain.get("end")
    used = {name for name in (start, end, audio if audio.strip().lower() == "file" else None) if name is not None}
    further = tuple(name for name in names if name not in used)
    requests = []
    for _, cells in rows:
        file = cells[audio].strip()
        kept = {name: cells[name] for name in further}
        path = table.parent / Path(file).expanduser()
        try:
            if not file:
                raise ValueError(f"the cell {audio!r} is empty")
            begin = _seconds(cells[start], "start") if start else None
            stop = _seconds(cells[end], "end") if end else None
        except ValueError as error:
            requests.append(Request(file=file, path=path, cells=kept, error=str(error)))
        else:
            requests.append(Request(file=file, path=path, start=begin or 0.0, end=stop, cells=kept))
    return Found(tuple(requests), further)


def _seconds(cell: str, name: str) -> float | None:
    cell = cell.strip()
    if cell in ("", "NaT"):
        return None
    value = seconds_of(cell)
    value = math.nan if value is None else value
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} is {cell!r}; it must be seconds, 0 or greater")
    return value


def _shown(path: Path) -> str:
    """A name as text: bytes that are no UTF-8 are written as escapes, since no table could hold them."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
