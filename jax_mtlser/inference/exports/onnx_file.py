"""The emotion path as ONNX, converted by jax2onnx and run by ONNX Runtime: one fixed shape."""

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mtlser.architecture import WhisperArchitecture
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.inference.exports.formats import ExportError, Judge, OnnxShape, Weights
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.models import products
from jax_mtlser.models.log_mel import WINDOW

__all__ = ["FIRST_UNKNOWN_JAX", "MODEL", "read_onnx", "samples_of", "write_onnx"]

MODEL = "emotion.onnx"

FIRST_UNKNOWN_JAX = (0, 12)
"""The first version of jax that the converter does not know."""

_LARGEST = 2**31 - 2**24  # bytes; what protobuf holds, less the graph


def samples_of(shape: OnnxShape, path: SerPath) -> int:
    """Samples of one row.

    Raises:
        ExportError: a shape that the model cannot take.
    """
    longest = path.model.arch.max_samples()
    if shape.batch < 1:
        raise ExportError(f"--batch is {shape.batch}; it must be 1 or more")
    if not path.shortest <= shape.seconds * SAMPLE_RATE <= (longest or np.inf):
        most = "" if longest is None else f" and at most {longest / SAMPLE_RATE:g} s"
        raise ExportError(
            f"--seconds is {shape.seconds:g}; at least {path.shortest / SAMPLE_RATE:g} s{most} are needed"
        )
    return round(shape.seconds * SAMPLE_RATE)


def write_onnx(folder: Path, path: SerPath, weights: Weights, shape: OnnxShape) -> None:
    """Convert, and for int8 quantise: matrices ahead, what they are multiplied with as it comes (dynamic).

    Raises:
        ExportError: converter or runtime are missing, a shape that cannot be, or a model too large for one file.
    """
    size = sum(array.nbytes for array in path.params.values())
    if size > _LARGEST:
        raise ExportError(f"the model has {size / 1e9:.1f} GB, and an ONNX file holds 2 GB; use --format stablehlo")
    samples = samples_of(shape, path)
    with _quiet():
        to_onnx = _converter()

        def emotion(samples: Any, lengths: Any) -> Any:
            return path.probabilities(path.params, samples, lengths)

        # The runtime's own transform is off by up to 3e-3 in the logarithm of a spectrum.
        with products.formulation(platform="cpu", plain=True, without_fft=True):
            model = to_onnx(
                emotion,
                [
                    jax.ShapeDtypeStruct((shape.batch, samples), jnp.float32),
                    jax.ShapeDtypeStruct((shape.batch,), jnp.int32),
                ],
                model_name="emotion",
                input_names=["samples", "lengths"],
                output_names=["probabilities"],
            )
    _name_products(model, keep=_spectrogram_shapes(path))
    (folder / MODEL).write_bytes(model.SerializeToString())
    if weights is Weights.INT8:
        _quantise(folder)


def _spectrogram_shapes(path: SerPath) -> set[tuple[int, ...]]:
    """Shapes of the matrices that make a spectrogram: the logarithm behind them needs all of their digits."""
    arch = path.model.arch
    if not isinstance(arch, WhisperArchitecture):
        return set()
    return {(WINDOW, 2 * (WINDOW // 2 + 1)), (WINDOW // 2 + 1, arch.num_mel_bins)}


def _name_products(model: Any, keep: set[tuple[int, ...]]) -> None:
    """Turn each Einsum that is a plain matrix product into MatMul, which runtimes quantise and run faster.

    Args:
        model: changed in place.
        keep: shapes of matrices whose products stay as they are.
    """
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Einsum" or any(shapes.get(name) in keep for name in node.input):
            continue
        equation = node.attribute[0].s.decode().replace(" ", "")
        letters = [letter for letter in equation if letter.isalpha()]
        if len(letters) == 6 and equation == "{},{}->{}".format(*("".join(letters[i : i + 2]) for i in (0, 2, 4))):
            rows, inner, same, columns, *output = letters
            if inner == same and [rows, columns] == output and len({rows, inner, columns}) == 3:
                node.op_type = "MatMul"
                del node.attribute[:]


def _quantise(folder: Path) -> None:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    plain = folder / f"float32_{MODEL}"
    (folder / MODEL).rename(plain)
    with _quiet():
        quantize_dynamic(
            plain,
            folder / MODEL,
            op_types_to_quantize=["MatMul", "Gemm"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": 1},  # float32, where the graph does not say
        )
    plain.unlink()
    if not any(node.op_type == "MatMulInteger" for node in onnx.load(folder / MODEL).graph.node):
        raise ExportError("none of the model's matrix products could be quantised; use --weights float32")


def read_onnx(folder: Path) -> Judge:
    """Open the file in ONNX Runtime, on the CPU.

    Raises:
        ExportError: a damaged file, or one with other inputs.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ExportError(_missing("onnxruntime")) from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of every constant that it removes
    try:
        # From bytes: a model that names further files has no folder to find them in.
        content = (folder / MODEL).read_bytes()
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no base class
        raise ExportError(
            f"{folder / MODEL} is damaged or no ONNX model: {str(error).splitlines()[0][:200]}"
        ) from error
    if [entry.name for entry in session.get_inputs()] != ["samples", "lengths"]:
        raise ExportError(f"{folder / MODEL} does not take samples and lengths")
    return lambda samples, lengths: session.run(["probabilities"], {"samples": samples, "lengths": lengths})[0]


def _converter() -> Any:
    if jax.__version_info__ >= FIRST_UNKNOWN_JAX:
        below = ".".join(map(str, FIRST_UNKNOWN_JAX))
        raise ExportError(
            f"the format onnx needs jax below {below}, but this is {jax.__version__}, which its converter does not know: "
            f"pip install 'jax<{below}' in an environment of its own, or use --format stablehlo"
        )
    for name in ("onnxruntime", "onnx", "jax2onnx"):
        try:
            __import__(name)
        except ImportError:
            raise ExportError(_missing(name)) from None
    from jax2onnx import to_onnx

    return to_onnx


def _missing(name: str) -> str:
    return f"the format onnx needs {name}, which is not installed: pip install 'jax-mtlser[onnx]'"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the converter's reports on plugins that this model does not use."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
