"""Differences from clean: against sums by hand, a second formula, and known coverage."""

import csv
import io

import numpy as np
import pytest
from rich.console import Console

from jax_mtlser.evaluation.predictions import Prediction
from jax_mtlser.evaluation.robustness import (
    JudgedCondition,
    difference_from,
    print_robustness,
    robustness_results,
    write_robustness,
)
from jax_mtlser.run_folder import read_json


def row(number: int, emotion: str | None, predicted: str, speaker: str | None = "s", member: str = "m") -> Prediction:
    return Prediction(
        id=f"u{number}", member=member, repeat=0, fold=0, part="test", emotion=emotion, emotion_predicted=predicted,
        speaker=speaker,
    )  # fmt: skip


def rows(emotions: str, predicted: str, speakers: str) -> list[Prediction]:
    return [row(i, *letters) for i, letters in enumerate(zip(emotions, predicted, speakers, strict=True))]


def judged(members: dict, name: str = "clean", value: float | None = None, noise: str | None = None) -> JudgedCondition:
    return JudgedCondition(name, name.replace(":", ", "), name.partition(":")[0], value, noise, members)


def test_differences_are_those_of_the_scores():
    clean, noisy = rows("aaabbc", "aaabbb", "112345"), rows("aaabbc", "abbbac", "112345")
    found = difference_from(clean, noisy, "speaker")
    assert found["wa"].value == pytest.approx(3 / 6 - 5 / 6)
    assert found["ua"].value == pytest.approx((1 / 3 + 1 / 2 + 1) / 3 - (1 + 1 + 0) / 3)
    assert found["ua"].low <= found["ua"].value <= found["ua"].high


def test_the_interval_is_that_of_resampled_clusters():
    """A slow second formula: whole speakers drawn and scored again with the metrics of the package."""
    from jax_mtlser.evaluation.metrics import score

    random = np.random.default_rng(0)
    emotions = random.choice(list("aab"), 120)
    clean = rows(emotions, np.where(random.random(120) < 0.8, emotions, "b"), [str(i % 8) for i in range(120)])
    noisy = rows(emotions, np.where(random.random(120) < 0.5, emotions, "a"), [str(i % 8) for i in range(120)])
    found = difference_from(clean, noisy, "speaker")["ua"]
    drawn = []
    for _ in range(600):
        chosen = [i for speaker in random.integers(8, size=8) for i in range(int(speaker), 120, 8)]
        both = [score([side[i] for i in chosen]).emotion.unweighted_accuracy for side in (clean, noisy)]
        drawn.append(both[1] - both[0])
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.025)


def test_the_interval_covers_the_true_difference_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(150):
        emotions = np.array(list("ab") * 60)
        clean = rows(emotions, np.where(random.random(120) < 0.8, emotions, "x"), [str(i // 3) for i in range(120)])
        noisy = rows(emotions, np.where(random.random(120) < 0.6, emotions, "x"), [str(i // 3) for i in range(120)])
        found = difference_from(clean, noisy, "speaker")["ua"]
        hits += found.low <= -0.2 <= found.high
    assert 134 <= hits <= 149  # 95 % of 150 is 142.5, standard deviation 2.7


def test_a_class_that_a_draw_does_not_hold_is_left_out_of_its_ua():
    # Four speakers have all of "a" and lose it; a third of the draws do without the fifth, who has all of "b".
    found = difference_from(rows("aaaab", "aaaab", "12345"), rows("aaaab", "bbbbb", "12345"), "speaker")["ua"]
    assert (found.value, found.low, found.high) == (-0.5, -1.0, -0.5)


def test_few_clusters_have_no_interval_and_no_labels_have_no_difference():
    clean, noisy = rows("abab", "abab", "1234"), rows("abab", "bbab", "1234")
    assert difference_from(clean, noisy, "speaker")["wa"].value == -0.25
    assert difference_from(clean, noisy, "speaker")["wa"].low is None
    assert difference_from([row(0, None, "a")], [row(0, None, "b")], "id") is None


def test_sides_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="same utterances in the same order"):
        difference_from(rows("ab", "ab", "12"), rows("ab", "ab", "12")[::-1], "speaker")


@pytest.fixture
def results():
    one, two = rows("abab", "abab", "1125"), [row(9, "a", "b", "3", "n"), row(8, "b", "b", "4", "n")]
    worse = rows("abab", "abbb", "1125")
    worst = [row(9, "a", "b", "3", "n"), row(8, "b", "a", "4", "n")]
    others = [
        judged({"m": worse, "n": two}, "white:10", 10, "white noise"),
        judged({"m": worse, "n": worst}, "white:0", 0, "white noise"),
    ]
    return robustness_results(judged({"m": one, "n": two}), others)


def test_results_pool_members_and_keep_each(results):
    clean, ten, zero = results["conditions"]
    assert clean["pooled"]["wa"] == pytest.approx(5 / 6)
    assert clean["difference"] is None
    assert (clean["members"]["m"]["wa"], clean["members"]["n"]["wa"]) == (1.0, 0.5)
    assert (clean["mean"]["wa"], clean["std"]["wa"]) == (0.75, pytest.approx(0.125**0.5))
    assert ten["difference"]["wa"]["value"] == pytest.approx(-1 / 6)
    assert zero["difference"]["wa"]["value"] == pytest.approx(-2 / 6)
    assert results["interval"] == {"level": 0.95, "draws": 10_000, "clusters": "speaker", "count": 5}


def test_too_few_speakers_for_intervals_are_told():
    clean, noisy = rows("abab", "abab", "1122"), rows("abab", "abbb", "1122")
    console = Console(file=io.StringIO(), width=80)
    print_robustness(
        robustness_results(judged({"m": clean}), [judged({"m": noisy}, "white:0", 0, "white noise")]), console
    )
    shown = console.file.getvalue()
    assert "-25.00" in shown
    assert "[-" not in shown
    assert "No intervals: 2 speakers are too few." in " ".join(shown.split())


def test_without_speakers_utterances_are_drawn():
    found = robustness_results(judged({"m": [row(0, "a", "a", None), row(1, "b", "b")]}), [])
    assert found["interval"]["clusters"] == "id"
    assert found["interval"]["count"] == 2


def test_table_csv_and_figure_show_the_results(results, tmp_path):
    console = Console(file=io.StringIO(), width=80)
    print_robustness(results, console)
    shown = console.file.getvalue()
    assert "white, 10 " in shown
    assert "-16.67 [" in shown
    assert "…" not in shown  # fits a narrow terminal
    names = [path.name for path in write_robustness(results, tmp_path)]
    assert names == ["results.json", "table.csv", "ua_over_snr.svg", "ua_over_snr.png"]
    with (tmp_path / "table.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [entry["condition"] for entry in table] == ["clean", "white:10", "white:0"]
    assert float(table[2]["wa_difference_value"]) == pytest.approx(-1 / 3)
    assert read_json(tmp_path / "results.json") == results
    svg = (tmp_path / "ua_over_snr.svg").read_text()
    assert "white noise" in svg
    assert "SNR (dB)" in svg


def test_a_figure_of_other_conditions_does_not_stay(results, tmp_path):
    write_robustness(results, tmp_path)
    assert len(write_robustness(results | {"conditions": results["conditions"][:1]}, tmp_path)) == 2
    assert not (tmp_path / "ua_over_snr.svg").exists()
