"""Matrix products: the one place that decides how they are computed.

Operands are cast to the compute type, each product accumulates in float32. In bfloat16 the incoming cotangent is cast
too: otherwise ``preferred_element_type`` would silently turn every backward product into a float32 one.

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
from jaxtyping import Array, Float, Shaped

from jax_mtlser import runtime

__all__ = [
    "accumulate",
    "affine",
    "einsum",
    "formulation",
    "fourier_waves",
    "in_rows",
    "in_two",
    "is_batched",
    "is_plain",
    "matmul",
    "on_cpu",
    "power_spectrum",
    "recomputed",
    "transposed",
]


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


def is_batched() -> bool:
    """Whether a ``vmap`` around what is traced turns every product into a batched one."""
    return _chosen.get().batched


def on_cpu() -> bool:
    """Whether what is traced is compiled for a CPU."""
    return (_chosen.get().platform or jax.default_backend()) == "cpu"


def power_spectrum(x: Float[Array, "*batch N"]) -> Float[Array, "*batch N//2+1"]:
    """Squared magnitudes of the discrete Fourier transform, float32."""
    if not _chosen.get().without_fft:
        spectrum = jnp.fft.rfft(x)
        return jnp.square(spectrum.real) + jnp.square(spectrum.imag)
    waves = np.concatenate(fourier_waves(x.shape[-1], x.shape[-1]), axis=1)
    real, imaginary = jnp.split(matmul(x, jnp.asarray(waves), jnp.float32), 2, axis=-1)
    return jnp.square(real) + jnp.square(imaginary)


def fourier_waves(
    given: int, size: int
) -> tuple[Float[np.ndarray, "given size//2+1"], Float[np.ndarray, "given size//2+1"]]:
    """Kernels of a discrete Fourier transform of ``size`` values, all but the first ``given`` of them 0.

    Returns:
        Of the real and of the imaginary part, float32.
    """
    # The remainder first: sine and cosine of large arguments lose digits.
    angles = 2 * np.pi / size * (np.arange(given)[:, None] * np.arange(size // 2 + 1)[None] % size)
    return np.cos(angles).astype(np.float32), -np.sin(angles).astype(np.float32)


def in_rows(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """The same, and on accelerators laid out in memory as its axes say; its gradient too.

    Left alone, XLA lays out frames channel by channel in some places of a transformer, and the products around them then
    cost a transpose each. A flat array has one layout only, and nothing is moved past a barrier.
    """
    return x if on_cpu() or is_plain() else lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


def in_two(x: Float[Array, "*shape"], dtype: DTypeLike) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Float32 numbers rounded to ``dtype``, and what that took from them, which has no gradient of its own.

    Of the two together, the second is a constant: a product that is linear in both has the whole gradient in the first.
    """
    shape = jnp.finfo(dtype)
    # Not by converting there and back: XLA takes the excess precision and leaves nothing of the rest.
    rest = x - lax.reduce_precision(x, shape.nexp, shape.nmant)
    return x.astype(dtype), lax.stop_gradient(rest).astype(dtype)


def recomputed(x: Shaped[Array, "*shape"]) -> Shaped[Array, "*shape"]:
    """The same, for a backward pass: what it computes from this, XLA then computes again.

    A zero that it does not know for one hides that these are the forward pass' numbers: it would keep what came of them
    since then, in float32, which costs more memory traffic than the activations do.
    """
    return x + lax.optimization_barrier(jnp.zeros((), x.dtype))


def affine(
    x: Float[Array, "*batch I"], weight: Float[Array, "I O"], bias: Float[Array, " O"], dtype: DTypeLike
) -> Float[Array, "*batch O"]:
    """``x @ weight + bias`` in ``dtype``."""
    rows = einsum("ri,io->ro", x.reshape(-1, x.shape[-1]), weight, dtype)
    if is_plain() or dtype == jnp.float32:
        rows = rows + bias.astype(dtype)[None]
    else:
        rows = _with_bias(rows, bias)
    return rows.reshape(*x.shape[:-1], weight.shape[-1])


@jax.custom_vjp
def _with_bias(rows: Float[Array, "R O"], bias: Float[Array, " O"]) -> Float[Array, "R O"]:
    """The sum in float32, rounded to the rows' type.

    The rows were rounded before. A library that adds the bias itself would round once, but XLA makes copies around such
    calls, while this addition is done in passing by what follows.
    """
    return (rows.astype(jnp.float32) + bias.astype(jnp.float32)[None]).astype(rows.dtype)


def _with_bias_forward(rows: Array, bias: Array) -> tuple[Array, Array]:
    return _with_bias(rows, bias), jnp.zeros((), bias.dtype)


def _with_bias_backward(like: Array, cotangent: Array) -> tuple[Array, Array]:
    if not on_cpu():
        # Read by two products anyway: without the barrier XLA would write it in float32 for the sum.
        cotangent = lax.optimization_barrier(cotangent)
    elif not is_batched():
        # XLA's CPU backend writes the cotangent out in float32 before it sums it, and then sums in windows of 32. A
        # product of ones sums bfloat16 values exactly as well; of eight equal rows, because with one it takes longer.
        ones = jnp.ones((8, cotangent.shape[0]), cotangent.dtype)
        return cotangent, accumulate("kr,ro->ko", ones, cotangent)[0].astype(like.dtype)
    return cotangent, jnp.sum(cotangent.astype(jnp.float32), axis=0).astype(like.dtype)


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
        return accumulate(spec, left, right)
    return _low_precision_einsum(spec, left, right)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _low_precision_einsum(spec: str, left: Array, right: Array) -> Array:
    return accumulate(spec, left, right).astype(left.dtype)


def _einsum_forward(spec: str, left: Array, right: Array) -> tuple[Array, tuple[Array, Array]]:
    return _low_precision_einsum(spec, left, right), (left, right)


def _einsum_backward(spec: str, saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    left, right = saved
    inputs, output = spec.split("->")
    left_axes, right_axes = inputs.split(",")
    cotangent = cotangent.astype(left.dtype)
    d_left = accumulate(f"{output},{right_axes}->{left_axes}", cotangent, right)
    if spec == "ri,io->ro":
        d_right = accumulate("ir,ro->io", transposed(left), cotangent)
    else:
        # The cotangent first: the other way round, XLA's CPU backend has no fast kernel for attention's keys.
        d_right = accumulate(f"{output},{left_axes}->{right_axes}", cotangent, left)
    return d_left.astype(left.dtype), d_right.astype(right.dtype)


_low_precision_einsum.defvjp(_einsum_forward, _einsum_backward)


def accumulate(spec: str, left: Array, right: Array) -> Array:
    """The product, summed up in float32; on accelerators, a bfloat16 product is rounded before it is written.

    That halves what it writes.
    """
    if left.dtype == jnp.float32:
        # HIGHEST: without it, GPUs and TPUs compute float32 products with TF32 or bfloat16 operands.
        return jnp.einsum(spec, left, right, precision=lax.Precision.HIGHEST)
    if not on_cpu():
        return jnp.einsum(spec, left, right, preferred_element_type=left.dtype)
    several = len(spec) > len("ri,io->ro")
    if several and runtime.has_bfloat16_products() and not is_batched():
        return _laid_out(spec, left, right)
    if several or is_batched():
        # XLA's CPU backend does not run every batched bfloat16 product with a float32 result ("Unsupported element
        # type for DotThunk"). Products of bfloat16 values are exact in float32, so this computes the same.
        left, right = left.astype(jnp.float32), right.astype(jnp.float32)
    return jnp.einsum(spec, left, right, preferred_element_type=jnp.float32)


def _laid_out(spec: str, left: Array, right: Array) -> Array:
    """A batched bfloat16 product, float32, as processors with instructions for it run it: with AMX five times as fast as in
    float32, with AVX-512 BF16 twice.

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


def transposed(x: Float[Array, "R I"]) -> Float[Array, "I R"]:
    """The transpose as left operand of a product, moved in memory where that pays.

    XLA's CPU backend has no fast bfloat16 product that sums over the rows of its left operand (a weight's gradient):
    it would take four times as long. It folds a plain transpose into the product; this one it cannot.
    """
    rows, columns = x.shape
    if x.dtype != jnp.float32 and on_cpu() and not is_batched():
        for part in (2, 3, 5, 7, 11, 13):
            if rows % part == 0:
                return jnp.transpose(x.reshape(rows // part, part, columns), (2, 0, 1)).reshape(columns, rows)
    return x.T
