"""What the model says of an utterance does not depend on its batch, its bucket, or the rows that fill the batch."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.architecture import EncoderFamily, FeatureNorm, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel, ready_to_multiply
from jax_mtlser.models.transformer import EncoderOptions

_SMALL = {
    "hidden_size": 24,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "conv_dim": (12, 12),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embedding_groups": 4,
}
ARCHITECTURES = {
    # Positional convolution by the Fourier transform, and as a convolution.
    "group": Wav2Vec2Architecture(**_SMALL, num_conv_pos_embeddings=12),
    "layer": Wav2Vec2Architecture(
        **_SMALL,
        num_conv_pos_embeddings=5,
        feat_extract_norm=FeatureNorm.LAYER,
        conv_bias=True,
        do_stable_layer_norm=True,
    ),
    "wavlm": Wav2Vec2Architecture(
        **_SMALL, num_conv_pos_embeddings=12, family=EncoderFamily.WAVLM, num_buckets=16, max_bucket_distance=20
    ),
    "data2vec": Wav2Vec2Architecture(
        **_SMALL,
        family=EncoderFamily.DATA2VEC_AUDIO,
        feat_extract_norm=FeatureNorm.LAYER,
        num_conv_pos_embeddings=2,
        conv_pos_kernel_size=11,
    ),
    "whisper": WhisperArchitecture(
        hidden_size=24, num_attention_heads=2, intermediate_size=32, num_mel_bins=12, max_source_positions=20
    ),
}
# WavLM's layers and data2vec's positions are variations of these; both are behind the slow marker.
ONE_OF_EACH_KIND = [
    pytest.param(name, marks=pytest.mark.slow) if name in ("wavlm", "data2vec") else name for name in ARCHITECTURES
]
SIZES = HeadSizes(emotion=4, gender=2, speaker=5, asr=6)
# In samples; ten times as long for Whisper, whose frames are that much longer.
BUCKETS = (300, 480)
SHORTEST = ARCHITECTURES["group"].min_samples()
LOGITS = ("emotion", "gender", "speaker", "asr")


# Code generation dominates the time of these tests, and results do not rest on LLVM's optimisations.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}


def _model(name, dtype=jnp.float32, num_layers=2):
    """Parameters of the model with two layers fit the one with fewer too."""
    arch = dataclasses.replace(ARCHITECTURES[name], num_hidden_layers=num_layers)
    return MultitaskModel(arch, SIZES, EncoderOptions(dtype=dtype))


@functools.cache
def _parameters(name):
    shapes = jax.eval_shape(
        functools.partial(_model(name).init, train=False), jax.random.key(0), jnp.zeros((1, 300)), jnp.array([300])
    )
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        # Gains around one; biases and the rest away from zero.
        gain = path[-1].key in ("scale", "gain")
        scale = 0.3 if len(leaf.shape) > 1 else 0.1
        return jnp.asarray(gain + scale * rng.standard_normal(leaf.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes)


@functools.cache
def _apply(name, dtype=jnp.float32):
    return jax.jit(
        functools.partial(_model(name, dtype).apply, _parameters(name), train=False), compiler_options=QUICK_COMPILE
    )


def _unit(name):
    return 10 if name == "whisper" else 1


def _utterance(length, seed):
    return np.random.default_rng(seed).standard_normal(length).astype(np.float32)


def _batch(utterances, total):
    audio = np.zeros((len(utterances), total), np.float32)
    for row, samples in enumerate(utterances):
        audio[row, : len(samples)] = samples
    return audio, np.array([len(samples) for samples in utterances])


def _own(output, row):
    """Everything said of one utterance, cut to its own frames."""
    frames = int(output.frame_lengths[row])
    values = {name: np.asarray(getattr(output, name)[row], np.float32) for name in LOGITS}
    return values | {"asr": values["asr"][:frames], "embedding": np.asarray(output.embedding[row])}


def _assert_same(ours, expected, tolerance):
    for name, value in expected.items():
        assert ours[name].shape == value.shape, name
        assert np.isfinite(ours[name]).all(), name
        np.testing.assert_allclose(ours[name], value, rtol=0, atol=tolerance, err_msg=name)


_lengths = st.integers(SHORTEST, BUCKETS[0])
_others = st.lists(st.one_of(st.just(0), st.integers(SHORTEST, BUCKETS[1])), min_size=2, max_size=2)


@pytest.mark.parametrize("name", ARCHITECTURES)
@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(length=_lengths, others=_others, row=st.integers(0, 2))
def test_an_utterance_alone_equals_itself_in_any_batch_and_bucket(name, length, others, row):
    unit = _unit(name)
    samples = _utterance(length * unit, seed=length)
    alone = _own(_apply(name)(*_batch([samples], BUCKETS[0] * unit)), 0)
    utterances = [_utterance(other * unit, seed=100 + number) for number, other in enumerate(others)]
    utterances.insert(row, samples)
    output = _apply(name)(*_batch(utterances, BUCKETS[1] * unit))
    _assert_same(_own(output, row), alone, 1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(output))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_utterance_equals_itself_at_exactly_its_own_length(name):
    unit = _unit(name)
    samples = _utterance(251 * unit, seed=1)
    exact = _own(_apply(name)(*_batch([samples], 251 * unit)), 0)
    _assert_same(_own(_apply(name)(*_batch([samples], BUCKETS[0] * unit)), 0), exact, 1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_samples_behind_an_utterance_do_not_matter(name):
    unit = _unit(name)
    audio, lengths = _batch([_utterance(200 * unit, 1), _utterance(287 * unit, 2), []], BUCKETS[1] * unit)
    spoilt = np.where(np.arange(BUCKETS[1] * unit)[None] < lengths[:, None], audio, 50.0).astype(np.float32)
    clean, ours = (_apply(name)(x, lengths) for x in (audio, spoilt))
    for row in range(2):
        _assert_same(_own(ours, row), _own(clean, row), 1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_fill_rows_and_rows_too_short_for_a_frame_are_finite(name, dtype):
    too_short = _utterance(ARCHITECTURES[name].min_samples() - 1, 0)
    batch = _batch([[], too_short, _utterance(300 * _unit(name), 1)], BUCKETS[1] * _unit(name))
    output = _apply(name, dtype)(*batch)
    np.testing.assert_array_equal(output.frame_lengths[:2], 0)
    np.testing.assert_array_equal(output.embedding[:2], 0)
    assert all(np.isfinite(np.asarray(leaf, np.float32)).all() for leaf in jax.tree.leaves(output))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_shortest_utterance_has_one_frame(name):
    shortest = _utterance(ARCHITECTURES[name].min_samples(), 0)
    output = _apply(name)(*_batch([shortest] * 3, BUCKETS[1] * _unit(name)))
    np.testing.assert_array_equal(output.frame_lengths, 1)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_gradients_come_from_the_counted_rows_only(name):
    model, parameters, unit = _model(name, num_layers=1), _parameters(name), _unit(name)
    samples = _utterance(230 * unit, 1)

    def loss(parameters, audio, lengths, counted):
        output = model.apply(parameters, audio, lengths, train=False)
        frames = jnp.arange(output.asr.shape[1])[None] < output.frame_lengths[:, None]
        symbols = jnp.sum(jnp.where(frames[..., None], jnp.sin(output.asr), 0.0), axis=(1, 2))
        classes = sum(jnp.sum(jnp.sin(getattr(output, task)), axis=1) for task in LOGITS[:3])
        return jnp.sum(jnp.where(counted, symbols + classes, 0.0))

    gradient = jax.jit(jax.grad(loss), compiler_options=QUICK_COMPILE)
    alone = gradient(parameters, *_batch([samples], BUCKETS[0] * unit), np.array([True]))
    batch = _batch([[], samples, _utterance(BUCKETS[1] * unit, 2)], BUCKETS[1] * unit)
    beside = gradient(parameters, *batch, np.array([False, True, False]))
    for (path, expected), ours in zip(jax.tree_util.tree_leaves_with_path(alone), jax.tree.leaves(beside), strict=True):
        where = jax.tree_util.keystr(path)
        scale = max(1.0, float(jnp.abs(expected).max()))
        np.testing.assert_allclose(ours / scale, expected / scale, rtol=0, atol=1e-5, err_msg=where)


def test_gradients_stay_finite_beside_fill_rows_in_bfloat16():
    name = "group"
    model, batch = _model(name, jnp.bfloat16, num_layers=1), _batch([[], _utterance(230, 1), []], BUCKETS[0])

    def loss(parameters):
        return jnp.sum(model.apply(parameters, *batch, train=False).emotion)

    gradients = jax.jit(jax.grad(loss), compiler_options=QUICK_COMPILE)(_parameters(name))
    assert all(leaf.dtype == jnp.float32 and np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_in_bfloat16_batches_agree_within_its_rounding(name):
    unit = _unit(name)
    samples = _utterance(230 * unit, 1)
    alone = _own(_apply(name, jnp.bfloat16)(*_batch([samples], BUCKETS[0] * unit)), 0)
    batch = _batch([[], samples, _utterance(BUCKETS[1] * unit, 2)], BUCKETS[1] * unit)
    beside = _own(_apply(name, jnp.bfloat16)(*batch), 1)
    full = _own(_apply(name)(*batch), 1)
    for task in (*LOGITS, "embedding"):
        scale = float(np.abs(full[task]).max())
        print(
            task,
            f"between batches {np.abs(beside[task] - alone[task]).max() / scale:.1e},",
            f"from float32 {np.abs(beside[task] - full[task]).max() / scale:.1e}",
        )
        np.testing.assert_allclose(beside[task] / scale, alone[task] / scale, rtol=0, atol=2e-2, err_msg=task)
        np.testing.assert_allclose(beside[task] / scale, full[task] / scale, rtol=0, atol=5e-2, err_msg=task)


def test_a_head_without_classes_is_left_out():
    model = MultitaskModel(ARCHITECTURES["group"], HeadSizes(emotion=3))
    output, variables = jax.eval_shape(
        functools.partial(model.init_with_output, train=False), jax.random.key(0), jnp.zeros((2, 300)), jnp.ones(2, int)
    )
    assert output.emotion.shape == (2, 3)
    assert output.gender is output.speaker is output.asr is None
    assert set(variables["params"]) == {"encoder", "emotion_head"}


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_kernels_that_were_cast_before_say_the_same(name):
    length = BUCKETS[0] * _unit(name)
    audio, lengths = _batch([_utterance(length, 0)], length)
    cast = {"params": ready_to_multiply(_parameters(name)["params"], jnp.bfloat16)}
    positions = cast["params"]["encoder"].get("positional_conv", {})
    for spectrum in [key for key in positions if key.startswith("spectrum")]:
        del positions[spectrum]  # the same only within rounding: see the next test
    halved = [leaf for leaf in jax.tree.leaves(cast) if leaf.dtype == jnp.bfloat16]
    assert len(halved) > 12
    function = jax.jit(functools.partial(_model(name, jnp.bfloat16).apply, train=False), compiler_options=QUICK_COMPILE)
    one, other = (_own(function(params, audio, lengths), 0) for params in (_parameters(name), cast))
    for key, value in one.items():
        np.testing.assert_array_equal(other[key], value)


@pytest.mark.parametrize("name", ["group", pytest.param("wavlm", marks=pytest.mark.slow), "data2vec"])
@pytest.mark.parametrize("length", [300, 6000], ids=["one block", "many blocks"])
def test_taps_that_were_transformed_before_say_the_same_and_are_not_read_again(name, length):
    audio, lengths = _batch([_utterance(length, 0)], length)
    params = _parameters(name)
    ready = {"params": ready_to_multiply(params["params"], jnp.float32)}
    convolution = ready["params"]["encoder"]["positional_conv"]
    kernels = [name for name in convolution if name == "direction" or name.startswith("kernel")]
    assert kernels
    convolution |= {name: jnp.full_like(convolution[name], jnp.nan) for name in kernels}
    function = jax.jit(functools.partial(_model(name).apply, train=False), compiler_options=QUICK_COMPILE)
    one, other = (_own(function(params, audio, lengths), 0) for params in (params, ready))
    for key, value in one.items():
        np.testing.assert_allclose(other[key], value, atol=1e-5)
