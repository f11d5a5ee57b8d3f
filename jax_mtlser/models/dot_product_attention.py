"""Softmax attention: shares of the values by the likeness of queries and keys, with a gradient written by hand.

The frames that one frame attends to are as many as there are frames, so the arrays of shares are the largest of a
transformer, and every pass over them counts. Two identities save passes. Dividing by the sum of a row commutes with the
weighted sum of values, so only the small result is divided. And what the division contributes to the gradient is the
result times its cotangent (Dao et al. 2022, "FlashAttention", appendix B), so the backward pass sums nothing over the
large arrays and is done with them in one pass.
"""

import functools

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Key

from jax_mtlser.models import products
from jax_mtlser.models.dropout import dropout, dropout_factor, dropout_words

__all__ = ["dot_product_attention"]

# From here on, what attention would keep for its gradient is most of what a layer keeps, and is computed again instead.
_MANY_FRAMES = 1000
_SCORES, _WEIGHTED_SUM = "bqhe,bkhe->bhqk", "bhqk,bkhe->bqhe"


def dot_product_attention(
    query: Float[Array, "B T H E"],
    key: Float[Array, "B T H E"],
    value: Float[Array, "B T H E"],
    mask: Bool[Array, "B T"],
    dtype: DTypeLike,
    *,
    gate: Float[Array, "B H T"] | None = None,
    relative_position: Float[Array, "H T T"] | None = None,
    dropout_rate: float = 0.0,
    dropout_key: Key[Array, ""] | None = None,
) -> Float[Array, "B T H E"]:
    """Values averaged by ``softmax(query . key + gate * relative_position)`` over the frames of the mask.

    Args:
        query: scaled already.
        key, value: of the frames that may be attended to.
        mask: True for frames that are no padding. A row of padding only attends to all frames alike.
        dtype: of products and of the result; sums of exponentials are float32.
        gate, relative_position: their product, a row of the one for each query, is added to the scores in float32; both
            None for scores as they are.
        dropout_rate: share of the shares that is dropped.
        dropout_key: None when nothing is dropped.

    Raises:
        ValueError: one of gate and relative_position without the other.
    """
    if (gate is None) != (relative_position is None):
        given = "relative_position" if gate is None else "gate"
        raise ValueError(f"{given} was given alone; attention takes gate and relative_position both, or neither")

    def attend(query: Array, key: Array, value: Array, gate: Array | None, relative_position: Array | None) -> Array:
        scores = products.einsum(_SCORES, query, key, dtype)
        if gate is not None and relative_position is not None:
            # In here: what goes into a checkpointed function is kept, and each layer's product would be as large as scores.
            scores = scores.astype(jnp.float32) + gate[..., None] * relative_position[None]
        if products.is_plain():
            shares = jax.nn.softmax(_masked(scores, mask), axis=-1).astype(dtype)
            return products.einsum(_WEIGHTED_SUM, dropout(shares, dropout_rate, dropout_key), value, dtype)
        words = dropout_words(dropout_rate, dropout_key)
        return _average(scores, value.astype(dtype), mask, words, dropout_rate)

    frames = query.shape[1]
    if isinstance(frames, int) and frames > _MANY_FRAMES and not products.is_plain():
        attend = jax.checkpoint(attend)
    return attend(query, key, value, gate, relative_position)


def _masked(scores: Float[Array, "B H T T"], mask: Bool[Array, "B T"]) -> Float[Array, "B H T T"]:
    # A finite value: a row of padding only (all keys masked) must stay finite too.
    return jnp.where(mask[:, None, None, :], scores.astype(jnp.float32), jnp.finfo(jnp.float32).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _average(scores: Array, value: Array, mask: Array, words: Array | None, rate: float) -> Array:
    return _average_forward(scores, value, mask, words, rate)[0]


def _average_forward(
    scores: Array, value: Array, mask: Array, words: Array | None, rate: float
) -> tuple[Array, tuple[Array | None, ...]]:
    masked = _masked(scores, mask)
    exponentials = jnp.exp(masked - jnp.max(masked, axis=-1, keepdims=True)).astype(value.dtype)
    if not products.on_cpu():
        # All that follows reads these: without the barrier XLA would write them out in float32.
        exponentials = jax.lax.optimization_barrier(exponentials)
    inverse = 1.0 / jnp.sum(exponentials.astype(jnp.float32), axis=-1)
    weights = exponentials
    if words is not None:
        weights = (exponentials * dropout_factor(words, rate, scores.shape)).astype(value.dtype)
    average = _by_query(inverse, products.einsum(_WEIGHTED_SUM, weights, value, value.dtype))
    like = jnp.zeros((), scores.dtype)
    return average, (exponentials, weights, value, mask, words, inverse, average, like)


def _average_backward(rate: float, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array, None, None]:
    exponentials, weights, value, mask, words, inverse, average, like = saved
    scaled = _by_query(inverse, cotangent)
    d_value = products.einsum("bhqk,bqhe->bkhe", weights, scaled, value.dtype)
    d_weights = products.einsum(_SCORES, scaled, value, value.dtype).astype(jnp.float32)
    if words is not None:
        d_weights = d_weights * dropout_factor(products.recomputed(words), rate, weights.shape)
    through_sum = jnp.sum(scaled.astype(jnp.float32) * average.astype(jnp.float32), axis=-1).swapaxes(1, 2)
    d_scores = exponentials.astype(jnp.float32) * (d_weights - through_sum[..., None])
    d_scores = jnp.where(mask[:, None, None, :], d_scores, 0.0).astype(like.dtype)
    return d_scores, d_value, None, None


_average.defvjp(_average_forward, _average_backward)


def _by_query(factor: Float[Array, "B H T"], x: Float[Array, "B T H E"]) -> Float[Array, "B T H E"]:
    return (x.astype(jnp.float32) * factor.swapaxes(1, 2)[..., None]).astype(x.dtype)
