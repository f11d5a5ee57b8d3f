"""A layer that only the backward pass sees: what a head learns reaches the encoder scaled, or reversed."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

__all__ = ["reversal_factor", "scale_gradient"]


@jax.custom_vjp
def scale_gradient(x: Float[Array, "*shape"], factor: Float[Array, ""]) -> Float[Array, "*shape"]:
    """``x``, whose gradient is multiplied by ``factor`` (Ganin and Lempitsky 2015, with a negative one).

    Args:
        x: what a head reads.
        factor: 1 changes nothing; -1 makes what is below work against the head; it gets no gradient itself.
    """
    return x


def _forward(x: Array, factor: Array) -> tuple[Array, Array]:
    return x, factor


def _backward(factor: Array, cotangent: Array) -> tuple[Array, Array]:
    return cotangent * factor.astype(cotangent.dtype), jnp.zeros_like(factor)


scale_gradient.defvjp(_forward, _backward)


def reversal_factor(progress: Float[Array, ""], strength: Float[Array, ""]) -> Float[Array, ""]:
    """Factor of an adversarial head: ``-strength (2 / (1 + exp(-10 p)) - 1)`` (Ganin et al. 2016).

    Args:
        progress: p, the share of training that is done, 0 to 1; at 0 the encoder does not hear the head at all.
        strength: what the schedule rises to.
    """
    return -strength * (2.0 / (1.0 + jnp.exp(-10.0 * progress)) - 1.0)
