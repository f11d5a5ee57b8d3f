"""Work that padding costs on a corpus' own lengths: buckets by dynamic programming against the usual ways to batch.

    python benchmarks/padding.py --lengths LENGTHS.npz --output benchmarks/results

A factor of 1 means that nothing is padded. Factors are padded samples over true samples, and floating-point
operations of a training step of wav2vec2-base over what the true lengths need (attention grows with the square of the
length). Nothing is timed, so the numbers hold for every machine and framework. Without ``--lengths`` or ``--corpus``
the lengths are drawn from a distribution with IEMOCAP's mean and deviation.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import common
import numpy as np
import workload

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import (
    FILL,
    Buckets,
    PlannedBatch,
    choose_bounds,
    make_buckets,
    plan_epoch,
    plan_in_order,
)
from jax_mtlser.models.flops import training_macs

BUCKETS = tuple(range(1, 25))
TEST_FOLDS = 10
BATCH_SIZES = (2, 8, 32, 128)
DRAWS = 5  # random orders that a factor is the mean of
SHORTEST_BOUND_PERCENTILE = 1  # where geometric bounds start

Cost = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Factor:
    """Padded over true.

    Attributes:
        samples: of audio.
        flops: of a training step.
    """

    samples: float
    flops: float

    def rounded(self) -> dict[str, float]:
        """For JSON."""
        return {"samples": round(self.samples, 4), "flops": round(self.flops, 4)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Count, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_lengths_arguments(parser)
    parser.add_argument("--buckets", type=int, nargs="+", default=BUCKETS, help="numbers of buckets")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    parser.add_argument("--draws", type=int, default=DRAWS)
    options = parser.parse_args(arguments)

    name, lengths = workload.lengths_from(options)
    arch = workload.base_architecture()
    count = Counter(lengths, arch)
    result = {
        "corpus": name,
        "utterances": len(lengths),
        "hours": round(float(lengths.sum()) / SAMPLE_RATE / 3600, 3),
        "draws": options.draws,
        "batch_size_of_buckets": workload.BATCH_SIZE,
        "true_training_tflop_per_epoch": round(2 * float(count.true_flops) / 1e12, 1),
        "default_buckets": len(buckets_of(count, None)),
        "buckets": [bucket_row(count, number) for number in options.buckets],
        "longest_of_batch": [batch_row(count, size, options.draws) for size in options.batch_sizes],
        "all_to_longest": count.padded(np.full(len(lengths), lengths.max())).rounded(),
    }
    common.write(options.output, "padding", result, to_table(result))


class Counter:
    """Work over one corpus.

    Attributes:
        lengths: samples of each utterance.
        arch: whose operations are counted.
        true_flops: MACs that the true lengths need.
    """

    def __init__(self, lengths: np.ndarray, arch: EncoderArchitecture) -> None:
        self.lengths, self.arch = lengths, arch
        self.true_flops = self._macs(lengths).sum()

    def padded(self, bounds: np.ndarray) -> Factor:
        """Factors when each row of a batch is padded to its entry of ``bounds``; rows may outnumber utterances."""
        return Factor(bounds.sum() / self.lengths.sum(), self._macs(bounds).sum() / self.true_flops)

    def _macs(self, lengths: np.ndarray) -> np.ndarray:
        parts = training_macs(self.arch, lengths.astype(np.int64)).values()
        return np.sum([macs.astype(np.float64) for macs in parts], axis=0)


def bucket_row(count: Counter, number: int) -> dict[str, Any]:
    """Our buckets, leftovers of batches, ten random test folds, and two simpler ways to choose bounds."""
    lengths, hop = count.lengths, count.arch.hop()
    best, buckets = choose_bounds(lengths, number, hop), buckets_of(count, number)
    assert buckets.bounds == tuple(best)
    plan = plan_epoch(range(len(lengths)), buckets, seed=0, epoch=0)
    assert sum(int((planned.rows != FILL).sum()) for planned in plan) == len(lengths)
    filled = padded_to(plan, buckets)
    folds = np.array_split(np.random.default_rng(0).permutation(len(lengths)), min(TEST_FOLDS, len(lengths)))
    tested = np.concatenate([padded_to(plan_in_order(fold, buckets), buckets) for fold in folds])
    return {
        "buckets": number,
        "bounds_seconds": [round(bound / SAMPLE_RATE, 2) for bound in buckets.bounds],
        "ours": count.padded(best[buckets.bucket_of]).rounded(),
        "ours_with_filled_rows": count.padded(filled).rounded(),
        "ours_in_test_folds": count.padded(tested).rounded(),
        "steps": len(plan),
        "geometric": in_buckets(count, geometric_bounds(lengths, number, hop)).rounded(),
        "quantile": in_buckets(count, quantile_bounds(lengths, number, hop)).rounded(),
    }


def padded_to(plan: Sequence[PlannedBatch], buckets: Buckets) -> np.ndarray:
    """Of all rows of all batches, those that only fill included."""
    return np.concatenate([np.full(len(planned.rows), buckets.bounds[planned.bucket]) for planned in plan])


def buckets_of(count: Counter, number: int | None) -> Buckets:
    """So many, or as many as a run would choose."""
    return make_buckets(
        count.lengths, np.ones(len(count.lengths), int), num_buckets=number, batch_size=workload.BATCH_SIZE,
        batch_seconds=None, rows_multiple=1, multiple=count.arch.hop(),
    )  # fmt: skip


def in_buckets(count: Counter, bounds: np.ndarray) -> Factor:
    """Factors of given bounds, the last of which covers every utterance."""
    return count.padded(bounds[np.searchsorted(bounds, count.lengths)])


def geometric_bounds(lengths: np.ndarray, number: int, multiple: int) -> np.ndarray:
    """Each bound the same factor above the one before."""
    shortest = np.percentile(lengths, SHORTEST_BOUND_PERCENTILE)
    # One bucket is the longest length, not the first of the sequence.
    return _whole_hops(
        np.geomspace(shortest, lengths.max(), number)[-number:] if number > 1 else [lengths.max()], multiple
    )


def quantile_bounds(lengths: np.ndarray, number: int, multiple: int) -> np.ndarray:
    """Equally many utterances in every bucket."""
    return _whole_hops(np.quantile(lengths, np.arange(1, number + 1) / number), multiple)


def _whole_hops(bounds: Any, multiple: int) -> np.ndarray:
    # The tolerance: geomspace may end a rounding error above the longest utterance.
    return np.unique(np.ceil(np.asarray(bounds) / multiple - 1e-6).astype(np.int64) * multiple)


def batch_row(count: Counter, batch_size: int, draws: int) -> dict[str, Any]:
    """Batches padded to their own longest utterance: in random order, and grouped by length."""
    lengths, random = count.lengths, np.random.Generator(np.random.PCG64([0, batch_size]))
    shuffled, grouped = [], []
    for _ in range(draws):
        order = random.permutation(len(lengths))
        shuffled.append(count.padded(longest_of_batch(lengths[order], batch_size)))
        grouped.append(
            count.padded(longest_of_batch(lengths[workload.length_grouped(lengths, batch_size, order)], batch_size))
        )
    return {
        "batch_size": batch_size,
        "random": mean(shuffled).rounded(),
        "group_by_length": mean(grouped).rounded(),
    }


def longest_of_batch(lengths: np.ndarray, batch_size: int) -> np.ndarray:
    """What each utterance is padded to when neighbours make a batch; the last batch may be smaller."""
    starts = np.arange(0, len(lengths), batch_size)
    return np.repeat(np.maximum.reduceat(lengths, starts), np.diff([*starts, len(lengths)]))


def mean(factors: Sequence[Factor]) -> Factor:
    """Of each of the two."""
    return Factor(*(float(np.mean([getattr(f, field.name) for f in factors])) for field in dataclasses.fields(Factor)))


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    ours = [
        [
            row["buckets"],
            *(f"{row['ours'][kind]:.3f}" for kind in ("samples", "flops")),
            *(f"{row['ours_with_filled_rows'][kind]:.3f}" for kind in ("samples", "flops")),
            f"{row['ours_in_test_folds']['samples']:.3f}",
            *(f"{row[kind]['flops']:.3f}" for kind in ("geometric", "quantile")),
            row["steps"],
        ]
        for row in result["buckets"]
    ]
    batches = [
        [
            row["batch_size"],
            *(f"{row[way][kind]:.3f}" for way in ("random", "group_by_length") for kind in ("samples", "flops")),
        ]
        for row in result["longest_of_batch"]
    ]
    everything = result["all_to_longest"]
    return "\n".join([
        f"Padding on {result['corpus']}: {result['utterances']} utterances, {result['hours']} h. Padded over true "
        "samples, and padded over true floating-point operations of training wav2vec2-base "
        f"({result['true_training_tflop_per_epoch']} TFLOP an epoch without padding; 1 MAC = 2 FLOP).",
        "",
        "Buckets, bounds by dynamic programming; *filled* counts leftovers too: masked rows, and what joins a longer "
        f"bucket (batches of {result['batch_size_of_buckets']}). A run that names no number takes {result['default_buckets']}:",
        "",
        common.table(
            ["buckets", "samples", "FLOPs", "samples, filled", "FLOPs, filled", "samples, ten test folds",
             "FLOPs, geometric bounds", "FLOPs, equal counts", "steps"],
            ours,
        ),
        f"Batches padded to their longest utterance, mean of {result['draws']} random orders; grouped by length as "
        f"transformers' Trainer does it (sorted within {workload.MEGABATCH} batches):",
        "",
        common.table(
            ["batch", "random, samples", "random, FLOPs", "grouped, samples", "grouped, FLOPs"], batches
        ),
        f"Everything padded to the longest utterance: {everything['samples']:.2f}x samples, "
        f"{everything['flops']:.2f}x FLOPs.",
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
