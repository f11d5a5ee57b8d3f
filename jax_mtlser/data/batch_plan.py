"""Which utterances go together at which padded length: pure functions of (durations, seed, epoch).

A bucket is a padded length. Its bound, the number of utterances in its batches and the width of its transcript matrix
are fixed for a run, so that each bucket is one compiled program of training and one of evaluation. The order of batches
follows from (seed, epoch) alone, so a run can resume from its step number.
"""

import collections
import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from jax_mtlser.data.audio import SAMPLE_RATE

__all__ = [
    "FILL",
    "Buckets",
    "PlanError",
    "PlannedBatch",
    "choose_bounds",
    "digest",
    "make_buckets",
    "plan_epoch",
    "plan_in_order",
    "plan_together",
    "rows_within",
]

FILL = -1  # row number that only fills the last batch of a bucket

_TRANSCRIPT_MULTIPLE = 8
# How many buckets there are where nobody says, whatever the machine, so that they are the same on all. On a CPU of two
# cores, a bucket's two programs take about as long to compile as four to eight batches of 8 take to train, so that a bucket
# pays within two epochs; on an H200, where they take as long as a thousand batches, within two or three of the paper's folds
# of 100 epochs.
_WORTH_BATCHES = 4.0
_MOST_BUCKETS = 24


class PlanError(ValueError):
    """Batches that cannot be formed; the message names the numbers and the fix."""


@dataclasses.dataclass(frozen=True)
class Buckets:
    """The padded shapes of a run.

    Attributes:
        bounds: padded length of each bucket in samples, ascending.
        batch_sizes: utterances in each bucket's batches.
        transcript_widths: symbols in each bucket's transcript matrix, ascending.
        bucket_of: [rows] the first bucket that holds each utterance of the corpus.
        joins: leftovers may join longer utterances; not where what an utterance gives depends on its padding.
    """

    bounds: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    transcript_widths: tuple[int, ...]
    bucket_of: np.ndarray
    joins: bool = True

    def __len__(self) -> int:
        return len(self.bounds)


@dataclasses.dataclass(frozen=True)
class PlannedBatch:
    """One batch.

    Attributes:
        bucket: its shape.
        rows: int64 [B] utterances of the corpus; ``FILL`` in rows that are masked.
    """

    bucket: int
    rows: np.ndarray

    @property
    def empty(self) -> bool:
        """Whether it has no utterance."""
        return bool(np.all(self.rows == FILL))

    def emptied(self) -> "PlannedBatch":
        """The same shape without utterances."""
        return PlannedBatch(self.bucket, np.full_like(self.rows, FILL))


def choose_bounds(lengths: np.ndarray, num_buckets: int, multiple: int = 1, worth: float = 0.0) -> np.ndarray:
    """Bucket bounds with the least total padding.

    Dynamic programming over the distinct lengths: ``best[b, j]`` is the least padded total of the ``j``
    shortest lengths in ``b`` buckets, the last of which ends at length ``j``.

    Args:
        lengths: of all utterances, in samples.
        num_buckets: at most so many bounds are returned; fewer when there are fewer distinct lengths.
        multiple: bounds are multiples of this.
        worth: samples of padding that a further bucket must save.

    Returns:
        int64 bounds in ascending order; the last covers the longest utterance.
    """
    candidates, counts = np.unique(-(-np.asarray(lengths, np.int64) // multiple) * multiple, return_counts=True)
    size = len(candidates)
    num_buckets = min(num_buckets, size)
    below = np.concatenate([[0], np.cumsum(counts)])
    best = np.full(size + 1, np.inf)
    best[0] = 0
    choices = np.zeros((num_buckets, size + 1), np.int64)
    costs = []
    for bucket in range(num_buckets):
        following = np.full(size + 1, np.inf)
        for j in range(1, size + 1):
            totals = best[:j] + (below[j] - below[:j]) * candidates[j - 1]
            choices[bucket, j] = i = int(totals.argmin())
            following[j] = totals[i]
        best = following
        costs.append(best[size] + bucket * worth)
    bounds, j = [], size
    for bucket in reversed(range(int(np.argmin(costs)) + 1)):
        bounds.append(candidates[j - 1])
        j = choices[bucket, j]
    return np.array(bounds[::-1])


def make_buckets(
    lengths: np.ndarray,
    transcript_lengths: np.ndarray,
    *,
    num_buckets: int | None,
    batch_size: int,
    batch_seconds: float | None,
    rows_multiple: int,
    multiple: int,
    joins: bool = True,
) -> Buckets:
    """Fix the shapes of a run from the whole corpus, so that all folds share their compiled programs.

    Args:
        lengths: samples of each utterance.
        transcript_lengths: symbols of each utterance.
        num_buckets: number of padded lengths; None: as many as each save the padding of four batches an epoch, at most 24.
        batch_size: utterances per batch, used when ``batch_seconds`` is None.
        batch_seconds: padded seconds per batch.
        rows_multiple: batch sizes are multiples of this (devices times accumulation steps).
        multiple: bounds are multiples of this (the encoder's hop).
        joins: see :class:`Buckets`.

    Raises:
        PlanError: a batch that does not divide over devices and accumulation steps, or too few seconds for a row on each.
    """
    worth = 0.0
    if num_buckets is None:
        batch = batch_size * float(np.mean(lengths)) if batch_seconds is None else batch_seconds * SAMPLE_RATE
        num_buckets, worth = _MOST_BUCKETS, _WORTH_BATCHES * batch
    bounds = choose_bounds(lengths, num_buckets, multiple, worth)
    bucket_of = np.searchsorted(bounds, lengths)
    if batch_seconds is None:
        if batch_size % rows_multiple:
            fits = batch_size - batch_size % rows_multiple
            options = f"{fits} or {fits + rows_multiple}" if fits else f"{rows_multiple}"
            raise PlanError(
                f"batch_size {batch_size} does not divide over {rows_multiple} devices x accumulation steps; use {options}"
            )
        sizes = [batch_size] * len(bounds)
    else:
        sizes = [rows_within(batch_seconds, bound) // rows_multiple * rows_multiple for bound in bounds.tolist()]
        if min(sizes) == 0:
            needed = math.ceil(100 * rows_multiple * bounds[-1] / SAMPLE_RATE) / 100
            raise PlanError(
                f"batch_seconds {batch_seconds} holds fewer than {rows_multiple} utterances (devices x accumulation "
                f"steps) of {bounds[-1] / SAMPLE_RATE:.2f} s; use at least {needed:.2f}"
            )
    widths = []
    for bucket in range(len(bounds)):
        longest = int(transcript_lengths[bucket_of <= bucket].max(initial=1))  # leftovers of shorter ones come along
        widths.append(-(-longest // _TRANSCRIPT_MULTIPLE) * _TRANSCRIPT_MULTIPLE)
    return Buckets(tuple(int(bound) for bound in bounds), tuple(sizes), tuple(widths), bucket_of, joins)


def rows_within(seconds: float, bound: int) -> int:
    """Utterances of ``bound`` samples that padded ``seconds`` hold."""
    return round(seconds * SAMPLE_RATE) // bound


def plan_epoch(rows: Sequence[int] | np.ndarray, buckets: Buckets, *, seed: int, epoch: int) -> list[PlannedBatch]:
    """The batches of one epoch: each utterance once, shuffled within its bucket, buckets in random turns.

    Which utterances are left over, and so may join longer ones, is random too.
    ``seed`` decides which utterances go together. When it is a bucket's turn follows from the epoch alone, so that
    trainings on different utterances can go through one epoch together: see :func:`plan_together`.
    """
    return [batch for (batch,) in plan_together([rows], buckets, seeds=[seed], epoch=epoch)]


def plan_together(
    rows_of: Sequence[Sequence[int] | np.ndarray], buckets: Buckets, *, seeds: Sequence[int], epoch: int
) -> list[tuple[PlannedBatch, ...]]:
    """One epoch of several trainings at once: at each step, all are in the same bucket.

    A training that has used up its batches of a bucket misses that bucket's further turns: its batch there holds only
    ``FILL``. Otherwise it meets the batches of its own :func:`plan_epoch`, in that order.

    Args:
        rows_of: utterances of each training.
        buckets: the shapes, common to all.
        seeds: of each training.
        epoch: number.
    """
    numbered: list[dict[tuple[int, int], PlannedBatch]] = []
    for rows, seed in zip(rows_of, seeds, strict=True):
        shuffled = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(np.asarray(rows, np.int64))
        seen: collections.Counter[int] = collections.Counter()
        numbered.append({})
        for batch in _in_buckets(shuffled, buckets):
            numbered[-1][batch.bucket, seen[batch.bucket]] = batch
            seen[batch.bucket] += 1
    turns = sorted(set().union(*numbered))
    moments: dict[tuple[int, int], float] = {}
    for bucket, count in collections.Counter(bucket for bucket, _ in turns).items():
        # The first n numbers of a stream are the same for every n: a training with fewer batches misses the last ones.
        drawn = np.random.Generator(np.random.PCG64([epoch, bucket])).random(count)
        moments |= {(bucket, number): moment for number, moment in enumerate(drawn.tolist())}

    def missed(bucket: int) -> PlannedBatch:
        return PlannedBatch(bucket, np.full(buckets.batch_sizes[bucket], FILL, np.int64))

    turns.sort(key=moments.__getitem__)
    return [tuple(batches.get(turn) or missed(turn[0]) for batches in numbered) for turn in turns]


def plan_in_order(rows: Sequence[int] | np.ndarray, buckets: Buckets, *, singles: bool = False) -> list[PlannedBatch]:
    """The batches of an evaluation: each utterance once, bucket by bucket.

    Args:
        rows: utterances.
        buckets: the shapes.
        singles: an utterance that would have a batch for itself is a batch of one row instead.
    """
    return _in_buckets(np.asarray(rows, np.int64), buckets, singles=singles)


def digest(plan: Sequence[PlannedBatch]) -> str:
    """What tells these batches, in this order, from others."""
    found = hashlib.sha256()
    for batch in plan:
        found.update(np.array([batch.bucket, *batch.rows], np.int64).tobytes())
    return found.hexdigest()


def _in_buckets(rows: np.ndarray, buckets: Buckets, *, singles: bool = False) -> list[PlannedBatch]:
    """Full batches of each bucket, whose leftover has a batch of its own or joins longer utterances, as pads least in all."""
    members_of = [rows[buckets.bucket_of[rows] == bucket] for bucket in range(len(buckets))]
    joins = _joining([len(members) for members in members_of], buckets, singles)
    batches, leftover = [], rows[:0]
    for bucket, size in enumerate(buckets.batch_sizes):
        stays = not joins[bucket][len(leftover)]
        members = np.concatenate([leftover, members_of[bucket]])
        whole = len(members) // size * size
        batches += [PlannedBatch(bucket, batch) for batch in members[:whole].reshape(-1, size)]
        leftover = members[whole:]
        if len(leftover) and stays:
            missing = 0 if singles and len(leftover) == 1 else size - len(leftover)
            batches.append(PlannedBatch(bucket, np.pad(leftover, (0, missing), constant_values=FILL)))
            leftover = rows[:0]
    return batches


def _joining(counts: Sequence[int], buckets: Buckets, singles: bool) -> list[dict[int, bool]]:
    """Whether a bucket's leftover joins the next one's utterances, by how many have joined this one: as pads least in all.

    Args:
        counts: utterances of each bucket.
        buckets: the shapes.
        singles: see :func:`plan_in_order`.
    """
    # How many may come along from shorter buckets, in front of each and behind the last.
    arriving = [{0}]
    for count, size in zip(counts, buckets.batch_sizes, strict=True):
        arriving.append({0} | ({(joining + count) % size for joining in arriving[-1]} if buckets.joins else set()))
    padded = {joining: math.inf if joining else 0.0 for joining in arriving.pop()}  # of all buckets behind
    found: list[dict[int, bool]] = []
    shapes = zip(counts, buckets.batch_sizes, buckets.bounds, arriving, strict=True)
    for count, size, bound, joined in reversed(list(shapes)):
        decided, least = {}, {}
        for joining in joined:
            full, left = divmod(joining + count, size)
            filled = 1 if singles and left == 1 else size if left else 0
            alone, along = (full * size + filled) * bound + padded[0], full * size * bound + padded.get(left, math.inf)
            decided[joining], least[joining] = along < alone, min(alone, along)
        found.append(decided)
        padded = least
    return found[::-1]
