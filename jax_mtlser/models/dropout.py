"""Dropout whose random numbers cost a few operations each, so that they are computed where they are needed.

``jax.random``'s generator takes over a hundred operations per number, more than most layers spend on an entry. Which
entries are dropped needs less: a hash of the entry's place, keyed by two words that do come from ``jax.random``. Nothing
has to be read or stored for it, and an entry's number depends on its place alone, not on devices or on other members of
a population.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key, UInt32

__all__ = ["dropout"]


def dropout(x: Float[Array, "*shape"], rate: float, key: Key[Array, ""] | None) -> Float[Array, "*shape"]:
    """Zero a share of the entries at random and scale the others up; nothing without a key."""
    if key is None or rate == 0:
        return x
    # One factor: a select and a division would be two passes over the gradient.
    factor = jnp.where(_kept(key, 1 - rate, x.shape), jnp.float32(1 / (1 - rate)), 0.0)
    return (x.astype(jnp.float32) * factor).astype(x.dtype)


def _kept(key: Key[Array, ""], share: float, shape: tuple[int, ...]) -> Bool[Array, "*shape"]:
    """True in a random ``share`` of the entries."""
    first, second = jax.random.key_data(key)[..., 0], jax.random.key_data(key)[..., 1]
    # Twice, with a key before each: one round of a known function could be undone, and two keys of neighbouring
    # values would give the same numbers one place apart.
    numbers = _mixed(_mixed(_places(shape) + first) ^ second)
    return numbers < jnp.uint32(min(round(share * 2**32), 2**32 - 1))


def _places(shape: tuple[int, ...]) -> UInt32[Array, "*shape"]:
    """Each entry's number, counted along the last axis first; modulo 2^32."""
    place = jnp.zeros(shape, jnp.uint32)
    for axis in range(len(shape)):
        stride = math.prod(shape[axis + 1 :]) % 2**32
        place = place + jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * jnp.uint32(stride)
    return place


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection in which every input bit turns every output bit in half of all cases.

    Source: the "lowbias32" construction of Wellons, with the constants that TheIronBorn found (exact bias 0.107).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
