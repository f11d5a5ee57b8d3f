"""A comparison for people and programs: one table, a CSV file, JSON."""

import csv
import dataclasses
import enum
import io
import json
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.evaluation.comparison import Comparison, PairComparison
from jax_mtlser.evaluation.statistics import METRICS
from jax_mtlser.run_folder import write_text

__all__ = ["FORMATS", "explanations", "p_text", "print_comparison", "write_comparison"]

FORMATS = (".json", ".csv")
_ABSENT = "–"
_NAMES = {"wa": "WA", "ua": "UA", "macro_f1": "Macro F1"}


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Print scores, differences with intervals and tests, and what to know about them."""
    c = comparison
    times = f" in {len(c.repeats)} repeats" if len(c.repeats) > 1 else ""
    size = f"{c.predictions:,} test predictions of {c.utterances:,} utterances{times}"
    shared = f"{len(c.folds)} shared {'folds' if len(c.folds) > 1 else 'fold'}" if c.folds else "paired by utterance"
    table = Table(box=box.SIMPLE, title=f"{size}, {shared}", title_justify="left")
    table.add_column("")
    for metric in METRICS:
        table.add_column(_NAMES[metric], justify="right", no_wrap=True)
    for system in c.systems:
        table.add_row(Text(system.name), *(f"{100 * system.scores[metric]:.2f}" for metric in METRICS))
    for one in c.pairs:
        table.add_section()
        for row in _pair_rows(one, corrected=len(c.pairs) > 1):
            table.add_row(*row)
    if c.best_of:
        table.add_section()
        best = [c.best_of[metric] for metric in METRICS]
        table.add_row(f"best of {len(c.systems)}", *(Text(entry.best) for entry in best), style="bold")
        table.add_row("  above the mean of all", *(f"{100 * entry.gain:+.2f}" for entry in best))
        table.add_row("  expected by luck", *(f"{100 * entry.expected_gain:+.2f}" for entry in best))
    console.print(table)
    for line in explanations(c):
        console.print(Text(line))
    for warning in c.warnings:
        console.print(Text(warning, style="yellow"))


def _pair_rows(one: PairComparison, *, corrected: bool) -> list[list[Text]]:
    """One pair's rows of the table; p-values after Holm's correction where it was needed."""
    differences = [one.differences[metric] for metric in METRICS]
    rows = [
        [f"{one.second} − {one.first}", *(f"{100 * d.value:+.2f}" for d in differences)],
        ["  95 % interval", *(f"{100 * d.interval.low:+.1f} to {100 * d.interval.high:+.1f}" for d in differences)],
        ["  p, clusters swapped", *(p_text(d.p_holm if corrected else d.p) for d in differences)],
    ]
    tests = [d.corrected_t for d in differences]
    if any(tests):
        cells = [
            p_text(d.corrected_t_holm) if corrected else p_text(t.p if t else None)
            for d, t in zip(differences, tests, strict=True)
        ]
        rows.append(["  p, corrected t of folds", *cells])
    rows.append(["  p, McNemar", p_text(one.mcnemar_holm if corrected else one.mcnemar.p), _ABSENT, _ABSENT])
    styled = [[Text(cell, style="bold") for cell in rows[0]], *([Text(cell) for cell in row] for row in rows[1:])]
    return styled


def p_text(value: float | None) -> str:
    """A p-value in four digits; a dash for none."""
    if value is None:
        return _ABSENT
    return "< 0.0001" if value < 0.0001 else f"{value:.4f}"


def explanations(c: Comparison) -> list[str]:
    """How the numbers of a comparison came about, one sentence or two each."""
    ways = 2**c.cluster_count
    swaps = f"all {ways:,} ways" if ways <= c.draws else f"{c.draws:,} random ways"
    lines = [
        f"Per cent, differences in points. Intervals: {c.cluster_title} drawn anew {c.draws:,} times, the same for every "
        f"run ({c.cluster_reason}). Clusters swapped: share of {swaps} of swapping the two runs in whole clusters that "
        f"make as large a difference{f'; at the least {2 / ways:.3g}' if ways <= c.draws else ''}."
    ]
    if c.test_train_ratio is not None:
        lines.append(
            f"Corrected t: Nadeau & Bengio over {len(c.folds)} folds, n_test / n_train = {c.test_train_ratio:.3f}, "
            f"{len(c.folds) - 1} degrees of freedom."
        )
    elif not c.folds:
        lines.append("No corrected t: it needs the same folds in every run.")
    else:
        lines.append("No corrected t: one fold has no spread over folds.")
    methods = sorted({one.mcnemar.method.value for one in c.pairs})
    once = f", on repeat {c.repeats[0]} only" if len(c.repeats) > 1 else ""
    counts = ""
    if len(c.pairs) == 1:
        test = c.pairs[0].mcnemar
        counts = f"; only {c.pairs[0].first} right {test.only_first:,}, only {c.pairs[0].second} {test.only_second:,}"
    lines.append(f"McNemar ({' or '.join(methods)}{once}) takes utterances for independent{counts}.")
    if len(c.pairs) > 1:
        lines.append(
            f"All p-values are corrected for {len(c.pairs)} comparisons (Holm), each test and metric by itself; "
            "intervals are not."
        )
    if c.best_of:
        lines.append(
            f"The best of {len(c.systems)} is chosen on these test utterances, so its score is too high: as many equally "
            "good runs would show the gain expected by luck. Choose on validation, or test the best one on new data."
        )
    return [*lines, *c.notes]


def write_comparison(comparison: Comparison, path: Path) -> None:
    """Write the comparison whole as ``.json``, or one row for each pair and metric as ``.csv``."""
    if path.suffix == ".csv":
        write_text(path, _csv(comparison))
    else:
        values = dataclasses.asdict(comparison)
        write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False, default=_plain) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, enum.Enum):
        return value.value
    raise TypeError(f"{value!r} is no JSON")


def _csv(comparison: Comparison) -> str:
    scores = {system.name: system.scores for system in comparison.systems}
    buffer = io.StringIO(newline="")
    rows = [
        {
            "first": one.first,
            "second": one.second,
            "metric": metric,
            "first_score": scores[one.first][metric],
            "second_score": scores[one.second][metric],
            "difference": d.value,
            "low": d.interval.low,
            "high": d.interval.high,
            "p_swap": d.p,
            "p_swap_holm": d.p_holm,
            "t": d.corrected_t and d.corrected_t.statistic,
            "df": d.corrected_t and d.corrected_t.df,
            "p_corrected_t": d.corrected_t and d.corrected_t.p,
            "p_corrected_t_holm": d.corrected_t_holm,
            # McNemar's test is about being right, so it stands in the row of WA only.
            "only_first_right": one.mcnemar.only_first if metric == "wa" else None,
            "only_second_right": one.mcnemar.only_second if metric == "wa" else None,
            "p_mcnemar": one.mcnemar.p if metric == "wa" else None,
            "p_mcnemar_holm": one.mcnemar_holm if metric == "wa" else None,
            "clusters": comparison.cluster_count,
            "cluster_column": comparison.cluster_column,
            "predictions": comparison.predictions,
        }
        for one in comparison.pairs
        for metric, d in one.differences.items()
    ]
    writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()
