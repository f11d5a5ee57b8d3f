"""In a population, what is wrong with one member reaches no other: not even NaN, which a masked product carries over."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture
from jax_mtlser.models import convolutions, products
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions

MEMBERS, SPOILED = 3, 1


def others(tree):
    return [np.delete(np.asarray(leaf), SPOILED, axis=0) for leaf in jax.tree.leaves(tree)]


def assert_others_equal(found, expected) -> None:
    assert all(np.isfinite(leaf).all() for leaf in others(expected))
    pairs = list(zip(others(found), others(expected), strict=True))
    assert pairs
    assert all(np.array_equal(one, other) for one, other in pairs)


def spoiled(tree):
    return jax.tree.map(lambda leaf: leaf.at[SPOILED].set(jnp.nan), tree)


@pytest.mark.parametrize("width", [3, 9])  # as a convolution, and through the Fourier transform
@pytest.mark.parametrize("plain", [False, True])
def test_a_grouped_convolution_keeps_members_apart(width, plain):
    keys = jax.random.split(jax.random.key(0), 3)
    x, cotangent = (jax.random.normal(key, (MEMBERS, 2, 20, 8)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (MEMBERS, width, 2, 8))

    @jax.jit
    @jax.vmap
    def both(x, kernel, cotangent):
        conv = functools.partial(convolutions.same_grouped_conv, dtype=jnp.float32)
        output, pullback = jax.vjp(conv, x, kernel)
        return output, pullback(cotangent)

    with products.formulation(batched=True, plain=plain):
        expected, found = both(x, kernel, cotangent), both(*map(spoiled, (x, kernel, cotangent)))
    assert_others_equal(found, expected)
    # And it is the gradient that a member has alone.
    for member in range(MEMBERS):
        with products.formulation(plain=plain):
            conv = functools.partial(convolutions.same_grouped_conv, dtype=jnp.float32)
            output, pullback = jax.vjp(conv, x[member], kernel[member])
            alone = output, pullback(cotangent[member])
        for one, other in zip(jax.tree.leaves(expected), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(one[member], other, atol=2e-5)


@pytest.mark.parametrize("width", [3, 9])
def test_members_and_rows_divided_among_devices_give_the_same_gradients(width):
    keys = jax.random.split(jax.random.key(1), 3)
    x, cotangent = (jax.random.normal(key, (2, 4, 20, 8)) for key in keys[:2])
    kernel = jax.random.normal(keys[2], (2, width, 2, 8))

    def gradients(x, kernel, cotangent):
        conv = functools.partial(convolutions.same_grouped_conv, dtype=jnp.float32)
        return jax.vmap(lambda x, kernel, cotangent: jax.vjp(conv, x, kernel)[1](cotangent))(x, kernel, cotangent)

    auto = (jax.sharding.AxisType.Auto,) * 2
    mesh = jax.make_mesh((2, 2), ("member", "data"), axis_types=auto, devices=jax.devices()[:4])
    rows, member = (
        jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))
        for axes in (("member", "data"), ("member",))
    )
    with products.formulation(batched=True):
        expected = jax.jit(gradients)(x, kernel, cotangent)
        divided = jax.jit(gradients, in_shardings=(rows, member, rows), out_shardings=(rows, member))
        found = divided(x, kernel, cotangent)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        (EncoderFamily.WAV2VEC2, jnp.float32),
        pytest.param(EncoderFamily.WAV2VEC2, jnp.bfloat16, marks=pytest.mark.slow),
        pytest.param(EncoderFamily.WAVLM, jnp.float32, marks=pytest.mark.slow),
        pytest.param(EncoderFamily.DATA2VEC_AUDIO, jnp.float32, marks=pytest.mark.slow),
    ],
)
def test_a_model_keeps_members_apart(family, dtype):
    arch = Wav2Vec2Architecture(
        family=family, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8, 16), conv_kernel=(40, 8), conv_stride=(20, 16), num_conv_pos_embeddings=3,
        num_conv_pos_embedding_groups=2, mask_time_length=4,
    )  # fmt: skip
    if family is EncoderFamily.DATA2VEC_AUDIO:
        arch = dataclasses.replace(arch, num_conv_pos_embeddings=2, conv_pos_kernel_size=5)
    model = MultitaskModel(arch, HeadSizes(emotion=2, gender=2, speaker=3, asr=5), EncoderOptions(dtype=dtype))
    samples = jax.random.normal(jax.random.key(1), (MEMBERS, 2, 6_400))
    lengths = jnp.array([[6_400, 5_000], [3_000, 6_400], [6_400, 0]])
    init = jax.jit(jax.vmap(lambda key: model.init(key, samples[0], lengths[0], train=False)["params"]))
    params = init(jax.random.split(jax.random.key(2), MEMBERS))

    @jax.jit
    @jax.vmap
    def gradient(params, samples, lengths):
        def value(params):
            keys = {name: jax.random.key(3) for name in ("dropout", "layerdrop", "spec_augment")}
            output = model.apply({"params": params}, samples, lengths, train=True, rngs=keys)
            logits = [output.emotion, output.gender, output.speaker, output.asr]
            return sum(jnp.sum(jnp.square(each.astype(jnp.float32))) for each in logits)

        return jax.value_and_grad(value)(params)

    with products.formulation(batched=True):
        assert_others_equal(gradient(spoiled(params), samples, lengths), gradient(params, samples, lengths))
