"""Small building blocks that every part of the network shares."""

import dataclasses
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.models import products

__all__ = ["LORA_PARAMETERS", "Dense", "Lora", "activation", "frame_mask", "layer_norm", "masked_mean", "standardised"]

LORA_PARAMETERS = ("lora_down", "lora_up")


@dataclasses.dataclass(frozen=True)
class Lora:
    """A low-rank adapter beside a kernel (Hu et al. 2022): ``W + alpha / rank * down @ up``.

    Attributes:
        rank: columns of ``down`` and rows of ``up``.
        alpha: numerator of the scale.
    """

    rank: int
    alpha: float

    @property
    def scale(self) -> float:
        """What the product of the two factors is multiplied by."""
        return self.alpha / self.rank


class Dense(nn.Module):
    """Affine map of the last axis; parameters in float32, product in ``dtype``.

    Attributes:
        features: output width.
        dtype: compute type.
        kernel_init: initialiser of the kernel ``[I, O]``; the bias starts at zero unless ``bias_init`` is given.
        use_bias: add a bias.
        lora: adapter beside the kernel; it starts as zero, so it changes nothing before training.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: jax.nn.initializers.Initializer = jax.nn.initializers.normal(0.02)
    bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros
    use_bias: bool = True
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        inputs = x.shape[-1]
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,))
            y = products.affine(x, kernel, bias, self.dtype)
        else:
            y = products.matmul(x, kernel, self.dtype)
        if self.lora is None:
            return y
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        down = self.param("lora_down", uniform, (inputs, self.lora.rank))
        up = self.param("lora_up", jax.nn.initializers.zeros, (self.lora.rank, self.features))
        low = products.matmul(products.matmul(x, down, self.dtype), up, self.dtype)
        return y + low * jnp.asarray(self.lora.scale, low.dtype)


def layer_norm(name: str, dtype: DTypeLike, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over channels with float32 statistics and the exact two-pass variance."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


def standardised(x: Float[Array, "*batch D"], epsilon: float = 1e-5) -> Float[Array, "*batch D"]:
    """LayerNorm without parameters: zero mean and unit variance over channels, in float32."""
    x = x.astype(jnp.float32)
    centred = x - jnp.mean(x, axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + epsilon)


def activation(name: str) -> Callable[[Array], Array]:
    """The activation that Hugging Face configs call ``name``.

    Raises:
        ValueError: for a name that no supported encoder uses.
    """
    match name:
        case "gelu":
            return _exact_gelu
        case "gelu_new" | "gelu_pytorch_tanh":
            return lambda x: jax.nn.gelu(x, approximate=True)
        case "relu":
            return jax.nn.relu
        case "silu" | "swish":
            return jax.nn.silu
    raise ValueError(f"activation {name!r} is not one of gelu, gelu_new, gelu_pytorch_tanh, relu, silu, swish")


def _exact_gelu(x: Array) -> Array:
    return _plain_gelu(x) if products.is_plain() else _gelu_with_gradient(x)


def _plain_gelu(x: Array) -> Array:
    # jax.nn.gelu goes through erfc, which costs about twice as much as erf on CPU.
    z = x.astype(jnp.float32)
    return (0.5 * z * (1 + jax.lax.erf(z * 2**-0.5))).astype(x.dtype)


@jax.custom_vjp
def _gelu_with_gradient(x: Array) -> Array:
    """GELU that keeps nothing but its input for the backward pass, in the input's type."""
    return _plain_gelu(x)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return _plain_gelu(x), x


def _gelu_backward(x: Array, cotangent: Array) -> tuple[Array]:
    z = x.astype(jnp.float32)
    slope = 0.5 * (1 + jax.lax.erf(z * 2**-0.5)) + z * jnp.exp(-0.5 * z * z) * (2 * math.pi) ** -0.5
    return ((cotangent.astype(jnp.float32) * slope).astype(x.dtype),)


_gelu_with_gradient.defvjp(_gelu_forward, _gelu_backward)


def frame_mask(lengths: Int[Array, " B"], num_frames: int) -> Bool[Array, "B T"]:
    """True for the frames that belong to the utterance."""
    return jnp.arange(num_frames)[None, :] < lengths[:, None]


def masked_mean(x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Mean over an utterance's own frames, in float32; zero where there are none."""
    total = jnp.sum(jnp.where(mask[..., None], x.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
