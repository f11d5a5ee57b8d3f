"""What is judged when folders and tables are named."""

import os

import pytest

from jax_mtlser.corpora.manifest import ManifestError
from jax_mtlser.inference.requests import find_recordings, read_requests


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")


def test_folders_are_searched_at_any_depth_in_a_fixed_order(tmp_path):
    for name in ("b/z.wav", "b/a.FLAC", "a/deep/er/x.mp3", "c.m4a", "notes.txt", "table.csv", "data.raw", "README"):
        touch(tmp_path / name)
    for hidden in (".git/x.wav", "b/._z.wav"):
        touch(tmp_path / hidden)
    found = find_recordings([tmp_path])
    names = [os.path.relpath(request.file, tmp_path) for request in found.requests]
    assert names == ["a/deep/er/x.mp3", "b/a.FLAC", "b/z.wav", "c.m4a"]
    assert found.passed_over == {".txt": 1, ".csv": 1, ".raw": 1, "no suffix": 1}


def test_what_is_named_is_tried_whatever_its_name(tmp_path):
    touch(tmp_path / "a.txt")
    found = find_recordings([tmp_path / "a.txt", tmp_path / "none.wav"])
    assert [request.path.name for request in found.requests] == ["a.txt", "none.wav"]


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="needs symbolic links")
def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "data" / "a.wav")
    os.symlink(tmp_path / "data", tmp_path / "data" / "again")
    os.symlink(tmp_path / "elsewhere", tmp_path / "data" / "b.wav")
    touch(tmp_path / "more" / "c.wav")
    os.symlink(tmp_path / "more", tmp_path / "data" / "link")
    found = find_recordings([tmp_path / "data"])
    names = [os.path.relpath(request.file, tmp_path / "data") for request in found.requests]
    assert names == ["a.wav", "b.wav", "link/c.wav"]


@pytest.mark.skipif(os.name != "posix", reason="names of bytes")
def test_a_name_that_is_no_text_is_written_with_escapes(tmp_path):
    path = os.fsencode(tmp_path) + b"/caf\xe9.wav"
    with open(path, "wb"):
        pass
    (request,) = find_recordings([tmp_path]).requests
    assert request.file == f"{tmp_path}/caf\\xe9.wav"
    assert request.path.is_file()


def test_a_folder_that_cannot_be_read_is_told(tmp_path, monkeypatch):
    touch(tmp_path / "locked" / "a.wav")
    touch(tmp_path / "open" / "b.wav")
    scan = os.scandir

    def guarded(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_recordings([tmp_path])
    assert [request.error for request in found.requests] == ["the folder cannot be read: Permission denied", None]


def test_a_list_keeps_its_columns_and_names_its_files_from_its_own_folder(tmp_path):
    table = tmp_path / "list.csv"
    table.write_text(
        "\ufeffSpeaker;FILE;start;end;note\n"
        "ann;a.wav;;;first\n"
        "bob;sub/b.wav;0.5;1.25;\n"
        "cyd;c.wav;0 days 00:00:01.500000;1 days 00:00:02;x\n"
        "dee;d.wav;0:00:02;NaT;\n"
        "eve;e.wav;soon;;\n"
        "fay;;;;\n"
        "gus;g.wav;-1;;\n"
    )
    found = read_requests(table)
    assert found.columns == ("Speaker", "note")
    assert [(r.file, r.start, r.end) for r in found.requests[:4]] == [
        ("a.wav", 0.0, None), ("sub/b.wav", 0.5, 1.25), ("c.wav", 1.5, 86_402.0), ("d.wav", 2.0, None),
    ]  # fmt: skip
    assert found.requests[1].path == tmp_path / "sub" / "b.wav"
    assert found.requests[0].cells == {"Speaker": "ann", "note": "first"}
    assert [r.error for r in found.requests[4:]] == [
        "start is 'soon'; it must be seconds, 0 or greater",
        "the cell 'FILE' is empty",
        "start is '-1'; it must be seconds, 0 or greater",
    ]


def test_another_audio_column_is_kept_beside_file(tmp_path):
    (tmp_path / "list.csv").write_text("wav,emotion\na.wav,sad\n")
    found = read_requests(tmp_path / "list.csv")
    assert found.columns == ("wav", "emotion")
    assert found.requests[0].file == "a.wav"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name,emotion\nx,sad\n", r"has no audio column; name one of its columns \(name, emotion\) 'file'"),
        (b"", "has no audio column"),
        (b"file\n\xff\xfe\n", "is not UTF-8 text"),
        (b"file,note\na.wav,b,c\n", "line 2: more cells than the 2 columns"),
    ],
)
def test_tables_that_are_none(tmp_path, content, message):
    (tmp_path / "list.csv").write_bytes(content)
    with pytest.raises(ManifestError, match=message):
        read_requests(tmp_path / "list.csv")


def test_no_table(tmp_path):
    with pytest.raises(ManifestError, match="there is no table"):
        read_requests(tmp_path / "list.csv")
