"""How sure the numbers of one run are: intervals of its scores, and how far its probabilities can be believed."""

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jax_mtlser.evaluation.calibration import MemberCalibration
from jax_mtlser.evaluation.clusters import choose_clusters
from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.predictions import Prediction
from jax_mtlser.evaluation.statistics import (
    DRAWS,
    LEVEL,
    METRICS,
    cluster_confusions,
    percentile_interval,
    resampled_scores,
    wilson,
)

__all__ = ["calibration_record", "emotion_pairs", "fold_interval", "interval_record"]


def emotion_pairs(rows: Sequence[Prediction]) -> list[tuple[Prediction, str, str]]:
    """Predictions with their reference and predicted emotion; those without either are left out."""
    return [
        (row, row.emotion, row.emotion_predicted)
        for row in rows
        if row.emotion is not None and row.emotion_predicted is not None
    ]


def fold_interval(emotion: ConfusionSums | None) -> list[float] | None:
    """Wilson's 95 % interval of a fold's WA; None where nothing was judged."""
    if emotion is None or not emotion.count:
        return None
    interval = wilson(int(emotion.matrix.trace()), emotion.count)
    return [interval.low, interval.high]


def interval_record(rows: Sequence[Prediction]) -> dict[str, Any] | None:
    """Intervals of pooled WA, UA and macro F1 by resampling clusters, for ``results.json``.

    They say how the scores vary with who and what is tested, the trained models being as they are.

    Args:
        rows: test predictions of all members.

    Returns:
        ``column``, ``clusters`` (their number), ``title``, ``reason``, ``warning``, ``level``, ``draws``, and an
        interval for each of :data:`METRICS`; None where fewer than two utterances have an emotion.
    """
    pairs = emotion_pairs(rows)
    if len({row.id for row, _, _ in pairs}) < 2:
        return None
    clusters = choose_clusters([row for row, _, _ in pairs])
    reference, predicted = [r for _, r, _ in pairs], [p for _, _, p in pairs]
    labels = sorted({*reference, *predicted})
    samples = resampled_scores(np.array([cluster_confusions(reference, predicted, clusters.names, labels)]))
    intervals = {metric: percentile_interval(samples[:, 0, place]) for place, metric in enumerate(METRICS)}
    return {
        "column": clusters.column,
        "clusters": clusters.count,
        "title": clusters.title,
        "reason": clusters.reason,
        "warning": clusters.warning,
        "level": LEVEL,
        "draws": DRAWS,
        **{metric: [interval.low, interval.high] for metric, interval in intervals.items()},
    }


def calibration_record(members: Mapping[str, MemberCalibration | None]) -> dict[str, Any] | None:
    """Calibration over all test predictions, for ``results.json``.

    Args:
        members: by name.

    Returns:
        ``before`` (as trained) and ``after`` (each member with its own temperature, or as it is where it has none;
        None where no member has one) with ``count, ece, brier, nll``; ``temperatures`` by member; ``without``: why
        a member has none. None without an emotion head or without a tested emotion.
    """
    known = {name: member for name, member in members.items() if member is not None and len(member.test.correct)}
    if not known:
        return None
    temperatures = {name: member.temperature for name, member in known.items()}
    fitted = {name: temperature.value for name, temperature in temperatures.items() if temperature.value}
    return {
        "before": functools.reduce(operator.add, [member.test for member in known.values()]).summary(),
        "after": functools.reduce(operator.add, [member.test_after for member in known.values()]).summary()
        if fitted
        else None,
        "temperatures": fitted,
        "without": {name: t.reason for name, t in temperatures.items() if t.reason},
    }
