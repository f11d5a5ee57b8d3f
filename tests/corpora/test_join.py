"""Several corpora as one manifest."""

from pathlib import Path

import pytest

from jax_mtlser.config import (
    ClassSet,
    Config,
    ConfigError,
    CorpusConfig,
    CorpusKind,
    CorpusPart,
    from_dict,
    to_dict,
    validate,
)
from jax_mtlser.corpora.load import load_corpus, read_corpus
from jax_mtlser.corpora.manifest import ManifestError, read_manifest, write_manifest
from jax_mtlser.evaluation.protocols import grouped_folds


@pytest.fixture
def config(tmp_path: Path) -> CorpusConfig:
    for name in ("emo/03a01Wa.wav", "emo/03a01Na.wav", "emo/08a02Ta.wav", "savee/DC/a01.wav", "savee/JE/n01.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "table.csv").write_text(
        "path,label,speaker,session,split\n03a01Wa.wav,joy,03,1,train\nx.wav,Freude,,,\n"
    )
    return CorpusConfig(
        kind=CorpusKind.JOINED,
        parts=(
            CorpusPart(kind=CorpusKind.EMO_DB, path=str(tmp_path / "emo"), partial=True),
            CorpusPart(kind=CorpusKind.SAVEE, path=str(tmp_path / "savee"), partial=True),
            CorpusPart(
                kind=CorpusKind.TABLE, path=str(tmp_path / "table.csv"), name="mine", relabel={"Freude": "happy"}
            ),
        ),
    )


def test_ids_speakers_and_groups_of_corpora_stay_apart(config, tmp_path):
    manifest = load_corpus(config)
    assert manifest.name == "emo_db+savee+mine"
    assert [u.id for u in manifest.utterances] == [
        "emo_db/03a01Na", "emo_db/03a01Wa", "emo_db/08a02Ta", "savee/DC_a01", "savee/JE_n01", "mine/03a01Wa", "mine/x",
    ]  # fmt: skip
    assert manifest.counts("corpus") == {"emo_db": 3, "mine": 2, "savee": 2}
    # Speaker 03 of one corpus is not 03 of another.
    assert set(manifest.counts("speaker")) == {"emo_db/03", "emo_db/08", "mine/03", "savee/DC", "savee/JE"}
    assert manifest.counts("emotion") == {"angry": 2, "happy": 2, "neutral": 2, "sad": 1}
    table = manifest.utterances[5]
    assert (table.column("session"), table.column("split"), table.speaker) == ("mine/1", "train", "mine/03")
    assert manifest.utterances[6].speaker is None
    assert manifest.utterances[0].column("sentence_id") == "emo_db/a01"
    assert manifest.utterances[0].column("language") == "de"  # means the same everywhere
    folds = grouped_folds(manifest.column("corpus"), manifest.column("emotion"), 0, 0, 0.0)
    assert sorted(len(fold.test) for fold in folds) == [2, 2, 3]
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv", name=manifest.name) == manifest


def test_classes_of_a_joined_corpus(config):
    config.classes = ClassSet.FOUR
    config.emotions = ("angry", "neutral")
    assert load_corpus(config).counts("emotion") == {"angry": 2, "neutral": 2}
    config.relabel = {"sad": "neutral"}
    assert load_corpus(config).counts("emotion") == {"angry": 2, "neutral": 3}


def test_each_part_is_judged_by_its_release(config):
    config.parts[1].partial = False
    with pytest.raises(
        ManifestError, match=r"(?s)savee is not the full release of SAVEE.*config\.corpus\.parts\[1\]\.partial=true"
    ):
        load_corpus(config)


def test_two_parts_of_one_name_are_refused(config):
    config.parts[2].name = "savee"
    with pytest.raises(ManifestError, match="two of the joined corpora are called savee"):
        load_corpus(config)
    with pytest.raises(ManifestError, match="a joined corpus is no single one"):
        read_corpus(config)


def test_parts_survive_json_and_are_judged(config):
    whole = Config(name="joined", corpus=config)
    assert from_dict(Config, to_dict(whole)) == whole
    assert whole.copy().corpus.parts[0].kind is CorpusKind.EMO_DB
    validate(whole)
    config.parts = config.parts[:1]
    config.parts[0].path = ""
    config.parts[0].kind = CorpusKind.JOINED
    config.votes = True
    with pytest.raises(ConfigError) as raised:
        validate(whole)
    for part in ("corpus.parts has 1 entries", "corpus.parts[0].kind is joined", "corpus.votes is set"):
        assert part in str(raised.value)
    config.kind = CorpusKind.SAVEE
    config.parts = (CorpusPart(kind=CorpusKind.TESS),)
    with pytest.raises(ConfigError) as raised:
        validate(whole)
    for part in ("corpus.path is empty", "corpus.parts[0].path is empty", "corpus.kind is savee; use"):
        assert part in str(raised.value)
