"""Tables as JSONL, and times as audformat writes them."""

import datetime
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.corpora.manifest import ManifestError, read_manifest, write_manifest
from jax_mtlser.corpora.tables import read_text, seconds_of


def test_json_lines_with_the_names_of_other_tools(tmp_path):
    lines = [
        {
            "file_name": "a.wav",
            "label": "happy",
            "gender": "F",
            "speaker": 7,
            "improvised": True,
            "text": "it’s\u2028so",
        },
        {"file_name": "sub/b.wav", "label": None, "start": 1.5, "end": "0 days 00:00:03"},
    ]
    table = tmp_path / "metadata.jsonl"
    table.write_text("\n\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    one, two = read_manifest(tmp_path).utterances
    assert (one.id, one.path, one.emotion, one.gender, one.speaker) == ("a", tmp_path / "a.wav", "happy", "female", "7")
    assert (one.text, one.groups) == ("it’s\u2028so", {"improvised": "yes"})
    assert (two.id, two.emotion, two.start, two.end) == ("sub/b@1.5", None, 1.5, 3.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"path": "a.wav"}\n{"path": \n', "line 2: not JSON"),
        ('["a.wav"]\n', "line 1: a list, not an object"),
        ('{"path": "a.wav", "speaker": {"id": 1}}\n', "line 1: speaker holds a dict"),
        ('{"label": "happy"}\n', r"has no audio column; name one of its columns \(label\)"),
        ('{"path": "a.wav"}\n{"text": "x"}\n', "line 2: the audio path is empty"),
        ("", "has no audio column"),
    ],
)
def test_unusable_json_lines_are_refused_with_their_line(tmp_path, text, message):
    (tmp_path / "t.jsonl").write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(tmp_path / "t.jsonl")


def test_an_audformat_table_of_segments(tmp_path):
    text = (
        "file,start,end,emotion,speaker\n"
        "audio/001.wav,0 days,0 days 00:00:01.500000,anger,1\n"
        "audio/001.wav,0 days 00:00:01.500000,0 days 00:01:00.250000,joy,1\n"
        "audio/002.wav,0 days 00:00:00,NaT,,\n"
    )
    (tmp_path / "db.segments.csv").write_text(text)
    manifest = read_manifest(tmp_path / "db.segments.csv")
    assert [(u.id, u.start, u.end) for u in manifest.utterances] == [
        ("audio/001", 0.0, 1.5),
        ("audio/001@1.5", 1.5, 60.25),
        ("audio/002", 0.0, None),
    ]
    assert manifest.utterances[2].emotion is None
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv", name=manifest.name).utterances == manifest.utterances


@pytest.mark.parametrize("cell", ["soon", "1:2", "days", "-1", "inf", "0 days 25:61:00"])
def test_other_times_are_refused(cell, tmp_path):
    (tmp_path / "t.csv").write_text(f"path,start\na.wav,{cell}\n")
    with pytest.raises(ManifestError, match=r"start is .*; it must be seconds, 0 or greater, or a time span"):
        read_manifest(tmp_path / "t.csv")


@settings(max_examples=60, deadline=None)
@given(st.timedeltas(datetime.timedelta(0), datetime.timedelta(days=99)))
def test_time_spans_as_pandas_writes_them(span):
    seconds, micro = divmod(span.seconds * 1_000_000 + span.microseconds, 1_000_000)
    clock = f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
    written = f"{span.days} days {clock}" + (f".{micro:06d}" if micro else "")
    assert seconds_of(written) == pytest.approx(span.total_seconds(), abs=1e-6)
    if span.days == 0:
        assert seconds_of(written.removeprefix("0 days ")) == pytest.approx(span.total_seconds(), abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.floats(0, 1e6))
def test_plain_seconds(value):
    assert seconds_of(repr(value)) == value


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=20))
def test_text_in_any_encoding_comes_out_alike(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "t.txt"
    plain = text.removeprefix("\ufeff")
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        path.write_bytes(plain.encode(encoding))
        assert read_text(path, fallback="cp1252") == plain
