"""Writes an encoder as a folder that ``transformers`` loads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.pretrained.keys import UNUSED, entries
from jax_mtlser.models.pretrained.model_config import config_values, preprocessor_values

__all__ = ["export_encoder"]


def export_encoder(
    folder: Path, params: Any, arch: EncoderArchitecture, *, normalize_waveform: bool, lora: Lora | None = None
) -> None:
    """Write ``config.json``, ``model.safetensors`` (float32) and ``preprocessor_config.json``.

    ``transformers.AutoModel.from_pretrained(folder)`` gives the same encoder; for Whisper, whose model class brings
    a decoder, ``WhisperEncoder.from_pretrained``.

    Args:
        folder: made when missing; files of the same names are replaced.
        params: the encoder's parameters.
        arch: its architecture.
        normalize_waveform: how its input is prepared.
        lora: adapters in ``params``; they are added into the kernels.

    Raises:
        KeyError: parameters of another architecture.
    """
    tensors: dict[str, np.ndarray] = {}
    for entry in entries(arch):
        if entry.path == UNUSED:
            continue
        *parents, name = entry.path.split("/")
        node = params
        for parent in parents:
            node = node[parent]
        value = np.asarray(node[name], np.float32)
        if name == "kernel" and lora is not None and "lora_down" in node:
            value = value + lora.scale * np.asarray(node["lora_down"]) @ np.asarray(node["lora_up"])
        tensors[entry.keys[0]] = np.ascontiguousarray(entry.restore(value))
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config_values(arch))
    _write(folder / "preprocessor_config.json", preprocessor_values(arch, normalize_waveform))


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
