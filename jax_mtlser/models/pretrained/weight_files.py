"""Tensors of a checkpoint by key, from every kind of file that Hugging Face's libraries write, and its JSON files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jax_mtlser.models.pretrained.torch_file import TorchFileError, read_torch_file

__all__ = ["WEIGHT_FILES", "CheckpointError", "find_weights", "read_json_object", "read_tensors"]

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")


class CheckpointError(ValueError):
    """A checkpoint that cannot be found, or used; the message names file and key."""


def read_json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        CheckpointError: no file, no JSON, or no object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def find_weights(folder: Path) -> Path:
    """The file that holds a folder's weights, or the index of its shards.

    Raises:
        CheckpointError: there is none.
    """
    for name in WEIGHT_FILES:
        for file in (folder / f"{name}.index.json", folder / name):
            if file.is_file():
                return file
    raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(WEIGHT_FILES)}")


def read_tensors(file: Path) -> dict[str, np.ndarray]:
    """All tensors of a weight file, or of the shards that an index names.

    Raises:
        CheckpointError: a damaged file, a missing shard, or a pickle that holds more than tensors.
    """
    if file.name.endswith(".index.json"):
        return _read_shards(file)
    return dict(_read_file(file))


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, which names the file of each tensor")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / Path(name).name  # shards lie beside their index, whatever the map says
        if not file.is_file():
            raise CheckpointError(f"{index.parent} has no {file.name}, which {index.name} names")
        tensors.update(_read_file(file))
    return tensors


def _read_file(file: Path) -> Mapping[str, np.ndarray]:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        return read_torch_file(file)
    except TorchFileError as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error


def _read_safetensors(file: Path) -> Mapping[str, np.ndarray]:
    try:
        with safe_open(file, framework="numpy") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
