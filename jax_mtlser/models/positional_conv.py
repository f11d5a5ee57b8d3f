"""Convolutional positions: what the transformers of the wav2vec 2.0 family know of the order of frames."""

import math
from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.models import convolutions
from jax_mtlser.models.layer_norm import standardised
from jax_mtlser.models.layers import activation

__all__ = ["PositionalConv", "PositionalConvStack", "with_spectra"]

# Beginning of parameters that no model has and none learns: added by with_spectra().
_SPECTRUM = "spectrum"
# Beginning of the stack's kernels' names.
_KERNEL = "kernel_"


class PositionalConv(nn.Module):
    """One wide grouped convolution with weight normalisation, then activation."""

    arch: Wav2Vec2Architecture
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        """``x`` must be zero on padding."""
        arch = self.arch
        width, group_size = arch.num_conv_pos_embeddings, arch.hidden_size // arch.num_conv_pos_embedding_groups
        std = 2.0 * math.sqrt(1.0 / (width * arch.hidden_size))
        direction = self.param("direction", jax.nn.initializers.normal(std), (width, group_size, arch.hidden_size))
        # One gain per tap: PyTorch's weight_norm(dim=2).
        gain = self.param("gain", lambda key: _tap_norm(direction))
        bias = self.param("bias", jax.nn.initializers.zeros, (arch.hidden_size,))
        kernel = _kernel(direction, gain)
        spectrum: Array | None = self.get_variable("params", _SPECTRUM)
        x = convolutions.same_grouped_conv(x, kernel, self.dtype, spectrum) + bias.astype(self.dtype)[None, None]
        return activation(arch.feat_extract_activation)(x)


def with_spectra(params: Mapping[str, Array]) -> Mapping[str, Array]:
    """Parameters of either with what evaluation would otherwise compute from them for every batch, where there is any."""
    if "direction" in params:
        kernels = {"": _kernel(params["direction"], params["gain"])}
    else:
        kernels = {name.removeprefix(_KERNEL): kernel for name, kernel in params.items() if name.startswith(_KERNEL)}
    spectra = {_SPECTRUM + index: convolutions.shared_spectrum(kernel) for index, kernel in kernels.items()}
    return {**params, **{name: spectrum for name, spectrum in spectra.items() if spectrum is not None}}


class PositionalConvStack(nn.Module):
    """data2vec: several narrower grouped convolutions, each followed by a norm without parameters and activation.

    Attributes:
        arch: shape.
        dtype: compute type.
        hf_compat: let what one convolution writes behind an utterance into the next, as the reference
            implementation does.
    """

    arch: Wav2Vec2Architecture
    dtype: DTypeLike = jnp.float32
    hf_compat: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], mask: Bool[Array, "B T"]) -> Float[Array, "B T D"]:
        """``x`` must be zero on padding."""
        arch = self.arch
        width, group_size = arch.conv_pos_kernel_size, arch.hidden_size // arch.num_conv_pos_embedding_groups
        init = jax.nn.initializers.variance_scaling(2.0, "fan_in", "normal", in_axis=(0, 1))
        for index in range(arch.num_conv_pos_embeddings):
            kernel = self.param(f"{_KERNEL}{index}", init, (width, group_size, arch.hidden_size))
            bias = self.param(f"bias_{index}", jax.nn.initializers.zeros, (arch.hidden_size,))
            spectrum: Array | None = self.get_variable("params", f"{_SPECTRUM}{index}")
            x = convolutions.same_grouped_conv(x, kernel, self.dtype, spectrum) + bias.astype(self.dtype)[None, None]
            x = activation(arch.feat_extract_activation)(standardised(x).astype(self.dtype))
            if not self.hf_compat:
                x = jnp.where(mask[..., None], x, 0)
        return x


def _kernel(direction: Float[Array, "K G D"], gain: Float[Array, " K"]) -> Float[Array, "K G D"]:
    return direction * (gain / _tap_norm(direction))[:, None, None]


def _tap_norm(direction: Float[Array, "K G D"]) -> Float[Array, " K"]:
    return jnp.sqrt(jnp.sum(jnp.square(direction), axis=(1, 2)))
