"""LayerNorm over channels, with float32 statistics, exact two-pass variance and a gradient written by hand."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_mtlser.models import products

__all__ = ["LayerNorm", "standardised"]


class LayerNorm(nn.Module):
    """Zero mean and unit variance over the last axis, then a scale and a bias for each channel.

    Attributes:
        dtype: type of the result; everything is computed in float32.
        epsilon: added to the variance.
    """

    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"]) -> Float[Array, "*batch D"]:
        scale = self.param("scale", jax.nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", jax.nn.initializers.zeros, (x.shape[-1],))
        rows = products.in_rows(x.reshape(-1, x.shape[-1]))
        norm = _plain_norm if products.is_plain() else _norm_with_gradient
        return norm(rows, scale, bias, self.epsilon, self.dtype).reshape(x.shape)


def standardised(x: Float[Array, "*batch D"], epsilon: float = 1e-5) -> Float[Array, "*batch D"]:
    """LayerNorm without parameters, in float32."""
    centred, inverse = _centred(x, epsilon)
    return centred * inverse


def _centred(x: Float[Array, "*batch D"], epsilon: float) -> tuple[Array, Array]:
    """``x`` minus its mean, and one over its standard deviation."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred, jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)


def _plain_norm(
    x: Float[Array, "R D"], scale: Float[Array, " D"], bias: Float[Array, " D"], epsilon: float, dtype: DTypeLike
) -> Float[Array, "R D"]:
    return (standardised(x, epsilon) * scale[None] + bias[None]).astype(dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _norm_with_gradient(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    """Keeps its input, in the input's type, for the backward pass, and recomputes the statistics."""
    return _plain_norm(x, scale, bias, epsilon, dtype)


def _norm_forward(
    x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike
) -> tuple[Array, tuple[Array, Array]]:
    return _plain_norm(x, scale, bias, epsilon, dtype), (x, scale)


def _norm_backward(
    epsilon: float, dtype: DTypeLike, saved: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array, Array]:
    x, scale = saved
    cotangent = cotangent.astype(jnp.float32)
    centred, inverse = _centred(x, epsilon)
    z = centred * inverse
    g = cotangent * scale[None]
    through_mean = jnp.mean(g, axis=-1, keepdims=True)
    through_variance = jnp.mean(g * z, axis=-1, keepdims=True)
    d_x = inverse * (g - through_mean - z * through_variance)
    return d_x.astype(x.dtype), *_sums_of_rows(cotangent * z, cotangent)


def _sums_of_rows(left: Float[Array, "R D"], right: Float[Array, "R D"]) -> tuple[Array, Array]:
    if products.on_cpu():  # which would write the stack out before it sums
        return jnp.sum(left, axis=0), jnp.sum(right, axis=0)
    total = jnp.sum(jnp.stack([left, right]), axis=1)  # in one pass over the rows
    return total[0], total[1]


_norm_with_gradient.defvjp(_norm_forward, _norm_backward)
