"""Matrix products and convolutions: the one place that decides how they are computed.

Operands are cast to the compute type, each product accumulates in float32. In bfloat16 the incoming cotangent is cast
too: otherwise ``preferred_element_type`` would silently turn every backward product into a float32 one.
Strided convolutions are written as matrix products on frame chunks, because XLA's one-dimensional convolutions
are slow on CPU and become grouped convolutions under ``vmap`` over population members.

Which formulation is used follows from the platform that is compiled for; :func:`formulation` overrides it, and gives
the plain one, with gradients by automatic differentiation, that tests compare every other with.
"""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from jax_mtlser import runtime

__all__ = [
    "affine",
    "einsum",
    "formulation",
    "in_rows",
    "is_plain",
    "matmul",
    "on_cpu",
    "power_spectrum",
    "same_grouped_conv",
    "strided_conv",
]

# Grouped convolutions with more taps than this are wide.
_WIDE = 8
# Frames of a batch, up to which a CPU computes a wide grouped convolution without its gradient as it is.
_FEW_FRAMES = 512
# Outputs that a wide grouped convolution computes together on an accelerator.
_BLOCK = 8
# Below this many input values per stride step, one product on unfolded windows beats several thin ones.
_MIN_CHUNK_WIDTH = 32


@dataclasses.dataclass(frozen=True)
class _Formulation:
    platform: str | None = None
    plain: bool = False
    batched: bool = False
    without_fft: bool = False


_BY_BACKEND = _Formulation()
_chosen: contextvars.ContextVar[_Formulation] = contextvars.ContextVar("formulation", default=_BY_BACKEND)


@contextlib.contextmanager
def formulation(
    *, platform: str | None = None, plain: bool = False, batched: bool = False, without_fft: bool = False
) -> Iterator[None]:
    """Choose how everything traced inside is computed. What was traced before (``jit``) stays as it was.

    Args:
        platform: compile for this one (``cpu``, ``gpu``, ``tpu``); None for the block around, or the default backend.
        plain: textbook formulas, differentiated automatically; True also when the block around says so.
        batched: a ``vmap`` around what is traced turns every product into a batched one; inherited likewise.
        without_fft: Fourier transforms as matrix products, for runtimes whose own are inaccurate; inherited likewise.
    """
    around = _chosen.get()
    inherited = {
        name: given or getattr(around, name)
        for name, given in (("plain", plain), ("batched", batched), ("without_fft", without_fft))
    }
    token = _chosen.set(_Formulation(platform or around.platform, **inherited))
    try:
        yield
    finally:
        _chosen.reset(token)


def is_plain() -> bool:
    """Whether gradients are left to automatic differentiation."""
    return _chosen.get().plain


def on_cpu() -> bool:
    """Whether what is traced is compiled for a CPU."""
    return (_chosen.get().platform or jax.default_backend()) == "cpu"


def power_spectrum(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N//2+1"]:
    """Squared magnitudes of the discrete Fourier transform, float32."""
    if not _chosen.get().without_fft:
        spectrum = jnp.fft.rfft(x)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    size = x.shape[-1]
    # The remainder first: sine and cosine of large arguments lose digits.
    angles = 2 * np.pi / size * (np.arange(size)[:, None] * np.arange(size // 2 + 1)[None] % size)
    waves = np.concatenate([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    real, imaginary = jnp.split(matmul(x, jnp.asarray(waves), jnp.float32), 2, axis=-1)
    return jnp.square(real) + jnp.square(imaginary)


def in_rows(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The same, and on accelerators laid out in memory as its axes say; its gradient too.

    Left alone, XLA lays out frames channel by channel in some places of a transformer, and the products around them then
    cost a transpose each. A flat array has one layout only, and nothing is moved past a barrier.
    """
    return x if on_cpu() or is_plain() else lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def affine(
    x: Float[Array, "*batch I"], weight: Float[Array, "I O"], bias: Float[Array, " O"], dtype: DTypeLike
) -> Float[Array, "*batch O"]:
    """``x @ weight + bias`` in ``dtype``."""
    rows = einsum("ri,io->ro", x.reshape(-1, x.shape[-1]), weight, dtype)
    summed_by_product = dtype != jnp.float32 and on_cpu() and not is_plain() and not _chosen.get().batched
    rows = _with_bias(rows, bias) if summed_by_product else rows + bias.astype(dtype)[None]
    return rows.reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def _with_bias(rows: Float[Array, "R O"], bias: Float[Array, " O"]) -> Float[Array, "R O"]:
    """The sum, with the bias' gradient as a product.

    XLA's CPU backend writes the cotangent out in float32 before it sums it, and then sums in windows of 32. A product of
    ones sums bfloat16 values exactly as well; of eight equal rows, because with one it takes longer.
    """
    return rows + bias.astype(rows.dtype)[None]


def _with_bias_forward(rows: Array, bias: Array) -> tuple[Array, Array]:
    return _with_bias(rows, bias), jnp.zeros((), bias.dtype)


def _with_bias_backward(like: Array, cotangent: Array) -> tuple[Array, Array]:
    ones = jnp.ones((8, cotangent.shape[0]), cotangent.dtype)
    return cotangent, _accumulate("kr,ro->ko", ones, cotangent)[0].astype(like.dtype)


_with_bias.defvjp(_with_bias_forward, _with_bias_backward)


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
        return _accumulate(spec, left, right)
    return _low_precision_einsum(spec, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_precision_einsum(spec: str, left: Array, right: Array) -> Array:
    return _accumulate(spec, left, right).astype(left.dtype)


def _einsum_forward(spec: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return _low_precision_einsum(spec, left, right), (left, right)


def _einsum_backward(spec: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    left, right = saved
    inputs, output = spec.split("->")
    left_axes, right_axes = inputs.split(",")
    cotangent = cotangent.astype(left.dtype)
    d_left = _accumulate(f"{output},{right_axes}->{left_axes}", cotangent, right)
    if spec == "ri,io->ro":
        d_right = _accumulate("ir,ro->io", _transposed(left), cotangent)
    else:
        # The cotangent first: the other way round, XLA's CPU backend has no fast kernel for attention's keys.
        d_right = _accumulate(f"{output},{left_axes}->{right_axes}", cotangent, left)
    return d_left.astype(left.dtype), d_right.astype(right.dtype)


_low_precision_einsum.defvjp(_einsum_forward, _einsum_backward)


def _accumulate(spec: str, left: Array, right: Array) -> Array:
    """The product, summed up in float32; on accelerators, a bfloat16 product is rounded before it is written.

    That halves what it writes, and lets the library add a bias before the rounding too.
    """
    if left.dtype == jnp.float32:
        # HIGHEST: without it, GPUs and TPUs compute float32 products with TF32 or bfloat16 operands.
        return jnp.einsum(spec, left, right, precision=lax.Precision.HIGHEST)
    if not on_cpu():
        return jnp.einsum(spec, left, right, preferred_element_type=left.dtype)
    several = len(spec) > len("ri,io->ro")
    if several and runtime.has_tile_products() and not _chosen.get().batched:
        return _in_tiles(spec, left, right)
    if several or _chosen.get().batched:
        # XLA's CPU backend does not run every batched bfloat16 product with a float32 result ("Unsupported element
        # type for DotThunk"). Products of bfloat16 values are exact in float32, so this computes the same.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _in_tiles(spec: str, left: Array, right: Array) -> Array:
    """A batched bfloat16 product, float32, as processors with AMX run it: five times as fast as in float32.

    XLA's CPU backend runs every such product whose operands are [N, rows, K] and [N, K, columns] in memory, and not every
    other: without the barrier it would move the transposes into the product.
    """
    inputs, output = spec.split("->")
    one, other = inputs.split(",")
    shared = [axis for axis in one if axis in other]
    batch, summed = [axis for axis in shared if axis in output], [axis for axis in shared if axis not in output]
    rows, columns = [axis for axis in one if axis not in other], [axis for axis in other if axis not in one]
    sizes = {**dict(zip(one, left.shape, strict=True)), **dict(zip(other, right.shape, strict=True))}

    def laid_out(x: Array, axes: str, *parts: list[str]) -> Array:
        x = jnp.transpose(x, [axes.index(axis) for part in parts for axis in part])
        return x.reshape([math.prod(sizes[axis] for axis in part) for part in parts])

    operands = laid_out(left, one, batch, rows, summed), laid_out(right, other, batch, summed, columns)
    product = jnp.einsum("nrk,nkc->nrc", *lax.optimization_barrier(operands), preferred_element_type=jnp.float32)
    axes = [*batch, *rows, *columns]
    product = product.reshape([sizes[axis] for axis in axes])
    return jnp.transpose(product, [axes.index(axis) for axis in output])


def _transposed(x: Float[Array, "R I"]) -> Float[Array, "I R"]:
    """The transpose as left operand of a product, moved in memory where that pays.

    XLA's CPU backend has no fast bfloat16 product that sums over the rows of its left operand (a weight's gradient):
    it would take four times as long. It folds a plain transpose into the product; this one it cannot.
    """
    rows, columns = x.shape
    if x.dtype != jnp.float32 and on_cpu() and not _chosen.get().batched:
        for part in (2, 3, 5, 7, 11, 13):
            if rows % part == 0:
                return jnp.transpose(x.reshape(rows // part, part, columns), (2, 0, 1)).reshape(columns, rows)
    return x.T


def strided_conv(
    x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int, dtype: DTypeLike
) -> Float[Array, "B T O"]:
    """One-dimensional convolution without padding: ``T = (L - K) // stride + 1`` outputs.

    The input is cut into chunks of ``stride`` positions; output ``t`` is the sum over ``j`` of chunk ``t + j``
    times the ``j``-th chunk of the kernel, so each ``j`` is one matrix product over all chunks.
    """
    _, channels, _ = kernel.shape
    if stride * channels < _MIN_CHUNK_WIDTH:
        return _thin_conv(x.astype(dtype), kernel.astype(dtype), stride)
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    if is_plain():
        return _chunked_conv(x, kernel, stride)[0]
    return _conv_with_gradient(x, kernel, stride) if on_cpu() else _windowed_conv(x, kernel, stride, x.shape[1])


def _thin_conv(x: Float[Array, "B L I"], kernel: Float[Array, "K I O"], stride: int) -> Float[Array, "B T O"]:
    """For few input channels (samples): one product on unfolded windows, on CPU a sum of outer products."""
    width, channels, outputs = kernel.shape
    windows, flat = _windows(x, width, stride), kernel.reshape(width * channels, outputs)
    if on_cpu() and not is_plain():
        return _outer_products(windows, flat)
    return matmul(windows, flat, x.dtype)


def _windows(x: Float[Array, "B L I"], width: int, stride: int) -> Float[Array, "B T K"]:
    """What each output sees, side by side: ``width`` positions of all channels."""
    num_outputs = (x.shape[1] - width) // stride + 1
    chunks, taps = _chunks(x, width, stride)
    return jnp.concatenate([chunks[:, j : j + num_outputs, : tap * x.shape[2]] for j, tap in enumerate(taps)], -1)


@jax.custom_vjp
def _outer_products(windows: Float[Array, "B T K"], kernel: Float[Array, "K O"]) -> Float[Array, "B T O"]:
    left, right = windows.astype(jnp.float32), kernel.astype(jnp.float32)
    # Products this thin do not fill a matrix kernel, and a fused sum is not written out and read again.
    total = left[..., 0:1] * right[None, None, 0]
    for tap in range(1, right.shape[0]):
        total = total + left[..., tap : tap + 1] * right[None, None, tap]
    return total.astype(windows.dtype)


def _outer_products_forward(windows: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return _outer_products(windows, kernel), (windows, kernel)


def _outer_products_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    windows, kernel = saved
    rows, flat = windows.reshape(-1, windows.shape[-1]), cotangent.reshape(-1, cotangent.shape[-1])
    d_windows = _accumulate("ro,ko->rk", flat, kernel).reshape(windows.shape)
    return d_windows.astype(windows.dtype), _accumulate("kr,ro->ko", _transposed(rows), flat).astype(kernel.dtype)


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
        product = matmul(chunks[..., : tap * channels], weight, x.dtype)[:, j : j + num_outputs]
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
    transposed = _transposed(chunks.reshape(-1, chunk_width))
    # A product's float32 result is written out on CPU in any case; elsewhere rounding it first halves the traffic.
    sum_type = jnp.float32 if on_cpu() else x.dtype
    d_kernel, d_chunks = [], jnp.zeros((), sum_type)
    for j in range(math.ceil(width / stride)):
        tap = min(stride, width - j * stride)
        weight = kernel[j * stride : j * stride + tap].reshape(tap * channels, outputs)
        behind = num_chunks - num_outputs - j
        rows = jnp.pad(cotangent, ((0, 0), (j, behind), (0, 0))).reshape(-1, outputs)
        d_kernel.append(_accumulate("ir,ro->io", transposed[: tap * channels], rows))
        d_rows = _accumulate("ro,io->ri", rows, weight).astype(sum_type)
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
    windows = _windows(x, width, stride)
    product = _accumulate("ri,io->ro", windows.reshape(-1, width * channels), kernel.reshape(-1, outputs))
    return product.astype(x.dtype).reshape(*windows.shape[:2], outputs), (windows, kernel)


def _windowed_backward(stride: int, length: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    windows, kernel = saved
    width, channels, outputs = kernel.shape
    batch, num_outputs, _ = windows.shape
    rows = cotangent.reshape(-1, outputs)
    d_kernel = _accumulate("ir,ro->io", windows.reshape(-1, width * channels).T, rows)
    d_windows = _accumulate("ro,io->ri", rows, kernel.reshape(-1, outputs)).astype(windows.dtype)
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
    x: Float[Array, "B T D"], kernel: Float[Array, "K G D"], dtype: DTypeLike
) -> Float[Array, "B T D"]:
    """Grouped convolution over time, zero-padded by ``K // 2`` on the left and to length ``T`` on the right.

    ``kernel`` has ``G`` input channels per group, hence ``D // G`` groups. Grouped convolutions of wide kernels are slow
    everywhere: on CPU they go through the Fourier transform in float32 instead, few frames without a gradient excepted;
    on accelerators through one matrix product per group (cuDNN's own took two fifths of a training step of wav2vec2-base
    on an H200).
    """
    if kernel.shape[0] > _WIDE and not is_plain():
        if on_cpu():
            transformed = x.shape[0] * x.shape[1] > _FEW_FRAMES
            convolve = _fft_grouped_conv if transformed else _short_grouped_conv
            return convolve(x.astype(jnp.float32), kernel.astype(jnp.float32), kernel.shape[0]).astype(dtype)
        return in_rows(_blocked_grouped_conv(in_rows(x.astype(dtype)), kernel, dtype))
    x, kernel = x.astype(dtype), kernel.astype(dtype)
    return _grouped_conv_apart(x, kernel) if on_cpu() and _chosen.get().batched else _grouped_conv(x, kernel)


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
    each = [_accumulate("btgi,btgo->igo", tap, by_group).reshape(size, channels) for tap in taps]
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
    output = einsum("gnk,gkp->gnp", windows.reshape(groups, batch * blocks, -1), weight, dtype)
    output = output.reshape(groups, batch, blocks, block, size).transpose(1, 2, 3, 0, 4)
    return output.reshape(batch, blocks * block, channels)[:, :frames]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _short_grouped_conv(x: Array, kernel: Array, width: int) -> Array:
    """Without a gradient as it is: to transform the kernel alone would take longer. With one, by Fourier transform."""
    return _grouped_conv(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _fft_grouped_conv(x: Float[Array, "B T D"], kernel: Float[Array, "K G D"], width: int) -> Float[Array, "B T D"]:
    """Overlap-save: blocks of a power of two, each overlapping the last by ``K - 1`` frames.

    No transform runs beside another: in jaxlib 0.11, two at once on two cores wait for each other's threads for ever.
    """
    return _fft_forward(x, kernel, width)[0]


def _fft_forward(x: Array, kernel: Array, width: int) -> tuple[Array, tuple[Array, Array]]:
    _, group_size, channels = kernel.shape
    batch, frames, _ = x.shape
    groups, block = channels // group_size, _block_of(width)
    blocks = _overlapping_blocks(x, width, group_size)
    taps = kernel.reshape(width, group_size, groups, group_size).transpose(2, 3, 1, 0)
    of_taps = jnp.fft.rfft(taps, block)
    of_blocks = jnp.fft.rfft(_after(of_taps.real, blocks))
    # Convolution layers correlate, hence the conjugate.
    spectrum = jnp.einsum("gmif,goif->gmof", of_blocks, jnp.conj(of_taps))
    hop = block - width + 1
    output = jnp.fft.irfft(spectrum, block)[..., :hop].reshape(groups, batch, -1, group_size, hop)
    output = output.transpose(1, 2, 4, 0, 3).reshape(batch, -1, channels)[:, :frames]
    return output, (of_blocks, of_taps)


def _fft_backward(width: int, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    of_blocks, of_taps = saved
    batch, frames, channels = cotangent.shape
    groups, group_size = of_taps.shape[:2]
    block = _block_of(width)
    hop = block - width + 1
    num_blocks = math.ceil(frames / hop)
    g = jnp.pad(cotangent, ((0, 0), (0, num_blocks * hop - frames), (0, 0)))
    g = g.reshape(batch * num_blocks, hop, groups, group_size).transpose(2, 0, 3, 1)
    of_g = jnp.fft.rfft(g, block)
    d_taps = jnp.fft.irfft(jnp.einsum("gmif,gmof->goif", of_blocks, jnp.conj(of_g)), block)
    d_blocks = jnp.fft.irfft(_after(d_taps, jnp.einsum("gmof,goif->gmif", of_g, of_taps)), block)
    shape = jax.ShapeDtypeStruct((batch, frames, channels), cotangent.dtype)
    blocks_of = functools.partial(_overlapping_blocks, width=width, group_size=group_size)
    (d_x,) = jax.linear_transpose(blocks_of, shape)(d_blocks)
    return d_x, d_taps[..., :width].transpose(3, 2, 0, 1).reshape(width, group_size, channels)


_fft_grouped_conv.defvjp(_fft_forward, _fft_backward)
_short_grouped_conv.defvjp(_fft_forward, _fft_backward)


def _after(first: Array, x: Array) -> Array:
    """``x``, which is there only after ``first``.

    The first of the two is the kernel's, which all devices have: a wait for another device's rows would be a message.
    """
    return x + 0 * first[(0,) * first.ndim]  # XLA must not drop it: the product may be NaN


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
