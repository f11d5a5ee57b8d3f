"""An exported encoder is the same encoder to transformers and to the package's own import, adapters included."""

import copy
import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, WhisperArchitecture
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.pretrained import encoder_parameters, export_encoder, open_encoder
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions

torch = pytest.importorskip("torch")

import transformers as hf  # noqa: E402
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

WEIGHTS = "model.safetensors"
SAME = 1e-6
ENCODER_TOLERANCE = 1e-4
# Code generation dominates the time of these tests; results do not rest on LLVM's optimisations.
QUICK_COMPILE = {"xla_backend_optimization_level": 0}

# WavLM hands PyTorch's attention a mask of another type than its bias.
pytestmark = pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask:UserWarning")

TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_kernel": (10, 3),
    "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    # Not the defaults, so that a config.json without them would give another encoder.
    "layer_norm_eps": 1e-3,
    "hidden_act": "gelu_new",
    "hidden_dropout": 0.21,
    "attention_dropout": 0.22,
    "layerdrop": 0.23,
    "mask_time_prob": 0.24,
    "mask_feature_length": 3,
}
TINY_WHISPER = {
    "d_model": 16,
    "encoder_layers": 1,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "num_mel_bins": 8,
    "max_source_positions": 50,  # a window of 1 s, the unit in which the feature extractor counts
    "activation_function": "gelu_new",
    "dropout": 0.21,
    "attention_dropout": 0.22,
    "encoder_layerdrop": 0.23,
    "apply_spec_augment": True,
}
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "wav2vec2": (hf.Wav2Vec2Model, TINY),
    "wav2vec2_large": (hf.Wav2Vec2Model, TINY | LARGE),
    "hubert": (hf.HubertModel, TINY),
    # Nothing is masked, hence no masked_spec_embed.
    "distilhubert": (hf.HubertModel, TINY | {"feat_proj_layer_norm": False, "mask_time_prob": 0.0}),
    "wavlm": (hf.WavLMModel, TINY | {"num_buckets": 10, "max_bucket_distance": 16}),
    "data2vec": (hf.Data2VecAudioModel, TINY | {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "unispeech_sat": (hf.UniSpeechSatModel, TINY),
    "whisper": (WhisperEncoder, TINY_WHISPER),
}


@dataclasses.dataclass(frozen=True)
class Exported:
    """An encoder of transformers, its settings, how the package imported it, and the folder it exported that to."""

    values: dict[str, Any]
    torch_model: Any
    arch: EncoderArchitecture
    parameters: dict[str, Any]
    normalize_waveform: bool
    folder: Path


@functools.cache
def _exported(name: str, base: Path) -> Exported:
    torch.manual_seed(0)
    kind, values = CASES[name]
    model = kind(kind.config_class(**values, attn_implementation="eager")).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains of one and biases of zero could change places unseen.
            parameter.add_(0.1 * torch.randn(parameter.shape))
    checkpoint, folder = base / f"{name}_checkpoint", base / f"{name}_exported"
    model.save_pretrained(checkpoint)
    if name == "wavlm":
        (checkpoint / "preprocessor_config.json").write_text(json.dumps({"do_normalize": False}))
    encoder = open_encoder(EncoderConfig(checkpoint=str(checkpoint)))
    parameters, dropped = encoder_parameters(encoder.weights, encoder.arch)
    assert dropped == []
    export_encoder(folder, parameters, encoder.arch, normalize_waveform=encoder.normalize_waveform)
    return Exported(values, model, encoder.arch, parameters, encoder.normalize_waveform, folder)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.mktemp("export")


@pytest.fixture(params=CASES)
def exported(request, base):
    return _exported(request.param, base)


def _load(folder, arch):
    """As the docstring of the export says; no key may be missing, left over or of another shape."""
    kind = WhisperEncoder if isinstance(arch, WhisperArchitecture) else hf.AutoModel
    model, report = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    assert not any(report.values()), report
    return model


def _audio(arch):
    """Two utterances without padding; for Whisper a whole window, as the reference has no other length."""
    samples = arch.max_samples() or 700
    return np.random.default_rng(0).standard_normal((2, samples)).astype(np.float32)


def _torch_frames(model, arch, folder, audio):
    inputs = audio
    if isinstance(arch, WhisperArchitecture):
        inputs = hf.AutoFeatureExtractor.from_pretrained(folder)(list(audio), sampling_rate=16_000)["input_features"]
    with torch.no_grad():
        return model(torch.from_numpy(np.asarray(inputs))).last_hidden_state.numpy()


def _frames(arch, parameters, audio, lora=None):
    module = speech_encoder(arch, EncoderOptions(hf_compat=True, lora=lora))
    lengths = np.full(len(audio), audio.shape[1])

    def apply(parameters):
        return module.apply({"params": parameters}, audio, lengths, train=False).frames

    return np.asarray(jax.jit(apply, compiler_options=QUICK_COMPILE)(parameters))


def test_transformers_loads_every_tensor_and_computes_the_same(exported):
    arch, folder, audio = exported.arch, exported.folder, _audio(exported.arch)
    loaded = _load(folder, arch)
    assert type(loaded) is type(exported.torch_model)
    ours, expected = (_torch_frames(model, arch, folder, audio) for model in (loaded, exported.torch_model))
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=SAME)


def test_transformers_reads_the_same_settings(exported):
    theirs = hf.AutoConfig.from_pretrained(exported.folder)
    assert type(theirs) is type(exported.torch_model.config)
    for name, value in exported.values.items():
        ours = getattr(theirs, name)
        assert (tuple(ours) if isinstance(ours, list) else ours) == value, name


def test_the_package_imports_the_same_encoder_again(exported):
    again = open_encoder(EncoderConfig(checkpoint=str(exported.folder)))
    assert again.arch == exported.arch
    assert again.normalize_waveform is exported.normalize_waveform
    parameters, dropped = encoder_parameters(again.weights, again.arch)
    assert dropped == []
    assert jax.tree.structure(parameters) == jax.tree.structure(exported.parameters)
    jax.tree.map(np.testing.assert_array_equal, parameters, exported.parameters)


def test_how_an_encoder_was_trained_is_not_how_the_next_one_is(base, tmp_path):
    source = _exported("whisper", base)
    warping = dataclasses.replace(source.arch, frequency_warp=0.15)
    export_encoder(tmp_path, source.parameters, warping, normalize_waveform=False)
    assert open_encoder(EncoderConfig(checkpoint=str(tmp_path))).arch == source.arch


def test_the_feature_extractor_is_the_encoder_s(exported):
    extractor = hf.AutoFeatureExtractor.from_pretrained(exported.folder)
    assert extractor.sampling_rate == 16_000
    if isinstance(exported.arch, WhisperArchitecture):
        assert type(extractor) is hf.WhisperFeatureExtractor
        assert (extractor.feature_size, extractor.n_fft, extractor.hop_length) == (8, 400, 160)
        assert extractor.nb_max_frames == 2 * exported.arch.max_source_positions
        return
    assert type(extractor) is hf.Wav2Vec2FeatureExtractor
    normalised = exported.arch.family is not EncoderFamily.WAVLM
    assert extractor.do_normalize is normalised
    loud = 3 + 5 * _audio(exported.arch)[0]
    samples = extractor(loud, sampling_rate=16_000)["input_values"][0]
    mean, deviation = (0, 1) if normalised else (loud.mean(), loud.std())
    np.testing.assert_allclose([samples.mean(), samples.std()], [mean, deviation], atol=1e-3)


@pytest.mark.parametrize(("name", "masked"), [("wav2vec2", False), ("wav2vec2_large", True), ("data2vec", True)])
def test_the_feature_extractor_gives_masks_to_models_that_were_trained_with_them(name, masked, base):
    extractor = hf.AutoFeatureExtractor.from_pretrained(_exported(name, base).folder)
    batch = extractor([np.ones(400, np.float32), np.ones(300, np.float32)], sampling_rate=16_000, padding=True)
    assert ("attention_mask" in batch) is masked


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("name", [name for name in CASES if name != "whisper"])
def test_normalisation_is_what_the_run_had(name, normalize, base, tmp_path):
    source = _exported(name, base)
    export_encoder(tmp_path, source.parameters, source.arch, normalize_waveform=normalize)
    assert open_encoder(EncoderConfig(checkpoint=str(tmp_path))).normalize_waveform is normalize


LORA = Lora(rank=2, alpha=3.0)  # neither a scale of one nor one of alpha


def _with_adapters(parameters, names):
    """Adapters on every kernel that can have them; those that are not named are still zero, as before training."""
    adapted, rng = copy.deepcopy(parameters), np.random.default_rng(1)
    layer = adapted["transformer"]["layer_0"]
    for part in ("attention", "feed_forward"):
        for name, node in layer[part].items():
            if name in ("gate", "gate_scale"):
                continue  # WavLM's gate belongs to the positions
            inputs, outputs = node["kernel"].shape
            size = 0.5 if f"{part}/{name}" in names else 0.0
            node["lora_down"] = rng.standard_normal((inputs, LORA.rank)).astype(np.float32)
            node["lora_up"] = (size * rng.standard_normal((LORA.rank, outputs))).astype(np.float32)
    return adapted


def test_adapters_are_added_into_the_kernels(exported, tmp_path):
    arch, audio = exported.arch, _audio(exported.arch)
    adapted = _with_adapters(exported.parameters, ("attention/value", "feed_forward/intermediate"))
    export_encoder(tmp_path, adapted, arch, normalize_waveform=exported.normalize_waveform, lora=LORA)
    theirs = _torch_frames(_load(tmp_path, arch), arch, tmp_path, audio)
    ours = _frames(arch, adapted, audio, LORA)
    assert ours.shape == theirs.shape
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=ENCODER_TOLERANCE)
    plain = _torch_frames(exported.torch_model, arch, exported.folder, audio)
    assert np.abs(theirs - plain).max() > 100 * ENCODER_TOLERANCE


@pytest.mark.parametrize(
    ("name", "key", "output"),
    [
        ("wav2vec2", "encoder.layers.0.attention.k_proj.weight", "encoder.layers.0.feed_forward.output_dense.weight"),
        ("whisper", "layers.0.self_attn.k_proj.weight", "layers.0.fc2.weight"),
    ],
)
def test_only_the_adapted_kernels_change(name, key, output, base, tmp_path):
    source = _exported(name, base)
    adapted = _with_adapters(source.parameters, ("attention/key", "feed_forward/output"))
    export_encoder(tmp_path, adapted, source.arch, normalize_waveform=source.normalize_waveform, lora=LORA)
    before, after = (load_file(folder / WEIGHTS) for folder in (source.folder, tmp_path))
    assert before.keys() == after.keys()
    assert {name for name in before if (before[name] != after[name]).any()} == {key, output}
    layer = adapted["transformer"]["layer_0"]
    for name, node in ((key, layer["attention"]["key"]), (output, layer["feed_forward"]["output"])):
        added = 1.5 * (node["lora_down"] @ node["lora_up"]).T  # alpha / rank
        np.testing.assert_allclose(after[name], before[name] + added, rtol=0, atol=1e-5)


def test_parameters_that_lie_on_a_device_are_exported_too(base, tmp_path):
    source = _exported("wav2vec2", base)
    export_encoder(tmp_path, jax.device_put(source.parameters), source.arch, normalize_waveform=True)
    before, after = (load_file(folder / WEIGHTS) for folder in (source.folder, tmp_path))
    assert before.keys() == after.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


@pytest.mark.parametrize(
    ("described", "given", "named"),
    [
        ("wav2vec2", "whisper", "feature_projection"),
        ("whisper", "wav2vec2", "bias"),
        ("wav2vec2_large", "wav2vec2", "bias"),
        ("hubert", "distilhubert", "feature_projection/norm"),
        ("wavlm", "hubert", "relative_position"),
        ("data2vec", "wav2vec2_large", "kernel_0"),
        ("unispeech_sat", "data2vec", "bias|gain"),
        # These have all that is described, and more.
        ("hubert", "wavlm", "relative_position|gate"),
        ("distilhubert", "hubert", "feature_projection/norm"),
    ],
)
def test_parameters_of_another_encoder_are_refused(described, given, named, base, tmp_path):
    arch, parameters = _exported(described, base).arch, _exported(given, base).parameters
    with pytest.raises(KeyError, match=named):
        export_encoder(tmp_path / "folder", parameters, arch, normalize_waveform=True)
    assert not (tmp_path / "folder").exists()


def test_a_layer_too_few_is_refused(exported, tmp_path):
    deeper = dataclasses.replace(exported.arch, num_hidden_layers=2)
    with pytest.raises(KeyError, match="layer_1"):
        export_encoder(tmp_path / "folder", exported.parameters, deeper, normalize_waveform=True)


def test_a_layer_too_many_is_refused(base, tmp_path):
    source = _exported("wav2vec2", base)
    layers = source.parameters["transformer"]
    deeper = source.parameters | {"transformer": layers | {"layer_1": layers["layer_0"]}}
    with pytest.raises(KeyError, match="layer_1"):
        export_encoder(tmp_path / "folder", deeper, source.arch, normalize_waveform=True)


def test_parameters_of_another_shape_are_refused(base, tmp_path):
    source = _exported("wav2vec2", base)
    wider = dataclasses.replace(source.arch, intermediate_size=25)
    with pytest.raises((KeyError, ValueError), match="intermediate"):
        export_encoder(tmp_path / "folder", source.parameters, wider, normalize_waveform=True)


def test_unispeech_sat_has_a_mask_vector_even_where_nothing_is_masked(base, tmp_path):
    source = _exported("unispeech_sat", base)
    silent = dataclasses.replace(source.arch, mask_time_prob=0.0)
    assert "masked_frame" in source.parameters
    export_encoder(tmp_path, source.parameters, silent, normalize_waveform=True)
    _load(tmp_path, silent)
