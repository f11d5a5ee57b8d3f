"""Runs compared on the same test utterances: differences, their intervals, and tests corrected for their number."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jax_mtlser.evaluation.clusters import Clusters, choose_clusters, cluster_columns
from jax_mtlser.evaluation.paired_runs import ComparisonError, Paired, System, pair
from jax_mtlser.evaluation.statistics import (
    DRAWS,
    LEVEL,
    METRICS,
    CorrectedT,
    Interval,
    McNemar,
    bootstrap_p,
    cluster_confusions,
    confusion_scores,
    corrected_resampled_t,
    expected_maximum,
    holm,
    mcnemar,
    percentile_interval,
    resampled_scores,
)

__all__ = ["BestOf", "Comparison", "Difference", "PairComparison", "SystemScores", "compare"]


@dataclasses.dataclass(frozen=True)
class SystemScores:
    """One run on the compared utterances.

    Attributes:
        name: of the run.
        path: its folder.
        fold_hash: of its folds.
        scores: by metric.
    """

    name: str
    path: str
    fold_hash: str
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Difference:
    """Second run minus first run in one metric.

    Attributes:
        value: of the pooled scores.
        interval: cluster bootstrap, percentiles.
        p: of the cluster bootstrap.
        p_holm: corrected for the number of compared pairs.
        corrected_t: over folds; None where the runs do not share two folds at the least.
        corrected_t_holm: its p-value, corrected.
    """

    value: float
    interval: Interval
    p: float
    p_holm: float
    corrected_t: CorrectedT | None
    corrected_t_holm: float | None


@dataclasses.dataclass(frozen=True)
class PairComparison:
    """Two runs.

    Attributes:
        first, second: their names.
        differences: by metric.
        mcnemar: of one repeat.
        mcnemar_holm: its p-value, corrected.
    """

    first: str
    second: str
    differences: dict[str, Difference]
    mcnemar: McNemar
    mcnemar_holm: float


@dataclasses.dataclass(frozen=True)
class BestOf:
    """What the best of several runs owes to there being several.

    Attributes:
        best: name of the run with the highest score.
        gain: its score above the mean of all.
        noise: standard deviation of one run's score, as far as it is not shared by all: that of the bootstrapped
            differences of two, divided by √2.
        expected_gain: of the best of as many runs that are equally good.
    """

    best: str
    gain: float
    noise: float
    expected_gain: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Everything that ``jax-mtlser compare`` prints and writes.

    Attributes:
        systems: in the order given.
        predictions: compared, by run.
        utterances: different ones among them.
        repeats: their numbers.
        folds: shared folds, by name; empty where the runs were paired by utterance.
        test_train_ratio: of the corrected t-test; None without it.
        cluster_column, cluster_count, cluster_title, cluster_reason: what was resampled, and why.
        level, draws, seed: of the bootstrap.
        pairs: the comparisons, among which Holm's correction was made.
        best_of: by metric; empty for two runs.
        warnings: what makes the numbers surer than they should be.
        notes: what was compared and what was left out.
    """

    systems: list[SystemScores]
    predictions: int
    utterances: int
    repeats: list[int]
    folds: list[str]
    test_train_ratio: float | None
    cluster_column: str
    cluster_count: int
    cluster_title: str
    cluster_reason: str
    level: float
    draws: int
    seed: int
    pairs: list[PairComparison]
    best_of: dict[str, BestOf]
    warnings: list[str]
    notes: list[str]


def compare(
    systems: Sequence[System],
    *,
    cluster: str | None = None,
    all_pairs: bool = False,
    common_only: bool = False,
    draws: int = DRAWS,
    seed: int = 0,
) -> Comparison:
    """Compare runs on the utterances that all of them were tested on.

    Args:
        systems: two or more; the first is the one that the others are compared with.
        cluster: column to resample by; None: see :func:`~jax_mtlser.evaluation.clusters.choose_clusters`.
        all_pairs: every run with every other.
        common_only: leave out utterances that not all were tested on.
        draws, seed: of the bootstrap.

    Raises:
        ComparisonError: fewer than two systems, or other utterances tested.
        ClusterError: the column cannot be resampled by.
    """
    if len(systems) < 2:
        raise ComparisonError("a comparison needs two runs at the least; name another run folder")
    paired = pair(systems, common_only=common_only)
    clusters = choose_clusters(paired.rows, cluster)
    labels = sorted({*paired.reference, *itertools.chain.from_iterable(paired.predicted)})
    confusions = np.array(
        [cluster_confusions(paired.reference, said, clusters.names, labels) for said in paired.predicted]
    )
    pooled = confusion_scores(confusions.sum(axis=1))
    samples = resampled_scores(confusions, draws=draws, seed=seed)
    # With a single fold there is no spread over folds.
    resampled = len(paired.folds) > 1
    ratio, folds = (paired.test_train_ratio(), _fold_scores(paired, labels)) if resampled else (None, None)
    chosen = itertools.combinations(range(len(systems)), 2)
    pairs = [_compare_pair(paired, ab, pooled, samples, folds, ratio) for ab in chosen if all_pairs or ab[0] == 0]
    return Comparison(
        systems=[
            SystemScores(s.name, str(s.path), s.fold_hash, dict(zip(METRICS, map(float, row), strict=True)))
            for s, row in zip(systems, pooled, strict=True)
        ],
        predictions=len(paired.rows),
        utterances=len({row.id for row in paired.rows}),
        repeats=paired.repeats,
        folds=[f"r{repeat}_f{fold}" for repeat, fold in paired.folds],
        test_train_ratio=ratio,
        cluster_column=clusters.column,
        cluster_count=clusters.count,
        cluster_title=clusters.title,
        cluster_reason=clusters.reason,
        level=LEVEL,
        draws=draws,
        seed=seed,
        pairs=_corrected(pairs),
        best_of=_best_of(systems, pooled, samples) if len(systems) > 2 else {},
        warnings=_warnings(clusters, paired, cluster),
        notes=list(paired.notes),
    )


def _fold_scores(paired: Paired, labels: Sequence[str]) -> Float[np.ndarray, "R F 3"]:
    """Scores by system and shared fold, in the order of ``paired.folds``."""
    place = {fold: number for number, fold in enumerate(paired.folds)}
    # Sorted by name, so the numbers are written with leading zeros.
    names = [f"{place[row.repeat, row.fold]:08d}" for row in paired.rows]
    return np.array(
        [confusion_scores(cluster_confusions(paired.reference, said, names, labels)) for said in paired.predicted]
    )


def _compare_pair(
    paired: Paired,
    places: tuple[int, int],
    pooled: Float[np.ndarray, "R 3"],
    samples: Float[np.ndarray, "draws R 3"],
    folds: Float[np.ndarray, "R F 3"] | None,
    ratio: float | None,
) -> PairComparison:
    """One pair, not yet corrected for the number of pairs."""
    a, b = places
    differences = {}
    for column, metric in enumerate(METRICS):
        drawn = samples[:, b, column] - samples[:, a, column]
        p = bootstrap_p(drawn)
        t = None
        if folds is not None and ratio is not None:
            t = corrected_resampled_t(folds[b, :, column] - folds[a, :, column], ratio)
        value = float(pooled[b, column] - pooled[a, column])
        differences[metric] = Difference(value, percentile_interval(drawn), p, p, t, t.p if t else None)
    first, second = paired.predicted[a], paired.predicted[b]
    # One repeat only: counting an utterance once per repeat would pretend that there are more of them.
    own = [(row.emotion == x, row.emotion == y) for row, x, y in zip(paired.rows, first, second, strict=True)
           if row.repeat == paired.repeats[0]]  # fmt: skip
    test = mcnemar(sum(x and not y for x, y in own), sum(y and not x for x, y in own))
    return PairComparison(paired.systems[a].name, paired.systems[b].name, differences, test, test.p)


def _corrected(pairs: Sequence[PairComparison]) -> list[PairComparison]:
    """Holm's correction over the pairs, for each test and metric by itself."""
    corrected: list[dict[str, Difference]] = [{} for _ in pairs]
    for metric in METRICS:
        own = [one.differences[metric] for one in pairs]
        t_values = [d.corrected_t.p if d.corrected_t else None for d in own]
        known = [p for p in t_values if p is not None]
        adjusted_t = iter(holm(known))
        for place, (d, p, t) in enumerate(zip(own, holm([d.p for d in own]), t_values, strict=True)):
            corrected[place][metric] = dataclasses.replace(
                d, p_holm=p, corrected_t_holm=None if t is None else next(adjusted_t)
            )
    adjusted = holm([one.mcnemar.p for one in pairs])
    return [
        dataclasses.replace(one, differences=differences, mcnemar_holm=p)
        for one, differences, p in zip(pairs, corrected, adjusted, strict=True)
    ]


def _best_of(
    systems: Sequence[System], pooled: Float[np.ndarray, "R 3"], samples: Float[np.ndarray, "draws R 3"]
) -> dict[str, BestOf]:
    found = {}
    for column, metric in enumerate(METRICS):
        scores, drawn = pooled[:, column], samples[:, :, column]
        variances = [np.var(drawn[:, b] - drawn[:, a]) for a, b in itertools.combinations(range(len(systems)), 2)]
        noise = float(np.sqrt(np.mean(variances) / 2))
        best = int(scores.argmax())
        gain = float(scores[best] - scores.mean())
        found[metric] = BestOf(systems[best].name, gain, noise, noise * expected_maximum(len(systems)))
    return found


def _warnings(clusters: Clusters, paired: Paired, asked: str | None) -> list[str]:
    if clusters.warning is None:
        return []
    more = {name: count for name, count in cluster_columns(paired.rows).items() if count > clusters.count}
    hint = ""
    if more and asked is None:
        hint = f" Other columns (--cluster): {', '.join(f'{name} ({count:,})' for name, count in more.items())}."
    return [clusters.warning + hint]
