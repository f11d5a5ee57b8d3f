"""Every format is read back by somebody else's reader."""

import csv
import itertools
import json
import sys

import numpy as np
import parselmouth
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st
from praatio import textgrid

from jax_mtlser.inference.annotations import intervals, text_grids, write_rttm, write_text_grid
from jax_mtlser.inference.rows import Columns
from jax_mtlser.inference.tables import FormatError, OutputFormat, format_of, require, write_table

COLUMNS = Columns({"file": str, "start": float, "end": float, "emotion": str, "confidence": float, "parts": int,
                   "error": str, "note": str}, {"note": "note"})  # fmt: skip


def row(file="a.wav", start=0.0, end=1.0, emotion="sad", confidence=0.75, parts=1, error=None, note="", **more):
    return {"file": file, "start": start, "end": end, "emotion": emotion, "confidence": confidence, "parts": parts,
            "error": error, "note": note} | more  # fmt: skip


ROWS = [
    row(),
    row("żółć 日本.wav", 0.5, 1.25, "angry", 0.123457, 3, note='says "hi", twice\nand more;'),
    row("b.wav", None, None, None, None, None, "unreadable audio: no, really\rno"),
]


def test_csv(tmp_path):
    write_table(OutputFormat.CSV, tmp_path / "o.csv", COLUMNS, iter(ROWS))
    with (tmp_path / "o.csv").open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    expected = [{name: "" if cell is None else str(cell).replace("\r", " ") for name, cell in r.items()} for r in ROWS]
    assert cells == expected
    assert list(cells[0]) == list(COLUMNS.types)


def test_json_and_json_lines(tmp_path):
    write_table(OutputFormat.JSON, tmp_path / "o.json", COLUMNS, iter(ROWS))
    assert json.loads((tmp_path / "o.json").read_text(encoding="utf-8")) == ROWS
    write_table(OutputFormat.JSON, tmp_path / "none.json", COLUMNS, iter([]))
    assert json.loads((tmp_path / "none.json").read_text()) == []
    write_table(OutputFormat.JSONL, tmp_path / "o.jsonl", COLUMNS, iter(ROWS))
    assert [json.loads(line) for line in (tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()] == ROWS


def test_parquet_in_several_groups(tmp_path):
    rows = [row(start=float(number)) for number in range(5000)] + ROWS
    write_table(OutputFormat.PARQUET, tmp_path / "o.parquet", COLUMNS, iter(rows))
    table = pyarrow.parquet.read_table(tmp_path / "o.parquet")
    assert table.to_pylist() == rows
    assert [str(field.type) for field in table.schema] == [
        "string", "double", "double", "string", "double", "int64", "string", "string"
    ]  # fmt: skip
    assert pyarrow.parquet.ParquetFile(tmp_path / "o.parquet").num_row_groups == 2


def test_a_failure_leaves_the_old_output_and_nothing_else(tmp_path):
    (tmp_path / "o.csv").write_text("old")

    def broken():
        yield ROWS[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_table(OutputFormat.CSV, tmp_path / "o.csv", COLUMNS, broken())
    assert (tmp_path / "o.csv").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


WINDOWS = [
    row(start=0.0, end=3.0, confidence=0.5),
    row(start=1.0, end=4.0, confidence=0.7),
    row(start=2.0, end=5.0, emotion="angry"),
    row(start=3.0, end=6.0, emotion=None, confidence=None, error="silent"),
    row(start=3.4, end=6.4, emotion="angry"),
]


def test_rttm(tmp_path):
    other = [row("a b%.wav", 0.5, 2.0, "very sad", None)]
    failed = [row("c.wav", None, None, None, None, None, "empty")]
    write_rttm(tmp_path / "o.rttm", iter([iter(WINDOWS), iter(failed), iter(other)]))
    fields = [line.split(" ") for line in (tmp_path / "o.rttm").read_text().splitlines()]
    assert all(len(line) == 10 and line[0] == "SPEAKER" and line[2] == "1" for line in fields)
    # Middles are 1.5, 2.5, 3.5, 4.5 and 4.9; confidences are weighted by time.
    assert [(line[1], line[3], line[4], line[7], line[8]) for line in fields] == [
        ("a.wav", "0.000", "3.000", "sad", f"{(0.5 * 2 + 0.7) / 3:.6f}"),
        ("a.wav", "3.000", "1.000", "angry", "0.750000"),
        ("a.wav", "4.700", "1.700", "angry", "0.750000"),
        ("a%20b%25.wav", "0.500", "1.500", "very_sad", "<NA>"),
    ]


def test_text_grid_as_praat_and_praatio_read_it(tmp_path):
    rows = [window | {"gender": "female", "transcript": f'word {n} "ż"'} for n, window in enumerate(WINDOWS)]
    assert write_text_grid(tmp_path / "o.TextGrid", rows)
    praat = parselmouth.read(str(tmp_path / "o.TextGrid"))
    assert (praat.xmin, praat.xmax) == (0.0, 6.4)
    assert [parselmouth.praat.call(praat, "Get tier name", tier) for tier in (1, 2, 3)] == [
        "emotion", "gender", "transcript"
    ]  # fmt: skip
    assert parselmouth.praat.call(praat, "Get label of interval", 3, 2) == 'word 1 "ż"'
    grid = textgrid.openTextgrid(str(tmp_path / "o.TextGrid"), includeEmptyIntervals=True)
    emotions = [(round(e.start, 6), round(e.end, 6), e.label) for e in grid.getTier("emotion").entries]
    assert emotions == [(0.0, 3.0, "sad"), (3.0, 4.0, "angry"), (4.0, 4.7, ""), (4.7, 6.4, "angry")]
    assert len(grid.getTier("gender").entries) == 1
    assert len(grid.getTier("transcript").entries) == 5
    assert not write_text_grid(tmp_path / "none.TextGrid", [row("c.wav", None, None, None, None, error="empty")])
    assert not (tmp_path / "none.TextGrid").exists()


def test_text_grids_lie_as_the_recordings_do_and_never_outside(tmp_path):
    files = ["/d/x/a.wav", "/d/x/a.flac", "/d/y/../x/a.ogg", "/d/y/b.c.wav", f"/d/{'é' * 120}.wav"]
    names = [path.relative_to(tmp_path).as_posix() for path in text_grids(files, tmp_path)]
    assert names[:4] == ["x/a.TextGrid", "x/a_2.TextGrid", "x/a_3.TextGrid", "y/b.c.TextGrid"]
    assert len(names[4].encode()) < 255
    assert [path.name for path in text_grids(["../../etc/passwd"], tmp_path)] == ["passwd.TextGrid"]


@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=8),
    labels=st.lists(st.sampled_from(["sad", "angry", None]), min_size=8, max_size=8),
    overlap=st.floats(0, 5),
)
def test_intervals_are_without_gap_and_overlap_and_neighbours_differ(lengths, labels, overlap):
    ends = np.cumsum(lengths).tolist()
    rows = [
        row(start=max(0.0, end - length - overlap), end=float(end), emotion=label)
        for end, length, label in zip(ends, lengths, labels, strict=False)
    ]
    found = list(intervals(rows))
    assert found[0].start == rows[0]["start"]
    assert found[-1].end == rows[-1]["end"]
    for one, other in itertools.pairwise(found):
        assert one.end == other.start
        assert one.start < one.end
        assert one.label != other.label


@pytest.mark.parametrize(("name", "form"), [("o.CSV", "csv"), ("o.TextGrid", "textgrid"), ("a.b.parquet", "parquet")])
def test_the_suffix_chooses(tmp_path, name, form):
    assert format_of(tmp_path / name, None).value == form
    assert format_of(tmp_path / name, "jsonl") is OutputFormat.JSONL
    with pytest.raises(FormatError, match=r"no suffix of a known format \(.csv, .json, .*; choose one with --format"):
        format_of(tmp_path / "o.xlsx", None)


@pytest.mark.parametrize(("form", "library"), [(OutputFormat.PARQUET, "pyarrow"), (OutputFormat.TEXTGRID, "praatio")])
def test_a_missing_library_is_named_with_its_extra(monkeypatch, form, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(FormatError, match=rf"needs {library}, .*pip install 'jax-mtlser\[formats\]'"):
        require(form)
    require(OutputFormat.CSV)
