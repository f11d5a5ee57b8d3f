"""What can be exported, in which numbers, and how far an export may be from the model it was made of."""

import dataclasses
import enum
from collections.abc import Callable

import numpy as np
from jaxtyping import Float32, Int32

__all__ = ["FORMATS", "LIMITS", "ExportError", "ExportFormat", "Judge", "OnnxShape", "Weights"]

Judge = Callable[[Float32[np.ndarray, "B S"], Int32[np.ndarray, " B"]], Float32[np.ndarray, "B C"]]
"""Samples in [-1, 1) and their lengths in, emotion probabilities out."""


class ExportError(ValueError):
    """An export that cannot be made, read, or trusted; the message says why and what to do."""


class ExportFormat(enum.Enum):
    """What an export is for."""

    HUGGINGFACE = "huggingface"  # the encoder alone, for transformers
    ORBAX = "orbax"  # the whole model with all its heads, for this package
    STABLEHLO = "stablehlo"  # samples to emotion probabilities, for jax without this package
    ONNX = "onnx"  # the same for ONNX Runtime, one fixed shape


class Weights(enum.Enum):
    """How matrices are stored; vectors (biases, norms) stay float32."""

    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"
    INT8 = "int8"


FORMATS = {
    ExportFormat.HUGGINGFACE: (Weights.FLOAT32, Weights.BFLOAT16),
    ExportFormat.ORBAX: (Weights.FLOAT32, Weights.BFLOAT16),
    ExportFormat.STABLEHLO: (Weights.FLOAT32, Weights.BFLOAT16, Weights.INT8),
    # ONNX Runtime has few bfloat16 kernels for CPUs.
    ExportFormat.ONNX: (Weights.FLOAT32, Weights.INT8),
}
"""Weights that each format can have."""

_ROUNDED = {Weights.BFLOAT16: 0.02, Weights.INT8: 0.1}
LIMITS = {
    (form, weights): _ROUNDED.get(weights, 1e-4 if form is ExportFormat.ONNX else 1e-5)
    for form, several in FORMATS.items()
    for weights in several
}
"""Largest difference of a probability from the float32 model's with which an export is accepted."""


@dataclasses.dataclass(frozen=True)
class OnnxShape:
    """The one shape that an ONNX export takes.

    Attributes:
        batch: utterances at once.
        seconds: of audio that each is padded to.
    """

    batch: int = 1
    seconds: float = 10.0
