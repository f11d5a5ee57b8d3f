"""Scores by session, speaker, gender: where a model is good and where it is not."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.natural_order import natural_order
from jax_mtlser.evaluation.predictions import Prediction

__all__ = ["GroupSums", "group_columns", "merged_groups", "score_groups", "summarised_groups"]

# Sums by column and value.
GroupSums = Mapping[str, Mapping[str, ConfusionSums]]

_COLUMNS = ("corpus", "session", "speaker", "gender")


def group_columns(protocol: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that are told apart: the usual ones, and what the protocol groups and splits by."""
    own = (protocol.get("group_column", ""), protocol.get("split_column", ""))
    return tuple(dict.fromkeys((*_COLUMNS, *(name for name in own if name not in ("", "id", "text", "emotion")))))


def score_groups(predictions: Iterable[Prediction], columns: Sequence[str]) -> dict[str, dict[str, ConfusionSums]]:
    """Emotion by column and value; utterances without a label, a prediction or a value are left out."""
    pairs: dict[str, dict[str, list[tuple[str, str]]]] = {}
    for row in predictions:
        if row.emotion is None or row.emotion_predicted is None:
            continue
        for column in columns:
            value = getattr(row, column) if column in ("speaker", "gender") else row.groups.get(column)
            if value:
                pairs.setdefault(column, {}).setdefault(value, []).append((row.emotion, row.emotion_predicted))
    return {
        column: {
            value: ConfusionSums.from_labels([r for r, _ in found], [p for _, p in found])
            for value, found in values.items()
        }
        for column, values in pairs.items()
    }


def merged_groups(parts: Iterable[GroupSums]) -> dict[str, dict[str, ConfusionSums]]:
    """The sums of several members."""
    merged: dict[str, dict[str, ConfusionSums]] = {}
    for part in parts:
        for column, values in part.items():
            own = merged.setdefault(column, {})
            for value, sums in values.items():
                own[value] = own[value] + sums if value in own else sums
    return merged


def summarised_groups(groups: GroupSums) -> dict[str, list[dict[str, Any]]]:
    """For JSON: ``value``, ``count``, ``wa`` and ``ua`` of each value, by column; columns with one value are left out."""
    return {
        column: [
            {"value": value, "count": sums.count, "wa": sums.accuracy, "ua": sums.unweighted_accuracy}
            for value, sums in sorted(values.items(), key=lambda item: natural_order(item[0]))
        ]
        for column, values in groups.items()
        if len(values) > 1
    }
