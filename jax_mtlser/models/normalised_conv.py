"""The first convolution of wav2vec 2.0, its GroupNorm over time and the activation, in one pass on CPUs.

What the convolution gives is the largest array of the whole encoder, a hundred times its input, and a norm over time would
read it twice before it can write it again. But a sum of ten products is normalised as well by normalising its kernel: mean and
variance of each channel over time follow from mean and covariance of the windows, of ten samples each, and each utterance
gets a kernel and a bias of its own. Nothing as large as the result is then written before it, and in the backward pass the sums
are computed again.

The covariance is that of the windows' cosine transforms: speech is loud below and faint above, and a variance of what is faint,
as a difference of loud products, would be nothing but rounding.

Samples stay float32: in bfloat16, what is rounded off loud low frequencies is louder than faint high ones, and
a channel that hears only those would normalise the error.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jax_mtlser.models import convolutions, products

__all__ = ["normalised_conv"]

_exactly = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def normalised_conv(
    x: Float[Array, "B L I"],
    kernel: Float[Array, "K I O"],
    scale: Float[Array, " O"],
    bias: Float[Array, " O"],
    mask: Bool[Array, "B T"],
    *,
    stride: int,
    epsilon: float,
    activate: Callable[[Array], Array],
    dtype: DTypeLike,
) -> Float[Array, "B T O"]:
    """``activate(norm(conv(x)))``: a strided convolution, each channel normalised over the frames of the mask.

    A bias of the convolution would change nothing: the norm subtracts it.

    Args:
        x: samples, float32.
        kernel: taps.
        scale, bias: of the norm.
        mask: frames that make the statistics.
        stride: of the convolution.
        epsilon: added to the variance.
        activate: what follows.
        dtype: of the result, and of the products in the backward pass. Statistics, sums and activation are float32.
    """
    windows, taps = convolutions.windows(x, kernel.shape[0], stride), kernel.reshape(-1, kernel.shape[2])
    # Barriers: XLA would compute these small arrays again for each number of the large one.
    windows = lax.optimization_barrier(windows)
    cosines = jnp.asarray(_cosines(taps.shape[0]))
    mean, covariance = _moments(_exactly("btk,kj->btj", windows, cosines), mask)
    by_cosine = _exactly("kj,ko->jo", cosines, taps)
    # Rounding may leave less than nothing of a channel that hears next to nothing.
    variance = jnp.maximum(_exactly("bjo,jo->bo", _exactly("bij,io->bjo", covariance, by_cosine), by_cosine), 0.0)
    gain = lax.rsqrt(variance + epsilon) * scale[None]
    own_taps, own_bias = taps[None] * gain[:, None], bias[None] - _exactly("bj,jo->bo", mean, by_cosine) * gain
    return _activated(windows, *lax.optimization_barrier((own_taps, own_bias)), activate, dtype)


def _cosines(size: int) -> Float[np.ndarray, "K K"]:
    """The orthonormal cosine transform (DCT-II) as a matrix from the right, float32."""
    waves = np.cos(np.pi / size * (np.arange(size)[:, None] + 0.5) * np.arange(size)[None])
    return (waves / np.linalg.norm(waves, axis=0)).astype(np.float32)


def _moments(
    windows: Float[Array, "B T K"], mask: Bool[Array, "B T"]
) -> tuple[Float[Array, "B K"], Float[Array, "B K K"]]:
    """Mean and covariance over the frames of the mask; of none, zeros."""
    inside, count = mask[..., None], jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
    mean = jnp.sum(jnp.where(inside, windows, 0.0), axis=1) / count
    centred = jnp.where(inside, windows - mean[:, None], 0.0)
    return mean, _exactly("bti,btj->bij", centred, centred) / count[..., None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def _activated(windows: Array, taps: Array, bias: Array, activate: Callable[[Array], Array], dtype: DTypeLike) -> Array:
    """Of each utterance's windows times its own taps."""
    return activate(convolutions.add_outer_products(bias[:, None], windows, taps)).astype(dtype)


def _forward(
    windows: Array, taps: Array, bias: Array, activate: Callable[[Array], Array], dtype: DTypeLike
) -> tuple[Array, tuple[Array, ...]]:
    return _activated(windows, taps, bias, activate, dtype), (windows, taps, bias)


def _backward(
    activate: Callable[[Array], Array], dtype: DTypeLike, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array, Array, Array]:
    windows, taps, bias = saved
    sums = convolutions.add_outer_products(bias[:, None], windows, products.recomputed(taps))
    (d_sums,) = jax.vjp(activate, sums)[1](cotangent.astype(jnp.float32))
    d_sums = d_sums.astype(dtype)
    # What rounding takes from the windows has rows of its own, and the bias' are ones: a product of 21 rows takes no longer.
    rounded, rest = products.in_two(windows, dtype)
    rows = jnp.concatenate([rounded, rest, jnp.ones_like(rounded[..., :1])], axis=-1)
    d_rounded, d_rest, d_bias = jnp.split(
        products.accumulate("bti,bto->bio", rows, d_sums), [taps.shape[1], 2 * taps.shape[1]], axis=1
    )
    d_windows = products.accumulate("bto,bko->btk", d_sums, taps.astype(dtype))
    return d_windows, d_rounded + d_rest, d_bias[:, 0]


_activated.defvjp(_forward, _backward)
