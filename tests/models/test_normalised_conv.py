"""The first convolution, its norm and the activation in one pass, against the three one after the other."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.models import convolutions, products
from jax_mtlser.models.feature_encoder import FeatureEncoder, TimeGroupNorm
from jax_mtlser.models.layers import activation, frame_mask
from jax_mtlser.models.normalised_conv import normalised_conv

WIDTH, STRIDE, CHANNELS, SAMPLES = 10, 5, 12, 400
FRAMES = (SAMPLES - WIDTH) // STRIDE + 1
GELU = activation("gelu")


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _rumble(*shape):
    """Loud below, faint above, as a recording beside a road: 34 dB between 100 Hz and 8 kHz."""
    x = np.cumsum(_normal(*shape), axis=-1)
    x -= x.mean(axis=-1, keepdims=True)
    return x / x.std(axis=-1, keepdims=True)


def _hum(*shape):
    """Of the mains, and 60 dB below it noise."""
    x = np.sin(2 * np.pi * 60 / 16_000 * np.arange(shape[-1])) * 2**0.5 + 1e-3 * _normal(*shape)
    return x.astype(np.float32)


def _parameters():
    return _normal(WIDTH, 1, CHANNELS, seed=1), 1 + 0.1 * _normal(CHANNELS, seed=2), 0.1 * _normal(CHANNELS, seed=3)


def _one_pass(dtype, mask):
    def convolve(x, kernel, scale, bias):
        return normalised_conv(
            x, kernel, scale, bias, mask, stride=STRIDE, epsilon=1e-5, activate=GELU, dtype=dtype
        )  # fmt: skip

    return convolve


def _step_by_step(mask):
    def convolve(x, kernel, scale, bias):
        frames = convolutions.strided_conv(x, kernel, STRIDE, jnp.float32)
        return GELU(TimeGroupNorm(CHANNELS).apply({"params": {"scale": scale, "bias": bias}}, frames, mask))

    return convolve


def _values_and_gradients(function, mask, arguments, dtype=jnp.float32):
    @jax.jit
    def run(*arguments):
        value, pullback = jax.vjp(function, *arguments)
        # Frames of padding get no gradient in an encoder either.
        weights = jnp.asarray(_normal(*value.shape, seed=9)) * mask[..., None]
        return jnp.where(mask[..., None], value, 0.0), *pullback(weights.astype(dtype))

    return [np.asarray(each) for each in run(*arguments)]


def _expected(mask, arguments):
    with products.formulation(plain=True):
        return _values_and_gradients(_step_by_step(mask), mask, arguments)


@pytest.mark.parametrize(
    "lengths", [(FRAMES, FRAMES), (FRAMES, 31), (17, 0)], ids=["full", "padded", "with an empty row"]
)
def test_values_and_gradients_are_those_of_the_steps(lengths):
    mask = frame_mask(jnp.asarray(lengths), FRAMES)
    arguments = (_normal(2, SAMPLES, 1), *_parameters())
    found = _values_and_gradients(_one_pass(jnp.float32, mask), mask, arguments)
    for name, own, expected in zip(
        ("value", "x", "kernel", "scale", "bias"), found, _expected(mask, arguments), strict=True
    ):
        np.testing.assert_allclose(own, expected, atol=1e-5 * np.abs(expected).max(), rtol=0, err_msg=name)


@pytest.mark.parametrize("sound", [_normal, _rumble], ids=["white", "rumble"])
def test_bfloat16_is_right_within_its_rounding(sound):
    mask = frame_mask(jnp.asarray([FRAMES, 31]), FRAMES)
    arguments = (sound(2, SAMPLES)[..., None], *_parameters())
    found = _values_and_gradients(_one_pass(jnp.bfloat16, mask), mask, arguments, jnp.bfloat16)
    for name, own, expected in zip(
        ("value", "x", "kernel", "scale", "bias"), found, _expected(mask, arguments), strict=True
    ):
        np.testing.assert_allclose(
            own.astype(np.float32), expected, atol=2 * 2**-8 * np.abs(expected).max(), rtol=0, err_msg=name
        )


def test_members_of_a_population_get_what_each_gets_alone():
    mask = frame_mask(jnp.asarray([FRAMES, 31]), FRAMES)
    members = [(_normal(2, SAMPLES, 1, seed=seed), *(each * (1 + seed) for each in _parameters())) for seed in (0, 1)]
    function = _one_pass(jnp.bfloat16, mask)
    with products.formulation(batched=True):
        together, pullback = jax.vjp(jax.vmap(function), *map(jnp.stack, zip(*members, strict=True)))
        weights = jnp.asarray(_normal(*together.shape[1:], seed=9)) * mask[..., None]
        gradients = pullback(jnp.stack([weights] * 2).astype(jnp.bfloat16))
    for number, own in enumerate(members):
        alone = _values_and_gradients(function, mask, own, jnp.bfloat16)
        found = [np.where(mask[..., None], together[number], 0.0), *(each[number] for each in gradients)]
        for one, other in zip(found, alone, strict=True):
            one, other = np.asarray(one, np.float32), np.asarray(other, np.float32)
            np.testing.assert_allclose(one, other, atol=1e-5 * np.abs(other).max(), rtol=0)


def test_what_is_faint_beside_a_hum_is_normalised_by_its_own_variance():
    # Ninth differences cancel the hum to less than what float32 rounds off its square.
    kernel = np.array([math.comb(9, tap) * (-1) ** tap for tap in range(WIDTH)], np.float32)
    kernel = np.tile(kernel[:, None, None] / np.linalg.norm(kernel), (1, 1, CHANNELS)) * np.float32(5)
    arguments = (_hum(1, SAMPLES)[..., None], kernel, np.ones(CHANNELS, np.float32), np.zeros(CHANNELS, np.float32))
    mask = jnp.ones((1, FRAMES), bool)
    expected = np.asarray(_step_by_step(mask)(*arguments))
    found = np.asarray(_one_pass(jnp.float32, mask)(*arguments))
    assert expected.std() > 0.1
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max(), rtol=0)


def test_a_silent_recording_stays_finite():
    mask = jnp.ones((1, FRAMES), bool)
    found = _values_and_gradients(
        _one_pass(jnp.float32, mask), mask, (np.zeros((1, SAMPLES, 1), np.float32), *_parameters())
    )
    assert all(np.isfinite(each).all() for each in found)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("hf_compat", [False, True])
def test_an_encoder_in_bfloat16_hears_what_is_faint_beside_what_is_loud(hf_compat, platform):
    arch = Wav2Vec2Architecture(conv_dim=(64,), conv_kernel=(WIDTH,), conv_stride=(STRIDE,))
    audio, lengths = _rumble(2, 4_000), jnp.asarray([4_000, 2_900])
    audio[1, 2_900:] = 0
    params = jax.jit(FeatureEncoder(arch).init)(jax.random.key(0), audio, lengths)
    with products.formulation(plain=True):
        full = np.asarray(FeatureEncoder(arch, jnp.float32, hf_compat).apply(params, audio, lengths))
    with products.formulation(platform=platform):
        low = jax.jit(FeatureEncoder(arch, jnp.bfloat16, hf_compat).apply)(params, audio, lengths)
    low = np.asarray(low, np.float32)
    own = np.asarray(frame_mask((lengths - WIDTH) // STRIDE + 1, full.shape[1]))
    np.testing.assert_allclose(low[own], full[own], atol=4 * 2**-8 * np.abs(full[own]).max(), rtol=0)


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_first_convolution_is_rounded_once(platform):
    # Second differences leave little of a rumble: samples or taps rounded to bfloat16 would leave more of it.
    arguments = _rumble(2, SAMPLES)[..., None], np.zeros((WIDTH, 1, CHANNELS), np.float32)
    arguments[1][:3] = np.array([0.3, -0.6, 0.3], np.float32)[:, None, None] * (1 + 0.1 * _normal(CHANNELS, seed=2))

    def convolved(x, kernel, dtype):
        value, pullback = jax.vjp(lambda *given: convolutions.strided_conv(*given, STRIDE, dtype), x, kernel)
        weights = jnp.asarray(_normal(*value.shape, seed=9)).astype(jnp.bfloat16)
        return value, *pullback(weights.astype(value.dtype))

    with products.formulation(plain=True):
        full = convolved(*arguments, jnp.float32)
    with products.formulation(platform=platform):
        low = jax.jit(convolved, static_argnums=2)(*arguments, jnp.bfloat16)
    for name, own, expected in zip(("value", "x", "kernel"), low, full, strict=True):
        expected = np.asarray(expected)
        np.testing.assert_allclose(
            np.asarray(own, np.float32), expected, atol=2**-8 * np.abs(expected).max(), rtol=0, err_msg=name
        )
