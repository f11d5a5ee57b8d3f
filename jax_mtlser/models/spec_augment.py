"""SpecAugment on encoder frames (Park et al. 2019), inside the compiled step and safe for short clips."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_mtlser.architecture import EncoderArchitecture

__all__ = ["span_mask", "spec_augment"]


def spec_augment(
    key: Key[Array, ""],
    x: Float[Array, "B N D"],
    lengths: Int[Array, " B"],
    arch: EncoderArchitecture,
    fill: Float[Array, " D"] | None,
) -> Float[Array, "B N D"]:
    """Mask spans of time with ``fill`` (None: zeros) and spans of channels with zeros, as ``arch`` asks."""
    time_key, channel_key = jax.random.split(key)
    if arch.mask_time_prob > 0:
        masked = span_mask(
            time_key, lengths, x.shape[1],
            probability=arch.mask_time_prob, span=arch.mask_time_length, min_spans=arch.mask_time_min_masks,
        )  # fmt: skip
        x = jnp.where(masked[..., None], 0 if fill is None else fill.astype(x.dtype)[None, None], x)
    if arch.mask_feature_prob > 0:
        masked = span_mask(
            channel_key, jnp.full_like(lengths, x.shape[2]), x.shape[2],
            probability=arch.mask_feature_prob, span=arch.mask_feature_length, min_spans=arch.mask_feature_min_masks,
        )  # fmt: skip
        x = jnp.where(masked[:, None, :], 0, x)
    return x


def span_mask(
    key: Key[Array, ""],
    lengths: Int[Array, " B"],
    size: int,
    *,
    probability: float,
    span: int,
    min_spans: int,
) -> Bool[Array, "B N"]:
    """Random spans along an axis of ``size`` positions, of which the first ``lengths`` exist.

    As in wav2vec 2.0's fine-tuning, a row gets ``probability * length / span`` spans, rounded up or down at
    random, at least ``min_spans``; their starts are distinct, and spans may overlap. A row gets no more spans
    than it has room for: none when it is shorter than one span (the reference implementation raises then).

    Args:
        key: of this mask.
        lengths: positions that exist, by row.
        size: positions of the axis.
        probability: upper bound of the masked share.
        span: positions in a span.
        min_spans: of every row that has room for them.

    Returns:
        True where the position is masked.
    """
    round_key, start_key = jax.random.split(key)
    rows = lengths.shape[0]
    most = min(max(int(probability * size / span + 1), min_spans), size // span)
    if most == 0:
        return jnp.zeros((rows, size), bool)
    wanted = jnp.floor(probability * lengths / span + jax.random.uniform(round_key, ())).astype(jnp.int32)
    starts_available = jnp.maximum(lengths - span + 1, 0)
    count = jnp.minimum(jnp.maximum(wanted, min_spans), jnp.minimum(lengths // span, starts_available))
    # The largest of independent random scores are a uniform choice without replacement.
    scores = jax.random.uniform(start_key, (rows, size))
    scores = jnp.where(jnp.arange(size)[None] < starts_available[:, None], scores, -1.0)
    starts = jax.lax.top_k(scores, most)[1]
    chosen = jnp.arange(most)[None] < count[:, None]
    offset = jnp.arange(size)[None, None, :] - starts[..., None]
    return jnp.any((offset >= 0) & (offset < span) & chosen[..., None], axis=1)
