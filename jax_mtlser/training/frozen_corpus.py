"""The corpus as the frozen part of the encoder hears it: computed once, before the first step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jax_mtlser.data.batch_plan import FILL, plan_in_order
from jax_mtlser.data.batches import BatchSource, prefetch
from jax_mtlser.training.sharding import CompiledSteps

__all__ = ["frozen_corpus"]


def frozen_corpus(
    steps: CompiledSteps, source: BatchSource, encoder: Any, progress: Callable[[int, int], None]
) -> tuple[np.ndarray, ...]:
    """Frames of all utterances, one after another at ``source.frame_offsets``.

    Args:
        steps: with compiled ``frozen`` programs.
        source: with ``frame_offsets``.
        encoder: parameters of the encoder, on the devices.
        progress: called with (utterances done, all utterances).

    Returns:
        [total, C] in the type of the compute, one array or one for each layer, with room behind the last utterance
        for the longest bucket.
    """
    assert source.frame_offsets is not None
    counts = steps.spec.model.arch.num_frames(source.audio.lengths)
    corpus: list[np.ndarray] = []
    done, ready = 0, steps.ready({"encoder": encoder})["encoder"]
    batches = plan_in_order(range(len(source.audio)), source.buckets)
    for planned, samples in prefetch(lambda p: steps.put_batch(source.samples(p)), batches):
        frames = jax.device_get(steps.freeze(planned.bucket, ready, *samples))
        if not corpus:
            total = steps.resident_frames
            assert total is not None
            corpus = [np.zeros((total, leaf.shape[-1]), leaf.dtype) for leaf in frames]
        for place, row in enumerate(planned.rows):
            if row != FILL:
                start, count = source.frame_offsets[row], counts[row]
                for flat, leaf in zip(corpus, frames, strict=True):
                    flat[start : start + count] = leaf[place, :count]
                done += 1
        progress(done, len(source.audio))
    return tuple(corpus)
