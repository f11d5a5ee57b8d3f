"""Corpora whose labels are in the names of their recordings, on miniature trees with the traps of the releases."""

import json
import os
from pathlib import Path

import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.config import CorpusConfig, CorpusKind
from jax_mtlser.corpora.audio_files import audio_files
from jax_mtlser.corpora.crema_d import read_crema_d
from jax_mtlser.corpora.emo_db import EMO_DB_NAME, read_emo_db
from jax_mtlser.corpora.esd import read_esd
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError, Utterance
from jax_mtlser.corpora.ravdess import read_ravdess
from jax_mtlser.corpora.releases import differences
from jax_mtlser.corpora.savee import read_savee
from jax_mtlser.corpora.shemo import read_shemo
from jax_mtlser.corpora.tess import read_tess


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def by_id(manifest: Manifest) -> dict[str, Utterance]:
    return {utterance.id: utterance for utterance in manifest.utterances}


def brief(utterance: Utterance) -> tuple[str | None, str | None, str | None, str | None]:
    return utterance.emotion, utterance.gender, utterance.speaker, utterance.text


def test_emo_db(tmp_path):
    wav = tmp_path / "wav"
    touch(wav / "03a01Fa.wav", wav / "16b10Wb.WAV", wav / "._03a01Fa.wav", tmp_path / "silb" / "03a01Fa.silb")
    touch(wav / "03a01Xa.wav", wav / "99a01Fa.wav", tmp_path / ".hidden" / "03a01Na.wav")
    read = by_id(read_emo_db(tmp_path))
    assert set(read) == {"03a01Fa", "16b10Wb"}
    assert brief(read["03a01Fa"]) == ("happy", "male", "03", "Der Lappen liegt auf dem Eisschrank.")
    assert brief(read["16b10Wb"])[:3] == ("angry", "female", "16")
    assert read["16b10Wb"].groups == {"sentence_id": "b10", "language": "de"}


def test_ravdess_leaves_songs_and_films_out(tmp_path):
    actor = tmp_path / "Actor_12"
    touch(actor / "03-01-06-01-02-01-12.wav", actor / "03-02-06-01-02-01-12.wav", actor / "01-01-06-01-02-01-12.mp4")
    touch(tmp_path / "Actor_01" / "03-01-02-02-01-02-01.wav")
    read = by_id(read_ravdess(tmp_path))
    assert set(read) == {"03-01-06-01-02-01-12", "03-01-02-02-01-02-01"}
    assert brief(read["03-01-06-01-02-01-12"]) == ("fear", "female", "12", "Dogs are sitting by the door.")
    calm = read["03-01-02-02-01-02-01"]
    assert brief(calm) == ("calm", "male", "01", "Kids are talking by the door.")
    assert calm.groups == {"sentence_id": "01", "intensity": "strong", "repetition": "02", "language": "en"}


def test_an_archive_that_holds_a_corpus_twice_is_refused_but_a_link_is_not(tmp_path):
    name = "03-01-06-01-02-01-12.wav"
    touch(tmp_path / "Actor_12" / name)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / name).symlink_to(tmp_path / "Actor_12" / name)
    (tmp_path / "again").symlink_to(tmp_path)  # ends
    assert len(read_ravdess(tmp_path)) == 1
    touch(tmp_path / "audio_speech_actors_01-24" / "Actor_12" / name)
    with pytest.raises(ManifestError, match=r"(?s)has 03-01-06-01-02-01-12 twice:.*Actor_12.*remove the copy"):
        read_ravdess(tmp_path)


def test_a_linked_release_is_followed(tmp_path):
    touch(tmp_path / "data" / "OAF_Fear" / "OAF_back_fear.wav")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "tess").symlink_to(tmp_path / "data")
    (utterance,) = read_tess(tmp_path / "mine").utterances
    assert utterance.path == tmp_path / "mine/tess/OAF_Fear/OAF_back_fear.wav"
    assert utterance.path.is_file()


def test_crema_d(tmp_path):
    stems = ("1001_DFA_ANG_XX", "1002_IEO_HAP_HI", "1002_IEO_SAD_X")
    touch(*(tmp_path / "AudioWAV" / f"{stem}.wav" for stem in stems))
    touch(*(tmp_path / "AudioMP3" / f"{stem}.mp3" for stem in stems))  # the same again
    read = by_id(read_crema_d(tmp_path))
    assert brief(read["1001_DFA_ANG_XX"]) == ("angry", None, "1001", "Don't forget a jacket.")
    table = tmp_path / "VideoDemographics.csv"
    table.write_text("ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,X,Y\n1002,21,Female,X,Y\n")
    for root in (tmp_path, tmp_path / "AudioWAV", tmp_path / "AudioMP3"):
        read = by_id(read_crema_d(root))
        assert (read["1001_DFA_ANG_XX"].gender, read["1002_IEO_HAP_HI"].gender) == ("male", "female")
    assert read["1002_IEO_HAP_HI"].groups == {"sentence_id": "IEO", "intensity": "high", "language": "en"}
    assert "intensity" not in read["1001_DFA_ANG_XX"].groups
    table.write_text("ActorID,Age,Sex,Race,Ethnicity\n1001,51,Male,X,Y\n")
    with pytest.raises(ManifestError, match=r"VideoDemographics\.csv has no actor 1002"):
        read_crema_d(tmp_path)


def test_tess_with_its_misnamed_file(tmp_path):
    touch(tmp_path / "OAF_neutral" / "OA_bite_neutral.wav", tmp_path / "YAF_pleasant_surprised" / "YAF_Back_ps.wav")
    read = by_id(read_tess(tmp_path))
    assert brief(read["OA_bite_neutral"]) == ("neutral", "female", "OAF", "Say the word bite.")
    assert brief(read["YAF_Back_ps"]) == ("surprise", "female", "YAF", "Say the word back.")
    assert read["YAF_Back_ps"].column("sentence_id") == "back"


def test_savee_by_folder_and_by_name(tmp_path):
    touch(tmp_path / "AudioData" / "DC" / "a01.wav", tmp_path / "AudioData" / "JE" / "a01.wav")
    touch(tmp_path / "AudioData" / "JE" / "sa15.wav")
    read = by_id(read_savee(tmp_path))
    assert set(read) == {"DC_a01", "JE_a01", "JE_sa15"}
    assert brief(read["JE_sa15"]) == ("sad", "male", "JE", None)
    touch(tmp_path / "flat" / "KL_su03.wav")
    assert brief(by_id(read_savee(tmp_path / "flat"))["KL_su03"])[:3] == ("surprise", "male", "KL")
    touch(tmp_path / "lost" / "n01.wav")
    with pytest.raises(ManifestError, match=r"n01\.wav is in no folder of a speaker"):
        read_savee(tmp_path / "lost")


def test_esd_texts_in_three_encodings_and_both_layouts(tmp_path):
    touch(tmp_path / "0001" / "Angry" / "0001_000351.wav", tmp_path / "0002" / "Sad" / "0002_001401.wav")
    touch(tmp_path / "0015" / "Surprise" / "evaluation" / "0015_001401.wav")
    (tmp_path / "0001" / "0001.txt").write_bytes("0001_000351\t打远一看\t生气\r\n".encode("gb18030"))
    (tmp_path / "0002" / "0002.txt").write_bytes("0002_001401\t你好\t伤心\n".encode("utf-16"))
    (tmp_path / "0015" / "0015.txt").write_text("\ufeff0015_001401\tThe nine, the eggs.\tSurprise\n", "utf-8")
    read = by_id(read_esd(tmp_path))
    assert brief(read["0001_000351"]) == ("angry", "female", "0001", "打远一看")
    assert read["0001_000351"].groups == {"sentence_id": "zh001", "language": "zh"}
    assert read["0002_001401"].text == "你好"
    english = read["0015_001401"]
    assert brief(english) == ("surprise", "female", "0015", "The nine, the eggs.")
    assert english.groups == {"sentence_id": "en001", "language": "en", "split": "dev"}
    touch(tmp_path / "0011" / "0011_000001.wav")
    with pytest.raises(ManifestError, match=r"0011_000001\.wav is in no folder of an emotion \(Angry"):
        read_esd(tmp_path)


def test_shemo_with_texts_in_either_form(tmp_path):
    touch(tmp_path / "female" / "F01A02.wav", tmp_path / "male" / "M53N26.wav", tmp_path / "male" / "M03W01.wav")
    read = by_id(read_shemo(tmp_path))
    assert {u.id: brief(u) for u in read.values()} == {
        "F01A02": ("angry", "female", "F01", None),
        "M53N26": ("neutral", "male", "M53", None),
        "M03W01": ("surprise", "male", "M03", None),
    }
    table = tmp_path / "shemo.json"
    table.write_text(json.dumps([{"id": "F01A02", "emotion": "angry", "transcript": "\ufeffسلام"}]))
    assert by_id(read_shemo(tmp_path))["F01A02"].text == "سلام"
    table.write_text(json.dumps({"M53N26": {"transcript": "او"}}))
    assert by_id(read_shemo(tmp_path))["M53N26"].text == "او"
    for broken in ("{", "[1]", '[{"id": "F01A02"}]'):
        table.write_text(broken)
        with pytest.raises(ManifestError, match=r"shemo\.json is not a list of utterances"):
            read_shemo(tmp_path)


READERS = (read_emo_db, read_ravdess, read_crema_d, read_tess, read_savee, read_esd, read_shemo)


@pytest.mark.parametrize("read", READERS)
def test_a_folder_without_the_corpus(read, tmp_path):
    with pytest.raises(ManifestError, match=r"there is no folder .*--config\.corpus\.path"):
        read(tmp_path / "nowhere")
    touch(tmp_path / "song.wav")
    with pytest.raises(ManifestError, match=r"no recording below .* is named like .*--config\.corpus\.path"):
        read(tmp_path)


def complete(kind: CorpusKind, root: Path) -> list[Path]:
    """All names of a release, as its documentation describes them."""
    if kind is CorpusKind.RAVDESS:
        return [
            root / f"Actor_{actor:02d}" / f"03-01-{emotion:02d}-{level:02d}-{text:02d}-{again:02d}-{actor:02d}.wav"
            for actor in range(1, 25) for emotion in range(1, 9) for level in (1, 2) for text in (1, 2)
            for again in (1, 2) if not (emotion == 1 and level == 2)
        ]  # fmt: skip
    if kind is CorpusKind.TESS:
        words = [f"{a}{b}{c}" for a in "bcdfghklmn" for b in "aeiou" for c in "dknt"]
        emotions = ("angry", "disgust", "fear", "happy", "neutral", "ps", "sad")
        return [root / f"{who}_{word}_{name}.wav" for who in ("OAF", "YAF") for word in words for name in emotions]
    assert kind is CorpusKind.SAVEE
    numbers = {"a": 15, "d": 15, "f": 15, "h": 15, "n": 30, "sa": 15, "su": 15}
    return [
        root / who / f"{code}{number:02d}.wav"
        for who in ("DC", "JE", "JK", "KL") for code, count in numbers.items() for number in range(1, count + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "total"), [(CorpusKind.RAVDESS, 1440), (CorpusKind.TESS, 2800), (CorpusKind.SAVEE, 480)]
)
def test_complete_releases_pass_and_one_missing_recording_is_said(kind, total, tmp_path):
    files = complete(kind, tmp_path)
    touch(*files)
    config = CorpusConfig(kind=kind, path=str(tmp_path))
    manifest = load_corpus(config)
    assert len(manifest) == total == len(files)
    assert differences(manifest, kind) == []
    files[0].unlink()
    with pytest.raises(ManifestError, match=rf"found \(expected\):\n  emotion: .*together {total - 1} \({total}\)"):
        load_corpus(config)
    config.partial = True
    assert len(load_corpus(config)) == total - 1


@settings(max_examples=40, deadline=None)
@given(st.from_regex(EMO_DB_NAME, fullmatch=True))
def test_every_name_of_emo_db_has_a_row(tmp_path_factory, name):
    folder = tmp_path_factory.mktemp("emo_db")
    touch(folder / f"{name}.wav")
    (utterance,) = read_emo_db(folder).utterances
    assert (utterance.id, utterance.speaker, utterance.column("sentence_id")) == (name, name[:2], name[2:5])
    assert utterance.text


def test_any_rate_and_number_of_channels_is_a_recording(tmp_path):
    soundfile.write(tmp_path / "03a01Na.wav", [[0.1, 0.2]] * 960, 96_000)
    os.link(tmp_path / "03a01Na.wav", tmp_path / "08a01Na.WAVE")  # no suffix that is read
    assert [path.name for path in audio_files(tmp_path)] == ["03a01Na.wav"]
