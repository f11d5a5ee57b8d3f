"""How much work an encoder is, counted from its architecture: multiply-accumulates (MACs) of products and convolutions.

One MAC is two floating-point operations. Elementwise work (norms, activations, softmax) is left out: it costs memory
traffic, not arithmetic. Counted is what the formulas need, not what a backend's formulation happens to execute.
"""

import itertools
from typing import Any

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.models.log_mel import HOP

__all__ = ["forward_macs", "training_macs"]

_GATE_OUTPUTS = 8  # WavLM's gate, see attention.py
_SPECTRUM = 201  # frequencies below the mel filters


def forward_macs(arch: EncoderArchitecture, num_samples: Any) -> dict[str, Any]:
    """MACs of one utterance's way through the encoder, by part; heads, a fraction of a per mille, are not counted.

    Args:
        arch: of the encoder.
        num_samples: samples of the utterance, padding included; an int or an integer array.

    Returns:
        Part -> MACs, of the shape of ``num_samples``, in the order of the computation.
    """
    match arch:
        case Wav2Vec2Architecture():
            parts = _wav2vec2_front(arch, num_samples)
        case WhisperArchitecture():
            parts = _whisper_front(arch, num_samples)
        case _:
            raise TypeError(f"the work of a {type(arch).__name__} is not known")
    return parts | _transformer(arch, arch.num_frames(num_samples))


def training_macs(
    arch: EncoderArchitecture, num_samples: Any, *, frozen_feature_encoder: bool = False
) -> dict[str, Any]:
    """MACs of one utterance in a training step: forward, gradient of the weights, gradient of the input.

    The first trained convolution's input has no gradient. What follows frozen convolutions starts with a trained
    norm, so it has one.

    Args:
        arch: of the encoder.
        num_samples: see :func:`forward_macs`.
        frozen_feature_encoder: the convolutions run forward only.
    """
    first = "conv_1" if isinstance(arch, WhisperArchitecture) else "conv_0"

    def passes(name: str) -> int:
        if name == "mel_filters" or (frozen_feature_encoder and name.startswith("conv_")):
            return 1
        return 2 if name == first else 3

    return {name: passes(name) * macs for name, macs in forward_macs(arch, num_samples).items()}


def _wav2vec2_front(arch: Wav2Vec2Architecture, num_samples: Any) -> dict[str, Any]:
    parts, frames = {}, num_samples
    for layer, (inputs, outputs) in enumerate(itertools.pairwise((1, *arch.conv_dim))):
        width, stride = arch.conv_kernel[layer], arch.conv_stride[layer]
        frames = (frames - width) // stride + 1
        parts[f"conv_{layer}"] = frames * width * inputs * outputs
    parts["feature_projection"] = frames * arch.conv_dim[-1] * arch.hidden_size
    per_tap = frames * arch.hidden_size**2 // arch.num_conv_pos_embedding_groups
    if arch.family is EncoderFamily.DATA2VEC_AUDIO:
        parts["positional_conv"] = per_tap * arch.conv_pos_kernel_size * arch.num_conv_pos_embeddings
    else:
        parts["positional_conv"] = per_tap * arch.num_conv_pos_embeddings
    return parts


def _whisper_front(arch: WhisperArchitecture, num_samples: Any) -> dict[str, Any]:
    windows = -(-num_samples // HOP)
    return {
        "mel_filters": windows * _SPECTRUM * arch.num_mel_bins,
        "conv_1": windows * 3 * arch.num_mel_bins * arch.hidden_size,
        "conv_2": arch.num_frames(num_samples) * 3 * arch.hidden_size**2,
    }


def _transformer(arch: EncoderArchitecture, frames: Any) -> dict[str, Any]:
    layers, width = arch.num_hidden_layers, arch.hidden_size
    parts = {
        "attention_projections": layers * frames * 4 * width**2,  # query, key, value, output
        "attention_products": layers * frames**2 * 2 * width,  # scores and their weighted sum: quadratic in length
        "feed_forward": layers * frames * 2 * width * arch.intermediate_size,
    }
    if arch.family is EncoderFamily.WAVLM:
        parts["position_gates"] = layers * frames * width * _GATE_OUTPUTS
    return parts
