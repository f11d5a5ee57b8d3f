"""Warped frequencies: a voice of another size, in training only."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.architecture import WhisperArchitecture
from jax_mtlser.models.log_mel import log_mel, warped
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions

CHANNELS = 80
ARCH = WhisperArchitecture(
    hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, num_mel_bins=8,
    max_source_positions=60, frequency_warp=0.2,
)  # fmt: skip


def _tones(*hertz: float) -> jax.Array:
    seconds = np.arange(4000) / 16_000
    audio = 0.5 * np.sin(2 * np.pi * np.array(hertz)[:, None] * seconds)
    return log_mel(jnp.asarray(audio, jnp.float32), CHANNELS, whole_window=False)


@settings(deadline=None, max_examples=30)
@given(hertz=st.floats(300, 5500), factor=st.floats(0.75, 1.3))
def test_a_warped_tone_is_the_tone_of_another_frequency(hertz, factor):
    tone, other = _tones(hertz, hertz * factor)
    moved = warped(tone[None], jnp.array([factor]))[0]
    peaks = [np.argmax(np.asarray(mel).mean(0)) for mel in (moved, other)]
    assert abs(peaks[0] - peaks[1]) <= 1


def test_a_factor_of_one_changes_nothing_and_rows_have_their_own():
    mel = _tones(440, 3000)
    np.testing.assert_allclose(warped(mel, jnp.ones(2)), mel, atol=2e-5)
    both = warped(mel, jnp.array([0.9, 1.2]))
    for row, factor in enumerate((0.9, 1.2)):
        np.testing.assert_allclose(both[row], warped(mel[row : row + 1], jnp.array([factor]))[0], atol=1e-6)


def test_between_two_channels_levels_are_interpolated_and_the_last_is_repeated():
    ramp = jnp.arange(CHANNELS, dtype=jnp.float32)[None, None]
    lower = warped(ramp, jnp.array([0.8]))[0, 0]  # everything comes from above
    assert (np.diff(lower) >= 0).all()
    assert (lower >= ramp[0, 0]).all()
    assert lower[-1] == CHANNELS - 1
    # Below 1 kHz, channels are as far apart in hertz as on the mel scale: the first stands at one distance from 0.
    np.testing.assert_allclose(lower[:10], np.arange(1, 11) / 0.8 - 1, atol=1e-4)


@pytest.fixture(scope="module")
def heard():
    audio = jnp.asarray(np.random.default_rng(0).normal(0, 0.1, (3, 3200)), jnp.float32)
    lengths = jnp.array([3200, 3200, 1500])
    params = speech_encoder(ARCH, EncoderOptions()).init(jax.random.key(0), audio, lengths, train=False)["params"]

    def frames(arch=ARCH, rngs=None, train=False):
        module = speech_encoder(arch, EncoderOptions())
        return module.apply({"params": params}, audio, lengths, train=train, rngs=rngs or {}).frames

    return frames


def test_without_its_random_stream_nothing_is_warped(heard):
    unwarped = dataclasses.replace(ARCH, frequency_warp=0.0)
    np.testing.assert_array_equal(heard(), heard(unwarped))
    np.testing.assert_array_equal(heard(unwarped, {"frequency_warp": jax.random.key(1)}), heard(unwarped))


@pytest.mark.parametrize("train", [False, True])
def test_with_it_each_utterance_is_warped_by_chance(heard, train):
    one, same, other = (heard(rngs={"frequency_warp": jax.random.key(seed)}, train=train) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, same)
    for row in range(3):
        assert jnp.abs(one[row] - heard()[row]).max() > 1e-3
        assert jnp.abs(one[row] - other[row]).max() > 1e-3
    assert not one[2, 5:].any(), "padding stays zero"
