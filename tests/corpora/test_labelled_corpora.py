"""Corpora with label files, on miniature trees with the traps of the releases."""

import json
from pathlib import Path

import pytest

from jax_mtlser.config import ClassSet, CorpusConfig, CorpusKind
from jax_mtlser.corpora.emobox import read_emobox
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError, Utterance
from jax_mtlser.corpora.meld import read_meld
from jax_mtlser.corpora.msp_improv import read_msp_improv
from jax_mtlser.corpora.msp_podcast import read_msp_podcast
from jax_mtlser.corpora.nemo import read_nemo
from jax_mtlser.corpora.releases import missing_recordings


def write(path: Path, content: str | bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def by_id(manifest: Manifest) -> dict[str, Utterance]:
    return {utterance.id: utterance for utterance in manifest.utterances}


# --- nEMO ------------------------------------------------------------------------------------------------


def test_nemo_with_blanks_around_its_speakers(tmp_path):
    rows = [
        "file_id\temotion\traw_text\tnormalized_text\tspeaker_id\tgender\tage",
        "WR0_surprised_64.wav\tsurprised\t„Ród smoka” to serial.\tród smoka to serial\t        WR0\tmale\t23",
        "EB0_neutral_13.wav\tneutral\tInteresuje mnie historia.\tinteresuje mnie historia\t        EB0\tfemale\t27",
    ]
    write(tmp_path / "data.tsv", "\n".join(rows) + "\n")
    write(tmp_path / "samples" / "EB0_neutral_13.wav")
    read = by_id(read_nemo(tmp_path))
    one = read["WR0_surprised_64"]
    assert (one.emotion, one.gender, one.speaker, one.text) == ("surprise", "male", "WR0", "„Ród smoka” to serial.")
    assert one.groups == {"sentence_id": "64", "age": "23", "language": "pl"}
    assert [u.id for u in missing_recordings(read_nemo(tmp_path), CorpusKind.NEMO).utterances] == ["WR0_surprised_64"]
    with pytest.raises(ManifestError, match=r"(?s)not the full release of nEMO.*angry 0 \(749\).*together 2 \(4481\)"):
        load_corpus(CorpusConfig(kind=CorpusKind.NEMO, path=str(tmp_path)))
    write(tmp_path / "data.tsv", "\n".join([rows[0], rows[1].replace("surprised\t„", "bored\t„")]))
    with pytest.raises(ManifestError, match=r"data\.tsv, line 2: emotion 'bored'; the release has anger"):
        read_nemo(tmp_path)
    write(tmp_path / "data.tsv", "file_id\temotion\n")
    with pytest.raises(ManifestError, match="has no column raw_text, speaker_id, gender, age"):
        read_nemo(tmp_path)
    with pytest.raises(ManifestError, match=r"no data\.tsv of nEMO"):
        read_nemo(tmp_path / "samples")


# --- MELD ------------------------------------------------------------------------------------------------

MELD_HEADER = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,StartTime,EndTime\n"


@pytest.fixture
def meld(tmp_path):
    train = (
        b'1,"That\x92s it, then.",Ross,joy,positive,0,0,4,7,"00:20:57,256","00:21:00,049"\n'
        b"2,What?,Phoebe and Joey,surprise,negative,0,1,4,7,x,y\n"
        b"3,Hey!,All,neutral,neutral,1,0,4,7,x,y\n"
    )
    write(tmp_path / "train" / "train_sent_emo.csv", MELD_HEADER.encode() + train)
    write(tmp_path / "dev_sent_emo.csv", MELD_HEADER + "1,Fine.,Mrs. Green,sadness,negative,0,0,4,7,x,y\n")
    write(tmp_path / "test_sent_emo.csv", MELD_HEADER + "1,No’s no.,Monica,anger,negative,0,0,4,7,x,y\n")
    return tmp_path


def test_meld(meld):
    write(meld / "train" / "train_splits" / "dia0_utt0.wav")
    write(meld / "dev_splits_complete" / "dia0_utt0.wav")
    write(meld / "output_repeated_splits_test" / "._dia0_utt0.wav")
    write(meld / "output_repeated_splits_test" / "dia0_utt0.flac")
    write(meld / "output_repeated_splits_test" / "final_videos_testdia0_utt0.wav")
    manifest = read_meld(meld)
    read = by_id(manifest)
    assert list(read) == ["train_dia0_utt0", "train_dia0_utt1", "train_dia1_utt0", "dev_dia0_utt0", "test_dia0_utt0"]
    first = read["train_dia0_utt0"]
    # Windows' quotation marks are marks, and the three parts have recordings of the same name.
    assert (first.emotion, first.gender, first.speaker, first.text) == ("happy", "male", "Ross", "That’s it, then.")
    assert first.path == meld / "train/train_splits/dia0_utt0.wav"
    assert read["test_dia0_utt0"].path == meld / "output_repeated_splits_test/dia0_utt0.flac"
    assert first.groups == {
        "split": "train", "dialogue": "train_dia0", "language": "en", "season": "4", "episode": "7",
        "sentiment": "positive",
    }  # fmt: skip
    # Several voices are no speaker; the sex of other characters is not in the release.
    assert (read["train_dia0_utt1"].speaker, read["train_dia1_utt0"].speaker) == (None, None)
    assert (read["dev_dia0_utt0"].speaker, read["dev_dia0_utt0"].gender) == ("Mrs. Green", None)
    missing = missing_recordings(manifest, CorpusKind.MELD)
    assert [u.id for u in missing.utterances] == ["train_dia0_utt1", "train_dia1_utt0"]


def test_meld_without_sound_or_table(meld):
    write(meld / "train" / "train_splits" / "dia0_utt0.mp4")
    with pytest.raises(ManifestError, match=r"(?s)has MELD's films, but not their sound.*ffmpeg -i"):
        read_meld(meld)
    (meld / "dev_sent_emo.csv").unlink()
    with pytest.raises(ManifestError, match=r"no dev_sent_emo\.csv of MELD"):
        read_meld(meld)


# --- MSP-IMPROV ------------------------------------------------------------------------------------------

IMPROV = """
UTD-IMPROV-S01A-F01-P-FM01.avi; N; A:3.000000; V:3.500000; D:2.000000 ; N:4.500000;
AMT-1; Neutral; Neutral; A:3.000000; V:3.000000; D:2.000000; N:4.000000;
AMT-1; Neutral; Neutral; A:3.000000; V:3.000000; D:2.000000; N:4.000000;
AMT_2; Happy; Happy, Excited; A:3.000000; V:4.000000; D:2.000000; N:5.000000;

UTD-IMPROV-S12H-M06-R-MM01.avi; X; A:2.6; V:NaN; D:2.000000; N:NaN;
AMT-1; Sad; Sad; A:3.000000; V:3.000000; D:2.000000; N:4.000000;
UTD-IMPROV-S12H-M06-T-MF101.avi; O; A:2.6; V:3; D:2.000000;
"""


@pytest.mark.parametrize("name", ["Evalution.txt", "Evaluation.txt"])
def test_msp_improv(name, tmp_path):
    write(tmp_path / name, IMPROV)
    recording = write(tmp_path / "Audio/session1/S01A/P/MSP-IMPROV-S01A-F01-P-FM01.wav")
    write(tmp_path / "Audio/session1/S01A/P/._MSP-IMPROV-S01A-F01-P-FM01.wav")
    read = by_id(read_msp_improv(tmp_path))
    first = read["MSP-IMPROV-S01A-F01-P-FM01"]
    assert (first.emotion, first.gender, first.speaker, first.path) == ("neutral", "female", "F01", recording)
    assert first.groups == {
        "session": "1", "dialogue": "S01A-F01", "scenario": "S01A", "sentence_id": "S01", "intended": "angry",
        "recording": "natural", "improvised": "yes", "turn": "FM01", "language": "en", "activation": "3.000000",
        "valence": "3.500000", "dominance": "2.000000", "naturalness": "4.500000",
    }  # fmt: skip
    second = read["MSP-IMPROV-S12H-M06-R-MM01"]
    assert (second.emotion, second.column("recording"), second.column("improvised")) == (
        "undecided", "target read", "no",
    )  # fmt: skip
    assert (second.column("valence"), second.column("session")) == (None, "6")
    assert read["MSP-IMPROV-S12H-M06-T-MF101"].emotion == "other"
    votes = by_id(read_msp_improv(tmp_path, votes=True))["MSP-IMPROV-S01A-F01-P-FM01"].groups
    assert {key: value for key, value in votes.items() if key.startswith("votes")} == {
        "votes_happy": "1", "votes_neutral": "1",
    }  # fmt: skip
    config = CorpusConfig(kind=CorpusKind.MSP_IMPROV, path=str(tmp_path), partial=True)
    assert load_corpus(config).counts("emotion") == {"neutral": 1}
    config.classes = ClassSet.ALL
    assert load_corpus(config).column("emotion") == ["neutral", None, "other"]
    config.partial = False
    with pytest.raises(ManifestError, match=r"recording: natural 1 \(2785\), other improvised 1 \(4381\)"):
        load_corpus(config)


def test_msp_improv_without_labels(tmp_path):
    with pytest.raises(ManifestError, match=r"no Evalution\.txt or Evaluation\.txt"):
        read_msp_improv(tmp_path)
    write(tmp_path / "Evaluation.txt", "nothing\n")
    with pytest.raises(ManifestError, match="has no line like"):
        read_msp_improv(tmp_path)
    write(tmp_path / "Evaluation.txt", IMPROV.replace("S01A-F01", "S01Q-F09"))
    with pytest.raises(ManifestError, match="turns are named like UTD-IMPROV"):
        read_msp_improv(tmp_path)


# --- MSP-Podcast -----------------------------------------------------------------------------------------

PODCAST = (
    "FileName,EmoClass,EmoAct,EmoVal,EmoDom,SpkrID,Gender,Split_Set\n"
    "MSP-PODCAST_0001_0008.wav,N,2.8,4.2,3.4,127,Male,Train\n"
    "MSP-PODCAST_0001_0009.wav,X,2.8,4.2,3.4,Unknown,Unknown,{dev}\n"
    "MSP-PODCAST_1023_0235.wav,U,5,4,3,12,Female,Test1\n"
)


@pytest.mark.parametrize(
    ("table", "audio", "dev"),
    [("labels_consensus.csv", "Audios", "Development"), ("labels_concensus.csv", "Audio", "Validation")],
)
def test_msp_podcast_of_several_releases(table, audio, dev, tmp_path):
    write(tmp_path / "Labels" / table, PODCAST.format(dev=dev))
    recording = write(tmp_path / audio / "MSP-PODCAST_0001_0008.wav")
    write(tmp_path / "Transcripts" / "MSP-PODCAST_0001_0008.txt", "We’re  here.\n")
    read = by_id(read_msp_podcast(tmp_path))
    first = read["MSP-PODCAST_0001_0008"]
    assert (first.emotion, first.gender, first.speaker, first.path) == ("neutral", "male", "127", recording)
    assert first.text == "We’re  here."
    assert first.groups == {
        "split": "train", "dialogue": "0001", "language": "en", "activation": "2.8", "valence": "4.2",
        "dominance": "3.4",
    }  # fmt: skip
    unknown = read["MSP-PODCAST_0001_0009"]
    assert (unknown.emotion, unknown.gender, unknown.speaker, unknown.text) == ("undecided", None, None, None)
    assert [u.column("split") for u in read.values()] == ["train", "dev", "test1"]
    # Sizes differ between releases, so none is demanded; missing recordings are.
    config = CorpusConfig(kind=CorpusKind.MSP_PODCAST, path=str(tmp_path))
    with pytest.raises(ManifestError, match=r"1 of 2 recordings are missing"):
        load_corpus(config)
    config.partial = True
    assert load_corpus(config).counts("emotion") == {"neutral": 1, "surprise": 1}


def test_msp_podcast_refuses_other_tables(tmp_path):
    with pytest.raises(ManifestError, match=r"no Labels/labels_consensus\.csv"):
        read_msp_podcast(tmp_path)
    write(tmp_path / "labels_consensus.csv", "FileName,EmoClass\na.wav,N\n")
    with pytest.raises(ManifestError, match="has no column Split_Set"):
        read_msp_podcast(tmp_path)
    write(tmp_path / "labels_consensus.csv", PODCAST.replace(",U,", ",Q,"))
    with pytest.raises(ManifestError, match="line 4: EmoClass 'Q'"):
        read_msp_podcast(tmp_path)


# --- EmoBox ----------------------------------------------------------------------------------------------


def line(turn: str, emotion: str = "neu") -> str:
    wav = f"downloads/iemocap/Session1/sentences/wav/{turn[:-5]}/{turn}.wav"
    entry = {"key": f"iemocap-{turn}", "dataset": "iemocap", "wav": wav, "length": 4.4, "emo": emotion, "channel": 1}
    return json.dumps(entry) + "\n"


def test_emobox_folds(tmp_path):
    data = tmp_path / "EmoBox" / "data" / "iemocap"
    a, b, c = "Ses01F_impro04_F000", "Ses01F_impro04_M000", "Ses02F_impro01_F000"
    write(data / "label_map.json", json.dumps({"neu": "Neutral", "exc": "Happy"}))
    write(data / "iemocap.jsonl", line(a) + line(b, "exc") + line(c))
    assert [u.id for u in read_emobox(data / "iemocap.jsonl").utterances] == [a, b, c]
    assert "fold" not in read_emobox(data).columns()
    write(data / "fold_1" / "iemocap_test_fold_1.jsonl", line(a) + line(b, "exc"))
    write(data / "fold_1" / "iemocap_train_fold_1.jsonl", line(c))
    write(data / "fold_2" / "iemocap_test_fold_2.jsonl", line(c))
    write(data / "fold_2" / "iemocap_train_fold_2.jsonl", line(a) + line(b, "exc"))
    recording = write(tmp_path / f"EmoBox/downloads/iemocap/Session1/sentences/wav/{a[:-5]}/{a}.wav")
    manifest = read_emobox(data)
    assert manifest.name == "iemocap"
    assert [(u.id, u.emotion, u.column("fold")) for u in manifest.utterances] == [
        (a, "neutral", "1"), (b, "happy", "1"), (c, "neutral", "2"),
    ]  # fmt: skip
    assert manifest.utterances[0].path == recording
    write(data / "fold_2" / "iemocap_test_fold_2.jsonl", line(c) + line(a))
    with pytest.raises(ManifestError, match=r"train_fold_2\.jsonl, line 1: listed for train and for test of fold 2"):
        read_emobox(data)
    write(data / "fold_2" / "iemocap_train_fold_2.jsonl", line(b, "exc"))
    with pytest.raises(ManifestError, match=rf"{a} is tested in folds 1, 2; one is possible"):
        read_emobox(data)


def test_emobox_with_one_fold_has_parts(tmp_path):
    for part, turn in (
        ("train", "Ses01F_impro04_F000"),
        ("valid", "Ses01F_impro04_F001"),
        ("test", "Ses01F_impro04_F002"),
    ):
        write(tmp_path / "meld" / "fold_1" / f"meld_{part}_fold_1.jsonl", line(turn, "sad"))
    manifest = read_emobox(tmp_path / "meld")
    assert sorted(u.column("split") or "" for u in manifest.utterances) == ["dev", "test", "train"]
    assert manifest.counts("emotion") == {"sad": 3}


def test_emobox_refuses_other_files(tmp_path):
    with pytest.raises(ManifestError, match="has no list of EmoBox"):
        read_emobox(tmp_path)
    write(tmp_path / "x_test_fold_1.jsonl", '{"key": "a", "wav": "", "emo": "neu"}\n')
    with pytest.raises(ManifestError, match="line 1: no key or no wav"):
        read_emobox(tmp_path)
    write(tmp_path / "label_map.json", "[")
    with pytest.raises(ManifestError, match=r"label_map\.json is not JSON"):
        read_emobox(tmp_path)
