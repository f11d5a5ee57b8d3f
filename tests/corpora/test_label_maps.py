"""Names of emotions: one spelling, class sets, and corpora that can be judged with each other's models."""

from pathlib import Path

import pytest

from jax_mtlser.config import ClassSet, CorpusConfig, CorpusKind
from jax_mtlser.corpora.label_maps import CANONICAL, CORPUS_LABELS, UNDECIDED, canonical, select_classes
from jax_mtlser.corpora.manifest import Manifest, ManifestError, Utterance
from jax_mtlser.corpora.releases import RELEASES


def manifest(*emotions: str | None) -> Manifest:
    rows = (Utterance(id=str(n), path=Path(f"{n}.wav"), emotion=emotion) for n, emotion in enumerate(emotions))
    return Manifest("made", tuple(rows))


def selected(*emotions: str | None, kind: CorpusKind = CorpusKind.TABLE, **settings: object) -> list[str | None]:
    config = CorpusConfig(kind=kind, path="x", **settings)  # type: ignore[arg-type]
    return select_classes(manifest(*emotions), config).column("emotion")


def test_all_corpora_speak_of_the_same_emotions():
    for kind, labels in CORPUS_LABELS.items():
        assert set(labels.values()) <= {*CANONICAL, UNDECIDED}, kind
        assert {"angry", "happy", "neutral", "sad"} <= set(labels.values()), kind
    # A word that a corpus uses means the same in a user's table; codes of one letter or number are the corpus' own.
    for labels in CORPUS_LABELS.values():
        for label, name in labels.items():
            if len(label) > 2:
                assert canonical(label) == name
    assert [canonical(name) for name in CANONICAL] == list(CANONICAL)


def test_published_counts_are_of_the_corpus_own_classes():
    for kind, release in RELEASES.items():
        for counts in release.counts:
            if counts.column == "emotion":
                assert set(counts.values) == set(CORPUS_LABELS[kind].values()), kind
    totals = {kind: sum(release.counts[0].values.values()) for kind, release in RELEASES.items() if release.counts}
    assert totals == {
        CorpusKind.IEMOCAP: 10_039, CorpusKind.EMO_DB: 535, CorpusKind.RAVDESS: 1440, CorpusKind.CREMA_D: 7442,
        CorpusKind.TESS: 2800, CorpusKind.SAVEE: 480, CorpusKind.ESD: 35_000, CorpusKind.SHEMO: 3000,
        CorpusKind.NEMO: 4481, CorpusKind.MELD: 13_708, CorpusKind.MSP_IMPROV: 8438,
    }  # fmt: skip
    # Columns of one release count the same utterances.
    for release in RELEASES.values():
        assert len({sum(c.values.values()) for c in release.counts if not c.among}) <= 1
        assert len({sum(c.values.values()) for c in release.counts if c.among}) <= 1


@pytest.mark.parametrize(
    ("label", "name"),
    [("Anger", "angry"), (" joy ", "happy"), ("Pleasant_Surprise", "surprise"), ("XXX", UNDECIDED), ("Wut", "Wut")],
)
def test_spellings(label, name):
    assert canonical(label) == name


def test_a_table_keeps_its_own_words_until_classes_are_wanted():
    assert selected("ang", "Freude", None) == ["ang", "Freude", None]
    assert selected("ang", "joy", "Freude", None, classes=ClassSet.FOUR) == ["angry", "happy", None]
    assert selected("ang", "joy", "Freude", classes=ClassSet.ALL) == ["angry", "happy", "Freude"]
    with pytest.raises(ManifestError, match=r"no utterance of the classes angry, happy, .*; it has Wut \(1\)"):
        selected("Wut", classes=ClassSet.FOUR)


def test_emotions_are_renamed_before_classes_are_formed():
    renamed = {"calm": "neutral", "Freude": "happy"}
    assert selected("calm", "Freude", "sad", classes=ClassSet.FOUR, relabel=renamed) == ["neutral", "happy", "sad"]
    with pytest.raises(ManifestError, match=r"corpus\.relabel renames Wut, but made has calm"):
        selected("calm", relabel={"Wut": "angry"})


def test_without_agreement_there_is_no_class():
    podcast = CorpusKind.MSP_PODCAST
    labels = ("angry", "contempt", "other", UNDECIDED)
    assert selected(*labels, kind=podcast) == ["angry", "contempt"]
    assert selected(*labels, kind=podcast, classes=ClassSet.ALL) == ["angry", "contempt", "other", None]
    assert selected(*labels, kind=podcast, classes=ClassSet.BASIC) == ["angry"]
    assert selected(*labels, kind=podcast, emotions=("other", "angry")) == ["angry", "other"]


def test_a_class_set_may_be_larger_than_the_corpus_but_a_named_emotion_must_occur():
    assert selected("angry", "excited", kind=CorpusKind.IEMOCAP, classes=ClassSet.BASIC) == ["angry", "happy"]
    assert selected("angry", "excited", kind=CorpusKind.IEMOCAP, emotions=("angry", "excited")) == ["angry", "excited"]
    with pytest.raises(ManifestError, match="has no utterance with emotion fear"):
        selected("angry", "sad", classes=ClassSet.BASIC, emotions=("angry", "fear"))


def test_a_corpus_without_emotions_stays():
    assert selected(None, None, classes=ClassSet.FOUR) == [None, None]
