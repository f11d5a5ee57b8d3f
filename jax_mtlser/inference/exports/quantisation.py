"""Matrices in fewer bits: bfloat16, or int8 with one scale for each output channel."""

from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from jax_mtlser.inference.exports.formats import Weights

__all__ = ["restored", "rounded", "stored"]

# Beside the matrix: no parameter's name has a colon.
_SCALE = ":scale"
# What is smaller saves nothing that is worth its rounding.
_LEAST_VALUES = 256
_ENCODER = "encoder/"  # heads are small, and nothing behind them evens out their rounding


def rounded(array: np.ndarray) -> np.ndarray:
    """A matrix in bfloat16; vectors as they are."""
    return array.astype(ml_dtypes.bfloat16) if array.ndim > 1 else array


def stored(params: dict[str, np.ndarray], weights: Weights) -> dict[str, np.ndarray]:
    """Parameters by path as they are written.

    Int8 is symmetric: a matrix is ``q * scale``, with ``q`` in -127 .. 127 and a float32 ``scale`` for each entry of
    its last axis, kept under ``<path>:scale``.
    """
    match weights:
        case Weights.FLOAT32:
            return params
        case Weights.BFLOAT16:
            return {path: rounded(array) for path, array in params.items()}
    result: dict[str, np.ndarray] = {}
    for path, array in params.items():
        if array.ndim < 2 or array.size < _LEAST_VALUES or not path.startswith(_ENCODER):
            result[path] = array
            continue
        scale = np.abs(array).max(axis=tuple(range(array.ndim - 1))).astype(np.float32) / np.float32(127)
        scale = np.where(scale > 0, scale, np.float32(1))  # a channel of zeros
        result[path] = np.clip(np.rint(array / scale), -127, 127).astype(np.int8)
        result[path + _SCALE] = scale
    return result


def restored(values: dict[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`stored`, traced into the exported program; what is not int8 is left as it is."""
    return {
        path: value.astype(jnp.float32) * values[path + _SCALE][(None,) * (value.ndim - 1)]
        if value.dtype == jnp.int8
        else value
        for path, value in values.items()
        if not path.endswith(_SCALE)
    }
