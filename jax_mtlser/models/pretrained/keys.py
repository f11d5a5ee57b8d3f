"""Which tensor of a checkpoint is which parameter here, and how the one becomes the other."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import numpy as np

from jax_mtlser.architecture import (
    EncoderArchitecture,
    EncoderFamily,
    FeatureNorm,
    Wav2Vec2Architecture,
    WhisperArchitecture,
)

__all__ = ["UNUSED", "Entry", "entries", "is_dropped_head", "plain_key"]

UNUSED = "unused"  # path of tensors that a checkpoint may carry though nothing reads them

_PREFIXES = {
    EncoderFamily.WAV2VEC2: ("wav2vec2.",),
    EncoderFamily.HUBERT: ("hubert.",),
    EncoderFamily.WAVLM: ("wavlm.",),
    EncoderFamily.DATA2VEC_AUDIO: ("data2vec_audio.",),
    EncoderFamily.UNISPEECH_SAT: ("unispeech_sat.",),
    EncoderFamily.WHISPER: ("model.encoder.", "encoder."),
}
# Parts of pre-training and fine-tuning checkpoints that are not the encoder, in whatever family.
_DROPPED_HEADS = re.compile(
    r"^(lm_head|classifier|projector|layer_weights|dropout_features|quantizer|project_q|project_hid|speaker_proj"
    r"|label_embeddings_concat|final_proj|ctc_proj|layer_norm_for_extract|tdnn|objective|feature_extractor\.(weight|bias)$"
    r"|(model\.)?decoder|proj_out)\b"
)


@dataclasses.dataclass(frozen=True)
class Entry:
    """One parameter: its path here, its possible keys and shape there, and the way between them.

    Attributes:
        path: of the parameter, with slashes; ``UNUSED`` for none.
        keys: the first is the one that is written.
        source_shape: of the tensor in the checkpoint.
        convert: from the checkpoint's array to ours.
        restore: from ours to the checkpoint's.
        optional: the checkpoint may lack it.
    """

    path: str
    keys: tuple[str, ...]
    source_shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = lambda array: array
    restore: Callable[[np.ndarray], np.ndarray] = lambda array: array
    optional: bool = False


def plain_key(key: str, family: EncoderFamily) -> str:
    """A key without the prefix that models with heads put before their encoder's."""
    return next((key.removeprefix(prefix) for prefix in _PREFIXES[family] if key.startswith(prefix)), key)


def is_dropped_head(key: str) -> bool:
    """Whether a plain key belongs to a head, or another part that is left out on purpose."""
    return _DROPPED_HEADS.match(key) is not None


def entries(arch: EncoderArchitecture) -> Iterator[Entry]:
    """Every parameter of an encoder."""
    match arch:
        case Wav2Vec2Architecture():
            yield from _wav2vec2(arch)
        case WhisperArchitecture():
            yield from _whisper(arch)


def _wav2vec2(arch: Wav2Vec2Architecture) -> Iterator[Entry]:
    hidden = arch.hidden_size
    # transformers leaves the parameter out where nothing is masked, but older checkpoints may carry it.
    path = "masked_frame" if arch.has_masked_frame else UNUSED
    yield Entry(path, ("masked_spec_embed",), (hidden,), optional=not arch.has_masked_frame)
    channels = (1, *arch.conv_dim)
    for layer, width in enumerate(arch.conv_kernel):
        source = f"feature_extractor.conv_layers.{layer}"
        here = f"feature_encoder/conv_{layer}"
        yield from _conv(here, f"{source}.conv", channels[layer], channels[layer + 1], width, bias=arch.conv_bias)
        if layer == 0 or arch.feat_extract_norm is FeatureNorm.LAYER:
            yield from _norm(f"feature_encoder/norm_{layer}", f"{source}.layer_norm", channels[layer + 1])
    if arch.feat_proj_layer_norm:
        yield from _norm("feature_projection/norm", "feature_projection.layer_norm", channels[-1])
    yield from _dense("feature_projection/projection", "feature_projection.projection", channels[-1], hidden)
    yield from _positional_conv(arch)
    yield from _norm("transformer/norm", "encoder.layer_norm", hidden)
    if arch.family is EncoderFamily.WAVLM:
        shape = (arch.num_buckets, arch.num_attention_heads)
        yield Entry("relative_position/embedding", ("encoder.layers.0.attention.rel_attn_embed.weight",), shape)
    for layer in range(arch.num_hidden_layers):
        here, there = f"transformer/layer_{layer}", f"encoder.layers.{layer}"
        yield from _attention(f"{here}/attention", f"{there}.attention", hidden)
        if arch.family is EncoderFamily.WAVLM:
            heads = arch.num_attention_heads
            yield from _dense(f"{here}/attention/gate", f"{there}.attention.gru_rel_pos_linear", hidden // heads, 8)
            key = f"{there}.attention.gru_rel_pos_const"
            yield Entry(f"{here}/attention/gate_scale", (key,), (1, heads, 1, 1), np.ravel, _as_scale)
        yield from _norm(f"{here}/attention_norm", f"{there}.layer_norm", hidden)
        wide, source = arch.intermediate_size, f"{there}.feed_forward"
        yield from _dense(f"{here}/feed_forward/intermediate", f"{source}.intermediate_dense", hidden, wide)
        yield from _dense(f"{here}/feed_forward/output", f"{source}.output_dense", wide, hidden)
        yield from _norm(f"{here}/feed_forward_norm", f"{there}.final_layer_norm", hidden)


def _positional_conv(arch: Wav2Vec2Architecture) -> Iterator[Entry]:
    hidden, group = arch.hidden_size, arch.hidden_size // arch.num_conv_pos_embedding_groups
    if arch.family is EncoderFamily.DATA2VEC_AUDIO:
        for index in range(arch.num_conv_pos_embeddings):
            source, shape = f"encoder.pos_conv_embed.layers.{index}.conv", (hidden, group, arch.conv_pos_kernel_size)
            path = f"positional_conv/kernel_{index}"
            yield Entry(path, (f"{source}.weight",), shape, _reverse_axes, _reverse_axes)
            yield Entry(f"positional_conv/bias_{index}", (f"{source}.bias",), (hidden,))
        return
    source, width = "encoder.pos_conv_embed.conv", arch.num_conv_pos_embeddings
    gain_keys = (f"{source}.parametrizations.weight.original0", f"{source}.weight_g")
    direction_keys = (f"{source}.parametrizations.weight.original1", f"{source}.weight_v")
    yield Entry("positional_conv/gain", gain_keys, (1, 1, width), np.ravel, lambda gain: gain[None, None])
    shape = (hidden, group, width)
    yield Entry("positional_conv/direction", direction_keys, shape, _reverse_axes, _reverse_axes)
    yield Entry("positional_conv/bias", (f"{source}.bias",), (hidden,))


def _whisper(arch: WhisperArchitecture) -> Iterator[Entry]:
    hidden, wide = arch.hidden_size, arch.intermediate_size
    for layer, inputs in ((1, arch.num_mel_bins), (2, hidden)):
        yield from _conv(f"feature_encoder/conv_{layer}", f"conv{layer}", inputs, hidden, 3, bias=True)
    yield Entry("positions", ("embed_positions.weight",), (arch.max_source_positions, hidden))
    for layer in range(arch.num_hidden_layers):
        here, there = f"transformer/layer_{layer}", f"layers.{layer}"
        yield from _attention(f"{here}/attention", f"{there}.self_attn", hidden, key_bias=False)
        yield from _norm(f"{here}/attention_norm", f"{there}.self_attn_layer_norm", hidden)
        yield from _dense(f"{here}/feed_forward/intermediate", f"{there}.fc1", hidden, wide)
        yield from _dense(f"{here}/feed_forward/output", f"{there}.fc2", wide, hidden)
        yield from _norm(f"{here}/feed_forward_norm", f"{there}.final_layer_norm", hidden)
    yield from _norm("transformer/norm", "layer_norm", hidden)


def _attention(here: str, there: str, hidden: int, *, key_bias: bool = True) -> Iterator[Entry]:
    for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("output", "out_proj")):
        bias = key_bias or ours != "key"
        yield from _dense(f"{here}/{ours}", f"{there}.{theirs}", hidden, hidden, bias=bias)


def _dense(here: str, there: str, inputs: int, outputs: int, *, bias: bool = True) -> Iterator[Entry]:
    yield Entry(f"{here}/kernel", (f"{there}.weight",), (outputs, inputs), np.transpose, np.transpose)
    if bias:
        yield Entry(f"{here}/bias", (f"{there}.bias",), (outputs,))


def _conv(here: str, there: str, inputs: int, outputs: int, width: int, *, bias: bool) -> Iterator[Entry]:
    shape = (outputs, inputs, width)
    yield Entry(f"{here}/kernel", (f"{there}.weight",), shape, _reverse_axes, _reverse_axes)
    if bias:
        yield Entry(f"{here}/bias", (f"{there}.bias",), (outputs,))


def _norm(here: str, there: str, channels: int) -> Iterator[Entry]:
    yield Entry(f"{here}/scale", (f"{there}.weight",), (channels,))
    yield Entry(f"{here}/bias", (f"{there}.bias",), (channels,))


def _reverse_axes(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 1, 0)  # [O, I, K] in PyTorch, [K, I, O] here


def _as_scale(scale: np.ndarray) -> np.ndarray:
    return scale[None, :, None, None]
