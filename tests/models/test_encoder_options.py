"""How an encoder is computed must not change what it computes; what adapters and weighted layers add is what they say."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture
from jax_mtlser.config import HeadInput
from jax_mtlser.models import products
from jax_mtlser.models.layers import LORA_PARAMETERS, Dense, Lora
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions

# Code generation dominates the time of these tests, and results do not rest on LLVM's optimisations.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

# Dropout of every kind, so that the random numbers must agree too.
_NOISY = {"hidden_dropout": 0.2, "attention_dropout": 0.2, "activation_dropout": 0.2, "layerdrop": 0.4}
ARCHITECTURES = {
    "wavlm": Wav2Vec2Architecture(
        family=EncoderFamily.WAVLM,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        conv_dim=(12, 12),
        conv_kernel=(10, 3),
        conv_stride=(5, 2),
        num_conv_pos_embeddings=5,
        num_conv_pos_embedding_groups=4,
        num_buckets=16,
        max_bucket_distance=20,
        mask_time_length=3,
        **_NOISY,
    ),
    "whisper": WhisperArchitecture(
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=32,
        num_mel_bins=12,
        max_source_positions=30,
        apply_spec_augment=True,
        **_NOISY,
    ),
}
SAMPLES = {"wavlm": 400, "whisper": 8000}


def _batch(name):
    samples = SAMPLES[name]
    lengths = np.array([samples, samples * 3 // 5])
    audio = np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)
    return np.where(np.arange(samples)[None] < lengths[:, None], audio, 0).astype(np.float32), lengths


def _random(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (0.3 * rng.standard_normal(leaf.shape)).astype(np.float32), shapes)


def _parameters(module, name):
    return _random(jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), *_batch(name)))


def _program(name, **options):
    """Output, hidden states and gradient of a training-mode call."""
    module = speech_encoder(ARCHITECTURES[name], EncoderOptions(**options))
    audio, lengths = _batch(name)

    def loss(parameters, key):
        rngs = dict(zip(("dropout", "spec_augment", "layerdrop"), jax.random.split(key, 3), strict=True))
        output = module.apply(parameters, audio, lengths, train=True, output_hidden_states=True, rngs=rngs)
        return jnp.sum(jnp.sin(output.frames)), output

    shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), audio, lengths)
    gradient = jax.jit(jax.grad(loss, has_aux=True), compiler_options=QUICK_COMPILE)
    return gradient.lower(shapes, jax.random.key(0)).compile(), shapes


@functools.cache
def _plain(name):
    return _program(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"remat": True}, marks=pytest.mark.slow),
        pytest.param({"scan_layers": True}, marks=pytest.mark.slow),
        {"remat": True, "scan_layers": True},
    ],
    ids=str,
)
def test_rematerialisation_and_layer_scan_change_no_result(name, options):
    plain, shapes = _plain(name)
    other, other_shapes = _program(name, **options)
    assert jax.tree.structure(shapes) == jax.tree.structure(other_shapes), "the parameters are the same tree"
    parameters = _random(shapes)
    for seed in range(3):
        expected, ours = (program(parameters, jax.random.key(seed)) for program in (plain, other))
        assert len(ours[1].hidden_states) == 4
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), ours[1], expected[1])
        for one, two in zip(jax.tree.leaves(ours[0]), jax.tree.leaves(expected[0]), strict=True):
            scale = max(1.0, float(np.abs(two).max()))
            np.testing.assert_allclose(one / scale, two / scale, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_on_accelerators_layers_work_on_whole_eights_of_frames_and_change_no_result(name):
    quiet = dict.fromkeys(_NOISY, 0.0)
    module = speech_encoder(dataclasses.replace(ARCHITECTURES[name], **quiet), EncoderOptions())
    audio, lengths = _batch(name)
    parameters = _parameters(module, name)

    def loss(parameters):
        output = module.apply(parameters, audio, lengths, train=False, output_hidden_states=True)
        return jnp.sum(jnp.sin(output.frames)), output

    def run(platform):
        gradient = jax.grad(loss, has_aux=True)  # another function each time: JAX would take the first trace again
        with products.formulation(platform=platform):
            program = str(jax.make_jaxpr(gradient)(parameters))
            return program, jax.jit(gradient, compiler_options=QUICK_COMPILE)(parameters)

    (here, expected), (there, found) = run("cpu"), run("gpu")
    frames = expected[1].frames.shape[1]
    wide = f"2,2,{-(-frames // 8) * 8},{-(-frames // 8) * 8}]"
    assert frames % 8
    assert wide in there
    assert wide not in here
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-5), found[1], expected[1])
    for one, two in zip(jax.tree.leaves(found[0]), jax.tree.leaves(expected[0]), strict=True):
        scale = max(1.0, float(np.abs(two).max()))
        np.testing.assert_allclose(one / scale, two / scale, rtol=0, atol=2e-5)


def test_layers_are_dropped_in_training_so_that_the_test_above_sees_them():
    plain, shapes = _plain("whisper")
    parameters = _random(shapes)
    states = [plain(parameters, jax.random.key(seed))[1].hidden_states for seed in range(6)]
    same = [[bool((a == b).all()) for a, b in itertools.pairwise(one)] for one in states]
    assert any(map(any, same))
    assert not all(map(all, same))


def test_wavlm_never_drops_the_layer_that_owns_the_positions():
    plain, shapes = _plain("wavlm")
    parameters = _random(shapes)
    states = [plain(parameters, jax.random.key(seed))[1].hidden_states for seed in range(8)]
    assert not any((one[0] == one[1]).all() for one in states)
    assert any((one[1] == one[2]).all() for one in states)


def test_rematerialisation_saves_memory_and_a_scan_shortens_the_program():
    """At a size where activations outweigh everything else."""
    arch = dataclasses.replace(
        ARCHITECTURES["whisper"], num_hidden_layers=6, max_source_positions=400, apply_spec_augment=False
    )
    audio, lengths = jnp.zeros((4, 128_000)), jnp.full((4,), 128_000)

    def compiled(**options):
        module = speech_encoder(arch, EncoderOptions(**options))

        def loss(parameters):
            return jnp.sum(module.apply(parameters, audio, lengths, train=False).frames)

        shapes = jax.eval_shape(functools.partial(module.init, train=False), jax.random.key(0), audio, lengths)
        return jax.jit(jax.grad(loss), compiler_options=QUICK_COMPILE).lower(shapes).compile()

    plain, scan, both = compiled(), compiled(scan_layers=True), compiled(scan_layers=True, remat=True)
    # With layers written out, the CPU backend of jax 0.10 merges the recomputation with the first computation again.
    memory = [program.memory_analysis().temp_size_in_bytes for program in (scan, both)]
    print(f"temporary memory {memory[0] / 2**20:.1f} MiB, {memory[1] / 2**20:.1f} MiB with remat")
    assert memory[1] < 0.6 * memory[0]
    products = [program.as_text().count(" dot(") for program in (plain, scan)]
    print(f"{products[0]} products, {products[1]} with a scan")
    assert products[1] < 0.5 * products[0]


# ---------------------------------------------------------------------------------------------------------------
# Adapters.


def test_an_adapter_adds_its_scaled_product_to_the_kernel():
    x = np.random.default_rng(0).standard_normal((3, 5, 8)).astype(np.float32)
    dense = Dense(6, lora=Lora(rank=2, alpha=8.0))
    parameters = _random(jax.eval_shape(dense.init, jax.random.key(0), x))["params"]
    merged = parameters["kernel"] + 4.0 * parameters["lora_down"] @ parameters["lora_up"]
    np.testing.assert_allclose(dense.apply({"params": parameters}, x), x @ merged + parameters["bias"], atol=1e-5)


def test_adapters_stand_on_attention_and_feed_forward_and_change_nothing_at_first(as_released):
    name = "wavlm"
    audio, lengths = _batch(name)
    plain = speech_encoder(ARCHITECTURES[name], EncoderOptions())
    adapted = speech_encoder(ARCHITECTURES[name], EncoderOptions(lora=Lora(rank=2, alpha=4.0)))
    parameters = jax.jit(functools.partial(adapted.init, train=False), compiler_options=QUICK_COMPILE)(
        jax.random.key(0), audio, lengths
    )
    paths = [
        [entry.key for entry in path] for path, _ in jax.tree_util.tree_leaves_with_path(parameters)
        if path[-1].key in LORA_PARAMETERS
    ]  # fmt: skip
    places = {(path[3], path[4]) for path in paths}
    assert places == {("attention", p) for p in ("query", "key", "value", "output")} | {
        ("feed_forward", p) for p in ("intermediate", "output")
    }
    assert len(paths) == 3 * 6 * 2
    ours, expected = (
        jax.jit(functools.partial(one.apply, train=False), compiler_options=as_released | QUICK_COMPILE)(
            parameters, audio, lengths
        )
        for one in (adapted, plain)
    )
    np.testing.assert_array_equal(ours.frames, expected.frames)


# ---------------------------------------------------------------------------------------------------------------
# What the heads read.

SIZES = HeadSizes(emotion=4, asr=5)


def _logits(parameters, name, **settings):
    model = MultitaskModel(ARCHITECTURES[name], SIZES, **settings)
    apply = jax.jit(functools.partial(model.apply, train=False), compiler_options=QUICK_COMPILE)
    return apply(parameters, *_batch(name))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_weighted_sum_reads_the_normalised_layer_that_has_all_the_weight(name):
    parameters = _parameters(MultitaskModel(ARCHITECTURES[name], SIZES, head_input=HeadInput.WEIGHTED_SUM), name)
    assert parameters["params"]["emotion_head"]["layer_weights"].shape == (4,)
    encoder = speech_encoder(ARCHITECTURES[name], EncoderOptions())
    apply = jax.jit(functools.partial(encoder.apply, train=False, output_hidden_states=True),
                    compiler_options=QUICK_COMPILE)  # fmt: skip
    encoded = apply({"params": parameters["params"]["encoder"]}, *_batch(name))
    layers = [*encoded.hidden_states[:-1], encoded.frames]
    for index, layer in enumerate(layers):
        for head in ("emotion_head", "asr_head"):
            parameters["params"][head]["layer_weights"] = np.where(np.arange(4) == index, 100, -100).astype(np.float32)
        ours = _logits(parameters, name, head_input=HeadInput.WEIGHTED_SUM)
        x = np.asarray(layer, np.float64)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        mask = np.asarray(encoded.mask)
        pooled = np.stack([row[own].mean(axis=0) for row, own in zip(x, mask, strict=True)])
        asr, emotion = (parameters["params"][head]["logits"] for head in ("asr_head", "emotion_head"))
        np.testing.assert_allclose(ours.emotion, pooled @ emotion["kernel"] + emotion["bias"], atol=1e-4)
        expected = x @ asr["kernel"] + asr["bias"]
        np.testing.assert_allclose(np.asarray(ours.asr)[mask], expected[mask], atol=1e-4)


def test_each_head_weighs_the_layers_for_itself():
    name = "whisper"
    model = MultitaskModel(ARCHITECTURES[name], SIZES, head_input=HeadInput.WEIGHTED_SUM)
    parameters = _parameters(model, name)
    first = _logits(parameters, name, head_input=HeadInput.WEIGHTED_SUM)
    parameters["params"]["emotion_head"]["layer_weights"] = np.array([3, 0, -1, 0], np.float32)
    second = _logits(parameters, name, head_input=HeadInput.WEIGHTED_SUM)
    assert np.abs(first.emotion - second.emotion).max() > 1e-3
    np.testing.assert_array_equal(first.asr, second.asr)


def test_a_frozen_encoder_runs_without_dropout_in_training():
    name = "whisper"
    arch = ARCHITECTURES[name]
    parameters = _parameters(MultitaskModel(arch, SIZES), name)

    def embedding(frozen, train):
        model = MultitaskModel(arch, SIZES, frozen_encoder=frozen)
        rngs = {stream: jax.random.key(1) for stream in ("dropout", "spec_augment", "layerdrop")}
        apply = jax.jit(functools.partial(model.apply, train=train, rngs=rngs), compiler_options=QUICK_COMPILE)
        return apply(parameters, *_batch(name)).embedding

    np.testing.assert_array_equal(embedding(True, True), embedding(True, False))
    assert np.abs(embedding(False, True) - embedding(False, False)).max() > 1e-3
