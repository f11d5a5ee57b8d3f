"""Every plot. The only module that imports matplotlib, through its objects: no display, no current figure.

Colours are from the Okabe-Ito palette, which stays apart under the common kinds of colour blindness; lines
differ in dashes too. Figures are drawn on white and sized to be read at 1x (96 CSS pixels to the inch).
"""

import dataclasses
import io
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from jax_mtlser.evaluation.metrics import ConfusionSums

__all__ = [
    "ScoreMap",
    "confusion_matrix",
    "fold_scores",
    "inline_svg",
    "noise_curves",
    "save",
    "score_maps",
    "training_curves",
    "variant_curves",
    "variant_scores",
    "weight_curves",
]

_BLUE, _ORANGE, _AMBER, _GREEN, _PURPLE, _GREY = "#0072B2", "#D55E00", "#E69F00", "#009E73", "#CC79A7", "#555555"
_WIDTH = 9.4  # inches
_TEXT = {"parse_math": False}  # a label may hold dollar signs
# Per task: title, loss key, then the validation scores with their names.
_TASKS = (
    ("Emotion", "loss_emotion", {"wa": "WA", "ua": "UA"}),
    ("Gender", "loss_gender", {"gender_accuracy": "accuracy"}),
    ("Speaker", "loss_speaker", {"speaker_accuracy": "accuracy"}),
    ("Transcript", "loss_asr", {"wer": "WER"}),
)
_STYLES = ((_BLUE, "-"), (_ORANGE, (0, (5, 2))), (_GREEN, (0, (1, 1.2))), (_PURPLE, (0, (6, 1.5, 1, 1.5))))
# Beyond this many members the light lines become an image inside the SVG: the page must not grow to
# megabytes.
_MAX_VECTOR_MEMBERS = 12

Curve = dict[float, float]  # epoch -> value
# SNR in dB, UA as a fraction, and the ends of the interval of its difference from clean (None where there is none).
NoisePoint = tuple[float, float, float | None, float | None]


def training_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """Losses (left) and validation scores (right) over epochs, one row for each task that was trained.

    A light line for each member, a strong one for the mean of the members that have reached the epoch.
    Training losses are means over the logged steps of each epoch.

    Args:
        logs: the lines of ``metrics.jsonl`` by member; values may be missing or None.

    Returns:
        None when no line has anything to draw.
    """
    rows = []
    for title, loss, scores in _TASKS:
        left = {"training": _train_curves(logs, loss), "validation": _validation_curves(logs, loss)}
        right = {name: _validation_curves(logs, key) for key, name in scores.items()}
        if any(curves for curves in (*left.values(), *right.values())):
            rows.append((title, left, right))
    if not rows:
        return None
    figure = _figure(_WIDTH, 2.35 * len(rows))
    grid = figure.subplots(len(rows), 2, squeeze=False)
    for (title, left, right), (loss_axes, score_axes) in zip(rows, grid, strict=True):
        _draw_curves(loss_axes, left, f"{title}: loss", "loss")
        loss_axes.set_ylim(bottom=0)
        percent = {name: [_scaled(curve, 100) for curve in curves] for name, curves in right.items()}
        _draw_curves(score_axes, percent, f"{title}: validation {' and '.join(right)}", "%")
        if "WER" in right:
            score_axes.set_ylim(bottom=0)
        else:
            score_axes.set_ylim(top=min(score_axes.get_ylim()[1], 101))
    for axes in grid[-1]:
        axes.set_xlabel("epoch", fontsize=9)
    return figure


def weight_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure | None:
    """The weight of each task over epochs: a light line for each member, a strong one for their mean.

    Weights that differ by more than a factor of 20 are drawn on a logarithmic scale, unless one is negative: the
    gradient of an adversarial head is reversed.

    Args:
        logs: as for :func:`training_curves`.

    Returns:
        None when no weights were logged, because the configuration fixed them.
    """
    logged = {title: _train_curves(logs, loss.replace("loss_", "weight_")) for title, loss, _ in _TASKS}
    # A task that is left out is logged with 0 in every step.
    named = {title: [curve for curve in curves if any(curve.values())] for title, curves in logged.items()}
    values = [value for curves in named.values() for curve in curves for value in curve.values()]
    if not values:
        return None
    figure = _figure(_WIDTH, 3.1)
    axes = figure.subplots()
    _draw_curves(axes, named, "Weight of each task", "weight")
    if min(values) > 0 and max(values) > 20 * min(values):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    elif min(values) >= 0:
        axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch", fontsize=9)
    return figure


def confusion_matrix(sums: ConfusionSums) -> Figure | None:
    """Emotion confusions: share of each reference class in per cent, with counts.

    Returns:
        None when nothing was counted.
    """
    if not sums.count:
        return None
    size = len(sums.labels)
    total = sums.matrix.sum(axis=1, keepdims=True)
    share = np.divide(sums.matrix, total, out=np.zeros(sums.matrix.shape), where=total > 0)
    side = min(max(3.2 + 0.62 * size, 4.6), 13.0)
    figure = _figure(side + 0.9, side)
    axes = figure.subplots()
    image = axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    names = [_short(label) for label in sums.labels]
    counted = [f"{name}\n(n = {n:,})" for name, n in zip(names, total[:, 0], strict=True)]
    steep = size > 6 or max(map(len, names)) > 9
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if steep else {}
    axes.set_xticks(range(size), names, fontsize=9.5, **turned, **_TEXT)
    axes.set_yticks(range(size), counted, fontsize=9.5, **_TEXT)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("reference", fontsize=10)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="minor", length=0)
    if size <= 12:
        _write_cells(axes, share, sums.matrix)
    bar = figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03, format=lambda value, _: f"{100 * value:.0f} %")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, length=0)
    return figure


def fold_scores(names: Sequence[str], wa: Sequence[float | None], ua: Sequence[float | None]) -> Figure | None:
    """Bars of WA and UA for each member, and a line at the mean of each.

    Args:
        names: of the members.
        wa, ua: fractions, by member; None leaves the place empty.

    Returns:
        None when there is no score.
    """
    if all(value is None for value in (*wa, *ua)):
        return None
    count = len(names)
    figure = _figure(_WIDTH, 3.1)
    axes = figure.subplots()
    for name, values, shift, colour, text, dark, dashes in (
        ("WA", wa, -0.2, _BLUE, "white", "#00324f", "-"),
        ("UA", ua, 0.2, _AMBER, "#1a1a1a", "#7a4a00", (0, (5, 2))),
    ):
        heights = np.array([math.nan if value is None else 100 * value for value in values])
        bars = axes.bar(np.arange(count) + shift, heights, 0.38, color=colour, label=name)
        if np.isfinite(heights).any():
            mean = float(np.nanmean(heights))
            axes.axhline(mean, color=dark, lw=1.5, ls=dashes, zorder=3, label=f"mean {name} {mean:.2f} %")
        if count <= 10:
            written = ["" if math.isnan(height) else f"{height:.1f}" for height in heights]
            # In the middle of the bars: at their tops, the mean would run through the numbers.
            axes.bar_label(bars, written, label_type="center", fontsize=8.5, color=text)
    every = math.ceil(count / 25)
    steep = max(len(_short(name)) for name in names) * min(count, 25) > 110
    turned: dict[str, Any] = {"rotation": 40, "ha": "right", "rotation_mode": "anchor"} if steep else {}
    axes.set_xticks(range(0, count, every), [_short(name) for name in names[::every]], fontsize=9, **turned, **_TEXT)
    axes.set_xlim(-0.7, count - 0.3)
    axes.set_ylim(0, 100)
    axes.set_ylabel("%", fontsize=9)
    _tidy(axes)
    axes.tick_params(axis="x", length=0)
    figure.legend(loc="outside upper right", ncols=4, fontsize=9, frameon=False)
    return figure


def noise_curves(curves: Mapping[str, Sequence[NoisePoint]], clean: float) -> Figure | None:
    """UA over the signal-to-noise ratio, a line for each kind of noise, and a level line without noise.

    Args:
        curves: by the name of the noise, in the order of the colours.
        clean: fraction without noise.

    Returns:
        None when there is no point.
    """
    curves = {name: sorted(points) for name, points in curves.items() if points}
    if not curves:
        return None
    figure = _figure(6.4, 3.9)
    axes = figure.subplots()
    axes.axhline(100 * clean, color=_GREY, lw=1.3, ls=(0, (1, 1.5)), label=f"clean {100 * clean:.1f} %")
    styles = ((_BLUE, "-", "o"), (_ORANGE, (0, (5, 2)), "s"), (_GREEN, (0, (3, 1.5, 1, 1.5)), "^"), (_AMBER, "-", "D"))
    for (name, points), (colour, dashes, marker) in zip(curves.items(), styles, strict=False):
        snr = [point[0] for point in points]
        values = np.array([100 * point[1] for point in points])
        axes.plot(snr, values, color=colour, ls=dashes, lw=1.9, marker=marker, ms=5, label=name, zorder=3)
        # The difference's interval, laid around the score: what separates the curve from the clean line.
        known = [i for i, point in enumerate(points) if point[2] is not None]
        low, high = ([100 * (clean + points[i][at]) for i in known] for at in (2, 3))  # type: ignore[operator]
        axes.fill_between([snr[i] for i in known], low, high, color=colour, alpha=0.12, lw=0)
    axes.invert_xaxis()  # harder to the right
    axes.set_xticks(sorted({point[0] for points in curves.values() for point in points}, reverse=True))
    axes.set_xlabel("SNR (dB)", fontsize=9)
    axes.set_ylabel("UA (%)", fontsize=9)
    axes.set_ylim(0, 100)
    _tidy(axes)
    axes.legend(fontsize=8.5, frameon=False)
    return figure


def variant_curves(logs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]) -> Figure | None:
    """Validation scores over epochs, one line per variant: the mean of its members that have reached the epoch.

    Args:
        logs: the lines of each member's ``metrics.jsonl``, by variant, in the order of the colours.

    Returns:
        None when nothing was logged.
    """
    titles = {"wa": "WA", "ua": "UA", "gender_accuracy": "Gender: accuracy", "speaker_accuracy": "Speaker: accuracy",
              "wer": "Transcript: WER"}  # fmt: skip
    panels = []
    for key, title in titles.items():
        own = {name: _validation_curves(dict(enumerate(members)), key) for name, members in logs.items()}
        lines = {name: _scaled(_mean(curves), 100) for name, curves in own.items() if curves}
        if lines:
            panels.append((title, lines))
    if not panels:
        return None
    columns = 2 if len(panels) > 1 else 1
    rows = math.ceil(len(panels) / columns)
    figure = _figure(_WIDTH, 2.7 * rows + 0.4)
    grid = figure.subplots(rows, columns, squeeze=False)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, len(logs)))
    style = {name: (colours[i], ("-", (0, (5, 2)), (0, (1, 1.5)))[i % 3]) for i, name in enumerate(logs)}
    handles: dict[str, Any] = {}
    for axes, (title, lines) in zip(grid.flat, panels, strict=False):
        for name, line in lines.items():
            colour, dashes = style[name]
            marker = "o" if len(line) <= 10 else None
            (handles[name],) = axes.plot(
                list(line), list(line.values()), color=colour, ls=dashes, lw=1.7, marker=marker, ms=3.5
            )
        axes.set_title(f"{title} (validation)", fontsize=10, loc="left", fontweight="bold", color="#222222")
        axes.set_ylabel("%", fontsize=9)
        axes.set_xlabel("epoch", fontsize=9)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
        left, right = axes.get_xlim()
        axes.set_xlim(min(left, right - 1), right)  # a single epoch has no width of its own
        _tidy(axes)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    named = [name for name in logs if name in handles]
    figure.legend(
        [handles[name] for name in named], [_short(name, 28) for name in named], loc="outside upper left",
        ncols=min(len(named), 6 if max(map(len, named)) <= 14 else 3), fontsize=9, frameon=False,
    )  # fmt: skip
    return figure


@dataclasses.dataclass(frozen=True)
class ScoreMap:
    """Scores at the crossings of two settings.

    Attributes:
        title: of the panel.
        rows, columns: values of the settings, as text.
        values: fractions [rows, columns]; NaN where there is none.
    """

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: np.ndarray


def score_maps(maps: Sequence[ScoreMap], row_name: str, column_name: str) -> Figure | None:
    """Heat maps in per cent that share one colour scale; the highest score of all is framed.

    Returns:
        None when there is no score.
    """
    every = np.concatenate([np.ravel(panel.values) for panel in maps]) if maps else np.array([])
    known = every[np.isfinite(every)] * 100
    if not known.size:
        return None
    rows, columns = len(maps[0].rows), len(maps[0].columns)
    across = min(len(maps), 2 if columns > 4 else 3)
    down = math.ceil(len(maps) / across)
    figure = _figure(min(1.5 + across * (0.9 + 0.75 * columns), 12.0), down * (1.1 + 0.5 * rows) + 0.2)
    grid = figure.subplots(down, across, squeeze=False)
    low, high = float(known.min()), float(known.max())
    image = None
    for axes, panel in zip(grid.flat, maps, strict=False):
        percent = 100 * np.asarray(panel.values)
        image = axes.imshow(percent, cmap="cividis", vmin=low, vmax=max(high, low + 1e-6), aspect="auto")
        axes.set_xticks(range(columns), panel.columns, fontsize=9, **_TEXT)
        axes.set_yticks(range(rows), panel.rows, fontsize=9, **_TEXT)
        axes.set_xlabel(column_name, fontsize=10)
        axes.set_ylabel(row_name, fontsize=10)
        axes.set_title(panel.title, fontsize=10, loc="left", fontweight="bold", color="#222222")
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        for (row, column), value in np.ndenumerate(percent):
            bright = not math.isnan(value) and value > (low + high) / 2
            axes.text(
                column, row, "–" if math.isnan(value) else f"{value:.2f}", ha="center", va="center", fontsize=9,
                color="#1a1a1a" if bright or math.isnan(value) else "white",
                fontweight="bold" if value == high else "normal",
            )  # fmt: skip
            if value == high:
                axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=_ORANGE, lw=2.5, zorder=4))
    for axes in grid.flat[len(maps) :]:
        axes.set_axis_off()
    assert image is not None
    bar = figure.colorbar(image, ax=list(grid.flat), fraction=0.05, pad=0.02, format=lambda value, _: f"{value:.1f} %")
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=9, length=0)
    return figure


def variant_scores(
    names: Sequence[str],
    scores: Mapping[str, Sequence[float | None]],
    spreads: Mapping[str, Sequence[float | None]],
    published: Mapping[str, Sequence[float | None]],
) -> Figure | None:
    """Horizontal bars of each variant's scores, with standard deviations and the published values as marks.

    Args:
        names: of the variants.
        scores: fractions by the name of the score, one or two of them.
        spreads: standard deviations, likewise.
        published: of the paper, likewise; empty for none.

    Returns:
        None when there is no score.
    """
    if all(value is None for values in scores.values() for value in values):
        return None

    def percent(values: Sequence[float | None]) -> np.ndarray:
        return np.array([math.nan if value is None else 100 * value for value in values])

    places, height = np.arange(len(names)), 0.8 / len(scores)
    figure = _figure(_WIDTH, 0.9 + (0.19 * len(scores) + 0.08) * len(names))
    axes = figure.subplots()
    for number, (score, colour) in enumerate(zip(scores, (_BLUE, _AMBER), strict=False)):
        at, widths = places + (number - (len(scores) - 1) / 2) * height, percent(scores[score])
        axes.barh(at, widths, height * 0.94, color=colour, label=score)
        spread = percent(spreads[score])
        if np.isfinite(spread).any():
            axes.errorbar(widths, at, xerr=spread, fmt="none", ecolor="#333333", elinewidth=1, capsize=2.5)
        edge = np.nan_to_num(widths) + np.nan_to_num(spread)
        for place, width, end in zip(at, widths, edge, strict=True):
            axes.text(end + 0.6, place, "–" if math.isnan(width) else f"{width:.2f}", va="center", fontsize=8.5)
        if np.isfinite(marks := percent(published.get(score, ()))).any():
            axes.plot(
                marks, at, ls="none", marker="D", ms=5, mfc="white", mec="#1a1a1a", zorder=5,
                label="published" if number == 0 else None,
            )  # fmt: skip
    axes.set_yticks(places, [_short(name, 36) for name in names], fontsize=9, **_TEXT)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 108)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("%", fontsize=9)
    _tidy(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e4e4", lw=0.8)
    axes.tick_params(axis="y", length=0)
    figure.legend(loc="outside upper right", ncols=3, fontsize=9, frameon=False)
    return figure


def save(figure: Figure, stem: Path) -> str:
    """Write ``<stem>.svg`` and ``<stem>.png``.

    Returns:
        The SVG document. Its text is text, so it can be searched, read aloud, and shown in any script the
        reader has a font for. The same figure gives the same bytes.
    """
    stem.parent.mkdir(parents=True, exist_ok=True)
    vector = io.StringIO()
    nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
    # These two settings have no other door; the context takes them back.
    with (
        matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": stem.name}),
        warnings.catch_warnings(),
    ):
        # The layout is computed with matplotlib's own font, which does not have every script.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from")
        if (engine := figure.get_layout_engine()) is not None:
            # The first layout does not know yet how wide the tick labels are; each file would compute its own third one.
            engine.execute(figure)
            engine.execute(figure)
            figure.set_layout_engine("none")
        figure.savefig(vector, format="svg", metadata=nothing)
        figure.savefig(stem.with_suffix(".png"), format="png")
    svg = vector.getvalue()
    stem.with_suffix(".svg").write_text(svg, encoding="utf-8")
    return svg


def inline_svg(svg: str, prefix: str, description: str) -> str:
    """The ``<svg>`` element of a document from :func:`save`, to stand in a page beside others.

    Args:
        svg: the document.
        prefix: put before each id, since ids must be unique in the page.
        description: plain words for readers who do not see the figure.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r'\bid="', f'id="{prefix}-', element)
    element = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", element)
    # Inside a page a bare selector would reach every element.
    element = element.replace('<style type="text/css">*{', f'<style type="text/css">.{prefix} *{{')
    text = description.replace("&", "&amp;").replace("<", "&lt;").replace('"', "&quot;")
    return element.replace("<svg ", f'<svg class="{prefix}" role="img" aria-label="{text}" ', 1)


def _figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, with room enough that no label touches another or the border."""
    layout = ConstrainedLayoutEngine(h_pad=0.09, w_pad=0.09)
    return Figure(figsize=(width, height), dpi=160, layout=layout, facecolor="white")


def _train_curves(logs: Mapping[str, Sequence[Mapping[str, Any]]], key: str) -> list[Curve]:
    curves = []
    for lines in logs.values():
        # A resumed member logs some steps twice; the later line is the one that led to the result.
        steps = {line["step"]: line for line in lines if line.get("kind") == "train" and _number(line, key) is not None}
        epochs: dict[float, list[float]] = {}
        for line in steps.values():
            # Steps between epochs 2 and 3 belong to the third; its validation stands at 3.
            epochs.setdefault(float(max(math.ceil(line["epoch"]), 1)), []).append(line[key])
        if epochs:
            curves.append({epoch: sum(values) / len(values) for epoch, values in sorted(epochs.items())})
    return curves


def _validation_curves(logs: Mapping[Any, Sequence[Mapping[str, Any]]], key: str) -> list[Curve]:
    curves = []
    for lines in logs.values():
        epochs = {
            float(line["epoch"]): number
            for line in lines
            if line.get("kind") == "validation" and (number := _number(line, key)) is not None
        }
        if epochs:
            curves.append(dict(sorted(epochs.items())))
    return curves


def _number(line: Mapping[str, Any], key: str) -> float | None:
    value = line.get(key)
    return float(value) if value is not None and math.isfinite(value) else None


def _scaled(curve: Curve, factor: float) -> Curve:
    return {epoch: factor * value for epoch, value in curve.items()}


def _mean(curves: Sequence[Curve]) -> Curve:
    epochs = sorted({epoch for curve in curves for epoch in curve})
    at = {epoch: [curve[epoch] for curve in curves if epoch in curve] for epoch in epochs}
    return {epoch: sum(values) / len(values) for epoch, values in at.items()}


def _draw_curves(axes: Axes, named: Mapping[str, Sequence[Curve]], title: str, unit: str) -> None:
    for (name, curves), (colour, dashes) in zip(named.items(), _STYLES, strict=False):
        if not curves:
            continue
        mean = _mean(curves)
        if len(curves) > 1:
            faint = max(0.05, min(0.28, 3 / len(curves)))
            for curve in curves:
                axes.plot(
                    list(curve), list(curve.values()), color=colour, lw=0.8, alpha=faint,
                    rasterized=len(curves) > _MAX_VECTOR_MEMBERS,
                )  # fmt: skip
        marker = "o" if len(mean) <= 10 else None
        axes.plot(
            list(mean),
            list(mean.values()),
            color=colour,
            ls=dashes,
            lw=1.9,
            marker=marker,
            ms=3.5,
            label=name,
            path_effects=[withStroke(linewidth=3.4, foreground="white")],
        )
    axes.set_title(title, fontsize=10, loc="left", fontweight="bold", color="#222222")
    axes.set_ylabel(unit, fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    _tidy(axes)
    if any(named.values()):
        axes.legend(fontsize=8.5, frameon=False)
    else:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=_GREY)


def _write_cells(axes: Axes, share: np.ndarray, counts: np.ndarray) -> None:
    for (row, column), value in np.ndenumerate(share):
        percent = f"{100 * value:.1f} %" if counts[row].any() else "–"
        axes.text(
            column,
            row,
            f"{percent}\n{counts[row, column]:,}",
            ha="center",
            va="center",
            fontsize=9 if len(share) <= 8 else 7,
            color="white" if value > 0.5 else "#1a1a1a",
        )


def _tidy(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#999999")
    axes.tick_params(labelsize=8.5, color="#999999")
    axes.grid(axis="y", color="#e4e4e4", lw=0.8)
    axes.set_axisbelow(True)


def _short(label: str, most: int = 18) -> str:
    """A label that fits: printable characters only (others are no XML), 18 at most or as many as given."""
    printable = "".join(character if character.isprintable() else "·" for character in label)
    return printable if len(printable) <= most else f"{printable[: most - 1]}…"
