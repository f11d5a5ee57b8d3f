"""Rows of CSV and JSONL files as text cells, and times as users and audformat write them."""

import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from jax_mtlser.corpora.errors import ManifestError

__all__ = ["read_rows", "read_text", "seconds_of"]

_TIMEDELTA = re.compile(
    r"(?:(?P<days>\d+) days? ?\+?)?(?:(?P<hours>\d+):(?P<minutes>[0-5]?\d):(?P<seconds>[0-5]?\d(?:\.\d*)?))?"
)


def read_text(path: Path, *, fallback: str | None = None) -> str:
    """Text of a file in UTF-8 or UTF-16 (by its byte-order mark), else in ``fallback``.

    Args:
        path: the file.
        fallback: encoding of files that are not UTF-8, such as ``cp1252``; bytes that it does not have become
            the replacement character. None: such files are refused.

    Raises:
        ManifestError: not UTF-8, and no fallback.
    """
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if fallback is None:
            raise ManifestError(
                f"{path} is not UTF-8 text ({error.reason} at byte {error.start}); name a CSV or JSONL table, and re-save "
                "it as UTF-8 if it is one"
            ) from None
        return data.decode(fallback, errors="replace")


def read_rows(path: Path, *, fallback: str | None = None) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """Column names of a table, and its rows with their line numbers.

    A file whose name ends in ``.jsonl`` or ``.ndjson`` has one JSON object per line; any other is CSV, separated
    by commas, semicolons or tabs, with a header. Cells come without surrounding blanks; null is an empty cell.

    Args:
        path: the file.
        fallback: see :func:`read_text`.

    Raises:
        ManifestError: wrong encoding, a row with more cells than the header, or a line that is no JSON object.
    """
    text = read_text(path, fallback=fallback)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _json_lines(text, path)
    header, _, _ = text.partition("\n")
    delimiter = max(",;\t", key=header.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    names = list(reader.fieldnames or ())
    rows = []
    for row in reader:
        if None in row:
            raise ManifestError(
                f"{path}, line {reader.line_num}: more cells than the {len(names)} columns; quote cells with commas"
            )
        rows.append((reader.line_num, {key: (value or "").strip() for key, value in row.items()}))
    return names, rows


def _json_lines(text: str, path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    names: dict[str, None] = {}
    rows = []
    # Not splitlines: JSON may hold other line separators inside its strings.
    for line, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            values = json.loads(content)
        except ValueError as error:
            raise ManifestError(f"{path}, line {line}: not JSON ({error}); write one object per line") from None
        if not isinstance(values, dict):
            raise ManifestError(f"{path}, line {line}: a {type(values).__name__}, not an object with columns")
        names.update(dict.fromkeys(values))
        rows.append((line, dict(_cells(values, f"{path}, line {line}"))))
    return list(names), rows


def _cells(values: Mapping[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict | list):
            raise ManifestError(f"{where}: {key} holds a {type(value).__name__}; cells are text, numbers or null")
        if isinstance(value, bool):
            yield key, "yes" if value else "no"
        else:
            yield key, "" if value is None else str(value).strip()


def seconds_of(cell: str) -> float | None:
    """Seconds that a cell means; None where it cannot be read.

    Understood are seconds (``1.5``) and what pandas and audformat write: ``0 days 00:00:01.500000`` and
    ``00:00:01.5``. Numbers may be infinite or not a number: that is for the caller to judge.
    """
    try:
        return float(cell)
    except ValueError:
        found = _TIMEDELTA.fullmatch(cell)
    if found is None or not any(found.groups()):
        return None
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return math.fsum((days * 86_400, hours * 3_600, minutes * 60, seconds))
