"""Gradients written by hand against automatic differentiation of the plain formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import FeatureNorm, Wav2Vec2Architecture
from jax_mtlser.models import dot_product_attention as dot_product_attention_module
from jax_mtlser.models import products
from jax_mtlser.models.dot_product_attention import dot_product_attention
from jax_mtlser.models.feature_encoder import FeatureEncoder, TimeGroupNorm
from jax_mtlser.models.layer_norm import LayerNorm
from jax_mtlser.models.layers import Affine, activation, affine_maps


def _normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def _both(function, *arguments):
    """Value and gradients of a function, plain and as it is computed by default."""
    value = jax.eval_shape(function, *arguments)
    weights = _normal(*value.shape, seed=9).astype(value.dtype)

    def run():
        def value_and_gradients(*arguments):  # a new function: traced anew
            value, pullback = jax.vjp(function, *arguments)
            return value, pullback(weights)

        return [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(jax.jit(value_and_gradients)(*arguments))]

    with products.formulation(plain=True):
        plain = run()
    return plain, run()


def _assert_close(plain, fast, tolerance):
    for expected, found in zip(plain, fast, strict=True):
        np.testing.assert_allclose(found, expected, atol=tolerance * max(np.abs(expected).max(), 1e-30))


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_gelu(dtype, tolerance):
    x = jnp.concatenate([jnp.linspace(-30, 30, 301), jnp.array([0.0, -1e-30, 88.0, -88.0])]).astype(dtype)
    _assert_close(*_both(activation("gelu"), x), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 2e-6), (jnp.bfloat16, 2**-7)])
def test_normalisation_over_channels(dtype, tolerance):
    module, x = LayerNorm(dtype), (3 * _normal(2, 5, 16) + 1).astype(dtype)
    params = {"scale": _normal(16, seed=1), "bias": _normal(16, seed=2)}
    plain, fast = _both(lambda p, x: module.apply({"params": p}, x), params, x)
    _assert_close(plain, fast, tolerance)
    if dtype == jnp.float32:
        z = np.asarray((x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-5))
        np.testing.assert_allclose(
            fast[0], z * np.asarray(params["scale"])[None, None] + params["bias"][None, None], atol=1e-5
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2**-7)])
def test_several_affine_maps_as_one_product(dtype, tolerance):
    maps = [Affine(width, use_bias=bias) for width, bias in ((4, True), (6, False), (4, True))]
    params = [each.init(jax.random.key(seed), 8) for seed, each in enumerate(maps)]
    x = _normal(2, 3, 8).astype(dtype)

    def outputs(params, x):
        return jnp.concatenate(
            affine_maps(x, [each.apply(p, 8) for each, p in zip(maps, params, strict=True)], dtype), axis=-1
        )

    plain, fast = _both(outputs, params, x)
    assert fast[0].shape == (2, 3, 14)
    _assert_close(plain, fast, tolerance)


@pytest.mark.parametrize("lengths", [(7, 3), (7, 7), (1, 0)])
def test_normalisation_over_time(lengths):
    module = TimeGroupNorm(5)
    x, mask = 3 * _normal(2, 7, 5) + 1, jnp.arange(7)[None] < jnp.asarray(lengths)[:, None]
    params = {"scale": _normal(5, seed=1), "bias": _normal(5, seed=2)}
    # Gradients of a constant or missing utterance are of the size of 1 / sqrt(epsilon) and cancel.
    tolerance = 1e-5 if min(lengths) > 1 else 1e-3
    _assert_close(*_both(lambda p, x: module.apply({"params": p}, x, mask), params, x), tolerance)


def test_normalisation_in_bfloat16_is_right_within_its_rounding():
    x, mask = _normal(2, 40, 5), jnp.arange(40)[None] < jnp.asarray([[40], [31]])
    params = {"scale": _normal(5, seed=1), "bias": _normal(5, seed=2)}

    def in_dtype(dtype):
        return lambda p, x: TimeGroupNorm(5, dtype).apply({"params": p}, x, mask).astype(jnp.float32)

    exact, _ = _both(in_dtype(jnp.float32), params, x)
    _, low = _both(in_dtype(jnp.bfloat16), params, x)
    _assert_close(exact, low, 4 * 2**-8)


@pytest.mark.parametrize("norm", list(FeatureNorm))
@pytest.mark.parametrize("platform", ["cpu", "gpu"])
def test_the_whole_feature_encoder(norm, platform):
    arch = Wav2Vec2Architecture(conv_dim=(16,) * 7, feat_extract_norm=norm, conv_bias=norm is FeatureNorm.LAYER)
    module, audio, lengths = FeatureEncoder(arch), _normal(2, 4_000), jnp.array([4_000, 2_900])
    params = jax.jit(module.init)(jax.random.key(0), audio, lengths)["params"]
    weights = _normal(2, arch.num_frames(4_000), 16, seed=3)

    def loss(params, audio):
        frames = module.apply({"params": params}, audio, lengths)
        inside = jnp.arange(frames.shape[1])[None] < arch.num_frames(lengths)[:, None]
        return jnp.sum(jnp.where(inside[..., None], frames * weights, 0))

    def gradients():
        fresh = jax.jit(jax.grad(lambda *arguments: loss(*arguments), argnums=(0, 1)))
        return jax.tree.leaves(fresh(params, audio))

    with products.formulation(plain=True):
        plain = gradients()
    with products.formulation(platform=platform):
        fast = gradients()
    for expected, found in zip(plain, fast, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-4 * float(jnp.abs(expected).max()))


def _attention_arguments(dtype, frames=7, size=4):
    parts = [_normal(3, frames, 2, size, seed=seed).astype(dtype) for seed in range(3)]
    # The last row is nothing but padding: it stays finite, and its scores get no gradient.
    mask = jnp.arange(frames)[None] < jnp.array([frames, frames // 2, 0])[:, None]
    position = {"gate": _normal(3, 2, frames, seed=4), "relative_position": _normal(2, frames, frames, seed=3)}
    return parts, position, mask


@pytest.mark.parametrize("recomputed", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("with_position", [False, True])
def test_attention(with_position, rate, recomputed, monkeypatch):
    if recomputed:
        monkeypatch.setattr(dot_product_attention_module, "_MANY_FRAMES", 6)
    parts, position, mask = _attention_arguments(jnp.float32)

    def attended(query, key, value, gate=None, relative_position=None):
        return dot_product_attention(
            query, key, value, mask, jnp.float32, gate=gate, relative_position=relative_position,
            dropout_rate=rate, dropout_key=jax.random.key(5),
        )  # fmt: skip

    arguments = [*parts, *(position.values() if with_position else ())]
    plain, fast = _both(attended, *arguments)
    _assert_close(plain, fast, 2e-6)
    kept = jax.tree.leaves(jax.vjp(attended, *arguments)[1])
    for_each_pair_of_frames = (3, 2, 7, 7)
    assert any(leaf.shape == for_each_pair_of_frames for leaf in kept) != recomputed
    value, d_query, d_key, *_ = fast
    for untouched in (d_query[2], d_key[2], d_key[1, 3:]):
        assert not untouched.any()
    if not with_position and rate == 0:
        reference = jax.nn.dot_product_attention(*parts, mask=mask[:, None, None, :], scale=1.0)
        np.testing.assert_allclose(value[:2], reference[:2], atol=1e-6)


@pytest.mark.parametrize("given", ["gate", "relative_position"])
def test_a_gate_without_positions_or_positions_without_a_gate(given):
    parts, position, mask = _attention_arguments(jnp.float32)
    with pytest.raises(ValueError, match=f"{given} was given alone; attention takes .* both, or neither"):
        dot_product_attention(*parts, mask, jnp.float32, **{given: position[given]})


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_in_bfloat16(rate):
    parts, _, mask = _attention_arguments(jnp.bfloat16, frames=48, size=16)

    def attended(dtype):
        def function(query, key, value):
            drop = jax.random.key(5)
            return dot_product_attention(query / 4, key, value, mask, dtype, dropout_rate=rate, dropout_key=drop)

        return function

    exact, _ = _both(attended(jnp.float32), *(part.astype(jnp.float32) for part in parts))
    plain, fast = _both(attended(jnp.bfloat16), *parts)
    for reference, by_jax, by_hand in zip(exact, plain, fast, strict=True):
        size = np.sqrt(np.mean(reference**2))
        error, jax_error = (np.sqrt(np.mean((found - reference) ** 2)) / size for found in (by_hand, by_jax))
        assert error < 2**-7
        assert error < 2 * jax_error
