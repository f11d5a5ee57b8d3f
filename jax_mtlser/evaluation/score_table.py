"""One row of scores per variant, as CSV for a computer, Markdown for a README and LaTeX for a paper."""

import csv
import dataclasses
import io
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_mtlser.evaluation.metrics import SUMMARY_KEYS
from jax_mtlser.evaluation.published import Published
from jax_mtlser.evaluation.statistics import expected_maximum
from jax_mtlser.run_folder import write_text

__all__ = ["SHORT_NAMES", "ScoreRow", "best_of", "numeric_axes", "rows_of", "scored", "write_tables"]

SHORT_NAMES = {"wa": "WA", "ua": "UA", "macro_f1": "Macro F1", "gender_accuracy": "Gender", "speaker_accuracy": "Speaker",
          "wer": "WER"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScoreRow:
    """What one variant has come to.

    Attributes:
        name: of the variant; of the run where there are none.
        settings: its values by field.
        mean: fractions by score: over complete repeats where there are two, else pooled over all finished folds.
        std: sample standard deviations over repeats; None with fewer than two.
        repeats: complete ones.
        members: finished trainings.
        published: the paper's numbers.
    """

    name: str
    settings: Mapping[str, Any]
    mean: Mapping[str, float | None]
    std: Mapping[str, float | None]
    repeats: int
    members: int
    published: Published | None

    def shown(self, key: str) -> str:
        """A score in per cent, with its deviation."""
        mean, std = self.mean[key], self.std[key]
        if mean is None:
            return "–"
        return f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")

    @property
    def shown_published(self) -> str:
        """The paper's WA and UA in per cent."""
        if self.published is None:
            return "–"
        return " / ".join("–" if v is None else f"{100 * v:.2f}" for v in (self.published.wa, self.published.ua))


def rows_of(results: Mapping[str, Any], published: Mapping[str, Published], name: str = "") -> list[ScoreRow]:
    """Rows in the order of the variants.

    Args:
        results: of :func:`~jax_mtlser.evaluation.results.gather_results`.
        published: by variant.
        name: of the only row of a run without variants.
    """
    entries = results.get("variants") or [{"name": "", "overrides": {}, **results}]
    rows = []
    for entry in entries:
        repeats = entry["repeats"]
        repeated = len(repeats["values"]) > 1
        rows.append(
            ScoreRow(
                name=entry["name"] or name,
                settings=entry["overrides"],
                mean=repeats["mean"] if repeated else entry["pooled"],
                std=repeats["std"] if repeated else dict.fromkeys(SUMMARY_KEYS),
                repeats=len(repeats["values"]),
                members=len(entry["folds"]),
                published=published.get(entry["name"]),
            )
        )
    return rows


def numeric_axes(rows: Sequence[ScoreRow]) -> dict[str, list[float]]:
    """The settings whose values, all numbers, make up a full grid of the rows; none when they do not."""
    paths = dict.fromkeys(path for row in rows for path in row.settings)
    if any(path not in row.settings for row in rows for path in paths):
        return {}
    values = {path: sorted({row.settings[path] for row in rows}, key=str) for path in paths}
    varied = {path: own for path, own in values.items() if len(own) > 1}
    if any(isinstance(value, bool) or not isinstance(value, int | float) for own in varied.values() for value in own):
        return {}
    crossings = {tuple(row.settings[path] for path in varied) for row in rows}
    full = len(crossings) == len(rows) == math.prod(len(own) for own in varied.values())
    return {path: sorted(own) for path, own in varied.items()} if full else {}


def best_of(rows: Sequence[ScoreRow]) -> str | None:
    """A warning against reading the best row as a finding; None for fewer than three rows with a score."""
    scored = {row.name: row.mean["wa"] for row in rows if row.mean["wa"] is not None}
    if len(scored) < 3:
        return None
    values = [value for value in scored.values() if value is not None]
    name, best = max(scored.items(), key=lambda item: item[1] or 0.0)
    spread = statistics.stdev(values)
    if spread < 1e-9:
        return f"All {len(values)} settings have the same WA."
    above = ((best or 0.0) - statistics.mean(values)) / spread
    return (
        f"Best of {len(values)}: {name} has the highest WA, {above:.1f} standard deviations above the mean of all "
        f"settings. If all settings were equally good, the best of {len(values)} would stand about "
        f"{expected_maximum(len(values)):.1f} above it by luck. Compare settings by tests on paired folds, corrected for "
        "their number, not by the maximum."
    )


def scored(rows: Sequence[ScoreRow]) -> list[str]:
    """The scores that some setting has."""
    return [key for key in SUMMARY_KEYS if any(row.mean[key] is not None for row in rows)]


def write_tables(folder: Path, rows: Sequence[ScoreRow]) -> None:
    """Write ``scores.csv`` (fractions), ``scores.md`` and ``scores.tex`` (per cent)."""
    write_text(folder / "scores.csv", _csv(rows))
    keys = scored(rows)
    with_paper = any(row.published for row in rows)
    head = ["", *(SHORT_NAMES[key] for key in keys), *(["Published WA / UA"] if with_paper else [])]
    body = [[row.name, *map(row.shown, keys), *([row.shown_published] if with_paper else [])] for row in rows]
    write_text(folder / "scores.md", _markdown(head, body))
    write_text(folder / "scores.tex", _latex(head, body))


def _csv(rows: Sequence[ScoreRow]) -> str:
    settings = list(dict.fromkeys(path for row in rows for path in row.settings))
    scores = [name for key in SUMMARY_KEYS for name in (key, f"{key}_std")]
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["variant", *settings, "members", "repeats", *scores, "published_wa", "published_ua"])
    for row in rows:
        numbers = [value for key in SUMMARY_KEYS for value in (row.mean[key], row.std[key])]
        paper = [getattr(row.published, key, None) for key in ("wa", "ua")]
        cells = [row.name, *(row.settings.get(path) for path in settings), row.members, row.repeats, *numbers, *paper]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return file.getvalue()


def _markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return "".join("| " + " | ".join(cell.replace("|", r"\|") for cell in line) + " |\n" for line in lines)


def _latex(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    special = {**{c: f"\\{c}" for c in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}",
               "^": r"\textasciicircum{}", "±": r"$\pm$", "–": "--"}  # fmt: skip

    def line(cells: Sequence[str]) -> str:
        return " & ".join("".join(special.get(c, c) for c in cell) for cell in cells) + r" \\" + "\n"

    return (
        f"% needs \\usepackage{{booktabs}}\n\\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}\n\\toprule\n"
        + line(head)
        + "\\midrule\n"
        + "".join(map(line, body))
        + "\\bottomrule\n\\end{tabular}\n"
    )
