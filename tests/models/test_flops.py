"""Counted work: against a table worked out by hand, and against PyTorch's counter on the reference models."""

import numpy as np
import pytest
import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.models.flops import forward_macs, training_macs

SAMPLES = 72_000  # 4.5 s, 224 frames
# wav2vec2-base, GMAC.
TABLE = {
    "conv_0": 0.074,
    "conv_1": 5.66,
    "conv_2": 2.83,
    "conv_3": 1.41,
    "conv_4": 0.71,
    "feature_projection": 0.088,
    "positional_conv": 1.057,
    "attention_projections": 6.34,
    "attention_products": 0.92,
    "feed_forward": 12.68,
}


def test_base_by_part():
    parts = forward_macs(Wav2Vec2Architecture(), SAMPLES)
    for name, expected in TABLE.items():
        assert parts[name] / 1e9 == pytest.approx(expected, abs=0.006), name
    assert (parts["conv_5"] + parts["conv_6"]) / 1e9 == pytest.approx(0.35, abs=0.006)
    ctc_head = 224 * 768 * 32
    assert (sum(parts.values()) + ctc_head) / 1e9 == pytest.approx(32.14, abs=0.005)


def test_training_of_base():
    arch = Wav2Vec2Architecture()
    every, frozen = training_macs(arch, SAMPLES), training_macs(arch, SAMPLES, frozen_feature_encoder=True)
    assert 2 * sum(every.values()) / 1e9 == pytest.approx(193, abs=0.5)
    assert 2 * sum(frozen.values()) / 1e9 == pytest.approx(149, abs=0.5)
    forward = forward_macs(arch, SAMPLES)
    assert every["conv_0"] == 2 * forward["conv_0"]
    assert every["conv_1"] == 3 * forward["conv_1"]
    assert frozen["conv_1"] == forward["conv_1"]
    assert frozen["feature_projection"] == 3 * forward["feature_projection"]


def test_arrays_of_lengths_are_counted_one_by_one():
    arch = Wav2Vec2Architecture()
    lengths = np.array([16_000, SAMPLES], np.int64)
    for name, values in training_macs(arch, lengths).items():
        assert list(values) == [training_macs(arch, int(length))[name] for length in lengths], name


def counted(model: torch.nn.Module, *inputs: torch.Tensor) -> int:
    """MACs of a forward pass on the meta device, where nothing is computed."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*inputs)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_wav2vec2_equals_the_reference_model_operation_by_operation(attention):
    with torch.device("meta"):
        config = transformers.Wav2Vec2Config(attn_implementation=attention, apply_spec_augment=False)
        model = transformers.Wav2Vec2Model(config).eval()
        macs = counted(model, torch.zeros(1, SAMPLES))
    parts = forward_macs(Wav2Vec2Architecture(), SAMPLES)
    # The reference computes one position more in its convolution of even width, and cuts it off.
    surplus = parts["positional_conv"] // 224
    assert sum(parts.values()) + surplus == macs


def test_data2vec_equals_the_reference_model_operation_by_operation():
    with torch.device("meta"):
        config = transformers.Data2VecAudioConfig(apply_spec_augment=False)
        model = transformers.Data2VecAudioModel(config).eval()
        macs = counted(model, torch.zeros(1, SAMPLES))
    arch = Wav2Vec2Architecture(
        family=EncoderFamily.DATA2VEC_AUDIO, num_conv_pos_embeddings=config.num_conv_pos_embeddings
    )
    assert sum(forward_macs(arch, SAMPLES).values()) == macs


def test_whisper_equals_the_reference_model_operation_by_operation():
    with torch.device("meta"):
        config = transformers.WhisperConfig(decoder_layers=1)
        model = WhisperEncoder(config).eval()
        macs = counted(model, torch.zeros(1, 80, 3_000))
    parts = forward_macs(WhisperArchitecture(), 480_000)
    assert parts.pop("mel_filters") == 3_000 * 201 * 80  # not part of the reference model
    assert sum(parts.values()) == macs


def test_wavlm_has_gates_beside_what_all_encoders_have():
    plain = forward_macs(Wav2Vec2Architecture(), SAMPLES)
    gated = forward_macs(Wav2Vec2Architecture(family=EncoderFamily.WAVLM), SAMPLES)
    assert gated == {**plain, "position_gates": 12 * 224 * 12 * 64 * 8}
