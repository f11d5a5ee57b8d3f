"""Shares and guesses against counting by hand, and what is said about them."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from jax_mtlser.config import ProtocolConfig, ProtocolKind
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.data.duplicates import first_copies
from jax_mtlser.data.packed import PackedAudio
from jax_mtlser.evaluation.leakage import CHANCE, PAIR, RECORDING, TURNS, Leakage, LeakageMeter, leakage_record
from jax_mtlser.evaluation.leakage_report import gather_leakage, leakage_rows, print_leakage, verdict
from jax_mtlser.evaluation.protocols import Fold, draw_folds
from jax_mtlser.run_folder import RunFolder, write_json


def corpus(*rows):
    """Rows of (emotion, speaker, dialogue, text)."""
    return Manifest(
        "made-up",
        tuple(
            Utterance(
                id=f"u{number}",
                path=Path(f"{number}.wav"),
                emotion=emotion,
                speaker=speaker,
                text=text,
                groups={"dialogue": dialogue} if dialogue else {},
            )
            for number, (emotion, speaker, dialogue, text) in enumerate(rows)
        ),
    )


def measure(manifest, fold, copies=None, **protocol):
    meter = LeakageMeter(manifest, ProtocolConfig(**protocol), manifest.column("text"), copies)
    return meter.of(fold)


def test_shares_and_majorities_by_hand():
    manifest = corpus(
        ("ang", "A", "d1", "NO"),
        ("ang", "A", "d1", "YES"),
        ("sad", "B", "d2", "NO"),
        ("neu", "B", "d2", None),
        ("neu", "C", "d2", ""),
        # Tested: speaker and text known; only the dialogue known; nothing known.
        ("ang", "A", "d3", "NO"),
        ("sad", "D", "d2", "MAYBE"),
        ("neu", "E", "d4", ""),
    )
    leakage = measure(manifest, Fold((0, 1, 2, 3, 4), (), (5, 6, 7)))
    assert leakage.tested == 3
    # Of the three texts one is empty: no text to share.
    assert leakage.known == {"speaker": (1, 3), "dialogue": (1, 3), PAIR: (0, 3), "text": (1, 2)}
    guesses = {name: _predictions(sums) for name, sums in leakage.probes.items()}
    # Two ang, two neu, one sad: the first by name. NO is ang once and sad once: the one more frequent overall.
    assert guesses[CHANCE] == {("ang", "ang"): 1, ("sad", "ang"): 1, ("neu", "ang"): 1}
    assert guesses["speaker"] == {("ang", "ang"): 1, ("sad", "ang"): 1, ("neu", "ang"): 1}
    assert guesses["dialogue"] == {("ang", "ang"): 1, ("sad", "neu"): 1, ("neu", "ang"): 1}
    assert guesses["text"] == {("ang", "ang"): 1, ("sad", "ang"): 1, ("neu", "ang"): 1}
    summary = leakage.summary()
    assert summary["known"]["text"] == 0.5
    assert summary["probes"][CHANCE] == {"wa": pytest.approx(1 / 3), "ua": pytest.approx(1 / 3)}
    assert summary["copies"] == {"count": None, "examples": []}


def _predictions(sums):
    return {
        (sums.labels[row], sums.labels[column]): int(count)
        for (row, column), count in np.ndenumerate(sums.matrix)
        if count
    }


@pytest.mark.parametrize(
    ("course", "expected"),
    [
        # Capital letters are trained on; the guess for each other turn.
        ("ASsssa", {2: "s", 3: "s", 4: "s", 5: "s"}),
        (
            "AsssS",
            {1: "a", 2: "a", 3: "s"},
        ),  # in the middle both are equally near: the dialogue's majority (tie: by name)
        ("ASssssA", {2: "s", 3: "s", 4: "a", 5: "a"}),
        ("aaaa", {}),
    ],
)
def test_the_nearest_turns_decide(course, expected):
    manifest = corpus(*[(letter.lower(), "A", "d", None) for letter in course], ("n", "B", "d", None))
    train = tuple(place for place, letter in enumerate(course) if letter.isupper())
    tested = tuple(place for place, letter in enumerate(course) if letter.islower())
    meter = LeakageMeter(manifest, ProtocolConfig(), manifest.column("text"), None)
    # The other speaker's turn is trained on in each case, and says nothing about this one's.
    for row in tested:
        sums = meter.of(Fold((*train, len(course)), (), (row,))).probes[TURNS]
        ((pair, _),) = _predictions(sums).items()
        overall = "n" if not train else None
        assert pair[1] == expected.get(row, overall)


def test_turns_are_ordered_by_time_and_then_by_number_whatever_the_order_of_the_rows():
    labels = dict(zip((8, 9, 10, 11), ("x", "x", "y", "y"), strict=True))
    by_number = [
        Utterance(id=f"d_{n}", path=Path(f"{n}.wav"), emotion=label, speaker="A", groups={"dialogue": "d"})
        for n, label in labels.items()
    ]
    by_time = [
        Utterance(id=name, path=Path("d.wav"), start=float(n), end=n + 1.0, emotion=label, groups={"dialogue": "d"})
        for name, (n, label) in zip("dcba", labels.items(), strict=True)
    ]
    for utterances in (by_number, by_time):
        shuffled = random.Random(3).sample(utterances, 4)
        manifest = Manifest("m", tuple(shuffled))
        first, second, third, last = (shuffled.index(utterance) for utterance in utterances)
        fold = Fold((first, last), (), (second, third))
        assert measure(manifest, fold).probes[TURNS].accuracy == 1


LABELS = st.sampled_from(["x", "y", None])
ROWS = st.lists(st.tuples(LABELS, st.sampled_from("AB"), st.sampled_from(["d", "e"]), LABELS), min_size=2, max_size=25)


@given(rows=ROWS, data=st.data())
def test_a_guess_never_uses_a_test_label(rows, data):
    """Other labels in the test part change no guess, and other rows in no part change nothing at all."""
    part = data.draw(st.lists(st.sampled_from(["train", "test", None]), min_size=len(rows), max_size=len(rows)))
    train, test = (tuple(i for i, p in enumerate(part) if p == name) for name in ("train", "test"))
    fold = Fold(train, (), test)
    swapped = {"x": "y", "y": "x", None: None}
    changed = [(swapped[r[0]], *r[1:]) if p == "test" else r for r, p in zip(rows, part, strict=True)]
    before, after = measure(corpus(*rows), fold), measure(corpus(*changed), fold)
    assert before.known == after.known
    for name, sums in before.probes.items():
        columns = [dict(zip(s.labels, s.matrix.sum(axis=0), strict=True)) for s in (sums, after.probes[name])]
        assert {k: v for k, v in columns[0].items() if v} == {k: v for k, v in columns[1].items() if v}


@given(seed=st.integers(0, 50))
def test_folds_add_up_to_each_utterance_once(seed):
    draw = random.Random(seed)
    rows = [
        (draw.choice("xyz"), draw.choice("ABCD"), draw.choice("def"), draw.choice(["HI", "NO", None]))
        for _ in range(40)
    ]
    manifest = corpus(*rows)
    config = ProtocolConfig(folds=4, seed=seed)
    (drawn,) = draw_folds(manifest, config)
    meter = LeakageMeter(manifest, config, manifest.column("text"), list(range(40)))
    total = sum((meter.of(fold) for fold in drawn), start=Leakage())
    assert total.tested == 40
    assert all(sums.count == 40 for sums in total.probes.values())
    assert total.known["text"][1] == sum(row[3] is not None for row in rows)
    assert Leakage.from_dict(total.to_dict()) == total
    assert total + Leakage() == total == Leakage() + total


def dialogues(size=30, stay=0.9):
    """Two speakers per dialogue whose emotion mostly stays from turn to turn."""
    draw, rows = random.Random(0), []
    for dialogue in range(size):
        state = {speaker: draw.choice("ahns") for speaker in "FM"}
        for turn in range(20):
            speaker = "FM"[turn % 2]
            if draw.random() > stay:
                state[speaker] = draw.choice("ahns")
            rows.append((state[speaker], f"{dialogue % 5}{speaker}", f"d{dialogue}", None))
    return corpus(*rows)


def test_random_folds_leak_the_course_of_dialogues_and_grouped_folds_do_not():
    """The pattern that IEMOCAP shows: nearest turns far above chance in random folds, at chance without dialogues."""
    manifest = dialogues()

    def scores(**protocol):
        config = ProtocolConfig(validation_fraction=0.0, **protocol)
        meter = LeakageMeter(manifest, config, manifest.column("text"), None)
        return sum((meter.of(fold) for fold in draw_folds(manifest, config)[0]), start=Leakage()).summary()

    leaky, honest = scores(folds=5), scores(kind=ProtocolKind.GROUPED, folds=5, group_column="dialogue")
    assert leaky["known"]["dialogue"] == 1
    assert leaky["probes"][TURNS]["wa"] > leaky["probes"][PAIR]["wa"] > leaky["probes"]["speaker"]["wa"] + 0.2
    assert leaky["probes"][TURNS]["wa"] > 0.8
    assert honest["known"]["dialogue"] == 0
    assert honest["known"]["speaker"] == 1
    assert honest["probes"][TURNS] == honest["probes"]["dialogue"] == honest["probes"][CHANCE]
    # Partners who are trained on give the dialogue away; validating on them does not.
    speakers = {"kind": ProtocolKind.GROUPED, "folds": 0, "group_column": "speaker"}
    assert scores(**speakers)["known"]["dialogue"] == 1
    assert scores(**speakers)["probes"][TURNS] == scores(**speakers)["probes"][CHANCE]


def test_a_column_that_the_protocol_groups_by_is_looked_at():
    manifest = Manifest(
        "m",
        tuple(
            Utterance(
                id=f"u{i}", path=Path("x.wav"), emotion="ab"[i % 2], groups={"room": f"r{i % 4}", "valence": f"{i}"}
            )
            for i in range(12)
        ),
    )
    config = ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="room")
    meter = LeakageMeter(manifest, config, [None] * 12, None)
    assert meter.of(draw_folds(manifest, config)[0][0]).known == {"room": (0, 3)}


# --- Copies ------------------------------------------------------------------------------------------------


def test_copied_recordings_are_found_by_their_samples():
    draw = np.random.default_rng(0)
    one, other = (draw.integers(-9999, 9999, 3000).astype(np.int16) for _ in range(2))
    near = one.copy()
    near[1] += 1  # between the probed samples
    recordings = [one, other, near, one[:-1], one, np.zeros(5, np.int16), other, np.zeros(5, np.int16)]
    offsets = np.cumsum([0, *map(len, recordings)])
    audio = PackedAudio(np.concatenate(recordings), offsets.astype(np.int64))
    assert first_copies(audio) == [0, 1, 2, 3, 0, 5, 1, 5]


def test_copies_on_both_sides_are_counted_and_named():
    manifest = corpus(*[("a", "A", None, None)] * 6)
    copies = [0, 1, 0, 3, 1, 3]
    leakage = measure(manifest, Fold((0, 1), (3,), (2, 4, 5)), copies)
    assert leakage.known[RECORDING] == (2, 3)
    assert leakage.copies == (("u2", "u0"), ("u4", "u1"))
    said = verdict(leakage.summary(), wa=0.9)
    assert "2 test utterances are recordings that training has too (u2 is u0; u4 is u1): remove the copies" in said
    assert measure(manifest, Fold((0,), (), (3,)), copies).summary()["copies"]["count"] == 0


# --- What is said ------------------------------------------------------------------------------------------


def summary(best, chance=0.3, **known):
    return {
        "tested": 1000,
        "known": known,
        "probes": {
            CHANCE: {"wa": chance, "ua": 0.25},
            TURNS: {"wa": best, "ua": best},
            "speaker": {"wa": 0.2, "ua": 0.2},
        },
        "copies": {"count": 0, "examples": []},
    }


@pytest.mark.parametrize(
    ("best", "wa", "said"),
    [
        (
            0.86,
            0.83,
            "reaches WA 86.0 (chance: 30.0), no less than the model's 83.0: under this protocol the score does not",
        ),
        (0.86, 0.88, "within 2.0 points of the model's 88.0: most of this score can be had"),
        (
            0.50,
            0.80,
            "guessing from the nearest turns reaches WA 50.0 (chance: 30.0); compare the model's 80.0 with that",
        ),
        (
            0.31,
            0.80,
            "No guess from labels alone is clearly above chance (WA 30.0, the best 31.0): the model's 80.0 comes",
        ),
        (0.31, 0.28, "no less than the model's 28.0"),
        (
            0.22,
            0.29,
            "guessing from the most frequent class reaches WA 30.0 (chance: 30.0), no less than the model's 29.0",
        ),
        (0.86, None, "a score under this protocol shows that emotion is heard only as far as it lies above that"),
        (0.31, None, "what a model scores beyond that comes from the recordings"),
    ],
)
def test_the_sentence_on_a_score(best, wa, said):
    assert said in verdict(summary(best), wa)


def test_known_voices_and_texts_are_told():
    assert "no score is one on new voices" in verdict(summary(0.3, speaker=1.0), 0.8)
    assert "has the exact text of 100 %" in verdict(summary(0.3, text=1.0), 0.8)
    assert "It has the exact text of 75 % of them" in verdict(summary(0.3, speaker=0.9, text=0.75), 0.8)
    assert verdict(summary(0.3, speaker=0.2, text=0.2), 0.8) == verdict(summary(0.3), 0.8)


def test_the_table_ends_with_the_model():
    console = Console(file=io.StringIO(), width=100, color_system=None)
    leakage = summary(0.86, speaker=1.0)
    rows = leakage_rows(leakage, {"this model": {"wa": 0.8, "ua": 0.7}})
    assert [row["name"] for row in rows] == ["speaker", TURNS, CHANCE, "this model"]
    print_leakage(leakage, {"this model": {"wa": 0.8, "ua": 0.7}}, console)
    shown = console.file.getvalue().splitlines()
    assert any(line.split() == ["speaker", "100.0", "20.0", "20.0"] for line in shown)
    assert any(line.split() == ["this", "model", "–", "80.0", "70.0"] for line in shown)
    assert "no less than the model's 80.0" in " ".join(" ".join(shown).split())


def test_only_the_folds_that_were_scored_count(tmp_path):
    manifest = dialogues(size=10)
    config = ProtocolConfig(folds=5, repeats=2)
    drawn = draw_folds(manifest, config)
    meter = LeakageMeter(manifest, config, manifest.column("text"), None)
    run = RunFolder(tmp_path)
    assert gather_leakage(run, [(0, 0)]) is None
    write_json(run.leakage, leakage_record(meter, drawn))
    assert gather_leakage(run, [(0, 1), (1, 4)]) == (meter.of(drawn[0][1]) + meter.of(drawn[1][4])).summary()
    assert gather_leakage(run, []) == Leakage().summary()
    assert verdict(Leakage().summary()) == ""
