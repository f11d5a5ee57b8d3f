"""The IEMOCAP reader on a miniature release, written here with the traps of the official one, and in full size."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from iemocap_tree import LABELS, SPEAKERS, label, write_dialogue, write_full_release

from jax_mtlser.config import ClassSet, CorpusConfig, CorpusKind
from jax_mtlser.corpora.iemocap import read_iemocap
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError
from jax_mtlser.corpora.releases import differences
from jax_mtlser.evaluation.protocols import grouped_folds


def load(release: Path, **settings: object) -> Manifest:
    return load_corpus(CorpusConfig(kind=CorpusKind.IEMOCAP, path=str(release), **settings))  # type: ignore[arg-type]


@pytest.fixture
def release(tmp_path: Path) -> Path:
    release = tmp_path / "IEMOCAP_full_release"
    transcript = (
        b"Ses01F_impro01_F000 [006.2901-008.2357]: A first turn.\r\n"
        b"M: an untimed turn\r\n"
        b"Ses01F_impro01_MXX0 [007.0000-007.5000]: [NOISE]\r\n"
        b"Ses01F_impro01_M000 [010.0100-011.3925]: caf\xe9: [LAUGHTER] it\x92s 3 [o'clock]\r\n"
        b"Ses01F_impro01_F001 [012.0000-013.0000]: \r\n"
    )
    turns = {"F000": "neu", "M000": "exc", "MXX1": "neu", "F001": "hap", "M001": "xxx", "F002": "fru", "M002": "sad"}
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
    manifest = load(release, partial=True)
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
        "file_prefix": "Ses01M",
        "language": "en",
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
    # Bytes that are not UTF-8 are Windows' code page; marks stay for the vocabulary to judge.
    assert texts["Ses01F_impro01_M000"] == "café: [LAUGHTER] it’s 3 [o'clock]"
    assert texts["Ses01F_impro01_F001"] is None  # transcribed as nothing
    assert texts["Ses01F_impro01_M002"] is None  # not in the file
    assert texts["Ses01M_script02_1b_F012"] is None  # no file


def test_parent_folder_reads_the_same(release: Path) -> None:
    assert read_iemocap(release.parent) == read_iemocap(release)


def test_named_emotions_and_class_sets(release: Path) -> None:
    def counts(**settings: object) -> dict[str, int]:
        return load(release, partial=True, **settings).counts("emotion")

    assert counts(emotions=("happy", "frustrated")) == {"frustrated": 1, "happy": 2}
    # "excited" is part of "happy" unless it is named itself.
    assert counts(emotions=("happy", "excited", "surprise")) == {"excited": 1, "happy": 1, "surprise": 1}
    assert counts(classes=ClassSet.FIVE) == {"angry": 1, "frustrated": 1, "happy": 2, "neutral": 2, "sad": 1}
    assert counts(classes=ClassSet.SIX)["excited"] == 1
    assert "surprise" in counts(classes=ClassSet.NINE)
    everything = load(release, partial=True, classes=ClassSet.ALL)
    assert len(everything) == 9
    assert everything.column("emotion").count(None) == 1  # the annotators did not agree
    with pytest.raises(ManifestError, match=r"no utterance with emotion joy; it has angry \(1\), .*surprise"):
        counts(emotions=("joy", "sad"))
    with pytest.raises(ManifestError, match=r"classes=four has no class fear; it has angry, happy"):
        counts(classes=ClassSet.FOUR, emotions=("fear", "sad"))


def test_votes_of_the_annotators(release: Path) -> None:
    groups = read_iemocap(release, votes=True).utterances[0].groups
    # Three annotators, one of whom named two emotions; the actor's own judgement is not counted.
    votes = {name: value for name, value in groups.items() if name.startswith("votes_")}
    assert votes == {"votes_angry": "0.5", "votes_frustrated": "0.5", "votes_neutral": "2"}
    evaluation = release / "Session3/dialog/EmoEvaluation/Ses03F_impro05a.txt"
    evaluation.write_text(evaluation.read_text().replace("Neutral;", "Bliss;"))
    assert len(read_iemocap(release)) == 9
    with pytest.raises(ManifestError, match=r"Ses03F_impro05a\.txt: an annotator chose Bliss"):
        read_iemocap(release, votes=True)


def test_no_release(tmp_path: Path) -> None:
    (tmp_path / "Session1" / "dialog").mkdir(parents=True)
    with pytest.raises(ManifestError, match=r"Session1\.\.5/dialog/EmoEvaluation") as raised:
        read_iemocap(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert str(tmp_path / "IEMOCAP_full_release") in str(raised.value)
    assert "--config.corpus.path" in str(raised.value)


def test_a_turn_listed_twice_is_refused(release: Path) -> None:
    evaluation = release / "Session3" / "dialog" / "EmoEvaluation"
    (evaluation / "copy.txt").write_bytes((evaluation / "Ses03F_impro05a.txt").read_bytes())
    with pytest.raises(ManifestError, match="Ses03F_impro05a_M010 is labelled twice in Session3"):
        read_iemocap(release)


def test_a_strange_name_or_label_is_refused(release: Path) -> None:
    write_dialogue(release, 3, "Ses03F_other01", {"F000": "neu"})
    with pytest.raises(ManifestError, match=r"Ses03F_other01\.txt: turn 'Ses03F_other01_F000' is not named"):
        read_iemocap(release)
    (release / "Session3/dialog/EmoEvaluation/Ses03F_other01.txt").unlink()
    write_dialogue(release, 3, "Ses03F_impro09", {"F000": "joy"})
    with pytest.raises(ManifestError, match="Ses03F_impro09_F000 has the label 'joy'; the release has ang, dis"):
        read_iemocap(release)


@settings(max_examples=60, deadline=None)
@given(
    session=st.integers(1, 5),
    marked=st.sampled_from("FM"),
    scene=st.one_of(
        st.integers(1, 99).map(lambda n: f"impro{n:02d}"),
        st.tuples(st.integers(1, 99), st.integers(1, 9)).map(lambda pair: f"script{pair[0]:02d}_{pair[1]}"),
    ),
    take=st.sampled_from(["", "a", "b", "h"]),
    speaking=st.sampled_from("FM"),
    turn=st.integers(0, 999),
)
def test_names_of_turns(tmp_path_factory, session, marked, scene, take, speaking, turn):
    folder = tmp_path_factory.mktemp("iemocap")
    dialogue = f"Ses0{session}{marked}_{scene}{take}"
    write_dialogue(folder, session, dialogue, {f"{speaking}{turn:03d}": "ang"})
    (utterance,) = read_iemocap(folder).utterances
    assert utterance.id == f"{dialogue}_{speaking}{turn:03d}"
    assert (utterance.speaker, utterance.column("dialogue")) == (f"0{session}{speaking}", dialogue)
    assert (utterance.column("scenario"), utterance.column("file_prefix")) == (scene, f"Ses0{session}{marked}")


# --- The full release ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full_release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    release = tmp_path_factory.mktemp("full") / "IEMOCAP_full_release"
    write_full_release(release)
    return release


def test_the_full_release_has_the_published_counts_and_folds_by_session(full_release: Path) -> None:
    manifest = load(full_release)
    assert len(manifest) == 5531
    assert manifest.counts("emotion") == {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    sessions = {"Session1": 1085, "Session2": 1023, "Session3": 1151, "Session4": 1031, "Session5": 1241}
    assert manifest.counts("session") == sessions
    assert manifest.counts("speaker") == SPEAKERS
    assert len(manifest.counts("dialogue")) == 151
    assert len(manifest.counts("file_prefix")) == 10
    assert all(utterance.text for utterance in manifest.utterances)
    folds = grouped_folds(manifest.column("session"), manifest.column("emotion"), 0, 0, 0.0)
    assert [len(fold.test) for fold in folds] == list(sessions.values())
    assert sorted(row for fold in folds for row in fold.test) == list(range(5531))
    nine = {"angry": 1103, "excited": 1041, "frustrated": 1849, "happy": 595, "neutral": 1708, "sad": 1084}
    nine |= {"disgust": 2, "fear": 40, "surprise": 107}
    assert load(full_release, classes=ClassSet.NINE).counts("emotion") == nine
    assert len(load(full_release, classes=ClassSet.FIVE)) == 5531 + 1849
    assert len(load(full_release, classes=ClassSet.SIX)) == 5531 + 1849
    assert len(load(full_release, classes=ClassSet.ALL)) == sum(LABELS.values()) == 10_039


def test_what_differs_from_the_full_release_is_said_exactly(full_release: Path) -> None:
    evaluation = full_release / "Session2/dialog/EmoEvaluation/Ses02F_impro01.txt"
    content = evaluation.read_text()
    turn = re.search(r"Ses02F_impro01_F\d+\t(ang|hap|neu|exc|sad)\t", content)
    assert turn
    evaluation.write_text(content.replace(turn[0], turn[0].replace(turn[1], "fea")))
    name = {"ang": "angry", "exc": "excited", "hap": "happy", "neu": "neutral", "sad": "sad"}[turn[1]]
    count = LABELS[turn[1]]
    try:
        emotions = " ".join(sorted([f"{name} {count - 1} ({count})", "fear 41 (40)"])).replace(") ", "), ")
        assert differences(read_iemocap(full_release), CorpusKind.IEMOCAP) == [
            f"emotion: {emotions}; together 10039 (10039)",
            "session of angry, happy, excited, neutral, sad: Session2 1022 (1023); together 5530 (5531)",
            "speaker of angry, happy, excited, neutral, sad: 02F 480 (481); together 5530 (5531)",
        ]
        with pytest.raises(ManifestError, match=r"(?s)not the full release of IEMOCAP.*02F 480 \(481\).*partial=true"):
            load(full_release)
        assert len(load(full_release, partial=True)) == 5530
    finally:
        evaluation.write_text(content)


def test_missing_recordings_are_counted_and_named(full_release: Path) -> None:
    gone = [full_release / f"Session1/sentences/wav/Ses01F_impro01/Ses01F_impro01_F00{n}.wav" for n in range(2)]
    content = gone[0].read_bytes()
    for path in gone:
        path.unlink()
    try:
        with pytest.raises(ManifestError, match=r"2 of 5531 recordings are missing.*\n.*Ses01F_impro01_F000\.wav"):
            load(full_release)
        assert len(load(full_release, partial=True)) == 5531
    finally:
        for path in gone:
            path.write_bytes(content)
