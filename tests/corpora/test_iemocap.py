"""The IEMOCAP reader on a miniature release, written here with the traps of the official one."""

from pathlib import Path

import pytest

from jax_mtlser.corpora.iemocap import read_iemocap
from jax_mtlser.corpora.manifest import ManifestError

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"


def label(turn: str, emotion: str, vad: str = "2.5000, 3.0000, 3.5000") -> str:
    return f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[{vad}]"


def write_dialogue(
    release: Path, session: int, dialogue: str, labels: dict[str, str], transcript: bytes | None = None
) -> None:
    """One dialogue: ``labels`` maps the turns' last parts to IEMOCAP's three-letter classes."""
    folder = release / f"Session{session}"
    evaluation = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    evaluation.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEADER, ""]
    for turn, emotion in labels.items():
        # The single judgements below each turn name classes, too.
        lines += [label(f"{dialogue}_{turn}", emotion), "C-E2:\tNeutral;\t()", "A-E3:\tval 3; act 2;\t()", ""]
    evaluation.write_bytes("\r\n".join(lines).encode())
    wavs = folder / "sentences" / "wav" / dialogue
    wavs.mkdir(parents=True, exist_ok=True)
    for turn in labels:
        (wavs / f"{dialogue}_{turn}.wav").touch()
    if transcript is not None:
        path = folder / "dialog" / "transcriptions" / f"{dialogue}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(transcript)


@pytest.fixture
def release(tmp_path: Path) -> Path:
    release = tmp_path / "IEMOCAP_full_release"
    transcript = (
        b"Ses01F_impro01_F000 [006.2901-008.2357]: A first turn.\r\n"
        b"M: an untimed turn\r\n"
        b"Ses01F_impro01_MXX0 [007.0000-007.5000]: [NOISE]\r\n"
        b"Ses01F_impro01_M000 [010.0100-011.3925]: caf\xe9: [LAUGHTER] it's 3 [o'clock]\r\n"
        b"Ses01F_impro01_F001 [012.0000-013.0000]: \r\n"
    )
    turns = {"F000": "neu", "M000": "exc", "F001": "hap", "M001": "xxx", "F002": "fru", "M002": "sad"}
    write_dialogue(release, 1, "Ses01F_impro01", turns, transcript)
    write_dialogue(release, 1, "Ses01M_script02_1b", {"F012": "ang", "M103": "sur"})
    evaluation = release / "Session1" / "dialog" / "EmoEvaluation"
    (evaluation / "._Ses01F_impro01.txt").write_bytes(b"\x00\x05\x16\x07 Mac OS X")
    for name in ("Attribute", "Categorical", "Self-evaluation", "odd.txt"):
        (evaluation / name).mkdir()
        (evaluation / name / "Ses01F_impro01_e2_cat.txt").write_text(label("Ses01F_impro01_F099", "ang") + "\n")
    write_dialogue(release, 3, "Ses03F_impro05a", {"M010": "neu"})
    return release


def test_four_classes_with_their_labels_and_groups(release: Path) -> None:
    manifest = read_iemocap(release)
    assert manifest.name == "iemocap"
    assert {u.id: u.emotion for u in manifest.utterances} == {
        "Ses01F_impro01_F000": "neutral",
        "Ses01F_impro01_M000": "happy",
        "Ses01F_impro01_F001": "happy",
        "Ses01F_impro01_M002": "sad",
        "Ses01M_script02_1b_F012": "angry",
        "Ses03F_impro05a_M010": "neutral",
    }
    turn = manifest.utterances[4]
    assert turn.path == release / "Session1/sentences/wav/Ses01M_script02_1b/Ses01M_script02_1b_F012.wav"
    # The speaker is the letter of the turn, not the one that begins the dialogue's name.
    assert (turn.speaker, turn.gender) == ("01F", "female")
    assert turn.groups == {
        "session": "Session1",
        "dialogue": "Ses01M_script02_1b",
        "scenario": "script02_1",
        "improvised": "no",
        "valence": "2.5000",
        "activation": "3.0000",
        "dominance": "3.5000",
    }
    last = manifest.utterances[5]
    assert (last.speaker, last.gender, last.column("session")) == ("03M", "male", "Session3")
    assert (last.column("scenario"), last.column("improvised")) == ("impro05", "yes")
    assert (last.start, last.end) == (0.0, None)


def test_transcripts(release: Path) -> None:
    texts = {u.id: u.text for u in read_iemocap(release).utterances}
    assert texts["Ses01F_impro01_F000"] == "A first turn."
    # Bytes that are not UTF-8 become the replacement character; marks stay for the vocabulary to judge.
    assert texts["Ses01F_impro01_M000"] == "caf\ufffd: [LAUGHTER] it's 3 [o'clock]"
    assert texts["Ses01F_impro01_F001"] is None  # transcribed as nothing
    assert texts["Ses01F_impro01_M002"] is None  # not in the file
    assert texts["Ses01M_script02_1b_F012"] is None  # no file


def test_parent_folder_reads_the_same(release: Path) -> None:
    assert read_iemocap(release.parent) == read_iemocap(release)


def test_named_emotions(release: Path) -> None:
    assert read_iemocap(release, emotions=("happy", "frustrated")).counts("emotion") == {
        "frustrated": 1,
        "happy": 2,
    }
    kept_apart = read_iemocap(release, emotions=("happy", "excited", "surprised"))
    assert kept_apart.counts("emotion") == {"excited": 1, "happy": 1, "surprised": 1}
    with pytest.raises(ManifestError, match=r"no emotion joy; it has angry, .*surprised"):
        read_iemocap(release, emotions=("joy",))
    with pytest.raises(ManifestError, match="no turn labelled disgusted or fearful"):
        read_iemocap(release, emotions=("disgusted", "fearful"))


def test_no_release(tmp_path: Path) -> None:
    (tmp_path / "Session1" / "dialog").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"Session1\.\.5/dialog/EmoEvaluation") as raised:
        read_iemocap(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert str(tmp_path / "IEMOCAP_full_release") in str(raised.value)
    assert "--config.corpus.path" in str(raised.value)


def test_missing_recordings_are_counted_and_named(release: Path) -> None:
    for path in (release / "Session1/sentences/wav/Ses01F_impro01").glob("*_F*.wav"):
        path.unlink()
    # Three recordings are gone; the frustrated turn is not asked for.
    with pytest.raises(ManifestError, match=r"2 of 6 recordings are missing.*\n.*Ses01F_impro01_F000\.wav"):
        read_iemocap(release)


def test_a_turn_listed_twice_is_refused(release: Path) -> None:
    evaluation = release / "Session3" / "dialog" / "EmoEvaluation"
    (evaluation / "copy.txt").write_bytes((evaluation / "Ses03F_impro05a.txt").read_bytes())
    with pytest.raises(ManifestError, match="Ses03F_impro05a_M010 is labelled twice in Session3"):
        read_iemocap(release)


def test_a_turn_with_a_strange_name_is_refused(release: Path) -> None:
    write_dialogue(release, 3, "Ses03F_other01", {"F000": "neu"})
    with pytest.raises(ManifestError, match=r"Ses03F_other01\.txt: turn 'Ses03F_other01_F000' is not named"):
        read_iemocap(release)


def test_five_sessions_must_have_the_published_counts(tmp_path: Path) -> None:
    letters = {"angry": "ang", "happy": "hap", "neutral": "neu", "sad": "sad"}
    published = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    for session in range(1, 6):
        turns: list[str] = []
        for name, count in published.items():
            share = count // 5 + (count % 5 if session == 5 else 0)
            # Most of the happy ones are labelled as excited, and count all the same.
            turns += ["exc" if name == "happy" and i % 3 else letters[name] for i in range(share)]
        labels = {f"F{i:04d}": emotion for i, emotion in enumerate(turns)}
        write_dialogue(tmp_path, session, f"Ses0{session}F_impro01", labels)
    manifest = read_iemocap(tmp_path)
    assert len(manifest) == 5531
    assert manifest.counts("emotion") == published

    write_dialogue(tmp_path, 2, "Ses02F_impro02", {"M000": "sad"})
    expected = r"angry 1103/1103, happy 1636/1636, neutral 1708/1708, sad 1085/1084, total 5532/5531"
    with pytest.raises(ManifestError, match=expected):
        read_iemocap(tmp_path, emotions=("sad", "neutral", "happy", "angry"))
    assert len(read_iemocap(tmp_path, emotions=("sad", "excited"))) > 1085
