"""Intervals and calibration in words and in small tables, for terminal and page."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["calibration_rows", "calibration_sentence", "interval_sentence", "interval_text", "print_certainty"]

_ABSENT = "–"


def interval_text(interval: Sequence[float] | None) -> str:
    """``84.1–89.7`` in per cent; a dash for None."""
    return _ABSENT if interval is None else f"{100 * interval[0]:.1f}–{100 * interval[1]:.1f}"


def interval_sentence(intervals: Mapping[str, Any]) -> str:
    """How the pooled numbers' intervals came about."""
    return (
        f"{100 * intervals['level']:g} % intervals: of each fold's WA by Wilson's formula; of the pooled numbers from "
        f"resampling {intervals['title']} {intervals['draws']:,} times ({intervals['reason']})."
    )


def calibration_rows(calibration: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """Title and cells (ECE in per cent, Brier score, NLL) of the probabilities before and after."""
    rows = [("as trained", calibration["before"])]
    if calibration["after"]:
        values = sorted(calibration["temperatures"].values())
        span = f"{values[0]:.2f}" if len(values) == 1 else f"{values[0]:.2f}–{values[-1]:.2f}"
        rows.append((f"with temperature {span}", calibration["after"]))
    return [(title, [f"{100 * v['ece']:.2f}", f"{v['brier']:.3f}", f"{v['nll']:.3f}"]) for title, v in rows]


def calibration_sentence(calibration: Mapping[str, Any]) -> str:
    """What the calibration table shows, and which members have no temperature."""
    text = "Lower is better. A temperature is fitted on each training's validation part and judged on its test part."
    reasons: dict[str, list[str]] = {}
    for name, reason in calibration["without"].items():
        reasons.setdefault(reason, []).append(name)
    for reason, names in reasons.items():
        text += f" None for {', '.join(names)}: {reason}."
    return text


def print_certainty(results: Mapping[str, Any], console: Console) -> None:
    """Print what stands behind the table of scores."""
    if intervals := results["intervals"]:
        console.print(Text(interval_sentence(intervals)))
        console.print(f"Pooled UA {interval_text(intervals['ua'])}, macro F1 {interval_text(intervals['macro_f1'])}.")
        if intervals["warning"]:
            console.print(Text(intervals["warning"], style="yellow"))
    if calibration := results["calibration"]:
        table = Table(box=box.SIMPLE, title="Calibration of the emotion's probabilities", title_justify="left")
        table.add_column("")
        for name in ("ECE %", "Brier", "NLL"):
            table.add_column(name, justify="right")
        for title, cells in calibration_rows(calibration):
            table.add_row(title, *cells)
        console.print(table)
        console.print(Text(calibration_sentence(calibration)))
