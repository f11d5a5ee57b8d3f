"""What conditions do to a run's scores: one table, one figure, and the differences with their intervals."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.evaluation import figures
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS, TaskMetrics, mean_and_std, score
from jax_mtlser.evaluation.predictions import Prediction
from jax_mtlser.evaluation.statistics import (
    DRAWS,
    LEVEL,
    METRICS,
    cluster_confusions,
    confusion_scores,
    percentile_interval,
    resampled_scores,
)
from jax_mtlser.run_folder import write_json, write_text

__all__ = [
    "Difference",
    "JudgedCondition",
    "difference_from",
    "percent",
    "print_robustness",
    "robustness_results",
    "write_robustness",
]

_FEWEST_CLUSTERS = 5  # resampled, fewer give little more than their own smallest and largest difference
_COMPARED = {METRICS.index(key): key for key in ("wa", "ua")}
_COLUMNS = {"wa": "WA", "ua": "UA", "macro_f1": "F1", "gender_accuracy": "Gender", "wer": "WER"}


@dataclasses.dataclass(frozen=True)
class JudgedCondition:
    """What the members of a run said under one condition.

    Attributes:
        name: of the condition, as on the command line.
        title: for people.
        kind: as on the command line, without the value.
        value: how much; None for kinds without a value.
        noise: title of the noise whose SNR the value is; None for other kinds.
        members: test predictions, by member.
    """

    name: str
    title: str
    kind: str
    value: float | None
    noise: str | None
    members: Mapping[str, Sequence[Prediction]]

    @property
    def predictions(self) -> list[Prediction]:
        """Of all members, one after the other."""
        return [row for rows in self.members.values() for row in rows]


@dataclasses.dataclass(frozen=True)
class Difference:
    """A score minus the clean one, as fractions, with the ends of its 95 % interval (None with few clusters)."""

    value: float
    low: float | None
    high: float | None


def difference_from(
    clean: Sequence[Prediction], degraded: Sequence[Prediction], clusters: str
) -> dict[str, Difference] | None:
    """Differences in WA and UA by a paired bootstrap over whole clusters.

    Both sides are the same utterances judged by the same members, so a drawn cluster counts on both. Percentile
    interval; none with fewer than five clusters, and with fewer than some 20 it is too narrow.

    Args:
        clean: predictions to compare with.
        degraded: of the same members and utterances, in the same order.
        clusters: column that utterances are drawn by, ``speaker`` or ``id``.

    Returns:
        By ``wa`` and ``ua``; None where no emotion was labelled or predicted.
    """
    pairs = [
        (before, after)
        for before, after in zip(clean, degraded, strict=True)
        if before.emotion is not None and before.emotion_predicted is not None
    ]
    if not pairs:
        return None
    if any((before.member, before.id) != (after.member, after.id) for before, after in pairs):
        raise ValueError("the two sides of a paired comparison must be the same utterances in the same order")
    reference = [before.emotion or "" for before, _ in pairs]
    said = [[pair[side].emotion_predicted or "" for pair in pairs] for side in (0, 1)]
    labels = sorted({*reference, *said[0], *said[1]})
    names = [getattr(before, clusters) for before, _ in pairs]
    confusions = np.array([cluster_confusions(reference, predicted, names, labels) for predicted in said])
    before, after = confusion_scores(confusions.sum(axis=1))
    found = {key: Difference(float(after[place] - before[place]), None, None) for place, key in _COMPARED.items()}
    if len(set(names)) >= _FEWEST_CLUSTERS:
        samples = resampled_scores(confusions)
        for place, key in _COMPARED.items():
            interval = percentile_interval(samples[:, 1, place] - samples[:, 0, place])
            found[key] = dataclasses.replace(found[key], low=interval.low, high=interval.high)
    return found


def robustness_results(clean: JudgedCondition, others: Sequence[JudgedCondition]) -> dict[str, Any]:
    """Put the predictions under all conditions together.

    Args:
        clean: without degradation.
        others: compared with it.

    Returns:
        A JSON-ready dict: ``conditions``, one entry each with ``pooled`` scores over all members, the scores of the
        ``members``, their ``mean`` and ``std``, and ``difference`` from clean; ``interval`` says how the ends of the
        differences were found.
    """
    reference = clean.predictions
    clusters = "speaker" if all(row.speaker for row in reference) else "id"
    entries = []
    for condition in (clean, *others):
        scores = {name: score(rows) for name, rows in condition.members.items()}
        summaries = {name: sums.summary() for name, sums in scores.items()}
        moments = {
            key: mean_and_std(v for s in summaries.values() if (v := s[key]) is not None) for key in SUMMARY_KEYS
        }
        difference = None if condition is clean else difference_from(reference, condition.predictions, clusters)
        entries.append(
            {
                **{key: getattr(condition, key) for key in ("name", "title", "kind", "value", "noise")},
                "pooled": sum(scores.values(), start=TaskMetrics()).summary(),
                "members": summaries,
                "mean": {key: mean for key, (mean, _) in moments.items()},
                "std": {key: std for key, (_, std) in moments.items()},
                "difference": None if difference is None else {k: dataclasses.asdict(d) for k, d in difference.items()},
            }
        )
    count = len({getattr(row, clusters) for row in reference})
    return {
        "conditions": entries,
        "members": list(clean.members),
        "predictions": len(reference),
        "interval": {"level": LEVEL, "draws": DRAWS, "clusters": clusters, "count": count},
    }


def percent(fraction: float | None) -> str:
    """For a table; a dash where there is nothing."""
    return "–" if fraction is None else f"{100 * fraction:.2f}"


def print_robustness(results: Mapping[str, Any], console: Console) -> None:
    """Print the table of :func:`robustness_results`, in per cent."""
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in (*_COLUMNS.values(), "UA - clean [95 %]"):
        table.add_column(name, justify="right", no_wrap=True)
    kind = None
    for entry in results["conditions"]:
        if kind not in (None, entry["kind"]):
            table.add_section()
        kind = entry["kind"]
        shown = [percent(entry["pooled"][key]) for key in _COLUMNS]
        table.add_row(Text(entry["title"]), *shown, _shown_difference(entry["difference"]))
    console.print(table)
    interval = results["interval"]
    unit = "speakers" if interval["clusters"] == "speaker" else "utterances"
    if interval["count"] < _FEWEST_CLUSTERS:
        how = f"No intervals: {interval['count']} {unit} are too few."
    else:
        few = ", few enough to make them too narrow" if interval["count"] < 20 else ""
        how = f"Intervals: paired bootstrap over {interval['count']} {unit}{few}."
    console.print(
        f"Per cent; F1 is macro F1. {len(results['members'])} members, {results['predictions']} test predictions. {how}",
        highlight=False,
    )


def _shown_difference(difference: Mapping[str, Any] | None) -> str:
    if difference is None:
        return percent(None)
    value, low, high = (difference["ua"][key] for key in ("value", "low", "high"))
    return f"{100 * value:+.2f}" + ("" if low is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]")


def write_robustness(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json``, ``table.csv`` and, where a noise was judged, ``ua_over_snr.svg`` and ``.png``.

    Returns:
        The files.
    """
    write_json(folder / "results.json", results)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    ends = ("value", "low", "high")
    writer.writerow(
        ["condition", "kind", "value", *_COLUMNS, *(f"{key}_difference_{end}" for key in ("wa", "ua") for end in ends)]
    )
    for entry in results["conditions"]:
        difference = entry["difference"]
        numbers = [difference[key][end] if difference else None for key in ("wa", "ua") for end in ends]
        writer.writerow(
            [entry["name"], entry["kind"], entry["value"], *(entry["pooled"][key] for key in _COLUMNS), *numbers]
        )
    write_text(folder / "table.csv", buffer.getvalue())
    written = [folder / "results.json", folder / "table.csv"]
    figure, drawn = _figure(results["conditions"]), [folder / "ua_over_snr.svg", folder / "ua_over_snr.png"]
    if figure is None:
        for path in drawn:
            path.unlink(missing_ok=True)  # of other conditions than these
        return written
    figures.save(figure, folder / "ua_over_snr")
    return written + drawn


def _figure(entries: Sequence[Mapping[str, Any]]) -> Any:
    clean = entries[0]["pooled"]["ua"]
    curves: dict[str, list[figures.NoisePoint]] = {}
    for entry in entries:
        if entry["noise"] and entry["difference"]:
            interval = entry["difference"]["ua"]
            curves.setdefault(entry["noise"], []).append(
                (entry["value"], entry["pooled"]["ua"], interval["low"], interval["high"])
            )
    return None if clean is None else figures.noise_curves(curves, clean)
