"""Relative position bias of WavLM's attention: one table of buckets for all layers, which each layer gates."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_mtlser.architecture import Wav2Vec2Architecture

__all__ = ["RelativePosition", "distance_buckets"]


class RelativePosition(nn.Module):
    """Bias of every key position for every query position, before gating; float32."""

    arch: Wav2Vec2Architecture

    @nn.compact
    def __call__(self, num_frames: int) -> Float[Array, "H T T"]:
        arch, frames = self.arch, num_frames
        init = jax.nn.initializers.normal(arch.initializer_range)
        table = self.param("embedding", init, (arch.num_buckets, arch.num_attention_heads))
        if not isinstance(frames, int):
            return self._of_any_length(table, frames)
        # Distances 0 .. T-1, one entry that is never read, then -(T-1) .. -1.
        distances = np.concatenate([np.arange(frames), np.arange(-frames, 0)])
        by_distance = table[distance_buckets(distances, arch.num_buckets, arch.max_bucket_distance)].T
        # Row i of a [T, 2T - 1] view of the repeated line starts i entries earlier: entry (i, j) is distance j - i.
        # Unlike a gather of [T, T] indices, this has a cheap gradient.
        line = jnp.tile(by_distance, (1, frames))[:, : frames * (2 * frames - 1)]
        return line.reshape(arch.num_attention_heads, frames, 2 * frames - 1)[:, :, :frames]

    def _of_any_length(self, table: Float[Array, "N H"], frames: Any) -> Float[Array, "H T T"]:
        """The same for a symbolic number of frames (an exported program): a gather, which needs no gradient there."""
        arch, farthest = self.arch, self.arch.max_bucket_distance
        known = distance_buckets(np.arange(-farthest, farthest + 1), arch.num_buckets, farthest)
        places = jnp.arange(frames)
        distances = jnp.clip(places[None, :] - places[:, None], -farthest, farthest)
        return jnp.moveaxis(table[jnp.asarray(known)[distances + farthest]], -1, 0)


def distance_buckets(distances: np.ndarray, num_buckets: int, max_distance: int) -> np.ndarray:
    """The bucket of each distance (key minus query) as in T5: near ones exactly, far ones on a logarithmic scale.

    Args:
        distances: in frames.
        num_buckets: half for keys at or before the query, half for those behind it.
        max_distance: from here on, all distances of one sign share a bucket.
    """
    half = num_buckets // 2
    exact = half // 2
    far = np.abs(distances)
    # In float32, as the reference implementation: a bucket's edge must not move by rounding.
    steps = np.log(np.maximum(far, 1).astype(np.float32) / np.float32(exact))
    steps = steps / np.float32(np.log(max_distance / exact)) * np.float32(half - exact)
    logarithmic = np.minimum((np.float32(exact) + steps).astype(np.int64), half - 1)
    return np.where(distances > 0, half, 0) + np.where(far < exact, far, logarithmic)
