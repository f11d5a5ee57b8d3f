"""Small building blocks that every part of the network shares."""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.models import products

__all__ = ["Dense", "activation", "frame_mask", "layer_norm", "masked_mean"]


class Dense(nn.Module):
    """Affine map of the last axis; parameters in float32, product in ``dtype``.

    Attributes:
        features: output width.
        dtype: compute type.
        kernel_init: initialiser of the kernel ``[I, O]``; the bias starts at zero unless ``bias_init`` is given.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    kernel_init: jax.nn.initializers.Initializer = jax.nn.initializers.normal(0.02)
    bias_init: jax.nn.initializers.Initializer = jax.nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Float[Array, "*batch I"]) -> Float[Array, "*batch O"]:
        kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
        bias = self.param("bias", self.bias_init, (self.features,))
        return products.affine(x, kernel, bias, self.dtype)


def layer_norm(name: str, dtype: DTypeLike, epsilon: float = 1e-5) -> nn.LayerNorm:
    """LayerNorm over channels with float32 statistics and the exact two-pass variance."""
    return nn.LayerNorm(epsilon=epsilon, dtype=dtype, use_fast_variance=False, name=name)


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
    # jax.nn.gelu goes through erfc, which costs about twice as much as erf on CPU.
    half = jnp.asarray(0.5, x.dtype)
    return half * x * (1 + jax.lax.erf(x * jnp.asarray(2**-0.5, x.dtype)))


def frame_mask(lengths: Int[Array, " B"], num_frames: int) -> Bool[Array, "B T"]:
    """True for the frames that belong to the utterance."""
    return jnp.arange(num_frames)[None, :] < lengths[:, None]


def masked_mean(x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B D"]:
    """Mean over an utterance's own frames, in float32; zero where there are none."""
    total = jnp.sum(jnp.where(mask[..., None], x.astype(jnp.float32), 0.0), axis=1)
    return total / jnp.maximum(jnp.sum(mask, axis=1), 1)[:, None]
