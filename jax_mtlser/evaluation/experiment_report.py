"""The results of an experiment with variants: a table, the figure that its settings ask for, and files for a paper.

What is drawn follows from the settings: one number that varies gives curves over epochs, two or three give heat maps,
anything else bars; the table and the bars are always there.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from jax_mtlser.evaluation import figures, report
from jax_mtlser.evaluation.comparison import Comparison, compare
from jax_mtlser.evaluation.comparison_text import explanations, p_text, write_comparison
from jax_mtlser.evaluation.leakage_report import leakage_rows, print_leakage
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS
from jax_mtlser.evaluation.paired_runs import ComparisonError, load_systems
from jax_mtlser.evaluation.protocol_text import protocol_sentence, protocol_title, protocol_warnings
from jax_mtlser.evaluation.published import published_values
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.evaluation.score_table import (
    SHORT_NAMES,
    ScoreRow,
    best_of,
    numeric_axes,
    rows_of,
    scored,
    write_tables,
)
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines, write_text

__all__ = ["print_experiment", "write_experiment_report"]

_SYMBOLS = {"weights.alpha": "α (gender)", "weights.beta": "β (speaker)", "weights.gamma": "γ (ASR)"}
# More lines than this cannot be told apart.
_MOST_CURVES = 8
_WIDEST = 1_000  # columns of a printed table


def print_experiment(results: Mapping[str, Any], console: Console) -> None:
    """Print the dict of :func:`gather_results` of an experiment with variants, one line each."""
    rows = rows_of(results, {})
    protocol = results["protocol"]
    table = Table(box=box.SIMPLE, title=Text(protocol_title(protocol)), title_justify="left")
    table.add_column("", no_wrap=True)
    keys = scored(rows)
    for key in keys:
        table.add_column(SHORT_NAMES[key], justify="right", no_wrap=True)
    table.add_column("folds", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(Text(row.name), *(row.shown(key) for key in keys), str(row.members))
    _print_whole(table, console)
    console.print(f"Per cent; {_meaning(rows)}. WER: lower is better.")
    if best := best_of(rows):
        console.print(Text(best, style="yellow"))
    if results["missing"]:
        console.print(Text(f"Not finished: {', '.join(results['missing'])}", style="yellow"))
    for title, warning in protocol_warnings(protocol).items():
        console.print(Text(f"{title}: {warning}", style="yellow"))
    if leakage := _leakage(results):
        print_leakage(leakage, _models(results), console)


def _print_whole(table: Table, console: Console) -> None:
    """Print a table as wide as it is: fitted into a narrow console, it would lose the names of its rows."""
    width = console.width
    console.width = max(width, Measurement.get(console, console.options.update(max_width=_WIDEST), table).maximum)
    try:
        console.print(table, crop=False)
    finally:
        console.width = width


def write_experiment_report(run: RunFolder) -> Path:
    """Write ``report/index.html``, its figures (SVG, PNG), ``report/scores.{csv,md,tex}`` and ``report/comparison.csv``.

    Returns:
        The page.
    """
    results, config, folds = gather_results(run), read_json(run.config), read_json(run.folds)
    rows = rows_of(results, published_values(config))
    write_tables(run.report, rows)
    done, wanted = sum(row.members for row in rows), len(rows) * sum(len(entry["folds"]) for entry in folds["repeats"])
    leakage = _leakage(results)
    comparison, untested = _comparison(run, config)
    if comparison is not None:
        write_comparison(comparison, run.report / "comparison.csv")
    shared = {key: value for key, value in config.items() if key != "variants"}
    page = report.environment().get_template("experiment_report.html")
    text = page.render(
        name=config["name"],
        keys=SUMMARY_KEYS,
        names=SHORT_NAMES,
        protocol=protocol_sentence(results["protocol"]),
        fold_hash=folds["hash"],
        progress=f"{done} of {wanted} trainings are in this report." if done < wanted else None,
        smoke=report.SMOKE if config.get("smoke") else None,
        warnings=protocol_warnings(results["protocol"]),
        optimistic=results["optimistic"],
        leakage=leakage,
        leakage_rows=leakage_rows(leakage, _models(results)) if leakage else [],
        rows=rows,
        any_published=any(row.published for row in rows),
        meaning=_meaning(rows),
        best=best_of(rows),
        first=config["variants"][0]["name"],
        differences=_differences(comparison) if comparison else [],
        explanations=[*explanations(comparison), *comparison.warnings] if comparison else [],
        untested=untested,
        figures=_figures(run, rows, results),
        settings=list(report.settings_rows(shared)),
        versions=results["versions"],
    )
    path = run.report / "index.html"
    write_text(path, text)
    return path


def _leakage(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """What training knows of the test utterances: of the variant with most finished folds; all have the same ones."""
    finished = max(results["variants"], key=lambda entry: len(entry["folds"]), default=None)
    return finished and finished["leakage"]


def _comparison(run: RunFolder, config: Mapping[str, Any]) -> tuple[Comparison | None, str | None]:
    """Every variant against the first one, or why there is no comparison."""
    first = config["variants"][0]["name"]
    try:
        systems = load_systems([str(run.path)])
        prefix = f"{run.path.resolve().name}:"
        systems = [dataclasses.replace(system, name=system.name.removeprefix(prefix)) for system in systems]
        if systems[0].name != first:
            return None, f"{first}, the variant that the others are compared with, is not finished."
        if len(systems) == 1:
            return None, f"Only {first} is finished yet."
        return compare(systems), None
    except ComparisonError as error:
        return None, f"Not compared: {error}."


def _differences(comparison: Comparison) -> list[dict[str, Any]]:
    """One line for each variant but the first: WA's and UA's differences, intervals and corrected p-values."""
    lines = []
    for pair in comparison.pairs:
        cells = []
        for difference in (pair.differences[key] for key in ("wa", "ua")):
            low, high = 100 * difference.interval.low, 100 * difference.interval.high
            cells += [f"{100 * difference.value:+.2f}", f"{low:+.1f} to {high:+.1f}"]
            cells += [p_text(difference.p_holm), p_text(difference.corrected_t_holm)]
        lines.append({"name": pair.second, "cells": cells})
    return lines


def _models(results: Mapping[str, Any]) -> dict[str, Any]:
    """Scores beside the guesses: of the variants that scored at all, the best first."""
    scored = [entry for entry in results["variants"] if entry["pooled"]["wa"] is not None]
    best = sorted(scored, key=lambda entry: -entry["pooled"]["wa"])[:_MOST_CURVES]
    return {entry["name"]: entry["pooled"] for entry in best}


def _meaning(rows: Sequence[ScoreRow]) -> str:
    repeats = max((row.repeats for row in rows), default=0)
    if repeats > 1:
        return (
            f"mean ± sample standard deviation of {repeats} repeats, each pooled over the test parts of its folds"
            + (" (fewer where a variant is not finished)" if any(row.repeats != repeats for row in rows) else "")
        )
    return "pooled over the test parts of all finished folds; a spread takes more than one repeat"


def _figures(run: RunFolder, rows: Sequence[ScoreRow], results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Draw and save; what there is nothing to draw for is left out."""
    drawn: list[tuple[str, str, str, Figure | None]] = []
    axes = numeric_axes(rows)
    if len(axes) >= 2:
        drawn += _maps(rows, axes)
    if len(axes) == 1 or len(rows) <= _MOST_CURVES:
        logs = {entry["name"]: [_log(run, fold["name"]) for fold in entry["folds"]] for entry in results["variants"]}
        note = "Mean over the finished members of each variant, on their validation parts."
        drawn.append(("curves", "Scores over epochs", note, figures.variant_curves(logs)))
    drawn.append(("scores", "Scores", "On test parts. Whiskers: standard deviation over repeats.", _bars(rows)))
    shown = []
    for stem, title, note, figure in drawn:
        if figure is not None:
            svg = figures.save(figure, run.report / stem)
            # Safe: matplotlib escapes all text that it writes.
            shown.append(
                {"title": title, "note": note, "svg": Markup(figures.inline_svg(svg, f"figure-{stem}", title))}
            )
    return shown


def _log(run: RunFolder, member: str) -> list[Mapping[str, Any]]:
    return list(read_json_lines(run.member(member).metrics))


def _bars(rows: Sequence[ScoreRow]) -> Figure | None:
    keys = {"WA": "wa", "UA": "ua"}
    return figures.variant_scores(
        [row.name for row in rows],
        {name: [row.mean[key] for row in rows] for name, key in keys.items()},
        {name: [row.std[key] for row in rows] for name, key in keys.items()},
        {name: [getattr(row.published, key, None) for row in rows] for name, key in keys.items()},
    )


def _maps(rows: Sequence[ScoreRow], axes: Mapping[str, Sequence[float]]) -> list[tuple[str, str, str, Figure | None]]:
    """Heat maps of WA and UA; a third setting, the one with the fewest values, divides them into panels."""
    if len(axes) > 3:
        return []
    panel_axis = min(axes, key=lambda path: len(axes[path])) if len(axes) == 3 else None
    row_axis, column_axis = (path for path in axes if path != panel_axis)
    if min(len(axes[row_axis]), len(axes[column_axis])) < 3:
        return []  # two by two says less than bars
    known = {tuple(row.settings[path] for path in axes): row for row in rows}
    drawn = []
    for key, score in (("wa", "WA"), ("ua", "UA")):
        panels = []
        for level in axes[panel_axis] if panel_axis else (None,):
            values = np.full((len(axes[row_axis]), len(axes[column_axis])), math.nan)
            for (i, row_value), (j, column_value) in (
                (r, c) for r in enumerate(axes[row_axis]) for c in enumerate(axes[column_axis])
            ):
                place = {row_axis: row_value, column_axis: column_value, panel_axis: level}
                mean = known[tuple(place[path] for path in axes)].mean[key]
                values[i, j] = math.nan if mean is None else mean
            title = score if panel_axis is None else f"{score}, {_axis_name(panel_axis)} = {level:g}"
            row_names, column_names = ([f"{value:g}" for value in axes[path]] for path in (row_axis, column_axis))
            panels.append(figures.ScoreMap(title, row_names, column_names, values))
        figure = figures.score_maps(panels, _axis_name(row_axis), _axis_name(column_axis))
        drawn.append((f"map_{key}", f"{score} by setting", "Per cent of test utterances; framed: the highest.", figure))
    return drawn


def _axis_name(path: str) -> str:
    return _SYMBOLS.get(path, path.rpartition(".")[2].replace("_", " "))
