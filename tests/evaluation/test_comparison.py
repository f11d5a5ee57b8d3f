"""Runs are compared on the same utterances or not at all, and the numbers are those of the methods."""

import csv
import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy import stats

from jax_mtlser import cli
from jax_mtlser.evaluation.comparison import compare
from jax_mtlser.evaluation.comparison_text import print_comparison, write_comparison
from jax_mtlser.evaluation.metrics import score
from jax_mtlser.evaluation.paired_runs import ComparisonError, load_systems, pair
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.evaluation.statistics import corrected_resampled_t, expected_maximum, holm
from jax_mtlser.run_folder import RunFolder, write_json

EMOTIONS = ("angry", "happy", "sad")
LABELS = {"emotion": list(EMOTIONS), "gender": [], "speaker": []}


def make_run(
    path, *, hit=0.6, seed=0, repeats=1, folds=4, size=120, sessions=24, fold_hash="same", shift=0, finished=None,
    variant=None, shuffle=None, emotion=lambda i: EMOTIONS[i % 3], selection="last", head=True,
):  # fmt: skip
    """A run folder: utterance ``i`` is tested in fold ``(i // 3 + shift) % folds`` of every repeat."""
    run, random = RunFolder(path), np.random.default_rng(seed)
    config = {"name": path.name}
    if variant:
        config["variants"] = [{"name": name} for name in ("plain", "strong", "weak")]
    write_json(run.config, config)
    write_json(run.folds, {"hash": fold_hash, "repeats": []})
    for repeat in range(repeats):
        for fold in range(folds):
            # Drawn also when it is not written: the other folds must not depend on which are finished.
            rows = []
            for i in [i for i in range(size) if (i // 3 + shift) % folds == fold]:
                said = emotion(i) if random.random() < hit else EMOTIONS[random.integers(3)]
                rows.append(
                    Prediction(
                        id=f"u{i:03d}", member="m", repeat=repeat, fold=fold, part="test", emotion=emotion(i),
                        emotion_predicted=said if head else None, emotion_probabilities=(0.2, 0.3, 0.5) if head else (),
                        speaker=f"S{i % 12}", groups={"session": f"{i % sessions}"},
                    )
                )  # fmt: skip
            if finished is not None and (repeat, fold) not in finished:
                continue
            name = f"{f'{variant}_' if variant else ''}r{repeat}_f{fold}"
            validation = Prediction(id="v", member="m", repeat=repeat, fold=fold, part="validation", emotion="sad",
                                    emotion_predicted="sad" if head else None,
                                    emotion_probabilities=(0.2, 0.3, 0.5) if head else ())  # fmt: skip
            rows = [rows[i] for i in shuffle.permutation(len(rows))] if shuffle else rows
            write_predictions(run.member(name).predictions, [validation, *rows], LABELS)
            counts = {"test": size // folds, "validation": 10, "train": size - size // folds - 10}
            result = {"name": name, "repeat": repeat, "fold": fold, "labels": LABELS, "counts": counts}
            write_json(
                run.member(name).result,
                {**result, "selection": selection, **({"variant": variant} if variant else {})},
            )
    return str(path)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    return load_systems([make_run(folder / "one", seed=1), make_run(folder / "other", seed=2, hit=0.8)])


def shown(comparison):
    console = Console(file=io.StringIO(), width=80, color_system=None, highlight=False)
    print_comparison(comparison, console)
    return console.file.getvalue()


def correct(system):
    rows = [row for rows in system.tested.values() for row in rows.values()]
    return {row.id: row.emotion == row.emotion_predicted for row in rows}


# --- Numbers ---------------------------------------------------------------------------------------------


def test_scores_differences_and_tests_are_those_of_the_predictions(two):
    found = compare(two, draws=2000)
    rows = [[row for fold in system.tested.values() for row in fold.values()] for system in two]
    summaries = [score(part).summary() for part in rows]
    (only,) = found.pairs
    assert (only.first, only.second) == ("one", "other")
    for metric, difference in only.differences.items():
        assert [s.scores[metric] for s in found.systems] == pytest.approx([s[metric] for s in summaries])
        assert difference.value == pytest.approx(summaries[1][metric] - summaries[0][metric])
        assert difference.interval.low < difference.value < difference.interval.high
        by_fold = [
            score(two[1].tested[key].values()).summary()[metric] - score(two[0].tested[key].values()).summary()[metric]
            for key in two[0].tested
        ]
        assert found.test_train_ratio == pytest.approx(30 / 90)
        assert difference.corrected_t == corrected_resampled_t(by_fold, 30 / 90)
    first, second = correct(two[0]), correct(two[1])
    assert only.mcnemar.only_first == sum(first[i] and not second[i] for i in first)
    assert only.mcnemar.only_second == sum(second[i] and not first[i] for i in first)
    assert (found.cluster_column, found.cluster_count, found.predictions) == ("session", 24, 120)


def test_the_interval_is_that_of_resampled_sessions(two):
    """Against a plain loop over drawn sessions."""
    found = compare(two, draws=4000).pairs[0].differences["wa"]
    first, second = correct(two[0]), correct(two[1])
    by_session = np.zeros(24)
    for name in first:
        by_session[int(name[1:]) % 24] += int(second[name]) - int(first[name])
    random = np.random.default_rng(9)
    differences = [random.choice(by_session, 24).sum() / 120 for _ in range(4000)]
    assert found.interval.low == pytest.approx(np.quantile(differences, 0.025), abs=0.012)
    assert found.interval.high == pytest.approx(np.quantile(differences, 0.975), abs=0.012)
    theirs = stats.permutation_test(
        (by_session, np.zeros(24)), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
        n_resamples=4000, rng=np.random.default_rng(0),
    )  # fmt: skip
    assert found.p == pytest.approx(theirs.pvalue, abs=0.01)


def test_swapping_the_runs_turns_every_sign_and_nothing_else(two):
    forth, back = compare(two, draws=1000).pairs[0], compare(two[::-1], draws=1000).pairs[0]
    assert (back.mcnemar.only_first, back.mcnemar.only_second) == (forth.mcnemar.only_second, forth.mcnemar.only_first)
    assert back.mcnemar.p == forth.mcnemar.p
    for metric, one in forth.differences.items():
        other = back.differences[metric]
        assert other.value == pytest.approx(-one.value)
        assert (other.interval.low, other.interval.high) == pytest.approx((-one.interval.high, -one.interval.low))
        assert other.p == one.p
        assert other.corrected_t.statistic == pytest.approx(-one.corrected_t.statistic)


def test_the_order_of_rows_in_the_files_does_not_matter(two, tmp_path):
    shuffled = load_systems(
        [
            make_run(tmp_path / "one", seed=1, shuffle=np.random.default_rng(5)),
            make_run(tmp_path / "other", seed=2, hit=0.8, shuffle=np.random.default_rng(6)),
        ]
    )
    assert list(shuffled[0].tested[0, 0]) != list(two[0].tested[0, 0])
    assert compare(shuffled, draws=1000).pairs == compare(two, draws=1000).pairs


def test_equal_runs_do_not_differ_and_every_p_is_one(tmp_path):
    runs = load_systems([make_run(tmp_path / name, seed=1) for name in ("one", "copy")])
    found = compare(runs, draws=1000).pairs[0]
    for difference in found.differences.values():
        assert difference.value == difference.interval.low == difference.interval.high == 0
        assert difference.p == difference.corrected_t.p == 1
    assert found.mcnemar.p == 1


def test_repeats_count_in_intervals_and_folds_but_once_in_mcnemar(tmp_path):
    runs = load_systems(
        [make_run(tmp_path / "one", seed=1, repeats=3), make_run(tmp_path / "other", seed=2, hit=0.8, repeats=3)]
    )
    found = compare(runs, draws=1000)
    assert (found.predictions, found.utterances, found.repeats, len(found.folds)) == (360, 120, [0, 1, 2], 12)
    assert found.pairs[0].differences["wa"].corrected_t.df == 11
    assert found.pairs[0].mcnemar.only_first + found.pairs[0].mcnemar.only_second <= 120
    assert "on repeat 0 only" in " ".join(shown(found).split())


# --- Many runs -------------------------------------------------------------------------------------------


def test_many_runs_are_corrected_for_their_number_and_the_best_is_warned_about(tmp_path):
    runs = load_systems([make_run(tmp_path / f"run{i}", seed=i, hit=0.5 + 0.08 * i) for i in range(4)])
    found = compare(runs, draws=2000)
    assert [(one.first, one.second) for one in found.pairs] == [("run0", f"run{i}") for i in (1, 2, 3)]
    for metric in ("wa", "ua", "macro_f1"):
        differences = [one.differences[metric] for one in found.pairs]
        assert [d.p_holm for d in differences] == pytest.approx(holm([d.p for d in differences]))
        assert [d.corrected_t_holm for d in differences] == pytest.approx(holm([d.corrected_t.p for d in differences]))
    assert [one.mcnemar_holm for one in found.pairs] == pytest.approx(holm([one.mcnemar.p for one in found.pairs]))
    scores = [s.scores["wa"] for s in found.systems]
    best = found.best_of["wa"]
    assert best.best == f"run{int(np.argmax(scores))}"
    assert best.gain == pytest.approx(max(scores) - np.mean(scores))
    assert best.expected_gain == pytest.approx(best.noise * expected_maximum(4))
    text = " ".join(shown(found).split())
    assert "corrected for 3 comparisons (Holm)" in text
    assert "best of 4" in text
    assert "chosen on these test utterances" in text
    assert len(compare(runs, all_pairs=True, draws=1000).pairs) == 6


def test_the_luck_of_the_best_is_that_of_equal_runs(tmp_path):
    """Over many draws of four equal runs, the best is as far above their mean as expected."""
    gains, expected = [], []
    for draw in range(12):
        runs = load_systems([make_run(tmp_path / f"{draw}_{i}", seed=100 * draw + i, size=240) for i in range(4)])
        best = compare(runs, draws=1000).best_of["wa"]
        gains.append(best.gain)
        expected.append(best.expected_gain)
    assert np.mean(gains) == pytest.approx(np.mean(expected), rel=0.35)


# --- What is compared ------------------------------------------------------------------------------------


def test_folds_that_not_all_have_finished_are_left_out_and_named(tmp_path):
    runs = load_systems(
        [make_run(tmp_path / "all", seed=1), make_run(tmp_path / "part", seed=2, finished={(0, 0), (0, 2)})]
    )
    found = compare(runs, draws=1000)
    assert found.folds == ["r0_f0", "r0_f2"]
    assert found.predictions == 60
    assert found.notes == ["r0_f1, r0_f3 of all left out: the others have not finished them."]


def test_one_fold_has_no_t_test(tmp_path):
    runs = load_systems([make_run(tmp_path / name, seed=i, finished={(0, 1)}) for i, name in enumerate("ab")])
    found = compare(runs, draws=1000)
    assert found.pairs[0].differences["wa"].corrected_t is None
    assert "one fold has no spread" in shown(found)


def test_other_folds_of_the_same_utterances_are_paired_by_utterance(tmp_path):
    runs = load_systems(
        [make_run(tmp_path / "one", seed=1), make_run(tmp_path / "other", seed=2, folds=3, shift=1, fold_hash="other")]
    )
    found = compare(runs, draws=1000)
    assert (found.folds, found.predictions) == ([], 120)
    assert found.pairs[0].differences["wa"].corrected_t is None
    first, second = correct(runs[0]), correct(runs[1])
    assert found.pairs[0].mcnemar.only_first == sum(first[i] and not second[i] for i in first)
    text = " ".join(shown(found).split())
    assert "paired by utterance" in text
    assert "No corrected t: it needs the same folds in every run." in text


def test_other_training_parts_under_the_same_test_parts_are_said(tmp_path):
    runs = load_systems([make_run(tmp_path / "one", seed=1), make_run(tmp_path / "two", seed=2, fold_hash="other")])
    found = compare(runs, draws=1000)
    assert len(found.folds) == 4
    assert found.notes == ["Test parts are the same, but training and validation parts were cut differently."]


def test_other_utterances_are_refused_with_their_numbers(tmp_path):
    runs = load_systems(
        [make_run(tmp_path / "one", seed=1), make_run(tmp_path / "less", seed=2, size=117, folds=3, fold_hash="other")]
    )
    with pytest.raises(ComparisonError, match=r"of 120 and 117 they share 117; one has 3 more \(u117, u118, u119\)"):
        compare(runs)
    found = compare(runs, common_only=True, draws=1000)
    assert found.predictions == 117
    assert found.notes[-1].endswith("not all runs tested the utterance: 3 of one, 0 of less.")


def test_disjoint_folds_have_nothing_in_common(tmp_path):
    runs = load_systems([make_run(tmp_path / f"f{i}", seed=i, finished={(0, i)}) for i in range(2)])
    with pytest.raises(ComparisonError, match="they share 0"):
        compare(runs)
    with pytest.raises(ComparisonError, match="no tested utterance in common"):
        compare(runs, common_only=True)


def test_different_repeats_have_nothing_in_common(tmp_path):
    runs = load_systems([make_run(tmp_path / f"r{i}", seed=i, repeats=2, finished={(i, 0)}) for i in range(2)])
    with pytest.raises(ComparisonError, match=r"no repeat in common \(r0 \[0\]; r1 \[1\]\)"):
        compare(runs)


def test_other_labels_of_the_same_utterances_are_refused(tmp_path):
    runs = load_systems(
        [make_run(tmp_path / "one"), make_run(tmp_path / "other", emotion=lambda i: EMOTIONS[(i + (i == 7)) % 3])]
    )
    with pytest.raises(ComparisonError, match=r"1 utterances have other labels in other than in one \(such as u007"):
        compare(runs)


def test_another_choice_of_the_epoch_is_said(tmp_path):
    runs = load_systems([make_run(tmp_path / "one"), make_run(tmp_path / "other", selection="best_validation")])
    assert pair(runs).notes == ("The tested epoch was chosen differently: one last; other best_validation.",)


# --- Run folders -----------------------------------------------------------------------------------------


def test_variants_are_systems_of_their_own(tmp_path):
    for seed, name in enumerate(("weak", "plain", "strong")):
        make_run(tmp_path / "grid", seed=seed, variant=name)
    names = [system.name for system in load_systems([str(tmp_path / "grid")])]
    assert names == ["grid:plain", "grid:strong", "grid:weak"]
    (one,) = load_systems([f"{tmp_path}/grid:weak"])
    assert one.name == "grid:weak"
    with pytest.raises(ComparisonError, match="no finished variant 'week'; it has plain, strong, weak"):
        load_systems([f"{tmp_path}/grid:week"])


def test_folders_of_the_same_name_are_told_apart(tmp_path):
    paths = [make_run(tmp_path / parent / "run", seed=i) for i, parent in enumerate("ab")]
    assert [system.name for system in load_systems(paths)] == paths
    with pytest.raises(ComparisonError, match="run is named twice"):
        load_systems([paths[0], paths[0]])


def test_what_is_no_finished_run_is_refused(tmp_path):
    with pytest.raises(ComparisonError, match="is no run folder"):
        load_systems([str(tmp_path)])
    make_run(tmp_path / "begun", finished=set())
    with pytest.raises(ComparisonError, match="has no finished member"):
        load_systems([str(tmp_path / "begun")])
    make_run(tmp_path / "mute", head=False)
    with pytest.raises(ComparisonError, match="says nothing about the emotion"):
        load_systems([str(tmp_path / "mute")])
    with pytest.raises(ComparisonError, match="two runs at the least"):
        compare(load_systems([make_run(tmp_path / "alone")]))


# --- Output ----------------------------------------------------------------------------------------------


def test_the_table_fits_a_terminal_and_says_what_was_resampled(two):
    text = shown(compare(two, draws=1000, cluster="speaker"))
    assert max(map(len, text.splitlines())) <= 80
    plain = " ".join(text.split())
    assert "120 test predictions of 120 utterances, 4 shared folds" in plain
    assert "12 speakers drawn anew 1,000 times, the same for every run (as asked)" in plain
    assert "12 speakers are few" in plain
    assert "other − one" in plain
    assert "--cluster" not in plain


def test_few_sessions_come_with_finer_columns(tmp_path):
    runs = load_systems([make_run(tmp_path / name, seed=i, sessions=4) for i, name in enumerate("ab")])
    (warning,) = compare(runs, draws=1000).warnings
    assert "4 sessions are few" in warning
    assert warning.endswith("Other columns (--cluster): speaker (12), utterance (120).")


def test_the_files_hold_what_is_printed(two, tmp_path):
    found = compare(two, draws=1000)
    write_comparison(found, tmp_path / "new" / "c.json")
    write_comparison(found, tmp_path / "c.csv")
    stored = json.loads((tmp_path / "new" / "c.json").read_text())
    wa = found.pairs[0].differences["wa"]
    assert stored["pairs"][0]["differences"]["wa"]["interval"] == {"low": wa.interval.low, "high": wa.interval.high}
    assert stored["pairs"][0]["mcnemar"]["method"] in ("exact binomial", "chi-squared, continuity corrected")
    with (tmp_path / "c.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["metric"] for row in rows] == ["wa", "ua", "macro_f1"]
    assert float(rows[0]["difference"]) == wa.value
    assert float(rows[0]["p_corrected_t"]) == wa.corrected_t.p
    assert (rows[1]["p_mcnemar"], rows[1]["cluster_column"]) == ("", "session")


def test_the_command(tmp_path, capsys):
    runs = [make_run(tmp_path / "one", seed=1), make_run(tmp_path / "other", seed=2, hit=0.8)]
    output = ["-o", f"{tmp_path}/c.json", "-o", f"{tmp_path}/c.csv"]
    assert cli.main(["jax-mtlser", "compare", *runs, "--draws", "1000", *output]) == 0
    shown = capsys.readouterr().out
    assert "other − one" in shown
    assert f"written: {tmp_path}/c.csv" in shown
    assert json.loads((tmp_path / "c.json").read_text())["draws"] == 1000


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-o", "c.txt"], "ends in .json or .csv"),
        (["--draws", "10"], "percentiles need 1000"),
        (["--seed", "-1"], "must be 0 or greater"),
        (["--cluster", "room"], "cannot resample by room"),
    ],
)
def test_wrong_flags_are_answered_in_one_line(two, flags, message, capsys):
    runs = [str(system.path) for system in two]
    assert cli.main(["jax-mtlser", "compare", *runs, *flags]) in (1, 2)
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
