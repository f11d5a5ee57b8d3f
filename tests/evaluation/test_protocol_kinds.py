"""Mates, filters, patterns, texts, given parts and fold lists: what may be on which side."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.config import Mates, ProtocolConfig, ProtocolKind
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.evaluation.protocols import (
    ProtocolError,
    draw_folds,
    fold_notes,
    fold_of_parts,
    folds_record,
    grouped_folds,
    part_named,
)

GROUPED = ProtocolKind.GROUPED


def dyadic(turns: int = 6, sessions: int = 5) -> Manifest:
    """IEMOCAP in small: in each session a woman and a man in four dialogues, two of them scripted."""
    rows = []
    for session in range(1, sessions + 1):
        for wearer in "FM":
            for scenario in ("impro01", "script01_1"):
                dialogue = f"Ses{session:02}{wearer}_{scenario}"
                for turn in range(turns):
                    speaker = "FM"[turn % 2]
                    rows.append(
                        Utterance(
                            id=f"{dialogue}_{speaker}{turn:03}",
                            path=Path(f"{dialogue}/{turn}.wav"),
                            emotion=("ang", "hap", "neu", "sad")[(turn + session) % 4],
                            speaker=f"{session:02}{speaker}",
                            text=f"Line {turn}."
                            if scenario.startswith("script")
                            else f"Free {session} {wearer} {turn}",
                            groups={
                                "session": f"Session{session}",
                                "dialogue": dialogue,
                                "scenario": scenario,
                                "improvised": "yes" if scenario.startswith("impro") else "no",
                            },
                        )
                    )
    return Manifest("dyadic", tuple(rows))


def values(manifest, column, rows):
    return {manifest.utterances[row].column(column) for row in rows}


def each_once(drawn, rows):
    return sorted(row for fold in drawn for row in fold.test) == sorted(rows)


# --- Properties of any manifest ------------------------------------------------------------------------


@settings(max_examples=150)
@given(data=st.data(), use=st.sampled_from(Mates), fraction=st.sampled_from([0.0, 0.1, 0.4]), seed=st.integers(0, 99))
def test_no_group_is_on_two_sides_and_mates_are_where_they_belong(data, use, fraction, seed):
    """Speakers of random sizes in sessions of random sizes."""
    sessions = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    speakers = [(f"s{session}", f"p{session}{n}") for session, count in enumerate(sessions) for n in range(count)]
    rows = data.draw(st.lists(st.sampled_from(speakers), min_size=1, max_size=60))
    mates, groups = [session for session, _ in rows], [speaker for _, speaker in rows]
    labels = data.draw(st.lists(st.sampled_from(["x", "y", None]), min_size=len(rows), max_size=len(rows)))
    folds = data.draw(st.sampled_from([0, 2, 3]))
    try:
        drawn = grouped_folds(groups, labels, folds, seed, fraction, mates=mates, use_of_mates=use)
    except ProtocolError:
        # Only where there are too few groups, or some speaker has no partner or nothing but partners.
        sizes = [len({s for m, s in rows if m == session}) for session in set(mates)]
        assert len(set(groups)) < 4 or folds or 1 in sizes or len(sizes) < 4
        return
    assert each_once(drawn, range(len(rows)))
    for fold in drawn:
        parts = (fold.train, fold.validation, fold.test)
        sides = [{groups[row] for row in part} for part in parts]
        assert sum(map(len, sides)) == len(set.union(*sides))
        tested = {mates[row] for row in fold.test}
        tied = {row for row in range(len(rows)) if mates[row] in tested} - set(fold.test)
        assert fold.train
        match use:
            case Mates.VALIDATION:
                assert set(fold.validation) == tied
            case Mates.DROP:
                assert tied.isdisjoint(fold.train + fold.validation)
                assert fold.size == len(rows) - len(tied)
            case Mates.TRAIN:
                assert fold.size == len(rows)
        if use is not Mates.VALIDATION:
            assert bool(fold.validation) == (fraction > 0)


PARTS = st.lists(st.sampled_from(["train", "validation", "test", None]), min_size=1, max_size=50)


@settings(max_examples=150)
@given(parts=PARTS, fraction=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 9), by_group=st.booleans())
def test_given_parts_stay_and_validation_is_cut_from_training_only(parts, fraction, seed, by_group):
    rows = range(len(parts))
    groups = [f"g{row % 5}" for row in rows] if by_group else None
    labels = ["xy"[row % 2] for row in rows]
    try:
        fold = fold_of_parts(parts, labels, seed, fraction, groups=groups, source="this test")
    except ProtocolError:
        train = parts.count("train")
        assert train < 2 or not parts.count("test") or (by_group and train < 6)
        return
    assert list(fold.test) == [row for row in rows if parts[row] == "test"]
    given = [row for row in rows if parts[row] == "validation"]
    assert sorted(fold.train + fold.validation) == [row for row in rows if parts[row] in ("train", "validation")]
    if given:
        assert list(fold.validation) == given
    else:
        assert bool(fold.validation) == (fraction > 0)
        if groups:
            assert {groups[row] for row in fold.train}.isdisjoint(groups[row] for row in fold.validation)


@given(seed=st.integers(0, 2**31), column=st.sampled_from(["session", "speaker", "dialogue", "scenario", "text", "id"]))
def test_every_column_can_be_grouped_by(seed, column):
    manifest = dyadic()
    texts = manifest.column("text")
    config = ProtocolConfig(kind=GROUPED, folds=2, group_column=column, seed=seed, validation_fraction=0.0)
    (drawn,) = draw_folds(manifest, config, texts)
    assert each_once(drawn, range(len(manifest)))
    for fold in drawn:
        assert values(manifest, column, fold.train).isdisjoint(values(manifest, column, fold.test))


# --- The protocols of the literature ---------------------------------------------------------------------


def shared(manifest, drawn, column):
    """Share of test utterances whose value occurs in training."""
    hits = [
        manifest.utterances[row].column(column) in values(manifest, column, fold.train)
        for fold in drawn
        for row in fold.test
    ]
    return sum(hits) / len(hits)


@pytest.mark.parametrize(("mates", "expected"), [(Mates.VALIDATION, 0.0), (Mates.DROP, 0.0), (Mates.TRAIN, 1.0)])
def test_leave_one_speaker_out_shares_dialogues_only_when_mates_are_trained_on(mates, expected):
    manifest = dyadic()
    config = ProtocolConfig(
        kind=GROUPED, folds=0, group_column="speaker", mate_column="session", mates=mates, validation_fraction=0.12
    )
    (drawn,) = draw_folds(manifest, config)
    assert len(drawn) == 10
    assert each_once(drawn, range(len(manifest)))
    assert shared(manifest, drawn, "dialogue") == expected
    assert shared(manifest, drawn, "speaker") == 0
    for fold in drawn:
        (tested,) = values(manifest, "speaker", fold.test)
        (validated,) = values(manifest, "speaker", fold.validation)
        assert (validated[:2] == tested[:2]) == (mates is Mates.VALIDATION)
        assert fold.size == len(manifest) - (12 if mates is Mates.DROP else 0)
    notes = fold_notes(manifest, config, [drawn])
    dropped = ["12 of 120 utterances are in no part of a fold (mates of the tested are dropped)."]
    assert notes == (dropped if mates is Mates.DROP else [])


def test_file_prefix_is_a_pattern_on_the_id():
    manifest = dyadic()
    config = ProtocolConfig(kind=GROUPED, folds=0, group_column="id", group_pattern=r"^Ses\d\d[FM]")
    (drawn,) = draw_folds(manifest, config)
    assert [values(manifest, "id", fold.test).pop()[:6] for fold in drawn] == [
        f"Ses0{n}{w}" for n in range(1, 6) for w in "FM"
    ]
    assert shared(manifest, drawn, "speaker") == 1
    assert shared(manifest, drawn, "dialogue") == 0
    with pytest.raises(ProtocolError, match=r"group_pattern=\^x is not found in 120 of 120 values of column 'id'"):
        draw_folds(manifest, ProtocolConfig(kind=GROUPED, folds=0, group_column="id", group_pattern="^x"))


def test_a_bracket_in_the_pattern_is_the_group():
    config = ProtocolConfig(
        kind=GROUPED, folds=0, group_column="dialogue", group_pattern=r"^Ses\d\d[FM]_([a-z]+)", validation_fraction=0
    )
    (drawn,) = draw_folds(dyadic(), config)
    assert len(drawn) == 2


def test_equal_texts_stay_together_and_no_text_is_nobodys():
    manifest = dyadic()
    texts = [text if row % 7 else "" for row, text in enumerate(manifest.column("text"))]
    config = ProtocolConfig(kind=GROUPED, folds=5, group_column="text", validation_fraction=0.2)
    (drawn,) = draw_folds(manifest, config, texts)
    assert each_once(drawn, range(len(manifest)))
    for fold in drawn:
        sides = [{texts[row] for row in part} - {""} for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == len(set.union(*sides))
    # Utterances without words are no group: they are on every side.
    assert all("" in {texts[row] for row in part} for part in (drawn[0].train, drawn[0].test))
    with pytest.raises(ProtocolError, match="column 'text' is empty for 1 of 120 utterances"):
        draw_folds(manifest, config, [None, *texts[1:]])


def test_a_filter_leaves_the_rest_in_no_part():
    manifest = dyadic()
    config = ProtocolConfig(
        kind=GROUPED, folds=0, group_column="session", filter_column="improvised", filter_values=("yes",)
    )
    (drawn,) = draw_folds(manifest, config)
    kept = [row for row, value in enumerate(manifest.column("improvised")) if value == "yes"]
    assert each_once(drawn, kept)
    for fold in drawn:
        assert sorted(fold.train + fold.validation + fold.test) == kept
        assert values(manifest, "session", fold.train).isdisjoint(values(manifest, "session", fold.test))
    assert fold_notes(manifest, config, [drawn]) == [
        "60 of 120 utterances are in no part of a fold (improvised is not yes)."
    ]
    with pytest.raises(ProtocolError, match="no utterance has 'maybe' in column 'improvised'; it holds no, yes"):
        draw_folds(manifest, ProtocolConfig(filter_column="improvised", filter_values=("yes", "maybe")))


def test_mates_that_cannot_be():
    manifest = dyadic()
    with pytest.raises(ProtocolError, match="every other speaker is a mate of 01F"):
        draw_folds(manifest, ProtocolConfig(kind=GROUPED, folds=0, group_column="speaker", mate_column="scenario"))
    with pytest.raises(ProtocolError, match="session Session1 shares no"):
        draw_folds(manifest, ProtocolConfig(kind=GROUPED, folds=0, group_column="session", mate_column="session"))


def test_a_fold_that_is_not_drawn_cannot_be_trained():
    config = ProtocolConfig(kind=GROUPED, folds=0, group_column="session", only_folds=(4, 5))
    with pytest.raises(ProtocolError, match=r"only_folds names \[5\], but there are 5 folds"):
        draw_folds(dyadic(), config)


# --- Given parts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        *((name, "train") for name in ("train", "Training", " TRAIN ")),
        *((name, "validation") for name in ("dev", "devel", "Development", "val", "valid", "Validation")),
        *((name, "test") for name in ("test", "Test1", "test_2", "Testing", "eval", "Evaluation")),
        *((name, None) for name in ("", "fold1", "trainer", "rest", "3", "developer")),
    ],
)
def test_official_names_of_parts(name, part):
    assert part_named(name) == part


def split_manifest(*names):
    return Manifest(
        "split",
        tuple(
            Utterance(
                id=f"u{i}",
                path=Path(f"u{i}.wav"),
                emotion="ab"[i % 2],
                speaker=f"s{i // 3}",
                groups={"Split_Set": name},
            )
            for i, name in enumerate(names)
        ),
    )


def test_parts_from_a_column():
    manifest = split_manifest("Train", "Train", "Train", "Development", "Test1", "Test2", "")
    config = ProtocolConfig(kind=ProtocolKind.FIXED, split_column="Split_Set", repeats=2)
    first, second = draw_folds(manifest, config)
    assert first == second
    assert [(fold.train, fold.validation, fold.test) for fold in first] == [((0, 1, 2), (3,), (4, 5))]
    assert fold_notes(manifest, config, [first]) == ["1 of 7 utterances are in no part of a fold (no part given)."]


def test_validation_is_cut_by_group_where_the_corpus_has_none():
    manifest = split_manifest(*["train"] * 9, "test")
    config = ProtocolConfig(
        kind=ProtocolKind.FIXED, split_column="Split_Set", group_column="speaker", validation_fraction=0.3
    )
    ((fold,),) = draw_folds(manifest, config)
    assert len(fold.validation) == 3
    assert values(manifest, "speaker", fold.train).isdisjoint(values(manifest, "speaker", fold.validation))


def test_names_that_say_no_part():
    config = ProtocolConfig(kind=ProtocolKind.FIXED, split_column="Split_Set")
    with pytest.raises(ProtocolError, match=r"holds 'reserve' \(2\), which is not train, dev or test; .*filter_column"):
        draw_folds(split_manifest("train", "test", "reserve", "reserve"), config)
    with pytest.raises(ProtocolError, match="gives 2 utterances to train on and 0 to test"):
        draw_folds(split_manifest("train", "train"), config)


# --- Fold lists --------------------------------------------------------------------------------------------


def lists(path):
    return ProtocolConfig(kind=ProtocolKind.LISTS, fold_lists=str(path), validation_fraction=0.0)


def ids(manifest, rows):
    return [manifest.utterances[row].id for row in rows]


def test_a_table_of_folds(tmp_path):
    manifest = split_manifest(*["x"] * 12)
    # Ten sorts behind nine; the last utterance is not listed.
    table = "id,fold\n" + "".join(f"u{i},{i}\n" for i in range(11))
    (tmp_path / "folds.csv").write_text(table)
    (drawn,) = draw_folds(manifest, lists(tmp_path / "folds.csv"))
    assert [ids(manifest, fold.test) for fold in drawn] == [[f"u{i}"] for i in range(11)]
    assert all(fold.size == 11 for fold in drawn)
    assert fold_notes(manifest, lists(tmp_path / "folds.csv"), [drawn]) == [
        "1 of 12 utterances are in no part of a fold (not listed)."
    ]


def test_a_table_of_parts_in_jsonl_with_utterances_the_corpus_lacks(tmp_path):
    manifest = split_manifest(*["x"] * 4)
    names = [("u0.wav", "train"), ("u1.wav", "train"), ("a/u2.wav", "dev"), ("u3", "test"), ("u9", "test")]
    lines = [json.dumps({"file": name, "split": part}) for name, part in names]
    path = tmp_path / "parts.jsonl"
    path.write_text("\n".join(lines) + "\n\n")
    ((fold,),) = draw_folds(manifest, lists(path))
    assert (fold.train, fold.validation, fold.test) == ((0, 1), (2,), (3,))
    assert fold_notes(manifest, lists(path), [[fold]]) == [
        "1 of 5 listed utterances are not in the corpus, such as u9: the scores are not those of the full lists."
    ]


def emobox(folder: Path, manifest: Manifest, folds: int) -> None:
    """EmoBox's layout: one folder per fold, keys with the name of the corpus before the id."""
    for number in range(1, folds + 1):
        (folder / f"fold_{number}").mkdir(parents=True)
        for part in ("train", "test"):
            lines = [
                json.dumps(
                    {
                        "key": f"dyadic-{u.id}",
                        "dataset": "dyadic",
                        "wav": f"downloads/dyadic/{u.path}",
                        "emo": u.emotion,
                        "channel": 1,
                    }
                )
                for u in manifest.utterances
                if (u.groups["session"] == f"Session{number}") == (part == "test")
            ]
            (folder / f"fold_{number}" / f"dyadic_{part}_fold_{number}.jsonl").write_text("\n".join(lines))


def test_the_layout_of_emobox(tmp_path):
    manifest = dyadic()
    emobox(tmp_path / "lists", manifest, 5)
    config = lists(tmp_path / "lists")
    config.group_column, config.validation_fraction = "speaker", 0.12
    (drawn,) = draw_folds(manifest, config)
    assert [values(manifest, "session", fold.test) for fold in drawn] == [{f"Session{n}"} for n in range(1, 6)]
    assert each_once(drawn, range(len(manifest)))
    for fold in drawn:
        assert len(values(manifest, "speaker", fold.validation)) == 1
        sides = [values(manifest, "speaker", part) for part in (fold.train, fold.validation, fold.test)]
        assert sum(map(len, sides)) == 10
    # A single fold's folder is a protocol of one division.
    (single,) = draw_folds(manifest, lists(tmp_path / "lists" / "fold_3"))
    assert [fold.test for fold in single] == [drawn[2].test]


def test_recordings_of_the_same_name_are_told_apart_by_their_folders(tmp_path):
    paths = ("corpus/liu/sad/201.wav", "corpus/liu/angry/201.wav", "corpus/wang/angry/201.wav", "corpus/wang/sad/7.wav")
    manifest = Manifest(
        "casia", tuple(Utterance(id=f"c{i}", path=Path(path), emotion="x") for i, path in enumerate(paths))
    )
    parts = ("test", "train", "dev", "train")
    lines = [f"downloads/{path},{part}" for path, part in zip(paths, parts, strict=True)]
    (tmp_path / "parts.csv").write_text("wav,split\n" + "\n".join(lines))
    ((fold,),) = draw_folds(manifest, lists(tmp_path / "parts.csv"))
    assert (fold.train, fold.validation, fold.test) == ((1, 3), (2,), (0,))
    # The name alone says nothing, nor does that of a file with several utterances.
    (tmp_path / "names.csv").write_text("wav,split\n201.wav,train\n7.wav,train\nc2,test\n")
    ((fold,),) = draw_folds(manifest, lists(tmp_path / "names.csv"))
    assert (fold.train, fold.test) == ((3,), (2,))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"folds.csv": "id,fold\nz1,1\nz2,2\n"},
            "none of the 2 utterances .* such as z1, is in split, whose ids look like u0",
        ),
        ({"folds.csv": "id,fold\nu0,1\nu1,\n"}, "folds.csv, line 3: no part or fold; name a column split"),
        ({"folds.csv": "name,fold\nu0,1\n"}, "folds.csv, line 2: no id; name a column id"),
        ({"folds.csv": "id,fold\nu0,1\nu1,1\n"}, "names the fold 1 only; two are needed"),
        ({"folds.csv": "id,fold\nu0,1\nu1,test\n"}, "has both parts and folds in one column: 1, test"),
        (
            {"folds.csv": "id,split\nu0,train\nu0,test\nu1,train\n"},
            "u0 is listed for train and for test of the same fold",
        ),
        ({"folds.jsonl": "{\n"}, "folds.jsonl, line 1: not JSON"),
        ({"folds.jsonl": "[1]\n"}, "folds.jsonl, line 1: not an object"),
        (
            {"a/train_1.csv": "id\nu0\n", "a/train_2.csv": "id\nu1\n"},
            "has two lists for train: train_1.csv and train_2.csv",
        ),
        ({"a/notes.txt": "x"}, "has no folders with files such as train.csv"),
    ],
)
def test_lists_that_cannot_be_used(files, message, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    single = next(iter(files))
    path = tmp_path / single if "/" not in single else tmp_path
    with pytest.raises(ProtocolError, match=message):
        draw_folds(split_manifest("x", "x", "x"), lists(path))


def test_lists_that_are_not_there(tmp_path):
    with pytest.raises(ProtocolError, match=r"there are no fold lists at .*nowhere"):
        draw_folds(dyadic(), lists(tmp_path / "nowhere"))


# Recorded once, and the same under every supported Python and NumPy: see test_protocols.GOLDEN.
GOLDEN = [
    ({"group_column": "session", "validation_fraction": 0.2}, "194c4c4f351d6470"),
    ({"group_column": "speaker", "mate_column": "session"}, "993be5629ef214c1"),
    ({"group_column": "speaker", "mate_column": "session", "mates": Mates.DROP}, "c0a7145e0226a3b6"),
    ({"group_column": "dialogue", "folds": 4, "seed": 11, "repeats": 3}, "b62533a23139f4d6"),
    ({"group_column": "id", "group_pattern": r"^Ses\d\d[FM]"}, "f12f31046a214421"),
    ({"group_column": "text", "folds": 10}, "8c6cc9d68d452065"),
    ({"group_column": "session", "filter_column": "improvised", "filter_values": ("yes",)}, "7f74d0c0272de5e4"),
]


@pytest.mark.parametrize(("changes", "expected"), GOLDEN)
def test_folds_are_the_same_everywhere(changes, expected):
    manifest = dyadic()
    config = ProtocolConfig(**{"kind": GROUPED, "folds": 0, **changes})
    record = folds_record(manifest, draw_folds(manifest, config, manifest.column("text")))
    assert record["hash"][:16] == expected


def test_stratified_folds_of_a_corpus_of_iemocaps_size():
    counts = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
    manifest = Manifest(
        "large",
        tuple(
            Utterance(id=f"{label}{i}", path=Path("x.wav"), emotion=label)
            for label, count in counts.items()
            for i in range(count)
        ),
    )
    for drawn in draw_folds(manifest, ProtocolConfig(folds=10, repeats=10)):
        assert each_once(drawn, range(5531))
        by_class = [Counter(manifest.utterances[row].emotion for row in fold.test) for fold in drawn]
        for label, count in counts.items():
            assert {c[label] for c in by_class} <= {count // 10, count // 10 + 1}
