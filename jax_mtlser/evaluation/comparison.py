"""Runs compared on the same test utterances: differences, their intervals, and tests corrected for their number."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from jax_mtlser.evaluation.clusters import Clusters, choose_clusters, cluster_columns
from jax_mtlser.evaluation.paired_runs import ComparisonError, Paired, System, pair
from jax_mtlser.evaluation.statistics import (
    DRAWS,
    LEVEL,
    METRICS,
    CorrectedT,
    Interval,
    McNemar,
    cluster_confusions,
    confusion_scores,
    corrected_resampled_t,
    expected_maximum,
    holm,
    mcnemar,
    percentile_interval,
    resampled_scores,
    swap_p,
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
        p: of swapping the runs in whole clusters.
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
        level, draws, seed: of the bootstrap and of swapping.
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
        draws, seed: of the bootstrap and of swapping.

    Raises:
        ComparisonError: fewer than two systems, or other utterances tested.
        ClusterError: the column cannot be resampled by.
    """
    if len(systems) < 2:
        raise ComparisonError("a comparison needs two runs at the least; name another run folder")
    paired = pair(systems, common_only=common_only)
    clusters = choose_clusters(paired.rows, cluster)
    evidence = _Evidence.of(paired, clusters, draws=draws, seed=seed)
    places = itertools.combinations(range(len(systems)), 2)
    pairs = [evidence.compare(a, b) for a, b in places if all_pairs or a == 0]
    return Comparison(
        systems=[
            SystemScores(s.name, str(s.path), s.fold_hash, dict(zip(METRICS, map(float, row), strict=True)))
            for s, row in zip(systems, evidence.pooled, strict=True)
        ],
        predictions=len(paired.rows),
        utterances=len({row.id for row in paired.rows}),
        repeats=paired.repeats,
        folds=[f"r{repeat}_f{fold}" for repeat, fold in paired.folds],
        test_train_ratio=evidence.test_train_ratio,
        cluster_column=clusters.column,
        cluster_count=clusters.count,
        cluster_title=clusters.title,
        cluster_reason=clusters.reason,
        level=LEVEL,
        draws=draws,
        seed=seed,
        pairs=_corrected(pairs),
        best_of=evidence.best_of() if len(systems) > 2 else {},
        warnings=_warnings(clusters, paired, cluster),
        notes=list(paired.notes),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Evidence:
    """What every pair is judged by.

    Attributes:
        paired: the runs' predictions.
        confusions: by system and cluster.
        pooled: scores by system.
        samples: bootstrapped scores by draw and system.
        fold_scores: by system and shared fold; None where there are not two of them.
        test_train_ratio: None likewise.
        draws, seed: of the bootstrap and of swapping.
    """

    paired: Paired
    confusions: Int[np.ndarray, "R G C C"]
    pooled: Float[np.ndarray, "R 3"]
    samples: Float[np.ndarray, "draws R 3"]
    fold_scores: Float[np.ndarray, "R F 3"] | None
    test_train_ratio: float | None
    draws: int
    seed: int

    @classmethod
    def of(cls, paired: Paired, clusters: Clusters, *, draws: int, seed: int) -> "_Evidence":
        reference = paired.reference
        labels = sorted({*reference, *itertools.chain.from_iterable(paired.predicted)})

        def divided(names: Sequence[str]) -> Int[np.ndarray, "R G C C"]:
            return np.array([cluster_confusions(reference, said, names, labels) for said in paired.predicted])

        confusions = divided(clusters.names)
        resampled = len(paired.folds) > 1
        return cls(
            paired=paired,
            confusions=confusions,
            pooled=confusion_scores(confusions.sum(axis=1)),
            samples=resampled_scores(confusions, draws=draws, seed=seed),
            fold_scores=confusion_scores(divided([f"r{row.repeat}_f{row.fold}" for row in paired.rows]))
            if resampled
            else None,
            test_train_ratio=paired.test_train_ratio() if resampled else None,
            draws=draws,
            seed=seed,
        )

    def compare(self, a: int, b: int) -> PairComparison:
        """Two systems by number, not yet corrected for the number of pairs."""
        p_values = swap_p(self.confusions[a], self.confusions[b], draws=self.draws, seed=self.seed)
        differences = {}
        for column, metric in enumerate(METRICS):
            t = self._corrected_t(a, b, column)
            p = float(p_values[column])
            differences[metric] = Difference(
                value=float(self.pooled[b, column] - self.pooled[a, column]),
                interval=percentile_interval(self.samples[:, b, column] - self.samples[:, a, column]),
                p=p,
                p_holm=p,
                corrected_t=t,
                corrected_t_holm=t.p if t else None,
            )
        test = self._mcnemar(a, b)
        return PairComparison(self.paired.systems[a].name, self.paired.systems[b].name, differences, test, test.p)

    def _corrected_t(self, a: int, b: int, column: int) -> CorrectedT | None:
        if self.fold_scores is None or self.test_train_ratio is None:
            return None
        by_fold = self.fold_scores[b, :, column] - self.fold_scores[a, :, column]
        return corrected_resampled_t(by_fold.tolist(), self.test_train_ratio)

    def _mcnemar(self, a: int, b: int) -> McNemar:
        """On one repeat: counting an utterance once for each would pretend that there are more of them."""
        repeat = self.paired.repeats[0]
        right = [
            (row.emotion == first, row.emotion == second)
            for row, first, second in zip(
                self.paired.rows, self.paired.predicted[a], self.paired.predicted[b], strict=True
            )
            if row.repeat == repeat
        ]
        return mcnemar(sum(x and not y for x, y in right), sum(y and not x for x, y in right))

    def best_of(self) -> dict[str, BestOf]:
        found = {}
        names, count = [system.name for system in self.paired.systems], len(self.pooled)
        for column, metric in enumerate(METRICS):
            scores, drawn = self.pooled[:, column], self.samples[:, :, column]
            variances = [np.var(drawn[:, b] - drawn[:, a]) for a, b in itertools.combinations(range(count), 2)]
            noise = float(np.sqrt(np.mean(variances) / 2))
            best = int(scores.argmax())
            gain = float(scores[best] - scores.mean())
            found[metric] = BestOf(names[best], gain, noise, noise * expected_maximum(count))
        return found


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


def _warnings(clusters: Clusters, paired: Paired, asked: str | None) -> list[str]:
    if clusters.warning is None:
        return []
    more = {name: count for name, count in cluster_columns(paired.rows).items() if count > clusters.count}
    hint = ""
    if more and asked is None:
        hint = f" Other columns (--cluster): {', '.join(f'{name} ({count:,})' for name, count in more.items())}."
    return [clusters.warning + hint]
