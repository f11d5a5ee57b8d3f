"""Convolutions over time, each written as what computes it fastest: matrix products, or Fourier transforms.

XLA's one-dimensional convolutions are slow on CPUs, and become grouped convolutions under ``vmap`` over the members of a
population.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float

from jax_mtlser.models import products

__all__ = ["add_outer_products", "is_thin", "same_grouped_conv", "shared_spectrum", "strided_conv", "windows"]

# Grouped convolutions with more taps than this are wide.
_WIDE = 8
# Outputs that a wide grouped convolution computes together on an accelerator.
_BLOCK = 8
# Below this many input values per stride step, one product on unfolded windows beats several thin ones.
_MIN_CHUNK_WIDTH = 32
# Below this many input values per output, a CPU sums outer products instead.
_MIN_PRODUCT_WIDTH = 32


def strided_conv(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int, dtype: DTypeLike
) -> Float[Array, "B T O"]:
    """One-dimensional convolution without padding: ``T = (L - K) // stride + 1`` outputs.

    On accelerators one matrix product on windows of the input. On CPUs a sum of products without unfolding it: the input
    is cut into chunks of ``stride`` positions; output ``t`` is the sum over ``j`` of chunk ``t + j`` times the ``j``-th
    chunk of the kernel, so each ``j`` is one product over all chunks. Few channels (samples) have a form of their own.
    """
    if stride * kernel.shape[1] < _MIN_CHUNK_WIDTH:
        return _thin_conv(x, kernel, stride, dtype)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if products.is_plain():
        return _chunked_conv(x, kernel, stride)[0]
    if products.on_cpu():
        return _conv_with_gradient(x, kernel, stride)
    return _windowed_conv(x, kernel, stride, x.shape[1])


def is_thin(kernel: Float[Array, "K I O"]) -> bool:
    """Whether an output sees so little that CPUs are faster without a matrix product."""
    return kernel.shape[0] * kernel.shape[1] < _MIN_PRODUCT_WIDTH


def _in_parts(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], dtype: DTypeLike
) -> tuple[Float[Array, "B L 3*I"], Float[Array, "K 3*I O"]]:
    """Samples and taps whose convolution in ``dtype`` is nearly that in float32.

    Rounding samples takes more from loud low frequencies than there is of faint high ones, and a channel that hears only
    those is then normalised to the error. Rounding taps lets the loud through. So what rounding takes has channels of its
    own: what the product reads stays a small part of what it writes.
    """
    (rounded, rest), (taps, rest_of_taps) = products.in_two(x, dtype), products.in_two(kernel, dtype)
    return jnp.concatenate([rounded, rest, rounded], axis=-1), jnp.concatenate([taps, taps, rest_of_taps], axis=1)


def _thin_conv(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int, dtype: DTypeLike
) -> Float[Array, "B T O"]:
    """For few input channels (samples): one product on unfolded windows, on CPU a sum of outer products if they are short."""
    summed = not products.is_plain() and products.on_cpu() and is_thin(kernel)
    if x.dtype != dtype and not products.is_plain() and not products.on_cpu():
        x, kernel = _in_parts(x, kernel, dtype)
    seen = windows(x.astype(jnp.float32 if summed else dtype), kernel.shape[0], stride)
    taps = kernel.reshape(-1, kernel.shape[2])
    return _outer_products(seen, taps.astype(jnp.float32), dtype) if summed else products.matmul(seen, taps, dtype)


def windows(x: Float[Array, "B L I"], width: int, stride: int) -> Float[Array, "B T K"]:
    """What each output sees, side by side: ``width`` positions of all channels."""
    num_outputs = (x.shape[1] - width) // stride + 1
    chunks, taps = _chunks(x, width, stride)
    return jnp.concatenate([chunks[:, j : j + num_outputs, : tap * x.shape[2]] for j, tap in enumerate(taps)], -1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _outer_products(
    windows: Float[Array, "B T K"], kernel: Float[Array, "K O"], dtype: DTypeLike
) -> Float[Array, "B T O"]:
    """``windows @ kernel``, of float32, rounded to ``dtype``; the products of its gradient are in ``dtype``."""
    return add_outer_products(jnp.zeros((), jnp.float32), windows, kernel[None]).astype(dtype)


def add_outer_products(
    total: Float[Array, "#B #T #O"], windows: Float[Array, "B T K"], kernels: Float[Array, "#B K O"]
) -> Float[Array, "B T O"]:
    """``total + windows @ kernels`` for few taps.

    Products this thin do not fill a matrix kernel, and a fused sum is not written out and read again.
    """
    for tap in range(kernels.shape[1]):
        total = total + windows[..., tap : tap + 1] * kernels[:, tap][:, None]
    return total


def _outer_products_forward(windows: Array, kernel: Array, dtype: DTypeLike) -> tuple[Array, tuple[Array, Array]]:
    return _outer_products(windows, kernel, dtype), (windows, kernel)


def _outer_products_backward(dtype: DTypeLike, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    windows, kernel = saved
    rows, flat = windows.reshape(-1, windows.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    d_windows = products.accumulate("ro,ko->rk", flat, kernel.astype(dtype)).reshape(windows.shape)
    # What rounding takes from the samples has rows of its own.
    parts = (rows,) if dtype == jnp.float32 else products.in_two(rows, dtype)
    d_parts = products.accumulate("kr,ro->ko", products.transposed(jnp.concatenate(parts, axis=1)), flat)
    return d_windows, jnp.sum(d_parts.reshape(len(parts), *kernel.shape), axis=0)


_outer_products.defvjp(_outer_products_forward, _outer_products_backward)


def _chunks(x: Float[Array, "B L I"], width: int, stride: int) -> tuple[Float[Array, "B N S"], list[int]]:
    """``x`` cut into chunks of ``stride`` positions, and the kernel taps that fall into each chunk of the kernel."""
    num_outputs = (x.shape[1] - width) // stride + 1
    num_kernel_chunks = math.ceil(width / stride)
    num_chunks = num_outputs + num_kernel_chunks - 1
    missing = num_chunks * stride - x.shape[1]
    if not isinstance(x.shape[1], int):
        missing = num_kernel_chunks * stride - width  # a symbolic length: the most that it can be
    x = jnp.pad(x, ((0, 0), (0, max(missing, 0)), (0, 0)))[:, : num_chunks * stride]
    # The last kernel chunk may be shorter than the stride: only its own taps are multiplied.
    taps = [min(stride, width - j * stride) for j in range(num_kernel_chunks)]
    return x.reshape(x.shape[0], num_chunks, stride * x.shape[2]), taps


def _chunked_conv(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int
) -> tuple[Float[Array, "B T O"], Float[Array, "B N S"]]:
    """The convolution, and the chunks that it multiplied."""
    width, channels, outputs = kernel.shape
    num_outputs = (x.shape[1] - width) // stride + 1
    chunks, taps = _chunks(x, width, stride)
    output = None
    for j, tap in enumerate(taps):
        weight = kernel[j * stride : j * stride + tap].reshape(tap * channels, outputs)
        # Slicing the product, not its input, keeps the input one contiguous operand for every chunk.
        product = products.matmul(chunks[..., : tap * channels], weight, x.dtype)[:, j : j + num_outputs]
        output = product if output is None else output + product
    assert output is not None
    return output, chunks


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _conv_with_gradient(x: Array, kernel: Array, stride: int) -> Array:
    return _chunked_conv(x, kernel, stride)[0]


def _conv_forward(x: Array, kernel: Array, stride: int) -> tuple[Array, tuple[Array, ...]]:
    output, chunks = _chunked_conv(x, kernel, stride)
    return output, (x, chunks, kernel)


def _conv_backward(stride: int, saved: tuple[Array, ...], cotangent: Array) -> tuple[Array, Array]:
    """One transpose of the chunks serves all taps."""
    x, chunks, kernel = saved
    width, channels, outputs = kernel.shape
    batch, num_chunks, chunk_width = chunks.shape
    num_outputs = cotangent.shape[1]
    transposed = products.transposed(chunks.reshape(-1, chunk_width))
    d_kernel, d_chunks = [], jnp.zeros((), jnp.float32)
    for j in range(math.ceil(width / stride)):
        tap = min(stride, width - j * stride)
        weight = kernel[j * stride : j * stride + tap].reshape(tap * channels, outputs)
        behind = num_chunks - num_outputs - j
        rows = jnp.pad(cotangent, ((0, 0), (j, behind), (0, 0))).reshape(-1, outputs)
        d_kernel.append(products.accumulate("ir,ro->io", transposed[: tap * channels], rows))
        d_rows = products.accumulate("ro,io->ri", rows, weight)
        d_chunks = d_chunks + jnp.pad(d_rows, ((0, 0), (0, chunk_width - tap * channels)))
    d_x = d_chunks.astype(x.dtype).reshape(batch, num_chunks * stride, channels)[:, : x.shape[1]]
    d_x = jnp.pad(d_x, ((0, 0), (0, x.shape[1] - d_x.shape[1]), (0, 0)))
    return d_x, jnp.concatenate(d_kernel).reshape(kernel.shape).astype(kernel.dtype)


_conv_with_gradient.defvjp(_conv_forward, _conv_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _windowed_conv(x: Array, kernel: Array, stride: int, length: int) -> Array:
    """One product on windows of ``x``, which has ``length`` positions.

    Windows hold positions that neighbours see twice, but whatever computes ``x`` writes them in its place: XLA makes one
    kernel of what lies between two products. A sum of products on chunks would be written and read for each.
    """
    return _windowed_forward(x, kernel, stride, length)[0]


def _windowed_forward(x: Array, kernel: Array, stride: int, length: int) -> tuple[Array, tuple[Array, Array]]:
    width, channels, outputs = kernel.shape
    seen = windows(x, width, stride)
    product = products.accumulate("ri,io->ro", seen.reshape(-1, width * channels), kernel.reshape(-1, outputs))
    return product.astype(x.dtype).reshape(*seen.shape[:2], outputs), (seen, kernel)


def _windowed_backward(stride: int, length: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    windows, kernel = saved
    width, channels, outputs = kernel.shape
    batch, num_outputs, _ = windows.shape
    rows = cotangent.reshape(-1, outputs)
    d_kernel = products.accumulate("ir,ro->io", windows.reshape(-1, width * channels).T, rows)
    d_windows = products.accumulate("ro,io->ri", rows, kernel.reshape(-1, outputs)).astype(windows.dtype)
    d_windows = d_windows.reshape(batch, num_outputs, width, channels)
    d_x = jnp.zeros((), jnp.float32)
    for start in range(0, width, stride):
        part = d_windows[:, :, start : start + stride].astype(jnp.float32)
        part = jnp.pad(part, ((0, 0), (0, 0), (0, stride - part.shape[2]), (0, 0)))
        part = part.reshape(batch, num_outputs * stride, channels)[:, : length - start]
        d_x = d_x + jnp.pad(part, ((0, 0), (start, length - start - part.shape[1]), (0, 0)))
    return d_x.astype(windows.dtype), d_kernel.reshape(kernel.shape).astype(kernel.dtype)


_windowed_conv.defvjp(_windowed_forward, _windowed_backward)


def same_grouped_conv(
    x: Float[Array, "B T D"],
    kernel: Float[Array, "K G D"],
    dtype: DTypeLike,
    spectrum: Complex[Array, "groups F G G"] | None = None,
) -> Float[Array, "B T D"]:
    """Grouped convolution over time, zero-padded by ``K // 2`` on the left and to length ``T`` on the right.

    ``kernel`` has ``G`` input channels per group, hence ``D // G`` groups. Grouped convolutions of wide kernels are slow
    everywhere: on CPU they go through the Fourier transform in float32 instead; on accelerators through one matrix product
    per group (cuDNN's own took two fifths of a training step of wav2vec2-base on an H200).

    Args:
        x: frames.
        kernel: taps.
        dtype: compute type.
        spectrum: the kernel's :func:`shared_spectrum`, where many calls have the same kernel; takes its place, so that the
            kernel itself gets no gradient.
    """
    if _is_reformulated(kernel):
        if products.on_cpu():
            if spectrum is not None:
                return _correlated(x.astype(jnp.float32), spectrum, kernel.shape[0])[0].astype(dtype)
            return _fft_grouped_conv(x.astype(jnp.float32), kernel.astype(jnp.float32), kernel.shape[0]).astype(dtype)
        return products.in_rows(_blocked_grouped_conv(products.in_rows(x.astype(dtype)), kernel, dtype))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return _grouped_conv_apart(x, kernel) if products.on_cpu() and products.is_batched() else _grouped_conv(x, kernel)


def _grouped_conv(x: Float[Array, "B T D"], kernel: Float[Array, "K G D"]) -> Float[Array, "B T D"]:
    width, group_size, channels = kernel.shape
    output = lax.conv_general_dilated(
        x,
        kernel,
        window_strides=(1,),
        padding=[(width // 2, (width - 1) // 2)],
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=channels // group_size,
        precision=lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
    )
    return output.astype(x.dtype)


@jax.custom_vjp
def _grouped_conv_apart(x: Array, kernel: Array) -> Array:
    """The same, with a kernel gradient that keeps the members of a population apart."""
    return _grouped_conv(x, kernel)


def _apart_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _grouped_conv(x, kernel), (x, kernel)


def _apart_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    (d_x,) = jax.vjp(lambda x: _grouped_conv(x, kernel), x)[1](cotangent)
    return d_x, _kernel_gradient(x, kernel, cotangent)


_grouped_conv_apart.defvjp(_apart_forward, _apart_backward)


def _kernel_gradient(x: Array, kernel: Array, cotangent: Array) -> Array:
    """One product for each tap, which stays one for each member under ``vmap``.

    XLA's CPU backend multiplies each member's frames with all members' cotangents and masks what does not belong
    together: 0 * NaN would carry one member's NaN to the others. And where both members and rows were divided among
    devices, its gradient of a convolution that looped over the members came out twice as large.
    """
    width, size, channels = kernel.shape
    batch, frames, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (width // 2, (width - 1) // 2), (0, 0)))
    by_group = cotangent.reshape(batch, frames, channels // size, size)
    taps = [padded[:, tap : tap + frames].reshape(by_group.shape) for tap in range(width)]
    each = [products.accumulate("btgi,btgo->igo", tap, by_group).reshape(size, channels) for tap in taps]
    return jnp.stack(each).astype(kernel.dtype)


def _blocked_grouped_conv(
    x: Float[Array, "B T D"], kernel: Float[Array, "K G D"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Blocks of a few neighbouring outputs at once, from the window of inputs that they see together.

    One output alone would leave each group's product with no more columns than a group has channels, and unfold every
    input ``K`` times. A block of P outputs has P times the columns; its windows repeat inputs only ``(K + P - 1) / P``
    times, at the price of the zeros that shifting the kernel from output to output brings in, ``P - 1`` for ``K`` taps.
    """
    batch, frames, channels = x.shape
    width, size, _ = kernel.shape
    groups, block = channels // size, _BLOCK
    blocks, chunks_seen = math.ceil(frames / block), math.ceil((width + block - 1) / block)
    seen, left = chunks_seen * block, width // 2
    behind = (blocks - 1) * block + seen - left - frames
    chunks = jnp.pad(x, ((0, 0), (left, behind), (0, 0)))
    chunks = chunks.reshape(batch, -1, block, groups, size).transpose(3, 0, 1, 2, 4)
    chunks = chunks.reshape(groups, batch, -1, block * size)
    windows = jnp.concatenate([chunks[:, :, j : j + blocks] for j in range(chunks_seen)], axis=-1)
    taps = kernel.reshape(width, size, groups, size).transpose(2, 0, 1, 3)
    shifted = [jnp.pad(taps, ((0, 0), (r, seen - width - r), (0, 0), (0, 0))) for r in range(block)]
    weight = jnp.stack(shifted, axis=3).reshape(groups, seen * size, block * size)
    output = products.einsum("gnk,gkp->gnp", windows.reshape(groups, batch * blocks, -1), weight, dtype)
    output = output.reshape(groups, batch, blocks, block, size).transpose(1, 2, 3, 0, 4)
    return output.reshape(batch, blocks * block, channels)[:, :frames]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fft_grouped_conv(x: Float[Array, "B T D"], kernel: Float[Array, "K G D"], width: int) -> Float[Array, "B T D"]:
    """Overlap-save: blocks of a power of two, each overlapping the last by ``K - 1`` frames.

    No transform runs beside another: in jaxlib 0.11, two at once on two cores wait for each other's threads for ever. Each
    here needs the last one's result, and the kernel, which needs none, is transformed by a product. The gradient's first
    one waits for the output's if its cotangent does: a nonlinear function has to follow, as it does in every encoder.
    """
    return _fft_forward(x, kernel, width)[0]


def _fft_forward(x: Array, kernel: Array, width: int) -> tuple[Array, tuple[Array, Array]]:
    of_taps = _spectrum(kernel)
    output, of_blocks = _correlated(x, of_taps, width)
    return output, (of_blocks, of_taps)


def shared_spectrum(kernel: Float[Array, "K G D"]) -> Complex[Array, "groups F G G"] | None:
    """What :func:`same_grouped_conv` would compute of a kernel again in every call; None where it computes nothing."""
    return jax.jit(_spectrum)(kernel) if _is_reformulated(kernel) and products.on_cpu() else None


def _is_reformulated(kernel: Float[Array, "K G D"]) -> bool:
    """Whether a grouped convolution is computed as something else."""
    return kernel.shape[0] > _WIDE and not products.is_plain()


def _spectrum(kernel: Float[Array, "K G D"]) -> Complex[Array, "groups F G G"]:
    """Of a grouped convolution's taps, by group, frequency, input and output channel.

    The conjugate of their Fourier transform: convolution layers correlate.
    """
    width, group_size, channels = kernel.shape
    groups = channels // group_size
    taps = kernel.reshape(width, group_size, groups, group_size).transpose(2, 0, 1, 3).reshape(groups, width, -1)
    real, imaginary = products.fourier_waves(width, _block_of(width))
    spectrum = lax.complex(_along_rows(real.T, taps), _along_rows(-imaginary.T, taps))
    return spectrum.reshape(groups, -1, group_size, group_size)


def _correlated(x: Array, of_taps: Array, width: int) -> tuple[Array, Array]:
    """The convolution, and the transformed blocks of ``x``."""
    batch, frames, channels = x.shape
    groups, _, group_size, _ = of_taps.shape
    block = _block_of(width)
    of_blocks = jnp.fft.rfft(_overlapping_blocks(x, width, group_size))
    spectrum = jnp.einsum("gmif,gfio->gmof", of_blocks, of_taps)
    hop = block - width + 1
    output = jnp.fft.irfft(spectrum, block)[..., :hop].reshape(groups, batch, -1, group_size, hop)
    return output.transpose(1, 2, 4, 0, 3).reshape(batch, -1, channels)[:, :frames], of_blocks


def _fft_backward(width: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    of_blocks, of_taps = saved
    batch, frames, channels = cotangent.shape
    groups, _, group_size, _ = of_taps.shape
    block = _block_of(width)
    hop = block - width + 1
    num_blocks = math.ceil(frames / hop)
    g = jnp.pad(cotangent, ((0, 0), (0, num_blocks * hop - frames), (0, 0)))
    g = g.reshape(batch * num_blocks, hop, groups, group_size).transpose(2, 0, 3, 1)
    of_g = jnp.conj(jnp.fft.rfft(g, block))
    of_d_taps = jnp.einsum("gmif,gmof->gfio", of_blocks, of_g).reshape(groups, -1, group_size**2)
    cosines, sines = (_both_sides(wave).T for wave in products.fourier_waves(width, block))
    d_taps = _along_rows(cosines, of_d_taps.real) + _along_rows(sines, of_d_taps.imag)
    d_kernel = d_taps.reshape(groups, width, group_size, group_size).transpose(1, 2, 0, 3)
    d_blocks = jnp.fft.irfft(jnp.conj(jnp.einsum("gmof,gfio->gmif", of_g, of_taps)), block)
    shape = jax.ShapeDtypeStruct((batch, frames, channels), cotangent.dtype)
    blocks_of = functools.partial(_overlapping_blocks, width=width, group_size=group_size)
    (d_x,) = jax.linear_transpose(blocks_of, shape)(d_blocks)
    return d_x, d_kernel.reshape(width, group_size, channels)


def _along_rows(matrix: Float[np.ndarray, "M K"], x: Float[Array, "groups K C"]) -> Float[Array, "groups M C"]:
    """The product with each group, float32. Taps stay away from the last axis: there, transposes move single numbers."""
    matrix = np.ascontiguousarray(matrix)
    return products.accumulate("gmk,gkc->gmc", jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape)), x)


_fft_grouped_conv.defvjp(_fft_forward, _fft_backward)


def _both_sides(wave: np.ndarray) -> np.ndarray:
    """The same rows, as columns of the inverse transform from a real array's half spectrum."""
    frequencies = wave.shape[1]
    counted = np.full((frequencies, 1), 2.0)
    counted[[0, -1]] = 1.0
    return (counted / (2 * (frequencies - 1)) * wave.T).astype(np.float32)


def _block_of(width: int) -> int:
    """Frames of a block: enough that most of them give an output."""
    return 1 << (2 * width - 1).bit_length()


def _overlapping_blocks(x: Float[Array, "B T D"], width: int, group_size: int) -> Float[Array, "groups N G block"]:
    """The blocks of all rows that together see every frame, by group of channels."""
    batch, frames, channels = x.shape
    block = _block_of(width)
    hop = block - width + 1
    num_blocks, left = math.ceil(frames / hop), width // 2
    padded = jnp.pad(x, ((0, 0), (left, (num_blocks - 1) * hop + block - left - frames), (0, 0)))
    blocks = jnp.stack([padded[:, n * hop : n * hop + block] for n in range(num_blocks)], axis=1)
    blocks = blocks.reshape(batch * num_blocks, block, channels // group_size, group_size)
    return blocks.transpose(2, 0, 3, 1)
