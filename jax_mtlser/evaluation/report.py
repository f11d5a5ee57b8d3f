"""Results for people: a table in the terminal, and a page that stands on its own."""

import csv
import importlib.resources
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.evaluation import figures
from jax_mtlser.evaluation.certainty_text import (
    calibration_rows,
    calibration_sentence,
    interval_sentence,
    interval_text,
    print_certainty,
)
from jax_mtlser.evaluation.leakage_report import leakage_rows, print_leakage
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS, ConfusionSums, mean_and_std
from jax_mtlser.evaluation.protocol_text import protocol_sentence, protocol_title, protocol_warnings
from jax_mtlser.evaluation.published import published_sentence, published_values
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.evaluation.score_table import SHORT_NAMES as _SHORT_NAMES
from jax_mtlser.evaluation.score_table import rows_of, write_tables
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines, write_text

__all__ = [
    "SMOKE",
    "environment",
    "print_results",
    "settings_rows",
    "write_report",
]

SMOKE = "A smoke run: it shows that the experiment runs. Its scores mean nothing."

_ABSENT = "–"
_LONG_NAMES = {
    "wa": "share of correct utterances",
    "ua": "mean recall over emotions",
    "macro_f1": "mean F1 over emotions",
    "gender_accuracy": "accuracy",
    "speaker_accuracy": "accuracy",
    "wer": "word error rate, lower is better",
}


def print_results(results: Mapping[str, Any], console: Console) -> None:
    """Print the dict of :func:`gather_results` as a table, in per cent of test utterances or words."""
    intervals = results["intervals"]
    heading = Text(protocol_title(results["protocol"]))
    table = Table(box=box.SIMPLE, collapse_padding=True, title=heading, title_justify="left")
    table.add_column("")
    for key in SUMMARY_KEYS:
        table.add_column(_SHORT_NAMES[key], justify="right", no_wrap=True)
    table.add_column("WA 95 %", justify="right", no_wrap=True)
    for fold in results["folds"]:
        table.add_row(Text(fold["name"]), *_percents(fold["metrics"]), interval_text(fold["wa_interval"]))
    repeats = results["repeats"]
    table.add_section()
    if len(repeats["values"]) > 1:
        spread = [
            f"{_percent(repeats['mean'][key])}\n±{_percent(repeats['std'][key])}"
            if repeats["std"][key] is not None
            else _percent(repeats["mean"][key])
            for key in SUMMARY_KEYS
        ]
        table.add_row(f"mean of {len(repeats['values'])} repeats\n± std", *spread, style="bold")
    pooled = interval_text(intervals and intervals["wa"])
    table.add_row("pooled", *_percents(results["pooled"]), pooled, style="bold")
    console.print(table)
    console.print("Per cent. WA: accuracy. UA: mean recall over emotions. WER: lower is better.")
    print_certainty(results, console)
    if results["missing"]:
        console.print(Text(f"Not finished: {', '.join(results['missing'])}", style="yellow"))
    for title, warning in protocol_warnings(results["protocol"]).items():
        console.print(Text(f"{title}: {warning}", style="yellow"))
    if results["leakage"]:
        print_leakage(results["leakage"], {"this model": results["pooled"]}, console)


def write_report(run: RunFolder) -> Path:
    """Write ``report/index.html`` and its figures, from what lies in the run folder.

    The page needs no other file and no network. Figures are beside it as SVG and PNG too, the scores as
    ``scores.{csv,md,tex}``.

    Returns:
        The page.
    """
    results, config, folds = gather_results(run), read_json(run.config), read_json(run.folds)
    write_tables(run.report, rows_of(results, published_values(config), config["name"]))
    page = environment().get_template("report.html")
    text = page.render(
        name=config["name"],
        keys=SUMMARY_KEYS,
        names=_SHORT_NAMES,
        headline=_headline(results),
        headline_note=_headline_note(results),
        published=published_sentence(config),
        smoke=SMOKE if config.get("smoke") else None,
        protocol=protocol_sentence(results["protocol"]),
        fold_hash=folds["hash"],
        progress=_progress(results, folds),
        warnings=protocol_warnings(results["protocol"]),
        optimistic=results["optimistic"],
        leakage=results["leakage"],
        leakage_rows=leakage_rows(results["leakage"], {"this model": results["pooled"]}) if results["leakage"] else [],
        groups=results["groups"],
        intervals=results["intervals"],
        interval_note=results["intervals"] and interval_sentence(results["intervals"]),
        calibration=calibration_rows(results["calibration"]) if results["calibration"] else [],
        calibration_note=results["calibration"] and calibration_sentence(results["calibration"]),
        folds=results["folds"],
        fold_moments=_moments([fold["metrics"] for fold in results["folds"]]),
        repeats=results["repeats"],
        pooled=results["pooled"],
        figures=_figures(run, results),
        cost=_cost(results["folds"]),
        corpus=_corpus(run),
        skipped=_skipped(run),
        settings=list(settings_rows(config)),
        versions=results["versions"],
    )
    path = run.report / "index.html"
    write_text(path, text)
    return path


def environment() -> jinja2.Environment:
    """The templates of this package's pages, with their filters."""
    files = importlib.resources.files(__package__)
    names = ("report.html", "experiment_report.html")
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({name: files.joinpath(name).read_text(encoding="utf-8") for name in names}),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = _percent
    environment.filters["interval"] = interval_text
    environment.filters["plain"] = _plain
    return environment


def _percent(fraction: float | None) -> str:
    return _ABSENT if fraction is None else f"{100 * fraction:.2f}"


def _percents(summary: Mapping[str, float | None]) -> list[str]:
    return [_percent(summary[key]) for key in SUMMARY_KEYS]


def _plain(value: Any) -> str:
    """A cell of the settings: what is not set is a dash, lists have commas."""
    if value is None or value in ("", []):
        return _ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _headline(results: Mapping[str, Any]) -> list[dict[str, str | None]]:
    repeats = results["repeats"]
    repeated = len(repeats["values"]) > 1
    numbers = repeats["mean"] if repeated else results["pooled"]
    return [
        {
            "name": _SHORT_NAMES[key],
            "meaning": _LONG_NAMES[key],
            "value": _percent(numbers[key]),
            "spread": _percent(repeats["std"][key]) if repeated and repeats["std"][key] is not None else None,
        }
        for key in SUMMARY_KEYS
        if numbers[key] is not None
    ]


def _headline_note(results: Mapping[str, Any]) -> str:
    repeats, tested = results["repeats"], sum(fold["counts"]["test"] for fold in results["folds"])
    if len(repeats["values"]) > 1:
        return (
            f"Per cent; mean ± sample standard deviation of {len(repeats['values'])} repeats of the "
            "cross-validation, each pooled over the test parts of its folds."
        )
    return f"Per cent; pooled over {tested:,} predictions on test parts."


def _progress(results: Mapping[str, Any], folds: Mapping[str, Any]) -> str | None:
    finished, drawn = len(results["folds"]), sum(len(entry["folds"]) for entry in folds["repeats"])
    return f"{finished} of {drawn} trainings are in this report." if finished < drawn else None


def _moments(summaries: Sequence[Mapping[str, float | None]]) -> dict[str, dict[str, float | None]]:
    both = {key: mean_and_std(v for s in summaries if (v := s[key]) is not None) for key in SUMMARY_KEYS}
    return {
        "mean": {k: mean for k, (mean, _) in both.items()},
        "std": {k: std for k, (_, std) in both.items()},
    }


def _figures(run: RunFolder, results: Mapping[str, Any]) -> dict[str, Markup | None]:
    """Draw, save, and return each figure for the page; None where there is nothing to draw."""
    folds, confusion = results["folds"], results["confusion"]
    sums = ConfusionSums(tuple(confusion["labels"]), np.array(confusion["matrix"])) if confusion else None
    scores = {key: [fold["metrics"][key] for fold in folds] for key in ("wa", "ua")}
    logs = {folder.path.name: list(read_json_lines(folder.metrics)) for folder in run.members()}
    drawn = {
        "folds": (
            figures.fold_scores([fold["name"] for fold in folds], scores["wa"], scores["ua"]),
            "Bars of WA and UA for each fold; the numbers are in the table of folds.",
        ),
        "confusion": (
            figures.confusion_matrix(sums) if sums else None,
            "Confusion matrix of emotions: rows are references, columns predictions.",
        ),
        "curves": (figures.training_curves(logs), "Losses and validation scores of each task over epochs."),
        "weights": (figures.weight_curves(logs), "The weight of each task over epochs."),
    }
    inline: dict[str, Markup | None] = {}
    for name, (figure, description) in drawn.items():
        if figure is None:
            inline[name] = None
            continue
        svg = figures.save(figure, run.report / name)
        # Safe: matplotlib escapes all text that it writes.
        inline[name] = Markup(figures.inline_svg(svg, f"figure-{name}", description))
    return inline


def _cost(folds: Sequence[Mapping[str, Any]]) -> str | None:
    """One sentence on what the trainings took, as far as the members recorded it."""
    seconds = [fold["seconds"] for fold in folds if fold.get("seconds")]
    speeds = [fold["audio_seconds_per_second"] for fold in folds if fold.get("audio_seconds_per_second")]
    parameters = {fold["parameters"] for fold in folds if fold.get("parameters")}
    parts = []
    if parameters:
        parts.append(f"{' or '.join(f'{n:,}' for n in sorted(parameters))} parameters")
    if seconds:
        train, compiling = (sum(entry.get(key) or 0 for entry in seconds) for key in ("train", "compile"))
        parts.append(f"{_duration(train)} of training and {_duration(compiling)} of compilation, all members together")
    if speeds:
        parts.append(f"{np.median(speeds):,.0f} s of audio per second (median)")
    return "; ".join(parts) + "." if parts else None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def _corpus(run: RunFolder) -> dict[str, Any] | None:
    if not run.corpus.is_file():
        return None
    manifest = read_manifest(run.corpus)
    counts = {task: manifest.counts(task) for task in ("emotion", "gender", "speaker")}
    return {
        "size": len(manifest),
        "counts": {task: _shares(values) for task, values in counts.items() if values},
        "unlabelled": {task: len(manifest) - sum(values.values()) for task, values in counts.items()},
        "transcribed": sum(text is not None for text in manifest.column("text")),
    }


def _shares(counts: Mapping[str, int]) -> list[dict[str, Any]]:
    largest = max(counts.values())
    return [{"name": name, "count": count, "share": count / largest} for name, count in counts.items()]


def _skipped(run: RunFolder) -> list[tuple[str, int]]:
    """Reasons with their counts, most frequent first; reasons that differ in numbers only are one."""
    if not run.skipped.is_file():
        return []
    with run.skipped.open(encoding="utf-8", newline="") as file:
        reasons = [row["reason"] for row in csv.DictReader(file)]
    alike: dict[str, list[str]] = {}
    for reason in reasons:
        alike.setdefault(re.sub(r"\d+(\.\d+)?", "…", reason), []).append(reason)
    named = [(same[0] if len(set(same)) == 1 else pattern, len(same)) for pattern, same in alike.items()]
    return sorted(named, key=lambda entry: (-entry[1], entry[0]))


def settings_rows(values: Mapping[str, Any], depth: int = 0) -> Iterator[dict[str, Any]]:
    """The nested settings as rows, depth first; a row without a value is the title of those below it."""
    for key, value in values.items():
        nested = isinstance(value, Mapping)
        yield {"depth": depth, "key": key, "value": None if nested else _plain(value)}
        if nested:
            yield from settings_rows(value, depth + 1)
