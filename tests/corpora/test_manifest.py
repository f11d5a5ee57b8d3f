"""Manifests: CSV in and out, missing labels, and messages that name file, line and column."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.corpora.manifest import (
    Manifest,
    ManifestError,
    Utterance,
    keep_emotions,
    read_manifest,
    write_manifest,
)


def table(folder: Path, text: str, name: str = "manifest.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_only_the_audio_column_is_needed(tmp_path):
    manifest = read_manifest(table(tmp_path, "path\na.wav\nsub/b.flac\n"))
    assert [u.id for u in manifest.utterances] == ["a", "sub/b"]
    assert manifest.utterances[1].path == tmp_path / "sub/b.flac"
    first = manifest.utterances[0]
    assert (first.emotion, first.gender, first.speaker, first.text, first.end) == (None,) * 5
    assert manifest.columns() == []


def test_users_spellings_of_columns_and_genders_are_understood(tmp_path):
    text = "file;label;sex;spk;transcription;session\nx.wav;angry;F;S1;Hi, there;3\ny.wav;;m;;;\n"
    manifest = read_manifest(table(tmp_path, text))
    one, two = manifest.utterances
    assert (one.emotion, one.gender, one.speaker, one.text) == ("angry", "female", "S1", "Hi, there")
    assert one.column("session") == "3"
    assert (two.emotion, two.gender, two.speaker, two.text, two.column("session")) == (None, "male", None, None, None)


def test_segments_of_one_file_get_different_ids(tmp_path):
    manifest = read_manifest(table(tmp_path, "path,start,end\nlong.wav,0,1.5\nlong.wav,1.5,3\n"))
    assert [(u.id, u.start, u.end) for u in manifest.utterances] == [("long", 0.0, 1.5), ("long@1.5", 1.5, 3.0)]


def test_a_folder_and_a_byte_order_mark_are_accepted(tmp_path):
    (tmp_path / "metadata.csv").write_bytes("\ufefffile,emotion\na.wav,sad\n".encode())
    assert read_manifest(tmp_path).counts("emotion") == {"sad": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("emotion\nangry\n", r"has no audio column; name one of its columns \(emotion\)"),
        ("path\n", "has a header but no rows"),
        ("path,start\na.wav,soon\n", r"line 2: start is 'soon'; it must be seconds"),
        ("path,start,end\na.wav,2,1\n", r"line 2: end 1.0 s is not after start 2.0 s"),
        ("path,gender\na.wav,robot\n", r"line 2: gender 'robot'"),
        ("id,path\nx,a.wav\nx,b.wav\n", r"line 3: id 'x' stands on line 2 already"),
        ("path,emotion\n,angry\n", r"line 2: the audio path is empty"),
        ("path,text\na.wav,hello, world\n", r"line 2: more cells than the 2 columns"),
        ("", "has no audio column"),
    ],
)
def test_an_unusable_table_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(table(tmp_path, text))


def test_a_missing_table_and_a_wrong_encoding_are_named(tmp_path):
    with pytest.raises(ManifestError, match=r"no manifest.csv, metadata.csv, .* in .*; point --config.corpus.path"):
        read_manifest(tmp_path)
    (tmp_path / "latin.csv").write_bytes("path\nmüller.wav\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="is not UTF-8 text"):
        read_manifest(tmp_path / "latin.csv")


def test_classes_are_kept_by_name_and_unlabelled_rows_stay(tmp_path):
    text = "path,emotion\na.wav,angry\nb.wav,calm\nc.wav,\n"
    manifest = read_manifest(table(tmp_path, text))
    assert [u.id for u in keep_emotions(manifest, ["angry"]).utterances] == ["a", "c"]
    assert keep_emotions(manifest, ()) is manifest
    with pytest.raises(ManifestError, match=r"no utterance with emotion joy; it has angry \(1\), calm \(1\)"):
        keep_emotions(manifest, ["angry", "joy"])


CELL = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=12).map(str.strip)
LABEL = st.one_of(st.none(), CELL.filter(bool))


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.tuples(LABEL, LABEL, LABEL, st.floats(0, 9), CELL), min_size=1, max_size=5))
def test_writing_and_reading_gives_the_same_rows(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("manifest")
    utterances = tuple(
        Utterance(
            id=f"u{number}",
            path=folder / f"{number}.wav",
            start=start,
            end=start + 1.0,
            emotion=emotion,
            gender="female",
            speaker=speaker,
            text=text,
            groups={"session": session} if session else {},
        )
        for number, (emotion, speaker, text, start, session) in enumerate(rows)
    )
    write_manifest(Manifest("made", utterances), folder / "manifest.csv")
    read = read_manifest(folder / "manifest.csv", name="made")
    assert read.utterances == utterances


def test_relative_paths_travel_with_the_folder(tmp_path):
    write_manifest(Manifest("m", (Utterance(id="a", path=tmp_path / "wav" / "a.wav"),)), tmp_path / "manifest.csv")
    assert "a,wav/a.wav," in (tmp_path / "manifest.csv").read_text()


def test_the_real_corpus_reads_with_its_labels(real_data):
    manifest = read_manifest(real_data / "nemo16k")
    assert len(manifest) == 2357
    assert manifest.counts("emotion") == {"ang": 569, "hap": 570, "neu": 629, "sad": 589}
    assert len(manifest.counts("speaker")) == 7
    assert all(u.path.is_file() for u in manifest.utterances)
