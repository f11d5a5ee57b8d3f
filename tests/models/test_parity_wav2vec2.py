"""The encoder against transformers' PyTorch implementation: outputs, hidden states and gradients.

Reference weights travel through ``save_pretrained`` and the package's own import, so that both are tested at
once. Every parameter is moved away from its initial value: a gain of one or a bias of zero would hide a mix-up.
``pytest -rP`` shows the error that each comparison reached.
"""

import contextlib
import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.config import EncoderArchitecture, EncoderConfig, FeatureNorm
from jax_mtlser.models.attention import EncoderLayer, FeedForward, SelfAttention
from jax_mtlser.models.feature_encoder import FeatureEncoder, FeatureProjection
from jax_mtlser.models.heads import Head
from jax_mtlser.models.layers import frame_mask, masked_mean
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.models.speech_encoder import SpeechEncoder, _PositionalConv

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402
from transformers import Wav2Vec2Config, Wav2Vec2Model  # noqa: E402

MODULE_TOLERANCE = 1e-5
ENCODER_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-3  # of the largest entry of each tensor

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
CONFIGS: dict[str, dict[str, Any]] = {
    "base": BASE,
    "large": BASE | {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True},
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
    arch: EncoderArchitecture
    parameters: dict[str, Any]

    @property
    def hidden(self):
        return self.arch.hidden_size


def make_reference(values: dict[str, Any], folder: Path, noise: float = 0.1) -> Reference:
    torch.manual_seed(0)
    model = Wav2Vec2Model(Wav2Vec2Config(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    encoder = open_encoder(EncoderConfig(checkpoint=str(folder)))
    assert encoder.folder is not None
    parameters, dropped = encoder_parameters(encoder.folder, encoder.arch)
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


def test_defaults_are_those_of_transformers():
    theirs = Wav2Vec2Config()
    for field in dataclasses.fields(EncoderArchitecture):
        ours, expected = getattr(EncoderArchitecture(), field.name), getattr(theirs, field.name)
        if isinstance(ours, FeatureNorm):
            ours = ours.value
        assert ours == (tuple(expected) if isinstance(expected, list) else expected), field.name


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
    theirs, _ = reference.torch_model.feature_projection(torch.from_numpy(features))
    _check(ours, theirs, MODULE_TOLERANCE)


@pytest.mark.parametrize("frames", [3, 57])
def test_positional_convolution_agrees(reference, frames):
    x = _normal(2, frames, reference.hidden)
    ours = _apply(_PositionalConv(reference.arch, jnp.float32), reference.parameters["positional_conv"], x)
    theirs = reference.torch_model.encoder.pos_conv_embed(torch.from_numpy(x))
    _check(ours, theirs, MODULE_TOLERANCE)


def test_self_attention_agrees(reference):
    x, mask = _normal(2, 11, reference.hidden), np.arange(11)[None] < np.array([[11], [6]])
    ours = _apply(
        SelfAttention(reference.arch), reference.parameters["layer_0"]["attention"], x, jnp.asarray(mask), train=False
    )
    attention = reference.torch_model.encoder.layers[0].attention
    theirs = attention(torch.from_numpy(x), attention_mask=_additive(mask))[0]
    _check(ours, theirs, MODULE_TOLERANCE)


def test_feed_forward_agrees(reference):
    x = _normal(2, 11, reference.hidden)
    ours = _apply(FeedForward(reference.arch), reference.parameters["layer_0"]["feed_forward"], x, train=False)
    theirs = reference.torch_model.encoder.layers[0].feed_forward(torch.from_numpy(x))
    _check(ours, theirs, MODULE_TOLERANCE)


def test_encoder_layer_agrees(reference):
    x, mask = _normal(2, 11, reference.hidden), np.arange(11)[None] < np.array([[11], [6]])
    ours = _apply(EncoderLayer(reference.arch), reference.parameters["layer_0"], x, jnp.asarray(mask), train=False)
    theirs = reference.torch_model.encoder.layers[0](torch.from_numpy(x), attention_mask=_additive(mask))
    _check(ours, theirs[0] if isinstance(theirs, tuple) else theirs, MODULE_TOLERANCE)


def _additive(mask):
    shut = torch.from_numpy(~mask)[:, None, None, :]
    return torch.zeros(shut.shape).masked_fill(shut, torch.finfo(torch.float32).min)


# ---------------------------------------------------------------------------------------------------------------
# The whole encoder: values and gradients of the same scalar.


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Both encoders on the same batch; hidden states are compared on the utterances' own frames."""

    arch: EncoderArchitecture
    frames: tuple[Any, Any]
    hidden_states: list[tuple[Any, Any]]
    parameter_gradients: tuple[Any, Any]
    audio_gradients: tuple[Any, Any]


@functools.cache
def _encoder_gradient(name: str, folder: Path) -> Any:
    """One compiled program for padded and unpadded batches: lengths are an argument."""
    # hf_compat: the reference lets padding into its GroupNorm statistics. Without padding, and in the layer-norm
    # family, both settings are the same.
    encoder = SpeechEncoder(_reference(name, folder).arch, hf_compat=True)

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
    return encoder_parameters(folder, arch)[0]


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


def _vanishes(name: str, arch: EncoderArchitecture) -> bool:
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


@pytest.mark.parametrize("name", ["base", "odd"])
def test_in_a_padded_batch_each_utterance_equals_the_reference_on_it_alone(name, folder):
    reference = _reference(name, folder)
    assert reference.arch.feat_extract_norm is FeatureNorm.GROUP
    audio = _padded_audio(LENGTHS, total=1000)
    ours = _apply(SpeechEncoder(reference.arch), reference.parameters, audio, jnp.array(LENGTHS), train=False)
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
    logits = Head(3).apply({"params": parameters}, jnp.asarray(x, jnp.bfloat16), train=False)
    assert logits.dtype == jnp.float32
    rounded = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32)
    np.testing.assert_allclose(logits, rounded @ kernel + bias, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------
# Full sizes.


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        pytest.param({}, id="base"),
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
def test_full_size_encoder_agrees(values, tmp_path):
    reference = make_reference(values, tmp_path, noise=0.01)
    lengths = np.array([24_000, 17_000])
    audio = _padded_audio(lengths)
    mask = torch.from_numpy((np.arange(audio.shape[1])[None] < lengths[:, None]).astype(np.int64))
    with torch.no_grad(), _layer_outputs(reference.torch_model) as theirs_states:
        theirs = reference.torch_model(torch.from_numpy(audio), attention_mask=mask).last_hidden_state
    ours = _apply(
        SpeechEncoder(reference.arch, hf_compat=True),
        reference.parameters,
        audio,
        jnp.asarray(lengths),
        compiler_options=None,
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
