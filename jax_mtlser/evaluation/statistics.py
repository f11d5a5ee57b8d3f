"""How sure a score is, and whether the difference of two is more than chance.

Utterances of one dialogue or speaker succeed and fail together, so intervals come from drawing whole clusters
anew. What is resampled are the clusters' confusion matrices: a draw is a weighted sum of them, and all draws
together one matrix product.
"""

import dataclasses
import enum
import math
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int
from scipy import integrate, stats

__all__ = [
    "DRAWS",
    "LEVEL",
    "METRICS",
    "CorrectedT",
    "Interval",
    "McNemar",
    "McNemarMethod",
    "StatisticsError",
    "cluster_confusions",
    "confusion_scores",
    "corrected_resampled_t",
    "expected_maximum",
    "holm",
    "mcnemar",
    "percentile_interval",
    "resampled_scores",
    "swap_p",
    "wilson",
]

METRICS = ("wa", "ua", "macro_f1")  # the last axis of every array of scores
DRAWS = 10_000
LEVEL = 0.95
# Below this many discordant utterances the chi-squared approximation is poor.
_EXACT_BELOW = 25
# Weights of draws that are in memory at the same time.
_CHUNK_CELLS = 4_000_000


class StatisticsError(ValueError):
    """Numbers that a method cannot be applied to; the message says which and why."""


@dataclasses.dataclass(frozen=True)
class Interval:
    """A confidence interval."""

    low: float
    high: float


# --- Bootstrap over clusters -----------------------------------------------------------------------------


def cluster_confusions(
    reference: Sequence[str], predicted: Sequence[str], clusters: Sequence[str], labels: Sequence[str]
) -> Int[np.ndarray, "G C C"]:
    """A confusion matrix (rows: reference) for each cluster, in the order of their sorted names.

    Args:
        reference, predicted: labels, by utterance.
        clusters: what each utterance belongs to.
        labels: the C classes; all that occur.
    """
    place = {label: number for number, label in enumerate(labels)}
    _, cluster = np.unique(np.asarray(clusters, dtype=str), return_inverse=True)
    counts = np.zeros((cluster.max(initial=-1) + 1, len(labels), len(labels)), np.int64)
    rows, columns = (np.array([place[label] for label in said], int) for said in (reference, predicted))
    np.add.at(counts, (cluster, rows, columns), 1)
    return counts


def confusion_scores(confusions: Int[np.ndarray, "*B C C"] | Float[np.ndarray, "*B C C"]) -> Float[np.ndarray, "*B 3"]:
    """:data:`METRICS` of each matrix, defined as in :class:`~jax_mtlser.evaluation.metrics.ConfusionSums`.

    Classes that a matrix does not have do not count in its UA and macro F1.
    """
    hits = np.diagonal(confusions, axis1=-2, axis2=-1).astype(float)
    reference, predicted = confusions.sum(-1), confusions.sum(-2)
    return np.stack(
        [
            hits.sum(-1) / reference.sum(-1),
            _mean_ratio(hits, reference),
            _mean_ratio(2 * hits, reference + predicted),
        ],
        axis=-1,
    )


def _mean_ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Mean over the last axis of part / whole, where whole is not 0."""
    occurs = whole > 0
    return np.divide(part, whole, out=np.zeros(part.shape), where=occurs).sum(-1) / occurs.sum(-1)


def resampled_scores(
    confusions: Int[np.ndarray, "R G C C"], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, "draws R 3"]:
    """Scores of R systems on resampled clusters; a draw takes the same G clusters for all systems.

    The draws depend on which clusters are alike and on the order of the clusters, not on the order of the systems:
    swapping two systems swaps their scores exactly.

    Args:
        confusions: of each system and cluster.
        draws: number of resamplings with replacement.
        seed: of the draws.

    Raises:
        StatisticsError: with fewer than two clusters every draw is the same.
    """
    systems, size, classes = confusions.shape[:3]
    if size < 2:
        raise StatisticsError(f"{size} cluster cannot be resampled; it takes two at the least")
    patterns, alike = _patterns(confusions.transpose(1, 0, 2, 3).reshape(size, -1))
    generator = np.random.Generator(np.random.PCG64(seed))
    scores = []
    for count in _chunks(draws, len(patterns)):
        weights = generator.multinomial(size, alike / size, size=count)
        drawn = (weights.astype(float) @ patterns).reshape(-1, systems, classes, classes)
        scores.append(confusion_scores(drawn))
    return np.concatenate(scores)


def _patterns(clusters: Int[np.ndarray, "G cells"]) -> tuple[Float[np.ndarray, "P cells"], Int[np.ndarray, " P"]]:
    """Different clusters, in the order of their first occurrence, and how many of each there are.

    Single utterances are mostly alike: 5,531 of them have at most 64 patterns of (reference, one prediction, other
    prediction) in four classes, which can be drawn together.
    """
    _, first, alike = np.unique(clusters, axis=0, return_index=True, return_counts=True)
    order = np.argsort(first)
    return clusters[first[order]].astype(float), alike[order]


def _chunks(draws: int, width: int) -> Iterator[int]:
    """Numbers of draws whose weights fit in memory together."""
    size = max(1, _CHUNK_CELLS // width)
    for start in range(0, draws, size):
        yield min(size, draws - start)


def percentile_interval(samples: Float[np.ndarray, " draws"], level: float = LEVEL) -> Interval:
    """The middle part of the draws."""
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


# --- Tests -----------------------------------------------------------------------------------------------


def swap_p(
    first: Int[np.ndarray, "G C C"], second: Int[np.ndarray, "G C C"], *, draws: int = DRAWS, seed: int = 0
) -> Float[np.ndarray, " 3"]:
    """Two-sided p-values of two systems' differences in :data:`METRICS`, by swapping the systems in whole clusters.

    If the systems are equally good, it is chance which of the two said what in a cluster. The p-value is the share of
    such worlds in which the difference is at least as large (Fisher's randomisation test; Noreen 1989). It holds for
    any number of clusters, where a p-value from resampled few clusters would be too small: with G of them it cannot
    fall below 2 / 2^G.

    Args:
        first, second: confusions of the same clusters.
        draws: of random worlds; where there are no more than that, each world is counted once.
        seed: of the draws.
    """
    size, classes = first.shape[:2]
    change = (second - first).reshape(size, -1)
    sums = first.sum(0).ravel(), second.sum(0).ravel()

    def differences(swapped: Float[np.ndarray, "W cells"]) -> Float[np.ndarray, "W 3"]:
        one, other = (
            confusion_scores((total + sign * swapped).reshape(-1, classes, classes))
            for total, sign in zip(sums, (1, -1), strict=True)
        )
        return other - one

    # Equal differences must count as equal whatever the rounding.
    least = np.abs(differences(np.zeros((1, change.shape[1])))) - 1e-9
    if 2**size <= draws:
        swaps = np.arange(2**size)[:, None] >> np.arange(size) & 1
        return (np.abs(differences(swaps @ change)) >= least).mean(0)
    patterns, alike = _patterns(change)
    generator = np.random.Generator(np.random.PCG64(seed))
    counts = np.ones(len(METRICS))  # the world as it is
    for count in _chunks(draws, len(patterns)):
        swapped = generator.binomial(alike, 0.5, size=(count, len(patterns))).astype(float) @ patterns
        counts += (np.abs(differences(swapped)) >= least).sum(0)
    return counts / (draws + 1)


class McNemarMethod(enum.Enum):
    """How the p-value was computed."""

    EXACT = "exact binomial"
    CHI_SQUARED = "chi-squared, continuity corrected"


@dataclasses.dataclass(frozen=True)
class McNemar:
    """McNemar's test: of the utterances that one system gets right, is it as often one as the other?

    It takes utterances for independent of each other, so where they cluster it is too sure.

    Attributes:
        only_first, only_second: utterances that only this system gets right.
        method: exact below 25 of them together.
        p: two-sided.
    """

    only_first: int
    only_second: int
    method: McNemarMethod
    p: float


def mcnemar(only_first: int, only_second: int) -> McNemar:
    """McNemar's test of the discordant counts (McNemar 1947; correction by Edwards 1948)."""
    discordant = only_first + only_second
    if discordant < _EXACT_BELOW:
        p = float(stats.binomtest(only_first, discordant).pvalue) if discordant else 1.0
        return McNemar(only_first, only_second, McNemarMethod.EXACT, p)
    # The correction brings the counts together, never past each other.
    distance = max(abs(only_first - only_second) - 1, 0)
    p = float(stats.chi2.sf(distance**2 / discordant, 1))
    return McNemar(only_first, only_second, McNemarMethod.CHI_SQUARED, p)


@dataclasses.dataclass(frozen=True)
class CorrectedT:
    """The corrected resampled t-test.

    Attributes:
        mean: of the differences.
        statistic: t; None where all differences are equal, but not zero.
        df: degrees of freedom.
        p: two-sided; None likewise.
    """

    mean: float
    statistic: float | None
    df: int
    p: float | None


def corrected_resampled_t(differences: Sequence[float], test_train_ratio: float) -> CorrectedT:
    """Nadeau and Bengio's t-test of differences over r repeats of k folds.

    Folds share training utterances, so their differences hang together; a plain paired t-test takes them for
    independent and is too sure. t = mean / sqrt((1 / (k r) + n_test / n_train) s²) with k r - 1 degrees of freedom
    (Nadeau & Bengio 2003; for repeated cross-validation Bouckaert & Frank 2004).

    Args:
        differences: one for each fold of each repeat.
        test_train_ratio: n_test / n_train of a fold; 1 / (k - 1) for k equal folds.

    Raises:
        StatisticsError: fewer than two differences.
    """
    values = np.asarray(differences, float)
    if len(values) < 2:
        raise StatisticsError(
            f"the corrected t-test needs the differences of two folds at the least, not {len(values)}"
        )
    mean, df = float(values.mean()), len(values) - 1
    if np.ptp(values) == 0:
        # No spread to judge a difference by; no difference is certain, though.
        return CorrectedT(mean, None, df, None) if mean else CorrectedT(0.0, 0.0, df, 1.0)
    statistic = mean / math.sqrt((1 / len(values) + test_train_ratio) * float(values.var(ddof=1)))
    return CorrectedT(mean, statistic, df, float(2 * stats.t.sf(abs(statistic), df)))


# --- Many at once ----------------------------------------------------------------------------------------


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the chance of any false alarm stays below the level."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = highest
    return adjusted


def expected_maximum(n: int) -> float:
    """Expected maximum of n independent standard normal numbers: what the best of n equals gains by luck.

    In standard deviations: 0 for one, 1.82 for 18; about sqrt(2 ln n) at most.
    """
    if n < 1:
        raise StatisticsError(f"the best of {n} does not exist")
    # E max = ∫ (1 - Φ(x)^n) over x > 0 - ∫ Φ(x)^n over x < 0. Beyond 12 nothing is left for any n that fits a run.
    above, _ = integrate.quad(lambda x: -np.expm1(n * stats.norm.logcdf(x)), 0, 12, limit=200)
    below, _ = integrate.quad(lambda x: np.exp(n * stats.norm.logcdf(x)), -12, 0, limit=200)
    return above - below


def wilson(hits: int, count: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of a share, for utterances that are independent of each other (Wilson 1927)."""
    if not 0 <= hits <= count or not count:
        raise StatisticsError(f"{hits} of {count} is no share")
    interval = stats.binomtest(hits, count).proportion_ci(level, method="wilson")
    return Interval(float(interval.low), float(interval.high))
