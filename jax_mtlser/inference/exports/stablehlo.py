"""The emotion path as StableHLO, serialised by ``jax.export`` for any batch and length, its weights beside it."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from jax_mtlser.inference.exports.formats import ExportError, Judge, Weights
from jax_mtlser.inference.exports.quantisation import restored, stored
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.models import products

__all__ = ["PROGRAM", "WEIGHTS", "read_stablehlo", "write_stablehlo"]

PROGRAM = "emotion.jax_export"
WEIGHTS = "weights.safetensors"
_PLATFORMS = ("cpu", "cuda", "tpu")
# What a program may call outside StableHLO itself. Symbolic shapes check their constraints through the first.
_CALLS = frozenset({"shape_assertion", "Sharding"})


def write_stablehlo(folder: Path, path: SerPath, weights: Weights) -> None:
    """Write program and weights.

    Weights are an argument of the program and not constants in it: a compiler would fold int8 back to float32, and
    the serialised form holds no more than 2 GB.

    Raises:
        ExportError: the library that serialises is missing.
    """
    try:
        import flatbuffers  # noqa: F401
    except ImportError:
        raise ExportError(
            "the format stablehlo needs flatbuffers, which is not installed: pip install 'jax-mtlser[export]'"
        ) from None
    params = stored(path.params, weights)
    dtype = jnp.bfloat16 if weights is Weights.BFLOAT16 else jnp.float32
    longest = path.model.arch.max_samples()
    limits = [f"s >= {path.shortest}"] + ([] if longest is None else [f"s <= {longest}"])
    batch, samples = export.symbolic_shape("b, s", constraints=limits)

    def emotion(params: dict[str, Any], samples: Any, lengths: Any) -> Any:
        return path.probabilities(restored(params), samples, lengths, dtype)

    # One program for all platforms, so nothing that only one of them can run.
    with products.formulation(platform="cpu", plain=True):
        exported = export.export(jax.jit(emotion), platforms=_PLATFORMS)(
            {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in params.items()},
            jax.ShapeDtypeStruct((batch, samples), jnp.float32),
            jax.ShapeDtypeStruct((batch,), jnp.int32),
        )
    (folder / PROGRAM).write_bytes(exported.serialize())
    save_file({name: np.ascontiguousarray(array) for name, array in params.items()}, folder / WEIGHTS)


def read_stablehlo(folder: Path) -> Judge:
    """Read it back, as anyone would.

    Raises:
        ExportError: damaged files, weights that do not fit, or a program that calls what is no part of StableHLO.
    """
    try:
        exported = export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        calls = set(re.findall(r"custom_call\s+@([\w.$-]+)", exported.mlir_module()))
    except Exception as error:  # the reader of flatbuffers raises whatever the bytes lead it to
        raise ExportError(f"{folder / PROGRAM} is damaged or no program of jax.export: {_first(error)}") from error
    if foreign := sorted(calls - _CALLS):
        raise ExportError(f"{folder / PROGRAM} calls {', '.join(foreign)}, which no export of this package does")
    try:
        params = load_file(folder / WEIGHTS)
        given = [jax.ShapeDtypeStruct(array.shape, array.dtype) for _, array in sorted(params.items())]
    except (SafetensorError, OSError, ValueError) as error:
        raise ExportError(f"{folder / WEIGHTS} is damaged or no safetensors file: {_first(error)}") from error
    wanted = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in exported.in_avals[:-2]]
    if given != wanted:
        raise ExportError(f"{folder / WEIGHTS} does not hold the weights that {PROGRAM} takes")
    on_device = jax.device_put(params)
    compiled = jax.jit(exported.call)

    def judge(samples: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        try:
            return np.asarray(compiled(on_device, samples, lengths))
        except ValueError as error:
            raise ExportError(
                f"{PROGRAM} does not take samples of shape {list(samples.shape)} with lengths of shape "
                f"{list(lengths.shape)}; README.md beside it says how short and long they may be"
            ) from error

    return judge


def _first(error: BaseException) -> str:
    return f"{type(error).__name__} {error}".strip().splitlines()[0][:200]
