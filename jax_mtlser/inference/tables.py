"""Tables of answers: CSV, JSON, JSON lines, Parquet; written row by row, and put into place whole."""

import contextlib
import csv
import enum
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from jax_mtlser.inference.rows import Columns, Row

__all__ = ["FormatError", "OutputFormat", "format_of", "put_into_place", "require", "write_csv", "write_table"]

_ROWS_PER_GROUP = 4096  # of a Parquet file; what is held in memory


class FormatError(ValueError):
    """An output that cannot be written; the message says what can."""


class OutputFormat(enum.Enum):
    """Formats of the output, by the suffix that chooses them."""

    CSV = "csv"
    JSON = "json"
    JSONL = "jsonl"
    PARQUET = "parquet"
    RTTM = "rttm"
    TEXTGRID = "textgrid"


def format_of(output: Path, name: str | None) -> OutputFormat:
    """The format with that name, or the one that the suffix stands for.

    Raises:
        FormatError: neither.
    """
    chosen = name or output.suffix.removeprefix(".").lower()
    try:
        return OutputFormat(chosen)
    except ValueError:
        known = ", ".join(f".{one.value}" for one in OutputFormat)
        raise FormatError(f"{output} has no suffix of a known format ({known}); choose one with --format") from None


def require(form: OutputFormat) -> None:
    """Find out before any work whether a format can be written.

    Raises:
        FormatError: its library is not installed.
    """
    libraries = {OutputFormat.PARQUET: "pyarrow", OutputFormat.TEXTGRID: "praatio"}
    if (library := libraries.get(form)) is None:
        return
    try:
        __import__(library)
    except ImportError:
        raise FormatError(
            f"{form.value} needs {library}, which is not installed; pip install 'jax-mtlser[formats]'"
        ) from None


@contextlib.contextmanager
def put_into_place(path: Path) -> Iterator[Path]:
    """A path to write to; what lies there afterwards replaces ``path``, unless an exception passes."""
    temporary = path.with_name(f".{path.name[:200]}.new")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_table(form: OutputFormat, path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    """Write CSV, JSON, JSON lines or Parquet."""
    with put_into_place(path) as temporary:
        if form is OutputFormat.PARQUET:
            return _write_parquet(temporary, columns, rows)
        writers: dict[OutputFormat, Callable[[IO[str], Columns, Iterable[Row]], None]] = {
            OutputFormat.CSV: write_csv,
            OutputFormat.JSON: _write_json,
            OutputFormat.JSONL: _write_json_lines,
        }
        with temporary.open("w", encoding="utf-8", newline="") as file:
            writers[form](file, columns, rows)


def write_csv(file: IO[str], columns: Columns, rows: Iterable[Row]) -> None:
    """A header and a line for each row; what is not there is an empty cell."""
    writer = csv.DictWriter(file, columns.types, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        # A lone carriage return would end the line for most readers, and the csv module does not quote it.
        writer.writerow(
            {name: cell.replace("\r", " ") if isinstance(cell, str) else cell for name, cell in row.items()}
        )


def _write_json(file: IO[str], columns: Columns, rows: Iterable[Row]) -> None:
    file.write("[")
    for number, row in enumerate(rows):
        file.write(",\n " if number else "\n ")
        file.write(json.dumps(row, ensure_ascii=False))
    file.write("\n]\n")


def _write_json_lines(file: IO[str], columns: Columns, rows: Iterable[Row]) -> None:
    for row in rows:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _write_parquet(path: Path, columns: Columns, rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[type, Any] = {str: pa.string(), float: pa.float64(), int: pa.int64()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns.types.items()])
    with pq.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))


def _groups(rows: Iterable[Row]) -> Iterator[list[Row]]:
    rows = iter(rows)
    while group := list(itertools.islice(rows, _ROWS_PER_GROUP)):
        yield group
