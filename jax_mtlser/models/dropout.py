"""Dropout whose random numbers are hashes (``random_bits``): the backward pass computes them again instead of keeping them."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

from jax_mtlser.models import products
from jax_mtlser.models.random_bits import random_bits

__all__ = ["dropout", "dropout_factor", "dropout_words"]


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zero a share of the entries at random and scale the others up; nothing without a key."""
    words = dropout_words(rate, key)
    return x if words is None else _dropped(x, words, rate)


def dropout_words(rate: float, key: Key[Array, ""] | None) -> UInt32[Array, " K"] | None:
    """What the hash is keyed by; None when nothing is dropped."""
    return None if key is None or rate == 0 else jax.random.key_data(key)


def dropout_factor(words: UInt32[Array, " K"], rate: float, shape: tuple[int, ...]) -> Float[Array, "*shape"]:
    """What the entries of an array of this shape are multiplied with: 0, or 1 over the share that is kept; float32."""
    # One factor: a select and a division would be two passes over the gradient.
    return jnp.where(_kept(words, 1 - rate, shape), jnp.float32(1 / (1 - rate)), 0.0)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _dropped(x: Array, words: Array, rate: float) -> Array:
    return (x.astype(jnp.float32) * dropout_factor(words, rate, x.shape)).astype(x.dtype)


def _dropped_forward(x: Array, words: Array, rate: float) -> tuple[Array, Array]:
    return _dropped(x, words, rate), words


def _dropped_backward(rate: float, words: Array, cotangent: Array) -> tuple[Array, None]:
    return _dropped(cotangent, products.recomputed(words), rate), None


_dropped.defvjp(_dropped_forward, _dropped_backward)


def _kept(words: UInt32[Array, " K"], share: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """True in a random ``share`` of the entries."""
    return random_bits(words, shape) < jnp.uint32(min(round(share * 2**32), 2**32 - 1))
