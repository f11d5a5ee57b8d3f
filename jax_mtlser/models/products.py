"""Matrix products and convolutions: the one place that decides how they are computed.

Operands are cast to the compute type, each product accumulates in float32. In bfloat16 the incoming cotangent is cast
too: otherwise ``preferred_element_type`` would silently turn every backward product into a float32 one.
Strided convolutions are written as matrix products on frame chunks, because XLA's one-dimensional convolutions
are slow on CPU and become grouped convolutions under ``vmap`` over population members.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

__all__ = ["affine", "einsum", "matmul", "same_grouped_conv", "strided_conv"]

# Below this many input values per stride step, one product on unfolded windows beats several thin ones.
_MIN_CHUNK_WIDTH = 32


def affine(
    x: Float[Array, "*batch I"], weight: Float[Array, "I O"], bias: Float[Array, " O"], dtype: DTypeLike
) -> Float[Array, "*batch O"]:
    """``x @ weight + bias`` in ``dtype``."""
    rows = einsum("ri,io->ro", x.reshape(-1, x.shape[-1]), weight, dtype) + bias.astype(dtype)[None]
    return rows.reshape(*x.shape[:-1], weight.shape[-1])


def matmul(x: Float[Array, "*batch I"], weight: Float[Array, "I O"], dtype: DTypeLike) -> Float[Array, "*batch O"]:
    """``x @ weight`` with operands of type ``dtype``; the result has that type too.

    The gradient of ``weight`` keeps the type in which ``weight`` was given (float32 parameters).
    """
    rows = x.reshape(-1, x.shape[-1])
    product = einsum("ri,io->ro", rows, weight, dtype)
    return product.reshape(*x.shape[:-1], weight.shape[-1])


def einsum(spec: str, left: Array, right: Array, dtype: DTypeLike) -> Array:
    """Two-operand ``jnp.einsum`` in ``dtype`` with float32 accumulation, forward and backward."""
    left, right = left.astype(dtype), right.astype(dtype)
    if dtype == jnp.float32:
        # HIGHEST: without it, GPUs and TPUs compute float32 products with TF32 or bfloat16 operands.
        return jnp.einsum(spec, left, right, precision=lax.Precision.HIGHEST)
    return _low_precision_einsum(spec, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_precision_einsum(spec: str, left: Array, right: Array) -> Array:
    dtype = left.dtype
    if jax.default_backend() == "cpu":
        # XLA's CPU backend does not run every bfloat16 product with a float32 result ("Unsupported element type
        # for DotThunk"). Products of bfloat16 values are exact in float32, so this computes the same.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32).astype(dtype)


def _einsum_forward(spec: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return _low_precision_einsum(spec, left, right), (left, right)


def _einsum_backward(spec: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    left, right = saved
    inputs, output = spec.split("->")
    left_axes, right_axes = inputs.split(",")
    cotangent = cotangent.astype(left.dtype)
    d_left = _low_precision_einsum(f"{output},{right_axes}->{left_axes}", cotangent, right)
    d_right = _low_precision_einsum(f"{left_axes},{output}->{right_axes}", left, cotangent)
    return d_left, d_right


_low_precision_einsum.defvjp(_einsum_forward, _einsum_backward)


def strided_conv(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int, dtype: DTypeLike
) -> Float[Array, "B T O"]:
    """One-dimensional convolution without padding: ``T = (L - K) // stride + 1`` outputs.

    The input is cut into chunks of ``stride`` positions; output ``t`` is the sum over ``j`` of chunk ``t + j``
    times the ``j``-th chunk of the kernel, so each ``j`` is one matrix product over all chunks.
    """
    width, channels, _ = kernel.shape
    num_outputs = (x.shape[1] - width) // stride + 1
    num_kernel_chunks = math.ceil(width / stride)
    num_chunks = num_outputs + num_kernel_chunks - 1
    missing = num_chunks * stride - x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0)), (0, 0)))[:, : num_chunks * stride]
    chunks = x.reshape(x.shape[0], num_chunks, stride * channels)

    # The last kernel chunk may be shorter than the stride: only its own taps are multiplied.
    taps = [min(stride, width - j * stride) for j in range(num_kernel_chunks)]
    if stride * channels < _MIN_CHUNK_WIDTH:
        windows = [chunks[:, j : j + num_outputs, : tap * channels] for j, tap in enumerate(taps)]
        return matmul(jnp.concatenate(windows, axis=-1), kernel.reshape(width * channels, -1), dtype)
    output = None
    for j, tap in enumerate(taps):
        weight = kernel[j * stride : j * stride + tap].reshape(tap * channels, -1)
        # Slicing the product, not its input, keeps the input one contiguous operand for every chunk.
        product = matmul(chunks[..., : tap * channels], weight, dtype)[:, j : j + num_outputs]
        output = product if output is None else output + product
    assert output is not None
    return output


def same_grouped_conv(
    x: Float[Array, "B T D"], kernel: Float[Array, "K G D"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Grouped convolution over time, zero-padded by ``K // 2`` on the left and to length ``T`` on the right.

    ``kernel`` has ``G`` input channels per group, hence ``D // G`` groups. XLA's grouped convolution has a very
    slow gradient on CPU, where wide kernels go through the Fourier transform in float32 instead.
    """
    if jax.default_backend() == "cpu" and kernel.shape[0] > 8:
        return _fft_grouped_conv(x.astype(jnp.float32), kernel.astype(jnp.float32)).astype(dtype)
    width, group_size, channels = kernel.shape
    output = lax.conv_general_dilated(
        x.astype(dtype),
        kernel.astype(dtype),
        window_strides=(1,),
        padding=[(width // 2, (width - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=channels // group_size,
        precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    )
    return output.astype(dtype)


def _fft_grouped_conv(x: Float[Array, "B T D"], kernel: Float[Array, "K G D"]) -> Float[Array, "B T D"]:
    """Overlap-save: blocks of a power of two, each overlapping the last by ``K - 1`` frames."""
    batch, frames, channels = x.shape
    width, group_size, _ = kernel.shape
    groups = channels // group_size
    block = 1 << (2 * width - 1).bit_length()
    hop = block - width + 1
    num_blocks = math.ceil(frames / hop)
    left = width // 2
    padded = jnp.pad(x, ((0, 0), (left, (num_blocks - 1) * hop + block - left - frames), (0, 0)))
    blocks = jnp.stack([padded[:, n * hop : n * hop + block] for n in range(num_blocks)], axis=1)
    blocks = blocks.reshape(batch * num_blocks, block, groups, group_size).transpose(2, 0, 3, 1)
    taps = kernel.reshape(width, group_size, groups, group_size).transpose(2, 3, 1, 0)
    # Convolution layers correlate, hence the conjugate.
    spectrum = jnp.einsum("gmif,goif->gmof", jnp.fft.rfft(blocks), jnp.conj(jnp.fft.rfft(taps, block)))
    output = jnp.fft.irfft(spectrum, block)[..., :hop]
    output = output.reshape(groups, batch, num_blocks, group_size, hop).transpose(1, 2, 4, 0, 3)
    return output.reshape(batch, num_blocks * hop, channels)[:, :frames]
