"""The encoder alone, as a folder that ``transformers`` loads."""

import dataclasses
from pathlib import Path

from jax_mtlser.config import EncoderConfig
from jax_mtlser.inference.exports.formats import ExportError, Judge, Weights
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder

__all__ = ["read_huggingface", "write_huggingface"]


def write_huggingface(folder: Path, trained: TrainedModel, weights: Weights) -> None:
    """Write ``config.json``, ``model.safetensors`` and ``preprocessor_config.json``."""
    trained.export_encoder(folder, low_precision=weights is Weights.BFLOAT16)


def read_huggingface(folder: Path, trained: TrainedModel) -> Judge:
    """The exported encoder under the member's own emotion head.

    Raises:
        CheckpointError: files that cannot be read.
        ExportError: another encoder than the member's.
    """
    encoder = open_encoder(EncoderConfig(checkpoint=str(folder)))
    assert encoder.weights is not None
    if encoder.normalize_waveform != trained.description["normalize_waveform"]:
        raise ExportError(f"{folder} prepares its input differently from {trained.name}")
    params, dropped = encoder_parameters(encoder.weights, encoder.arch)
    if dropped:
        raise ExportError(f"{folder} has weights that are none of the encoder's: {', '.join(dropped[:3])}")
    model = trained.model.clone(arch=encoder.arch, options=dataclasses.replace(trained.model.options, lora=None))
    own = {**trained.params, "encoder": params}
    return SerPath.of(dataclasses.replace(trained, model=model, params=own)).judge()
