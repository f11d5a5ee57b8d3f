"""Reports of experiments with variants: tables, figures, the warning about the best, the paper's values."""

import csv
import math
import re

import pytest
from rich.console import Console

from jax_mtlser.config import Config, CorpusConfig, CorpusKind, Variant, grid, to_dict
from jax_mtlser.evaluation.experiment_report import print_experiment, write_experiment_report
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS
from jax_mtlser.evaluation.predictions import Prediction, write_predictions
from jax_mtlser.evaluation.report import write_report
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.evaluation.score_table import best_of, expected_maximum, numeric_axes, rows_of
from jax_mtlser.run_folder import RunFolder, append_json_line, write_json

LABELS = {"emotion": ["angry", "sad"], "gender": [], "speaker": []}


def make_run(tmp_path, config, correct, *, repeats=1, tested=50):
    """A run with one fold per repeat; ``correct`` says how many of the tested utterances each member gets right."""
    run = RunFolder(tmp_path / "run")
    config.protocol.folds, config.protocol.repeats = 1, repeats
    write_json(run.config, to_dict(config))
    parts = {"train": ["c"], "validation": ["b"], "test": ["a"]}
    write_json(
        run.folds, {"hash": "ab12", "repeats": [{"repeat": r, "seed": r, "folds": [parts]} for r in range(repeats)]}
    )
    for variant in [own.name for own in config.variants] or [None]:
        for repeat in range(repeats):
            right = correct(variant, repeat)
            if right is None:
                continue
            name = f"{variant}_r{repeat}_f0" if variant else f"r{repeat}_f0"
            folder = run.member(name)
            rows = [
                Prediction(
                    id=f"u{i}", member=name, repeat=repeat, fold=0, part="test", emotion="angry",
                    emotion_predicted="angry" if i < right else "sad", emotion_probabilities=(0.5, 0.5),
                )
                for i in range(tested)
            ]  # fmt: skip
            write_predictions(folder.predictions, rows, LABELS)
            for epoch in (1, 2):
                line = {"kind": "validation", "epoch": epoch, "step": epoch, "wa": 0.3 * epoch, "ua": 0.3 * epoch}
                append_json_line(folder.metrics, line)
            result = {
                "name": name, "variant": variant, "repeat": repeat, "fold": 0, "seed": 1, "epochs": 2,
                "selected_epoch": 2, "selection": "best_validation", "labels": LABELS, "parameters": 7,
                "counts": {"train": 1, "validation": 1, "test": tested, "skipped_ctc": 0},
                "seconds": {"compile": 1.0, "train": 2.0}, "audio_seconds_per_second": 3.0,
                "metrics": dict.fromkeys(SUMMARY_KEYS), "versions": {"jax": "0"},
            }  # fmt: skip
            write_json(folder.result, result)
    return run


def config_of(name, variants, kind=CorpusKind.DEMO):
    return Config(name=name, corpus=CorpusConfig(kind=kind, path="x"), variants=variants)


def test_mean_and_deviation_over_repeats_stand_in_page_and_tables(tmp_path):
    config = config_of("mine", grid({"weights.alpha": (0.0, 0.5)}))
    counts = {("alpha0", 0): 20, ("alpha0", 1): 30, ("alpha0.5", 0): 40, ("alpha0.5", 1): 45}
    run = make_run(tmp_path, config, lambda variant, repeat: counts[variant, repeat], repeats=2)
    page = write_experiment_report(run).read_text()
    # 20/50 and 30/50: mean 50 %, sample deviation 10 * sqrt(2) %.
    assert f"50.00 ± {100 * 0.1 * math.sqrt(2):.2f}" in page
    assert "85.00 ± 7.07" in page
    assert "Best of" not in page  # two settings are no selection
    assert "Published" not in page
    assert "mean ± sample standard deviation of 2 repeats" in page
    with (run.report / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == ["alpha0", "alpha0.5"]
    assert [float(row["weights.alpha"]) for row in rows] == [0.0, 0.5]
    assert float(rows[1]["wa"]) == pytest.approx(0.85)
    assert float(rows[0]["wa_std"]) == pytest.approx(0.1 * math.sqrt(2))
    assert rows[0]["wer"] == ""
    markdown = (run.report / "scores.md").read_text().splitlines()
    assert markdown[0] == "|  | WA | UA | Macro F1 |"
    assert markdown[2].startswith("| alpha0 | 50.00 ± 14.14 | ")
    latex = (run.report / "scores.tex").read_text()
    assert r"alpha0.5 & 85.00 $\pm$ 7.07 & " in latex
    assert latex.count(r"\\") == 3
    assert "curves" in {path.stem for path in run.report.glob("*.svg")}


def test_every_variant_is_compared_with_the_first_under_corrected_tests(tmp_path):
    config = config_of("mine", tuple(Variant(name=name, overrides={}) for name in ("SER", "+GR", "+SR")))
    counts = {"SER": 10, "+GR": 40, "+SR": 11}
    run = make_run(tmp_path, config, lambda variant, _: counts[variant])
    page = write_experiment_report(run).read_text()
    assert "Differences from SER" in page
    with (run.report / "comparison.csv").open() as file:
        rows = {(row["second"], row["metric"]): row for row in csv.DictReader(file)}
    assert {second for second, _ in rows} == {"+GR", "+SR"}
    clear, chance = rows["+GR", "wa"], rows["+SR", "wa"]
    assert float(clear["difference"]) == pytest.approx(0.6)
    assert float(chance["difference"]) == pytest.approx(0.02)
    # 30 utterances changed, all for the better, and one: the second of two p-values is not corrected, the first doubled.
    assert float(clear["p_swap_holm"]) == pytest.approx(min(1, 2 * float(clear["p_swap"])))
    assert float(clear["p_swap_holm"]) < 0.001
    assert float(chance["p_swap_holm"]) == pytest.approx(1.0)
    for text in ("+60.00", "+2.00", "corrected for 2 comparisons (Holm)", "+0.0 to +6.0", 'href="comparison.csv"'):
        assert text in page


def test_without_the_first_variant_the_page_says_why_nothing_is_compared(tmp_path):
    config = config_of("mine", tuple(Variant(name=name, overrides={}) for name in ("SER", "+GR", "+SR")))
    run = make_run(tmp_path / "first", config, lambda variant, _: None if variant == "SER" else 10)
    assert (
        "SER, the variant that the others are compared with, is not finished."
        in write_experiment_report(run).read_text()
    )
    run = make_run(tmp_path / "only", config, lambda variant, _: 10 if variant == "SER" else None)
    assert "Only SER is finished yet." in write_experiment_report(run).read_text()
    assert not (run.report / "comparison.csv").exists()


def test_special_characters_of_latex_are_escaped(tmp_path):
    config = config_of("mine", (Variant(name="a_b", overrides={}), Variant(name="c+d", overrides={})))
    run = make_run(tmp_path, config, lambda *_: 10)
    write_experiment_report(run)
    assert r"a\_b & 20.00" in (run.report / "scores.tex").read_text()


def test_a_grid_is_drawn_as_heat_maps_and_unfinished_settings_are_empty(tmp_path):
    config = config_of(
        "mine", grid({"weights.alpha": (0.2, 0.4, 0.6), "weights.beta": (0.4, 0.6, 0.8), "weights.gamma": (0.1, 0.2)})
    )
    done = iter(range(18))
    run = make_run(tmp_path, config, lambda *_: None if (number := next(done)) == 4 else 20 + number)
    page = write_experiment_report(run).read_text()
    assert "17 of 18 trainings" in page
    drawing = (run.report / "map_wa.svg").read_text()
    assert "γ (ASR) = 0.1" in drawing
    assert "α (gender)" in drawing
    written = sorted(float(value) for value in re.findall(r">(\d\d\.\d\d)</text>", drawing))
    assert written == sorted(100 * (20 + number) / 50 for number in range(18) if number != 4)
    assert (run.report / "map_ua.png").exists()
    assert not (run.report / "curves.svg").exists()  # 18 lines could not be told apart
    assert "Best of 17: alpha0.6_beta0.8_gamma0.2" in page


def test_the_papers_values_stand_beside_ours_only_on_its_corpus(tmp_path):
    variants = (Variant(name="SER", overrides={}), Variant(name="SER+GR+SR+ASR", overrides={"weights.alpha": 0.5}))
    for kind in (CorpusKind.IEMOCAP, CorpusKind.DEMO):
        run = make_run(tmp_path / kind.value, config_of("table4", variants, kind), lambda *_: 25)
        page = write_experiment_report(run).read_text()
        assert ("77.33 / 78.71" in page) == ("published" in (run.report / "scores.svg").read_text())
        assert ("77.33 / 78.71" in page) == (kind is CorpusKind.IEMOCAP)
        assert ("| 83.24 / 83.36 |" in (run.report / "scores.md").read_text()) == (kind is CorpusKind.IEMOCAP)


def test_a_run_without_variants_has_tables_and_the_papers_values_too(tmp_path):
    run = make_run(tmp_path, config_of("ten_fold", (), CorpusKind.IEMOCAP), lambda *_: 25)
    page = write_report(run).read_text()
    assert "WA 83.86 ± 0.66, UA 84.23 ± 0.63" in page
    assert "| ten_fold | 50.00 |" in (run.report / "scores.md").read_text()
    other = make_run(tmp_path / "other", config_of("mine", (), CorpusKind.IEMOCAP), lambda *_: 25)
    assert "Published" not in write_report(other).read_text()


def test_the_expected_best_of_equal_settings():
    assert expected_maximum(1) == pytest.approx(0, abs=1e-9)
    assert expected_maximum(2) == pytest.approx(1 / math.sqrt(math.pi))
    assert expected_maximum(3) == pytest.approx(1.5 / math.sqrt(math.pi))
    assert expected_maximum(18) == pytest.approx(1.82, abs=0.005)


def test_the_warning_says_how_far_the_best_stands_out(tmp_path):
    config = config_of("mine", grid({"weights.alpha": (0.0, 0.1, 0.2, 0.3)}))
    counts = {"alpha0": 10, "alpha0.1": 20, "alpha0.2": 20, "alpha0.3": 30}
    run = make_run(tmp_path, config, lambda variant, _: counts[variant])
    results = gather_results(run, ["alpha0_r0_f0", "alpha9_r0_f0"])
    best = best_of(rows_of(results, {}))
    assert best is not None
    # mean 20, deviation sqrt(200 / 3) = 8.16: 10 / 8.16 = 1.2
    assert "alpha0.3 has the highest WA, 1.2 standard deviations above" in best
    assert "best of 4 would stand about 1.0 above" in best
    console = Console(width=100, record=True, file=None, force_terminal=False)
    with console.capture() as captured:
        print_experiment(results, console)
    shown = " ".join(captured.get().split())
    assert "alpha0.3 60.00 60.00" in shown
    assert "Not finished: alpha9_r0_f0" in shown
    assert "drawn at random" in shown
    assert "Best of 4" in shown


def test_a_narrow_console_takes_no_name_from_the_table(tmp_path):
    names = ("SER+GR+SR+ASR", "SER+GR+SR")
    run = make_run(
        tmp_path, config_of("mine", tuple(Variant(name=name, overrides={}) for name in names)), lambda *_: 10
    )
    console = Console(width=20, file=None, force_terminal=False)
    with console.capture() as captured:
        print_experiment(gather_results(run), console)
    rows = [line.split() for line in captured.get().splitlines() if line.strip().startswith(names)]
    assert [(row[0], row[1], row[-1]) for row in rows] == [(name, "20.00", "1") for name in names]
    assert console.width == 20


def test_only_full_grids_of_numbers_have_axes(tmp_path):
    def axes(variants):
        run = make_run(tmp_path / str(len(list(tmp_path.iterdir()))), config_of("x", variants), lambda *_: None)
        return numeric_axes(rows_of(gather_results(run), {}))

    full = grid({"weights.alpha": (0.5, 0.0), "weights.beta": (1, 2)})
    assert axes(full) == {"weights.alpha": [0.0, 0.5], "weights.beta": [1, 2]}
    assert axes(full[:-1]) == {}
    assert axes((Variant(name="a", overrides={"training.plain": True}), Variant(name="b", overrides={}))) == {}
    assert axes(grid({"model.encoder.checkpoint": ("one", "two")})) == {}
    assert axes(grid({"weights.alpha": (0.5, 0.0), "weights.beta": (1,)})) == {"weights.alpha": [0.0, 0.5]}
