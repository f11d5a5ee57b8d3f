"""Writes an encoder as a folder that ``transformers`` loads."""

import json
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
from safetensors.numpy import save_file

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.models.layers import LORA_PARAMETERS, Lora
from jax_mtlser.models.pretrained.keys import UNUSED, entries
from jax_mtlser.models.pretrained.model_config import config_values, preprocessor_values

__all__ = ["export_encoder"]


def export_encoder(
    folder: Path,
    params: Any,
    arch: EncoderArchitecture,
    *,
    normalize_waveform: bool,
    lora: Lora | None = None,
    low_precision: bool = False,
) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``.

    ``transformers.AutoModel.from_pretrained(folder)`` gives the same encoder; for Whisper, whose model class brings
    a decoder, ``WhisperEncoder.from_pretrained``.

    Args:
        folder: made when missing; files of the same names are replaced.
        params: the encoder's parameters.
        arch: its architecture.
        normalize_waveform: how its input is prepared.
        lora: adapters in ``params``; they are added into the kernels.
        low_precision: matrices in bfloat16 instead of float32.

    Raises:
        KeyError: a parameter that the architecture has is missing, or one that it does not have is there.
        ValueError: a parameter of another shape.
    """
    given = {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf, np.float32)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    }
    if lora is not None:
        given = _with_adapters(given, lora)
    wanted = [entry for entry in entries(arch) if entry.path != UNUSED]
    paths = {entry.path for entry in wanted}
    if given.keys() != paths:
        raise KeyError(
            f"the parameters lack {sorted(paths - given.keys())[:6]} of their architecture and have "
            f"{sorted(given.keys() - paths)[:6]} that it has not"
        )
    tensors: dict[str, np.ndarray] = {}
    for entry in wanted:
        tensor = np.ascontiguousarray(entry.restore(given[entry.path]))
        if tensor.shape != entry.source_shape:
            raise ValueError(
                f"{entry.path} becomes {list(tensor.shape)} in the export; its architecture asks for "
                f"{list(entry.source_shape)}"
            )
        if low_precision and tensor.ndim > 1:
            tensor = tensor.astype(ml_dtypes.bfloat16)
        tensors[entry.keys[0]] = tensor
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    _write(folder / "config.json", config_values(arch))
    _write(folder / "preprocessor_config.json", preprocessor_values(arch, normalize_waveform))


def _with_adapters(given: dict[str, np.ndarray], lora: Lora) -> dict[str, np.ndarray]:
    """The parameters with every adapter added into its kernel."""
    merged = {path: value for path, value in given.items() if not path.endswith(LORA_PARAMETERS)}
    for path in given:
        if path.endswith("/lora_down"):
            stem = path.removesuffix("lora_down")
            product = lora.scale * given[path] @ given[f"{stem}lora_up"]
            merged[f"{stem}kernel"] = (given[f"{stem}kernel"] + product).astype(np.float32)
    return merged


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
