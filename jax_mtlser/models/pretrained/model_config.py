"""``config.json`` and ``preprocessor_config.json``: from a checkpoint's to an architecture, and back."""

import dataclasses
import enum
from pathlib import Path
from typing import Any

from jax_mtlser.architecture import (
    EncoderArchitecture,
    EncoderFamily,
    FeatureNorm,
    Wav2Vec2Architecture,
    WhisperArchitecture,
)
from jax_mtlser.models.log_mel import HOP
from jax_mtlser.models.pretrained.weight_files import CheckpointError, read_json_object

__all__ = ["config_values", "preprocessor_values", "read_architecture", "read_normalize_waveform"]

# What the common fields are called in Whisper's config.
_WHISPER_NAMES = {
    "hidden_size": "d_model",
    "num_hidden_layers": "encoder_layers",
    "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim",
    "hidden_act": "activation_function",
    "hidden_dropout": "dropout",
    "layerdrop": "encoder_layerdrop",
    "initializer_range": "init_std",
}
# Defaults that differ from wav2vec 2.0's; data2vec has no other feature norm, so its config does not name it.
_FAMILY_DEFAULTS: dict[EncoderFamily, dict[str, Any]] = {
    EncoderFamily.DATA2VEC_AUDIO: {"num_conv_pos_embeddings": 5, "feat_extract_norm": "layer"},
}
# Fields that only one family's config has.
_FAMILY_FIELDS = {
    "feat_proj_layer_norm": EncoderFamily.HUBERT,
    "conv_pos_kernel_size": EncoderFamily.DATA2VEC_AUDIO,
    "num_buckets": EncoderFamily.WAVLM,
    "max_bucket_distance": EncoderFamily.WAVLM,
}
# Variants of an encoder that this package does not have, with the only value that it reads.
_ONLY = {"add_adapter": False, "adapter_attn_dim": None, "conv_pos_batch_norm": False}
# What Whisper's feature extractor may be set to.
_WHISPER_PREPROCESSOR = {"sampling_rate": 16_000, "n_fft": 400, "hop_length": HOP, "dither": 0.0, "do_normalize": False}


def read_architecture(path: Path) -> EncoderArchitecture:
    """The encoder that a ``config.json`` describes.

    Raises:
        CheckpointError: an encoder, or a variant of one, that this package does not have.
    """
    values = read_json_object(path)
    families = [family.value for family in EncoderFamily]
    if values.get("model_type") not in families:
        raise CheckpointError(
            f"{path}: model_type is {values.get('model_type')!r}; there are encoders for {', '.join(families)}"
        )
    family = EncoderFamily(values["model_type"])
    for name, expected in _ONLY.items():
        if values.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; only {expected!r} is supported")
    cls: type[EncoderArchitecture] = Wav2Vec2Architecture
    if family is EncoderFamily.WHISPER:
        cls = WhisperArchitecture
        values = values | {ours: values[theirs] for ours, theirs in _WHISPER_NAMES.items() if theirs in values}
    values = _FAMILY_DEFAULTS.get(family, {}) | values
    known: dict[str, Any] = {
        field.name: tuple(value) if isinstance(value := values[field.name], list) else value
        for field in dataclasses.fields(cls)
        if field.name in values
    }
    if (norm := known.get("feat_extract_norm")) is not None:
        choices = [choice.value for choice in FeatureNorm]
        if norm not in choices:
            raise CheckpointError(f"{path}: feat_extract_norm is {norm!r}; supported are {', '.join(choices)}")
        known["feat_extract_norm"] = FeatureNorm(norm)
    return cls(**(known | {"family": family}))


def read_normalize_waveform(folder: Path, arch: EncoderArchitecture) -> bool:
    """Whether the checkpoint wants zero mean and unit variance.

    Raises:
        CheckpointError: a feature extractor with other settings than this package's.
    """
    path, whisper = folder / "preprocessor_config.json", isinstance(arch, WhisperArchitecture)
    values = read_json_object(path) if path.is_file() else {}
    fixed = {"sampling_rate": 16_000}
    if isinstance(arch, WhisperArchitecture):
        fixed = _WHISPER_PREPROCESSOR | {"feature_size": arch.num_mel_bins}  # type: ignore[assignment]
    for name, expected in fixed.items():
        if values.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; only {expected!r} is supported here")
    return not whisper and bool(values.get("do_normalize", True))


def config_values(arch: EncoderArchitecture) -> dict[str, Any]:
    """``config.json`` of an architecture, for ``transformers``' model of its family without a head."""

    def plain(value: Any) -> Any:
        return value.value if isinstance(value, enum.Enum) else list(value) if isinstance(value, tuple) else value

    values = {field.name: plain(getattr(arch, field.name)) for field in dataclasses.fields(arch)}
    model_type = values.pop("family")
    if isinstance(arch, WhisperArchitecture):
        for name in ("layer_norm_eps", "final_dropout", "frequency_warp"):  # no settings of transformers' model
            values.pop(name)
        values = {_WHISPER_NAMES.get(name, name): value for name, value in values.items()}
        return {"model_type": model_type, "architectures": ["WhisperEncoder"], **values}
    values = {name: value for name, value in values.items() if _FAMILY_FIELDS.get(name, arch.family) is arch.family}
    classes = {
        EncoderFamily.WAV2VEC2: "Wav2Vec2Model",
        EncoderFamily.HUBERT: "HubertModel",
        EncoderFamily.WAVLM: "WavLMModel",
        EncoderFamily.DATA2VEC_AUDIO: "Data2VecAudioModel",
        EncoderFamily.UNISPEECH_SAT: "UniSpeechSatModel",
    }
    values["num_feat_extract_layers"] = len(values["conv_dim"])
    return {"model_type": model_type, "architectures": [classes[arch.family]], **values}


def preprocessor_values(arch: EncoderArchitecture, normalize_waveform: bool) -> dict[str, Any]:
    """``preprocessor_config.json`` of an architecture."""
    if isinstance(arch, WhisperArchitecture):
        return {
            "feature_extractor_type": "WhisperFeatureExtractor",
            "feature_size": arch.num_mel_bins,
            "sampling_rate": 16_000,
            "hop_length": HOP,
            "n_fft": 400,
            "chunk_length": arch.max_source_positions * arch.hop() // 16_000,
            "padding_value": 0.0,
            "return_attention_mask": False,
        }
    return {
        "feature_extractor_type": "Wav2Vec2FeatureExtractor",
        "feature_size": 1,
        "sampling_rate": 16_000,
        "padding_side": "right",
        "padding_value": 0.0,
        "do_normalize": normalize_waveform,
        # The rule of the released checkpoints: models with a GroupNorm over time were trained without masks.
        "return_attention_mask": getattr(arch, "feat_extract_norm", None) is FeatureNorm.LAYER,
    }
