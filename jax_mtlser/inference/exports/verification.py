"""An export judged beside the model it was made of, on the same audio in the same run."""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32

from jax_mtlser.inference.exports.formats import ExportError, Judge
from jax_mtlser.inference.exports.recordings import Spoken, Utterances

__all__ = ["Verified", "verify"]

_BATCH = 4  # rows of the batch that checks batches
_SPARE = 320  # samples of padding behind the longest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verified:
    """What was measured.

    Attributes:
        utterances: how many.
        source: where they are from.
        difference: largest of a probability.
        limit: that it must keep.
        agreement: share of utterances with the same most probable emotion.
        accuracy: (of the model, of the export); None where no emotion is known.
        milliseconds: per utterance, (of the model, of the export), on this machine, in this run, one after the other.
        stored: largest difference of the model from what training wrote down; None for other recordings.
        batch: rows of the largest batch that was checked.
    """

    utterances: int
    source: str
    difference: float
    limit: float
    agreement: float
    accuracy: tuple[float, float] | None
    milliseconds: tuple[float, float]
    stored: float | None
    batch: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)


def verify(
    model: Judge,
    exported: Judge,
    utterances: Utterances,
    emotions: Sequence[str],
    *,
    temperature: float,
    limit: float,
    bounds: tuple[int, int | None],
    fixed: tuple[int, int] | None = None,
) -> Verified:
    """Compare an export with its model.

    All are padded to one length and judged one at a time; then some together, in a batch of another length. So an
    export that works for one shape only, or lets padding in, is found out.

    Args:
        model, exported: what is compared.
        utterances: to judge.
        emotions: names of the classes.
        temperature: of the model.
        limit: of the difference.
        bounds: samples of the shortest and longest padded input; None: no limit.
        fixed: rows and samples of the only shape that the export takes; None: any.

    Raises:
        ExportError: the export differs by more than its limit, or gives something that is no probability.
    """
    spoken = utterances.spoken
    shortest, longest = bounds

    def padded(length: int) -> int:
        return max(shortest, length if longest is None else min(length, longest))

    if fixed is None:
        batches = [(1, padded(len(spoken[-1].samples)), spoken)]
        together = spoken[:: max(1, len(spoken) // _BATCH)][:_BATCH]
        checked = [(len(together), padded(len(together[-1].samples) + _SPARE), together)] if len(together) > 1 else []
    else:
        batches, checked = [(*fixed, spoken)], []
    ours, our_seconds = _judged(model, batches)
    theirs, their_seconds = _judged(exported, batches)
    pairs = [(ours, theirs)]
    if checked:
        pairs.append((_judged(model, checked)[0], _judged(exported, checked)[0]))
    if not all(np.isfinite(other).all() and one.shape == other.shape for one, other in pairs):
        raise ExportError("the export gives something that is no probability of each emotion")
    difference = max(float(np.abs(one - other).max()) for one, other in pairs)
    if difference > limit:
        raise ExportError(
            f"the export differs from the model by {difference:.2g} in a probability, and its limit is {limit:g}; it is "
            "not kept. Weights in more bits (--weights) are closer to the model, and in stablehlo only weights are stored in "
            "few bits, while in onnx int8 products are computed in them"
        )
    order = [one for _, _, part in batches for one in part]
    named = [(row, one.emotion) for row, one in enumerate(order) if one.emotion in emotions]
    accuracy = None
    if named:
        rows, references = [row for row, _ in named], np.array([emotions.index(str(name)) for _, name in named])
        accuracy = (
            float(np.mean(ours[rows].argmax(1) == references)),
            float(np.mean(theirs[rows].argmax(1) == references)),
        )
    return Verified(
        utterances=len(order),
        source=utterances.source,
        difference=difference,
        limit=limit,
        agreement=float(np.mean(ours.argmax(1) == theirs.argmax(1))),
        accuracy=accuracy,
        milliseconds=(1e3 * our_seconds / len(order), 1e3 * their_seconds / len(order)),
        stored=_from_stored(ours, order, temperature),
        batch=max(rows for rows, *_ in batches + checked),
    )


def _judged(
    judge: Judge, batches: Sequence[tuple[int, int, Sequence[Spoken]]]
) -> tuple[Float32[np.ndarray, "N C"], float]:
    """Probabilities of all utterances in order, and the seconds that took without compilation."""
    found, seconds = [], 0.0
    for rows, length, spoken in batches:
        inputs = [_batch(spoken[i : i + rows], rows, length) for i in range(0, len(spoken), rows)]
        judge(*inputs[0])  # compiles
        start = time.perf_counter()
        results = [judge(*batch) for batch in inputs]
        seconds += time.perf_counter() - start
        found.append(np.concatenate(results)[: len(spoken)])
    return np.concatenate(found), seconds


def _batch(spoken: Sequence[Spoken], rows: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    samples, lengths = np.zeros((rows, length), np.float32), np.zeros(rows, np.int32)
    for row, one in enumerate(spoken):
        # Conversion of a longest recording's rate may round one sample up.
        lengths[row] = min(len(one.samples), length)
        samples[row, : lengths[row]] = one.samples[:length]
    return samples, lengths


def _from_stored(ours: np.ndarray, order: Sequence[Spoken], temperature: float) -> float | None:
    """Training wrote probabilities without the temperature."""
    rows = [row for row, one in enumerate(order) if one.said is not None and one.said.emotion_probabilities]
    if not rows:
        return None
    before = np.array([order[row].said.emotion_probabilities for row in rows])  # type: ignore[union-attr]
    sharpened = np.maximum(before, 1e-30) ** (1 / temperature)
    return float(np.abs(ours[rows] - sharpened / sharpened.sum(axis=1, keepdims=True)).max())
