"""From samples to feature vectors: the strided convolutions of wav2vec 2.0 and the projection behind them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.architecture import FeatureNorm, Wav2Vec2Architecture
from jax_mtlser.models import convolutions, products
from jax_mtlser.models.dropout import dropout
from jax_mtlser.models.layer_norm import LayerNorm
from jax_mtlser.models.layers import Dense, activation, frame_mask
from jax_mtlser.models.normalised_conv import normalised_conv

__all__ = ["Conv", "FeatureEncoder", "FeatureProjection", "TimeGroupNorm"]


class TimeGroupNorm(nn.Module):
    """GroupNorm with one group per channel: each channel is normalised over its utterance's own frames.

    The reference implementation takes the statistics over the padded length, so that an utterance's output
    depends on its batch (transformers #21534); a mask that is True everywhere reproduces that.
    """

    channels: int
    dtype: DTypeLike = jnp.float32
    epsilon: float = 1e-5

    def setup(self) -> None:
        self.scale = self.param("scale", jax.nn.initializers.ones, (self.channels,))
        self.bias = self.param("bias", jax.nn.initializers.zeros, (self.channels,))

    def __call__(self, x: Float[Array, "B T C"], mask: Bool[Array, "B T"]) -> Float[Array, "B T C"]:
        if products.is_plain():
            normalised, _ = _normalised_over_time(x, mask, self.epsilon)
        else:
            normalised = _norm_with_gradient(x, mask, self.epsilon, self.dtype)
        return (normalised.astype(jnp.float32) * self.scale[None, None] + self.bias[None, None]).astype(self.dtype)


def _normalised_over_time(
    x: Float[Array, "B T C"], mask: Bool[Array, "B T"], epsilon: float
) -> tuple[Float[Array, "B T C"], Float[Array, "B 1 C"]]:
    """Zero mean and unit variance over the frames of the mask, and the inverse deviation; float32."""
    x, valid = x.astype(jnp.float32), mask[..., None]
    count = _frame_count(mask)
    mean = jnp.sum(jnp.where(valid, x, 0.0), axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.where(valid, jnp.square(x - mean), 0.0), axis=1, keepdims=True) / count
    inverse = jax.lax.rsqrt(variance + epsilon)
    return (x - mean) * inverse, inverse


def _frame_count(mask: Bool[Array, "B T"]) -> Int[Array, "B 1 1"]:
    return jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _norm_with_gradient(x: Array, mask: Array, epsilon: float, dtype: DTypeLike) -> Array:
    """The normalised frames in ``dtype``; the only large thing kept for the backward pass."""
    return _normalised_over_time(x, mask, epsilon)[0].astype(dtype)


def _norm_forward(x: Array, mask: Array, epsilon: float, dtype: DTypeLike) -> tuple[Array, tuple[Array, ...]]:
    normalised, inverse = _normalised_over_time(x, mask, epsilon)
    normalised = normalised.astype(dtype)
    return normalised, (normalised, inverse, mask, jnp.zeros((), x.dtype))


def _norm_backward(
    epsilon: float, dtype: DTypeLike, saved: tuple[Array, ...], cotangent: Array
) -> tuple[Array, np.ndarray]:
    normalised, inverse, mask, like = saved
    z, g = normalised.astype(jnp.float32), cotangent.astype(jnp.float32)
    count = _frame_count(mask)
    # Every frame's output depends on the statistics, but only the frames of the mask make them.
    through_mean = jnp.sum(g, axis=1, keepdims=True) / count
    through_variance = jnp.sum(g * z, axis=1, keepdims=True) / count
    d_x = inverse * (g - jnp.where(mask[..., None], through_mean + z * through_variance, 0.0))
    return d_x.astype(like.dtype), np.zeros(mask.shape, jax.dtypes.float0)


_norm_with_gradient.defvjp(_norm_forward, _norm_backward)


class FeatureEncoder(nn.Module):
    """The stack of strided convolutions: one feature vector for every ``arch.hop()`` samples.

    Convolutions are not padded, so the frames that belong to an utterance never see the padding behind it.

    Attributes:
        arch: shape.
        dtype: compute type.
        hf_compat: let padding into the GroupNorm statistics, as the reference implementation does.
    """

    arch: Wav2Vec2Architecture
    dtype: DTypeLike = jnp.float32
    hf_compat: bool = False

    @nn.compact
    def __call__(self, audio: Float[Array, "B S"], lengths: Int[Array, " B"]) -> Float[Array, "B T C"]:
        arch = self.arch
        activate = activation(arch.feat_extract_activation)
        x = audio[..., None]
        for layer, (channels, width, stride) in enumerate(
            zip(arch.conv_dim, arch.conv_kernel, arch.conv_stride, strict=True)
        ):
            conv = Conv(x.shape[-1], channels, width, stride, arch.conv_bias, self.dtype, name=f"conv_{layer}")
            lengths = (lengths - width) // stride + 1
            if arch.feat_extract_norm is FeatureNorm.LAYER:
                x = activate(LayerNorm(self.dtype, name=f"norm_{layer}")(conv(x)))
            elif layer == 0:
                mask = frame_mask(lengths, (x.shape[1] - width) // stride + 1)
                norm = TimeGroupNorm(channels, self.dtype, name="norm_0")
                x = _normalised(conv, norm, x, jnp.ones_like(mask) if self.hf_compat else mask, activate)
            else:
                x = activate(conv(x))
        return x


class Conv(nn.Module):
    """Strided convolution without padding, see :func:`~jax_mtlser.models.convolutions.strided_conv`."""

    inputs: int
    channels: int
    width: int
    stride: int
    use_bias: bool
    dtype: DTypeLike

    def setup(self) -> None:
        initializer = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1))
        self.kernel = self.param("kernel", initializer, (self.width, self.inputs, self.channels))
        if self.use_bias:
            self.bias = self.param("bias", jax.nn.initializers.zeros, (self.channels,))

    def __call__(self, x: Float[Array, "B L I"]) -> Float[Array, "B T O"]:
        x = convolutions.strided_conv(x, self.kernel, self.stride, self.dtype)
        return x + self.bias.astype(self.dtype)[None, None] if self.use_bias else x


def _normalised(
    conv: Conv,
    norm: TimeGroupNorm,
    x: Float[Array, "B L I"],
    mask: Bool[Array, "B T"],
    activate: Callable[[Array], Array],
) -> Float[Array, "B T O"]:
    """``activate(norm(conv(x), mask))``, on CPUs in one pass."""
    # In float32 the steps themselves are the more exact, and on accelerators they were not compared.
    by_steps = products.is_plain() or not products.on_cpu() or conv.dtype == jnp.float32
    if by_steps or not convolutions.is_thin(conv.kernel):
        return activate(norm(conv(x), mask))
    return normalised_conv(
        x, conv.kernel, norm.scale, norm.bias, mask, stride=conv.stride, epsilon=norm.epsilon, activate=activate,
        dtype=conv.dtype,
    )  # fmt: skip


class FeatureProjection(nn.Module):
    """LayerNorm (where the architecture has it), an affine map to the transformer's width, dropout."""

    arch: Wav2Vec2Architecture
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, features: Float[Array, "B T C"], *, train: bool) -> Float[Array, "B T D"]:
        bound = math.sqrt(1.0 / features.shape[-1])
        uniform = _symmetric_uniform(bound)
        x = features
        if self.arch.feat_proj_layer_norm:
            x = LayerNorm(self.dtype, self.arch.layer_norm_eps, name="norm")(x)
        x = Dense(self.arch.hidden_size, dtype=self.dtype, kernel_init=uniform, bias_init=uniform, name="projection")(x)
        key = self.make_rng("dropout") if train and self.arch.feat_proj_dropout > 0 else None
        return dropout(x, self.arch.feat_proj_dropout, key)


def _symmetric_uniform(bound: float) -> Any:
    return lambda key, shape, dtype=jnp.float32: jax.random.uniform(key, shape, dtype, -bound, bound)
