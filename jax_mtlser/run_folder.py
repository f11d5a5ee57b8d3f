"""Names of what lies in a run folder, and how it is written: whole files or nothing."""

import dataclasses
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = [
    "MemberFolder",
    "RunFolder",
    "append_json_line",
    "read_json",
    "read_json_lines",
    "write_json",
    "write_text",
]


def write_text(path: Path, text: str) -> None:
    """Write a file so that a reader, or a crash, sees either the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes files private; a run folder is shared like any other output.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Write indented JSON, whole or not at all. NaN and infinities are refused: they are not JSON."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(path.read_text(encoding="utf-8"))


def append_json_line(path: Path, value: Any) -> None:
    """Append one line to a JSON-lines file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value, allow_nan=False, ensure_ascii=False) + "\n")


def read_json_lines(path: Path) -> Iterator[Any]:
    """The values of a JSON-lines file; a last line cut short by a crash is left out."""
    if not path.exists():
        return
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


@dataclasses.dataclass(frozen=True)
class MemberFolder:
    """One training: one fold of one repeat, with the settings of one variant.

    Attributes:
        path: ``<run>/members/<name>``.
    """

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Resumable training state; removed once the member is finished."""
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        """The selected parameters with label maps and vocabulary."""
        return self.path / "model"

    @property
    def metrics(self) -> Path:
        """One JSON line per logged step (``kind: train``) and per epoch (``kind: validation``)."""
        return self.path / "metrics.jsonl"

    @property
    def predictions(self) -> Path:
        """One row per utterance of the validation and test parts."""
        return self.path / "predictions.csv"

    @property
    def result(self) -> Path:
        """Written last: a member with this file is finished."""
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        """Why the last attempt at training it ended; a member without it has not failed, or is tried again."""
        return self.path / "failure.json"


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The single source of truth of a run (``--workdir``)."""

    path: Path

    @property
    def config(self) -> Path:
        """The configuration as it ran."""
        return self.path / "config.json"

    @property
    def corpus(self) -> Path:
        """The manifest as it was loaded, left-out rows included."""
        return self.path / "corpus.csv"

    @property
    def skipped(self) -> Path:
        """Utterances that were left out, with the reason."""
        return self.path / "skipped.csv"

    @property
    def folds(self) -> Path:
        """Utterance ids of each fold's parts, and their hashes."""
        return self.path / "folds.json"

    @property
    def leakage(self) -> Path:
        """What each fold's training part knows of its test part, and what guesses from that score."""
        return self.path / "leakage.json"

    @property
    def results(self) -> Path:
        """Pooled, per-fold and per-repeat results."""
        return self.path / "results.json"

    @property
    def report(self) -> Path:
        """The HTML page and its figures."""
        return self.path / "report"

    @property
    def claims(self) -> Path:
        """Which process works on which member (experiments/claims.py); empty when none does."""
        return self.path / "claims"

    def member(self, name: str) -> MemberFolder:
        """The folder of one member."""
        return MemberFolder(self.path / "members" / name)

    def members(self) -> list[MemberFolder]:
        """All member folders, sorted by name."""
        return [MemberFolder(path) for path in sorted((self.path / "members").glob("*")) if path.is_dir()]
