"""What an interrupted prediction leaves behind: the rows so far, and what they were computed with.

The journal lies beside the output until that is written. Its first line says what the rows depend on. Each further
line is either a row, as ``[number of the recording, row]``, or a number: recordings from the first on that are done.
Rows behind the last such number are computed again.
"""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from jax_mtlser.inference.rows import Row

try:
    import fcntl
except ImportError:  # not on Windows, where an open file cannot be replaced anyway
    fcntl = None  # type: ignore[assignment]

__all__ = ["Journal", "JournalError"]


class JournalError(ValueError):
    """A journal of something else; the message says what differs and what to do."""


class Journal:
    """Rows on disk.

    Attributes:
        path: the file.
        done: recordings whose rows are there.
    """

    def __init__(self, output: Path, settings: Mapping[str, Any]) -> None:
        """Begin a journal beside ``output``, or go on with the one that is there.

        Args:
            output: file or folder that is written in the end.
            settings: JSON values by name; all that the rows depend on.

        Raises:
            JournalError: the journal that is there has other settings, another process writes it, or it cannot be
                written.
        """
        self.path = output.with_name(f"{output.name}.partial")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file: IO[bytes] = self.path.open("a+b")
        except OSError as error:
            raise JournalError(f"cannot write {self.path}: {error.strerror}") from None
        try:
            self._lock()
            self.done = self._resume(json.loads(json.dumps(settings)))
        except BaseException:
            self._file.close()
            raise

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise JournalError(f"another process is writing {self.path}; wait for it, or name another output") from None

    def _resume(self, settings: dict[str, Any]) -> int:
        self._file.seek(0)
        header = self._file.readline()
        if not header.endswith(b"\n"):  # new, or cut short before anything was done
            self._file.truncate(0)
            self._write(settings)
            self._flush()
            return 0
        stored = json.loads(header)
        differing = [
            f"  - {name}: {stored.get(name)} there, {settings.get(name)} now"
            for name in sorted(stored.keys() | settings.keys())
            if stored.get(name) != settings.get(name)
        ]
        if differing:
            raise JournalError(
                f"{self.path} holds the beginning of another prediction; repeat that one, name another output, or "
                "delete the file:\n" + "\n".join(differing)
            )
        done, good = 0, self._file.tell()
        for line in self._file:
            if line.endswith(b"\n") and not line.startswith(b"["):
                done, good = json.loads(line), self._file.tell()
        self._file.truncate(good)
        return done

    def add(self, recording: int, row: Row) -> None:
        """Write a row; it counts when :meth:`commit` has been called."""
        self._write([recording, row])

    def commit(self, done: int) -> None:
        """All rows of the first ``done`` recordings are there."""
        self._write(done)
        self._flush()
        self.done = done

    def rows(self) -> Iterator[tuple[int, Row]]:
        """Every row with the number of its recording, in order."""
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                if line.startswith(b"["):
                    number, row = json.loads(line)
                    yield number, row

    def close(self, *, remove: bool) -> None:
        """Let go of the file; remove it when the output is written."""
        self._file.close()
        if remove:
            self.path.unlink()

    def _write(self, value: Any) -> None:
        self._file.write(json.dumps(value, ensure_ascii=False).encode() + b"\n")

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
