"""Scores as sums that can be merged: over batches, folds and repeats, divided once at the end.

Pooling the sums of several members weighs each utterance (and, for word errors, each reference word)
equally; it is not the mean of the members' scores.
"""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Self

import jiwer
import numpy as np
from jaxtyping import Int

from jax_mtlser.evaluation.predictions import Prediction

__all__ = ["SUMMARY_KEYS", "ConfusionSums", "TaskMetrics", "WordErrorSums", "mean_and_std", "score"]

SUMMARY_KEYS = ("wa", "ua", "macro_f1", "gender_accuracy", "speaker_accuracy", "wer")


@dataclasses.dataclass(frozen=True, eq=False)
class ConfusionSums:
    """How often each reference class was predicted as each class.

    Attributes:
        labels: class names.
        matrix: counts; row: reference, column: prediction.
    """

    labels: tuple[str, ...]
    matrix: Int[np.ndarray, "C C"]

    def __post_init__(self) -> None:
        matrix = np.asarray(self.matrix, dtype=np.int64)
        size = len(self.labels)
        if matrix.shape != (size, size) or len(set(self.labels)) != size:
            raise ValueError(f"a confusion matrix of shape {matrix.shape} does not go with the classes {self.labels}")
        object.__setattr__(self, "matrix", matrix)

    @classmethod
    def from_labels(cls, reference: Sequence[str], predicted: Sequence[str], labels: Sequence[str] = ()) -> Self:
        """Count pairs of labels; those not in ``labels`` are put behind it, sorted."""
        known = set(labels)
        names = (*labels, *sorted({*reference, *predicted} - known))
        position = {name: index for index, name in enumerate(names)}
        matrix = np.zeros((len(names), len(names)), np.int64)
        for row, column in zip(reference, predicted, strict=True):
            matrix[position[row], position[column]] += 1
        return cls(names, matrix)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ConfusionSums):
            return NotImplemented
        return self.labels == other.labels and np.array_equal(self.matrix, other.matrix)

    def __add__(self, other: "ConfusionSums") -> "ConfusionSums":
        """The sum; classes that only ``other`` has (speakers of another fold) are put behind ours."""
        labels = tuple(dict.fromkeys((*self.labels, *other.labels)))
        position = {name: index for index, name in enumerate(labels)}
        matrix = np.zeros((len(labels), len(labels)), np.int64)
        for part in (self, other):
            places = [position[name] for name in part.labels]
            matrix[np.ix_(places, places)] += part.matrix
        return ConfusionSums(labels, matrix)

    @property
    def count(self) -> int:
        """Number of judged utterances."""
        return int(self.matrix.sum())

    @property
    def accuracy(self) -> float | None:
        """Share of correct utterances (weighted accuracy, WA); None without utterances."""
        return int(self.matrix.trace()) / self.count if self.count else None

    @property
    def unweighted_accuracy(self) -> float | None:
        """Mean recall over the classes that occur in the reference (UA); None without utterances."""
        total = self.matrix.sum(axis=1)
        occurs = total > 0
        return float(np.mean(self.matrix.diagonal()[occurs] / total[occurs])) if self.count else None

    @property
    def macro_f1(self) -> float | None:
        """Mean F1 over the classes that occur in reference or prediction; None without utterances."""
        total = self.matrix.sum(axis=0) + self.matrix.sum(axis=1)
        occurs = total > 0
        return float(np.mean(2 * self.matrix.diagonal()[occurs] / total[occurs])) if self.count else None


@dataclasses.dataclass(frozen=True)
class WordErrorSums:
    """Word errors of least-cost alignments.

    Attributes:
        substitutions, deletions, insertions: errors, in words.
        hits: words that were recognised.
    """

    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0
    hits: int = 0

    @classmethod
    def from_texts(cls, reference: Sequence[str], predicted: Sequence[str]) -> Self:
        """Align each pair of texts; pairs whose reference has no word are left out.

        Words are what stands between white space. A prediction may be empty.
        """
        # Joined by single blanks, because jiwer takes other white space for a part of the word.
        spaced = [(" ".join(r.split()), " ".join(p.split())) for r, p in zip(reference, predicted, strict=True)]
        pairs = [(r, p) for r, p in spaced if r]
        if not pairs:
            return cls()
        words = jiwer.process_words([r for r, _ in pairs], [p for _, p in pairs])
        return cls(words.substitutions, words.deletions, words.insertions, words.hits)

    def __add__(self, other: "WordErrorSums") -> "WordErrorSums":
        return WordErrorSums(
            substitutions=self.substitutions + other.substitutions,
            deletions=self.deletions + other.deletions,
            insertions=self.insertions + other.insertions,
            hits=self.hits + other.hits,
        )

    @property
    def reference_words(self) -> int:
        """Words in the reference: N = S + D + hits."""
        return self.substitutions + self.deletions + self.hits

    @property
    def wer(self) -> float | None:
        """Word error rate (S + D + I) / N, which may exceed 1; None without reference words."""
        errors = self.substitutions + self.deletions + self.insertions
        return errors / self.reference_words if self.reference_words else None


@dataclasses.dataclass(frozen=True)
class TaskMetrics:
    """The sums of every task; None where there is no such head. ``TaskMetrics()`` is the zero of ``+``."""

    emotion: ConfusionSums | None = None
    gender: ConfusionSums | None = None
    speaker: ConfusionSums | None = None
    words: WordErrorSums | None = None

    def __add__(self, other: "TaskMetrics") -> "TaskMetrics":
        return TaskMetrics(
            emotion=_merged(self.emotion, other.emotion),
            gender=_merged(self.gender, other.gender),
            speaker=_merged(self.speaker, other.speaker),
            words=self.words + other.words if self.words and other.words else self.words or other.words,
        )

    def summary(self) -> dict[str, float | None]:
        """Fractions under :data:`SUMMARY_KEYS`; None where the task is absent or nothing was labelled."""
        return {
            "wa": self.emotion.accuracy if self.emotion else None,
            "ua": self.emotion.unweighted_accuracy if self.emotion else None,
            "macro_f1": self.emotion.macro_f1 if self.emotion else None,
            "gender_accuracy": self.gender.accuracy if self.gender else None,
            "speaker_accuracy": self.speaker.accuracy if self.speaker else None,
            "wer": self.words.wer if self.words else None,
        }


def _merged(one: ConfusionSums | None, other: ConfusionSums | None) -> ConfusionSums | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other


def score(predictions: Iterable[Prediction], labels: Mapping[str, Sequence[str]] | None = None) -> TaskMetrics:
    """Sums over the given predictions, whatever their part.

    Utterances without a label do not count for that task, nor do speakers that training did not see.

    Args:
        predictions: rows to count.
        labels: class order of the matrices under ``emotion``, ``gender`` and ``speaker``; classes that are
            not listed follow in sorted order.
    """
    rows = list(predictions)
    classes = labels or {}

    def confusion(task: str, pairs: Sequence[tuple[str | None, str | None]]) -> ConfusionSums | None:
        if all(predicted is None for _, predicted in pairs):
            return None
        labelled = [(r, p) for r, p in pairs if r is not None and p is not None]
        reference, predicted = [r for r, _ in labelled], [p for _, p in labelled]
        return ConfusionSums.from_labels(reference, predicted, classes.get(task, ()))

    texts = [(row.text or "", row.text_predicted) for row in rows if row.text_predicted is not None]
    return TaskMetrics(
        emotion=confusion("emotion", [(row.emotion, row.emotion_predicted) for row in rows]),
        gender=confusion("gender", [(row.gender, row.gender_predicted) for row in rows]),
        speaker=confusion("speaker", [(row.speaker_reference, row.speaker_predicted) for row in rows]),
        words=WordErrorSums.from_texts([r for r, _ in texts], [p for _, p in texts]) if texts else None,
    )


def mean_and_std(values: Iterable[float]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation (n - 1); a mean needs one value, a deviation two."""
    numbers = list(values)
    mean = statistics.fmean(numbers) if numbers else None
    return mean, statistics.stdev(numbers) if len(numbers) > 1 else None
