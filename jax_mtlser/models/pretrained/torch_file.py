"""Tensors from PyTorch's ``.bin`` files, without PyTorch and without running what a pickle asks for.

A file written by ``torch.save`` (since 1.6) is a zip archive: ``data.pkl`` describes tensors as views of storages,
and ``data/<key>`` holds each storage's raw bytes. Only the few names that such a description needs are allowed
here; anything else a pickle might call is refused by name.
"""

import collections
import dataclasses
import math
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

__all__ = ["TorchFileError", "read_torch_file"]


class TorchFileError(ValueError):
    """A file that is no plain table of tensors; the message says what was found."""


_STORAGES: dict[str, Any] = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


def read_torch_file(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a state dict, by key.

    Raises:
        TorchFileError: another format, a damaged archive, or a pickle that asks for more than tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(archive)
    except zipfile.BadZipFile as error:
        raise TorchFileError(
            "it is damaged, or was written by PyTorch before 1.6; load it with a current PyTorch once and save it "
            "with save_pretrained(), which writes model.safetensors"
        ) from error
    except TorchFileError:
        raise
    except Exception as error:
        # Damaged bytes make zipfile and pickle raise nearly anything: OSError, NotImplementedError, MemoryError, ...
        raise TorchFileError(f"it is damaged: {type(error).__name__}: {error}") from error


def _read(archive: zipfile.ZipFile) -> dict[str, np.ndarray]:
    names = archive.namelist()
    description = [name for name in names if name.endswith("/data.pkl")]
    if len(description) != 1:
        raise TorchFileError("it is a zip archive, but not one that torch.save wrote")
    root = description[0].removesuffix("data.pkl")
    order = archive.read(f"{root}byteorder").decode() if f"{root}byteorder" in names else "little"
    if order != "little":
        raise TorchFileError(f"its numbers are stored {order}-endian; only little-endian files are read")
    with archive.open(description[0]) as stream:
        value = _TensorUnpickler(stream, lambda key: archive.read(f"{root}data/{key}")).load()
    if isinstance(value, dict) and isinstance(value.get("state_dict"), dict):
        value = value["state_dict"]
    if not isinstance(value, dict):
        raise TorchFileError(f"it holds a {type(value).__name__}, not a table of tensors")
    others = [key for key, tensor in value.items() if not isinstance(tensor, np.ndarray)]
    if others:
        raise TorchFileError(f"its entry {others[0]!r} is no tensor")
    return dict(value)


class _TensorUnpickler(pickle.Unpickler):
    """Builds NumPy arrays where the file describes tensors; knows no other names."""

    def __init__(self, stream: Any, storage_bytes: Callable[[str], bytes]) -> None:
        super().__init__(stream)
        self._storage_bytes = storage_bytes

    def find_class(self, module: str, name: str) -> Any:
        match module, name:
            case "collections", "OrderedDict":
                return collections.OrderedDict
            case "torch._utils", "_rebuild_tensor_v2":
                return _view
            case "torch._utils", "_rebuild_parameter":
                return lambda data, *_: data
            case "torch", storage if storage in _STORAGES:
                return _STORAGES[storage]
        raise TorchFileError(f"its pickle asks for {module}.{name}; only plain tensors are read")

    def persistent_load(self, identifier: Any) -> "_Storage":
        kind, dtype, key, _, count = identifier
        if kind != "storage":
            raise TorchFileError(f"its pickle refers to {kind!r} instead of a storage")
        data = np.frombuffer(self._storage_bytes(key), dtype)
        if len(data) < count:
            raise TorchFileError(f"storage {key} has {len(data)} of its {count} numbers")
        return _Storage(data)


@dataclasses.dataclass(frozen=True)
class _Storage:
    """One-dimensional numbers, as they lie in the file."""

    data: np.ndarray


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> np.ndarray:
    """The tensor that a storage, an offset and strides (in numbers) describe.

    Everything here comes out of the file: only views that stay inside their own storage are made.
    """
    # A view of a view could hide an axis of length zero, and NumPy's integers could overflow in the check.
    if not isinstance(storage, _Storage):
        raise TorchFileError("a tensor is described as a view of something that is no storage")
    data, offset = storage.data, int(offset)
    size, stride = tuple(map(int, size)), tuple(map(int, stride))
    if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0:
        raise TorchFileError(f"a tensor has shape {list(size)}, strides {list(stride)} and offset {offset}")
    count = math.prod(size)
    last = offset + sum((length - 1) * step for length, step in zip(size, stride, strict=True))
    # Weights fill their storage; a tensor with more entries than that would repeat them without end.
    if count and (last >= len(data) or count > len(data)):
        raise TorchFileError(f"a tensor of shape {list(size)} reaches beyond its storage of {len(data)} numbers")
    if not count:
        return np.zeros(size, data.dtype)
    steps = tuple(step * data.itemsize for step in stride)
    return np.lib.stride_tricks.as_strided(data[offset:], size, steps, writeable=False).copy()
