"""Pre-trained encoders in Hugging Face layout: the only place that knows their files, config fields and key names."""

from jax_mtlser.models.pretrained.checkpoint import (
    CtcHead,
    PretrainedEncoder,
    ctc_head,
    encoder_parameters,
    open_encoder,
)
from jax_mtlser.models.pretrained.export import export_encoder
from jax_mtlser.models.pretrained.weight_files import CheckpointError

__all__ = [
    "CheckpointError",
    "CtcHead",
    "PretrainedEncoder",
    "ctc_head",
    "encoder_parameters",
    "export_encoder",
    "open_encoder",
]
