"""The wav2vec 2.0 family against transformers' PyTorch implementation: outputs, hidden states and gradients.

Reference weights travel through ``save_pretrained`` and the package's own import, so that both are tested at
once. Every parameter is moved away from its initial value: a gain of one or a bias of zero would hide a mix-up.
``pytest -rP`` shows the error that each comparison reached.
"""

import contextlib
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.architecture import EncoderFamily, FeatureNorm, Wav2Vec2Architecture
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.attention import EncoderLayer, FeedForward, SelfAttention
from jax_mtlser.models.feature_encoder import FeatureEncoder, FeatureProjection
from jax_mtlser.models.heads import Head, logits, utterance_logits
from jax_mtlser.models.layers import frame_mask, masked_mean
from jax_mtlser.models.positional_conv import PositionalConv, PositionalConvStack
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.models.relative_position import RelativePosition, distance_buckets
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.models.wav2vec2_encoder import Wav2Vec2Encoder

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import (  # noqa: E402
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    UniSpeechSatConfig,
    UniSpeechSatModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)

MODULE_TOLERANCE = 1e-5
ENCODER_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # of the largest entry of each tensor

# WavLM hands PyTorch's attention a mask of another type than its bias.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")

# Code generation dominates the time of these tests; results do not rest on LLVM's optimisations, and the full-size
# tests run with them.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

BASE = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 2),
    "conv_stride": (5, 2, 2),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
CLASSES = {
    "wav2vec2": (Wav2Vec2Config, Wav2Vec2Model),
    "hubert": (HubertConfig, HubertModel),
    "wavlm": (WavLMConfig, WavLMModel),
    "data2vec-audio": (Data2VecAudioConfig, Data2VecAudioModel),
    "unispeech-sat": (UniSpeechSatConfig, UniSpeechSatModel),
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
CONFIGS: dict[str, dict[str, Any]] = {
    "base": BASE,
    "large": BASE | LARGE,
    # One layer each where the difference lies in front of the transformer.
    "hubert": BASE | {"family": "hubert", "num_hidden_layers": 1},
    "distilhubert": BASE | {"family": "hubert", "num_hidden_layers": 1, "feat_proj_layer_norm": False},
    # Few buckets and a short reach, so that 28 frames use all kinds of them.
    "wavlm": BASE | {"family": "wavlm", "num_buckets": 20, "max_bucket_distance": 16},
    "wavlm_large": BASE | LARGE | {"family": "wavlm", "num_buckets": 20, "max_bucket_distance": 16},
    "data2vec": BASE
    | {
        "family": "data2vec-audio",
        "num_hidden_layers": 1,
        "num_conv_pos_embeddings": 3,
        "conv_pos_kernel_size": 9,
    },
    "unispeech_sat": BASE | {"family": "unispeech-sat", "num_hidden_layers": 1},
    # Nothing divides by what it happens to divide by elsewhere; no SpecAugment, hence no masked_spec_embed.
    "odd": {
        "hidden_size": 30,
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "intermediate_size": 37,
        "conv_dim": (12, 20),
        "conv_kernel": (7, 4),
        "conv_stride": (4, 3),
        "conv_bias": True,
        "num_conv_pos_embeddings": 13,
        "num_conv_pos_embedding_groups": 5,
        "do_stable_layer_norm": True,
        "layer_norm_eps": 1e-3,
        "mask_time_prob": 0.0,
    },
    # A positional kernel too short for the Fourier transform, and two different activations.
    "relu": BASE | {"num_hidden_layers": 1, "hidden_act": "relu", "num_conv_pos_embeddings": 5},
    "gelu_new": BASE
    | {
        "num_hidden_layers": 1,
        "feat_extract_norm": "layer",
        "hidden_act": "gelu_new",
        "feat_extract_activation": "relu",
        "layer_norm_eps": 1e-2,  # the feature encoder's norms keep 1e-5
    },
}
LENGTHS = (900, 641, 430)


@dataclasses.dataclass(frozen=True)
class Reference:
    """A PyTorch encoder, and the same encoder as the package imports it."""

    torch_model: Any
    arch: Wav2Vec2Architecture
    parameters: dict[str, Any]

    @property
    def hidden(self):
        return self.arch.hidden_size


def make_reference(values: dict[str, Any], folder: Path, noise: float = 0.1) -> Reference:
    torch.manual_seed(0)
    config, model_class = CLASSES[values.get("family", "wav2vec2")]
    values = {name: value for name, value in values.items() if name != "family"}
    model = model_class(config(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    encoder = open_encoder(EncoderConfig(checkpoint=str(folder)))
    assert encoder.weights is not None
    parameters, dropped = encoder_parameters(encoder.weights, encoder.arch)
    assert dropped == []
    return Reference(model, encoder.arch, parameters)


@functools.cache
def _reference(name: str, folder: Path) -> Reference:
    return make_reference(CONFIGS[name], folder / name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoints")


@pytest.fixture(params=CONFIGS)
def reference(request, folder):
    return _reference(request.param, folder)


def _normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _padded_audio(lengths, total=None):
    audio = np.zeros((len(lengths), total or max(lengths)), np.float32)
    for row, length in enumerate(lengths):
        audio[row, :length] = _normal(length, seed=row)
    return audio


def _max_error(ours, theirs):
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs
    assert ours.shape == theirs.shape
    return float(np.max(np.abs(np.asarray(ours) - theirs)))


def _check(ours, theirs, tolerance):
    error = _max_error(ours, theirs)
    print(f"max error {error:.1e}")
    assert error <= tolerance


def _apply(module, parameters, *inputs, compiler_options=QUICK_COMPILE, **options):
    function = jax.jit(lambda p, *x: module.apply({"params": p}, *x, **options), compiler_options=compiler_options)
    return function(parameters, *inputs)


@pytest.mark.parametrize("family", CLASSES)
def test_what_config_json_leaves_out_has_transformers_default(family, tmp_path):
    theirs = CLASSES[family][0]()
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
    (tmp_path / "model.safetensors").touch()
    arch = open_encoder(EncoderConfig(checkpoint=str(tmp_path))).arch
    assert arch.family is EncoderFamily(family)
    compared = 0
    for field in dataclasses.fields(arch):
        ours, expected = getattr(arch, field.name), getattr(theirs, field.name, None)
        if field.name != "family" and expected is not None:
            ours = ours.value if isinstance(ours, FeatureNorm) else ours
            assert ours == (tuple(expected) if isinstance(expected, list) else expected), field.name
            compared += 1
    assert compared >= 24


# ---------------------------------------------------------------------------------------------------------------
# One module at a time, on the same input.


def test_feature_encoder_agrees(reference):
    audio = _normal(2, 700)
    ours = _apply(FeatureEncoder(reference.arch), reference.parameters["feature_encoder"], audio, jnp.array([700, 700]))
    theirs = reference.torch_model.feature_extractor(torch.from_numpy(audio)).transpose(1, 2)
    _check(ours, theirs, MODULE_TOLERANCE)


def test_feature_projection_agrees(reference):
    features = _normal(2, 9, reference.arch.conv_dim[-1])
    ours = _apply(FeatureProjection(reference.arch), reference.parameters["feature_projection"], features, train=False)
    theirs = reference.torch_model.feature_projection(torch.from_numpy(features))
    theirs = theirs[0] if isinstance(theirs, tuple) else theirs  # HuBERT's gives no more than that
    _check(ours, theirs, MODULE_TOLERANCE)


@pytest.mark.parametrize("frames", [3, 57])
def test_positional_convolution_agrees(reference, frames):
    x = _normal(2, frames, reference.hidden)
    parameters = reference.parameters["positional_conv"]
    if reference.arch.family is EncoderFamily.DATA2VEC_AUDIO:
        ours = _apply(PositionalConvStack(reference.arch), parameters, x, jnp.ones((2, frames), bool))
    else:
        ours = _apply(PositionalConv(reference.arch), parameters, x)
    theirs = reference.torch_model.encoder.pos_conv_embed(torch.from_numpy(x))
    _check(ours, theirs, MODULE_TOLERANCE)


def test_self_attention_agrees(reference):
    x, mask = _normal(2, 11, reference.hidden), np.arange(11)[None] < np.array([[11], [6]])
    parameters = reference.parameters["transformer"]["layer_0"]["attention"]
    inputs = (x, jnp.asarray(mask), _relative_position(reference, 11))
    ours = _apply(SelfAttention(reference.arch), parameters, *inputs, dropout_key=None)
    attention = reference.torch_model.encoder.layers[0].attention
    theirs = attention(torch.from_numpy(x), attention_mask=_their_mask(reference, mask))[0]
    _check(ours, theirs, MODULE_TOLERANCE)


def _relative_position(reference, frames):
    if reference.arch.family is not EncoderFamily.WAVLM:
        return None
    return RelativePosition(reference.arch).apply({"params": reference.parameters["relative_position"]}, frames)


@pytest.mark.parametrize("name", ["wavlm", "wavlm_large"])
@pytest.mark.parametrize("frames", [1, 2, 40])
def test_relative_positions_agree(name, frames, folder):
    reference = _reference(name, folder)
    attention = reference.torch_model.encoder.layers[0].attention
    _check(_relative_position(reference, frames), attention.compute_bias(frames, frames), 0.0)


def test_every_distance_falls_into_the_bucket_of_the_reference():
    attention = WavLMModel(WavLMConfig(**BASE)).encoder.layers[0].attention
    distances = np.arange(-3000, 3001)
    theirs = attention._relative_positions_bucket(torch.from_numpy(distances)).numpy()
    np.testing.assert_array_equal(distance_buckets(distances, 320, 800), theirs)


def test_feed_forward_agrees(reference):
    x = _normal(2, 11, reference.hidden)
    ours = _apply(
        FeedForward(reference.arch), reference.parameters["transformer"]["layer_0"]["feed_forward"], x, dropout_key=None
    )
    theirs = reference.torch_model.encoder.layers[0].feed_forward(torch.from_numpy(x))
    _check(ours, theirs, MODULE_TOLERANCE)


def test_encoder_layer_agrees(reference):
    x, mask = _normal(2, 11, reference.hidden), np.arange(11)[None] < np.array([[11], [6]])
    parameters = reference.parameters["transformer"]["layer_0"]
    inputs = (x, jnp.asarray(mask), _relative_position(reference, 11))
    ours = _apply(EncoderLayer(reference.arch), parameters, *inputs)
    layer = reference.torch_model.encoder.layers[0]
    theirs = layer(torch.from_numpy(x), attention_mask=_their_mask(reference, mask))
    _check(ours, theirs[0] if isinstance(theirs, tuple) else theirs, MODULE_TOLERANCE)


def _their_mask(reference, mask):
    """What their layers take: WavLM's a mask, the others' a number to add to the scores."""
    if reference.arch.family is EncoderFamily.WAVLM:
        return torch.from_numpy(mask.astype(np.int64))
    shut = torch.from_numpy(~mask)[:, None, None, :]
    return torch.zeros(shut.shape).masked_fill(shut, torch.finfo(torch.float32).min)


# ---------------------------------------------------------------------------------------------------------------
# The whole encoder: values and gradients of the same scalar.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Both encoders on the same batch; hidden states are compared on the utterances' own frames."""

    arch: Wav2Vec2Architecture
    frames: tuple[Any, Any]
    hidden_states: list[tuple[Any, Any]]
    parameter_gradients: tuple[Any, Any]
    audio_gradients: tuple[Any, Any]


@functools.cache
def _encoder_gradient(name: str, folder: Path) -> Any:
    """One compiled program for padded and unpadded batches: lengths are an argument."""
    # hf_compat: the reference lets padding into its GroupNorm statistics. Without padding, and in the layer-norm
    # family, both settings are the same.
    encoder = Wav2Vec2Encoder(_reference(name, folder).arch, EncoderOptions(hf_compat=True))

    def loss(parameters, audio, lengths, weights):
        output = encoder.apply({"params": parameters}, audio, lengths, train=False, output_hidden_states=True)
        return jnp.sum(output.frames * weights), output

    return jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=QUICK_COMPILE)


@functools.cache
def _compare(name: str, padded: bool, folder: Path) -> Comparison:
    reference = _reference(name, folder)
    arch, model = reference.arch, reference.torch_model
    lengths = np.array(LENGTHS if padded else LENGTHS[:1] * len(LENGTHS))
    audio = _padded_audio(lengths)
    counts = arch.num_frames(lengths)
    valid = np.arange(counts.max())[None] < counts[:, None]
    weights = _normal(*valid.shape, arch.hidden_size, seed=7) * valid[..., None]
    (ours_parameters, ours_audio), ours = _encoder_gradient(name, folder)(reference.parameters, audio, lengths, weights)

    theirs_audio = torch.from_numpy(audio).requires_grad_()
    mask = torch.from_numpy((np.arange(audio.shape[1])[None] < lengths[:, None]).astype(np.int64))
    with _layer_outputs(model) as theirs_states:
        theirs = model(theirs_audio, attention_mask=mask if padded else None).last_hidden_state
    model.zero_grad()
    (theirs * torch.from_numpy(weights)).sum().backward()

    def own_frames(x):
        return (x.detach().numpy() if isinstance(x, torch.Tensor) else np.asarray(x))[valid]

    assert len(ours.hidden_states) == len(theirs_states) == arch.num_hidden_layers + 1
    np.testing.assert_array_equal(ours.lengths, counts)
    return Comparison(
        arch,
        (own_frames(ours.frames), own_frames(theirs)),
        [(own_frames(a), own_frames(b)) for a, b in zip(ours.hidden_states, theirs_states, strict=True)],
        (ours_parameters, _gradients_as_parameters(model, arch, folder / f"{name}_{padded}_gradients")),
        (ours_audio, theirs_audio.grad),
    )


@contextlib.contextmanager
def _layer_outputs(model):
    """Input of the first layer and output of every layer of the next call.

    By hooks, because releases of transformers differ in whether ``hidden_states`` ends before or after the final
    norm of pre-LN encoders.
    """
    states = []

    def before(module, args, kwargs):
        states.append(args[0] if args else kwargs["hidden_states"])

    def after(module, args, output):
        states.append(output[0] if isinstance(output, tuple) else output)

    layers = model.encoder.layers
    hooks = [layers[0].register_forward_pre_hook(before, with_kwargs=True)]
    hooks += [layer.register_forward_hook(after) for layer in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def _gradients_as_parameters(model, arch, folder):
    """The import only renames and transposes, so it carries gradients as well as weights."""
    folder.mkdir()
    gradients = {
        name: torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
        for name, parameter in model.named_parameters()
    }
    save_file(gradients, folder / "model.safetensors")
    return encoder_parameters(folder / "model.safetensors", arch)[0]


@pytest.fixture(params=[(name, padded) for name in CONFIGS for padded in (False, True)], ids=str)
def comparison(request, folder):
    return _compare(*request.param, folder)


def test_encoder_output_agrees(comparison):
    _check(*comparison.frames, ENCODER_TOLERANCE)


def test_every_hidden_state_agrees(comparison):
    errors = [_max_error(ours, theirs) for ours, theirs in comparison.hidden_states]
    print(f"max error {max(errors):.1e}")
    assert max(errors) <= ENCODER_TOLERANCE, errors


def test_gradient_of_the_samples_agrees(comparison):
    ours, theirs = comparison.audio_gradients
    _check(ours / theirs.abs().max().item(), theirs / theirs.abs().max(), GRADIENT_TOLERANCE)


def test_gradient_of_every_parameter_agrees(comparison):
    ours, theirs = (
        {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(value) for path, value in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, comparison.parameter_gradients)
    )
    assert set(ours) == set(theirs)
    largest = max(np.abs(value).max() for value in theirs.values())
    errors = {}
    for name, expected in theirs.items():
        if _vanishes(name, comparison.arch):
            assert max(np.abs(ours[name]).max(), np.abs(expected).max()) <= 1e-5 * largest, name
            continue
        assert np.abs(expected).max() > 0, f"{name} has no gradient: the comparison would be empty"
        errors[name] = _max_error(ours[name], expected) / float(np.abs(expected).max())
    print(f"max error {max(errors.values()):.1e}")
    assert max(errors.values()) <= GRADIENT_TOLERANCE, {k: v for k, v in errors.items() if v > GRADIENT_TOLERANCE}


def _vanishes(name: str, arch: Wav2Vec2Architecture) -> bool:
    """Parameters whose gradient is zero in exact arithmetic, where a relative error means nothing.

    A key's bias shifts all scores of a query alike, a bias before GroupNorm is subtracted with the mean, and
    nothing is masked in evaluation.
    """
    group = arch.feat_extract_norm is FeatureNorm.GROUP
    return (
        name == "masked_frame"
        or name.endswith("attention/key/bias")
        or (group and name == "feature_encoder/conv_0/bias")
    )


@pytest.mark.parametrize("name", ["base", "odd", "wavlm", "data2vec"])
def test_in_a_padded_batch_each_utterance_equals_the_reference_on_it_alone(name, folder):
    reference = _reference(name, folder)
    audio = _padded_audio(LENGTHS, total=1000)
    ours = _apply(Wav2Vec2Encoder(reference.arch), reference.parameters, audio, jnp.array(LENGTHS), train=False)
    errors = []
    for row, length in enumerate(LENGTHS):
        theirs = reference.torch_model(torch.from_numpy(audio[row : row + 1, :length])).last_hidden_state
        errors.append(_max_error(ours.frames[row : row + 1, : theirs.shape[1]], theirs))
    print(f"max error {max(errors):.1e}")
    assert max(errors) <= ENCODER_TOLERANCE, errors


def test_without_compatibility_padding_changes_nothing_that_it_changes_in_the_reference(folder):
    reference = _reference("base", folder)
    length = LENGTHS[-1]
    audio = torch.from_numpy(_padded_audio((length,), total=1000))
    mask = (torch.arange(1000)[None] < length).long()
    alone = reference.torch_model(audio[:, :length]).last_hidden_state
    padded = reference.torch_model(audio, attention_mask=mask).last_hidden_state[:, : alone.shape[1]]
    # Otherwise the test above could not tell the two settings apart.
    assert _max_error(padded.detach().numpy(), alone) > 100 * ENCODER_TOLERANCE


# ---------------------------------------------------------------------------------------------------------------
# Pooling and heads.


def test_pooling_is_the_mean_over_own_frames_and_ignores_what_lies_behind():
    x, lengths = _normal(3, 8, 5), np.array([8, 3, 0])
    mask = frame_mask(jnp.asarray(lengths), 8)
    pooled = masked_mean(x, mask)
    expected = np.stack([x[0].mean(axis=0), x[1, :3].mean(axis=0), np.zeros(5)])
    np.testing.assert_allclose(pooled, expected, atol=1e-6)
    spoilt = np.where(np.asarray(mask)[..., None], x, np.inf)
    np.testing.assert_array_equal(masked_mean(spoilt, mask), pooled)


def test_a_head_is_one_affine_map_in_float32():
    x, kernel, bias = _normal(2, 7, 5), _normal(5, 3, seed=1), _normal(3, seed=2)
    parameters = {"logits": {"kernel": kernel, "bias": bias}}
    head = Head(3).apply({"params": parameters}, jnp.asarray(x, jnp.bfloat16), train=False)
    found = logits(head)
    assert found.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(found, rounded @ kernel + bias, atol=1e-5)


def test_heads_of_an_utterance_multiplied_together_equal_each_alone():
    heads = []
    for seed, classes in enumerate((4, 2, 10)):
        parameters = {"logits": {"kernel": _normal(5, classes, seed=seed), "bias": _normal(classes, seed=seed)}}
        heads.append(Head(classes).apply({"params": parameters}, _normal(3, 5, seed=9 + seed), train=False))
    for found, head in zip(utterance_logits(heads), heads, strict=True):
        np.testing.assert_allclose(found, head.x @ head.map.kernel + head.map.bias[None], atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# Full sizes.


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="base"),
        pytest.param({"family": "hubert"}, id="hubert_base"),
        pytest.param({"family": "wavlm"}, id="wavlm_base"),
        pytest.param({"family": "data2vec-audio"}, id="data2vec_base"),
        pytest.param({"family": "unispeech-sat"}, id="unispeech_sat_base"),
        pytest.param(
            {
                "hidden_size": 1024,
                "num_hidden_layers": 4,  # 24 in the released models; the rest of the shape is theirs
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "feat_extract_norm": "layer",
                "conv_bias": True,
                "do_stable_layer_norm": True,
            },
            id="large",
        ),
    ],
)
def test_full_size_encoder_agrees(values, tmp_path, as_released):
    reference = make_reference(values, tmp_path, noise=0.01)
    lengths = np.array([24_000, 17_000])
    audio = _padded_audio(lengths)
    mask = torch.from_numpy((np.arange(audio.shape[1])[None] < lengths[:, None]).astype(np.int64))
    with torch.no_grad(), _layer_outputs(reference.torch_model) as theirs_states:
        theirs = reference.torch_model(torch.from_numpy(audio), attention_mask=mask).last_hidden_state
    ours = _apply(
        Wav2Vec2Encoder(reference.arch, EncoderOptions(hf_compat=True)),
        reference.parameters,
        audio,
        jnp.asarray(lengths),
        compiler_options=as_released,
        train=False,
        output_hidden_states=True,
    )
    valid = np.asarray(frame_mask(ours.lengths, ours.frames.shape[1]))
    errors = [
        _max_error(np.asarray(a)[valid], b.numpy()[valid])
        for a, b in zip((*ours.hidden_states, ours.frames), (*theirs_states, theirs), strict=True)
    ]
    print(f"max error {max(errors):.1e}")
    assert max(errors) <= ENCODER_TOLERANCE, errors
