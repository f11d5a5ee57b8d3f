"""Small building blocks that every part of the network shares."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.models import products

__all__ = [
    "LORA_PARAMETERS",
    "Affine",
    "AffineParameters",
    "Dense",
    "Lora",
    "activation",
    "affine_maps",
    "frame_mask",
    "masked_mean",
]

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


@flax.struct.dataclass
class AffineParameters:
    """Of one affine map, float32.

    Attributes:
        kernel: [I, O].
        bias: [O], or None.
        lora_down, lora_up: [I, R] and [R, O] of the adapter, or None.
    """

    kernel: Array
    bias: Array | None
    lora_down: Array | None
    lora_up: Array | None


class Affine(nn.Module):
    """The parameters of an affine map, for callers that compute with those of several maps at once.

    Attributes:
        features: output width.
        kernel_init: initialiser of the kernel ``[I, O]``; the bias starts at zero unless ``bias_init`` is given.
        use_bias: add a bias.
        lora: adapter beside the kernel; it starts as zero, so it changes nothing before training.
    """

    features: int
    kernel_init: jax.nn.initializers.Initializer = jax.nn.initializers.normal(0.02)
    bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros
    use_bias: bool = True
    lora: Lora | None = None

    @nn.compact
    def __call__(self, inputs: int) -> AffineParameters:
        kernel = self.param("kernel", self.kernel_init, (inputs, self.features))
        bias = self.param("bias", self.bias_init, (self.features,)) if self.use_bias else None
        if self.lora is None:
            return AffineParameters(kernel, bias, None, None)
        uniform = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        down = self.param("lora_down", uniform, (inputs, self.lora.rank))
        up = self.param("lora_up", jax.nn.initializers.zeros, (self.lora.rank, self.features))
        return AffineParameters(kernel, bias, down, up)


class Dense(nn.Module):
    """Affine map of the last axis; parameters in float32, product in ``dtype``. Its fields are :class:`Affine`'s."""

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: jax.nn.initializers.Initializer = jax.nn.initializers.normal(0.02)
    bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros
    use_bias: bool = True
    lora: Lora | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        affine = Affine(self.features, self.kernel_init, self.bias_init, self.use_bias, self.lora)
        nn.share_scope(self, affine)
        return affine_maps(x, [affine(x.shape[-1])], self.dtype, self.lora)[0]


def affine_maps(
    x: Float[Array, "*batch I"], maps: Sequence[AffineParameters], dtype: DTypeLike, lora: Lora | None = None
) -> list[Float[Array, "*batch O"]]:
    """Several affine maps of the same input; their kernels side by side make one product.

    Args:
        x: the input.
        maps: all without or all with an adapter.
        dtype: compute type.
        lora: of the adapters.
    """
    if len(maps) > 1 and not products.is_plain():
        widths = [each.kernel.shape[1] for each in maps]
        kernel = jnp.concatenate([each.kernel for each in maps], axis=1)
        biases = [
            jnp.zeros(width) if each.bias is None else each.bias for each, width in zip(maps, widths, strict=True)
        ]
        joined = products.affine(x, kernel, jnp.concatenate(biases), dtype)
        outputs = jnp.split(joined, np.cumsum(widths)[:-1].tolist(), axis=-1)
    else:
        outputs = [
            products.matmul(x, each.kernel, dtype)
            if each.bias is None
            else products.affine(x, each.kernel, each.bias, dtype)
            for each in maps
        ]
    if lora is None:
        return outputs
    for index, each in enumerate(maps):
        assert each.lora_down is not None
        assert each.lora_up is not None
        low = products.matmul(products.matmul(x, each.lora_down, dtype), each.lora_up, dtype)
        outputs[index] = outputs[index] + low * jnp.asarray(lora.scale, low.dtype)
    return outputs


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
