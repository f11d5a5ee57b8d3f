"""Random numbers that cost a few operations each, so that they are computed where they are needed.

``jax.random``'s generator takes over a hundred operations per number, more than most layers spend on an entry. Where
little depends on a single number, a hash of its place will do, keyed by two words that do come from ``jax.random``. Nothing
is read or stored for it, and a number depends on its place alone, not on devices or on other members of a population.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, UInt32

__all__ = ["random_bits"]


def random_bits(words: UInt32[Array, " K"], shape: tuple[int, ...], first: int = 0) -> UInt32[Array, "*shape"]:
    """32 random bits for each entry of an array.

    Args:
        words: key data of ``jax.random``.
        shape: of the array.
        first: place of its first entry, where several arrays share the words; places 2**32 apart get the same bits.
    """
    places = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape) + jnp.uint32(first % 2**32)
    # Twice, with a word before each: one round of a known function could be undone, and two keys of neighbouring
    # values would give the same numbers one place apart.
    return _mixed(_mixed(places + words[0]) ^ words[1])


def _mixed(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """A bijection in which every input bit turns every output bit in half of all cases.

    Source: the "lowbias32" construction of Wellons, with the constants that TheIronBorn found (exact bias 0.107).
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)
