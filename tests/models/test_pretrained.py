"""Import of checkpoints is strict both ways, and each refusal names file, key and what to do."""

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_mtlser.architecture import EncoderFamily, FeatureNorm, Wav2Vec2Architecture
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.pretrained import CheckpointError, ctc_head, encoder_parameters, open_encoder

torch = pytest.importorskip("torch")

import transformers as hf  # noqa: E402
from transformers.models.whisper.modeling_whisper import WhisperEncoder  # noqa: E402

TINY = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24,
    "conv_dim": (8, 8), "conv_kernel": (10, 3), "conv_stride": (5, 2),
    "num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2, "vocab_size": 12,
    # Parts of other checkpoint kinds, made small.
    "num_codevectors_per_group": 4, "codevector_dim": 8, "proj_codevector_dim": 8, "classifier_proj_size": 8,
    "num_clusters": 5, "tdnn_dim": (8, 8), "tdnn_kernel": (3, 1), "tdnn_dilation": (1, 1), "xvector_output_dim": 8,
}  # fmt: skip
TINY_WHISPER = {
    "d_model": 16, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "num_mel_bins": 8, "max_source_positions": 20, "classifier_proj_size": 8,
    "decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 24, "max_target_positions": 8,
    "vocab_size": 20, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 3,
}  # fmt: skip
LARGE = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True}
# One of each way that an encoder's keys and shapes differ: class of the bare encoder, and its settings.
ENCODERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "wav2vec2": (hf.Wav2Vec2Model, {}),
    "wav2vec2_large": (hf.Wav2Vec2Model, LARGE),
    "hubert": (hf.HubertModel, {}),
    "distilhubert": (hf.HubertModel, {"feat_proj_layer_norm": False}),
    "wavlm": (hf.WavLMModel, {"num_buckets": 10, "max_bucket_distance": 16}),
    "data2vec": (hf.Data2VecAudioModel, {"num_conv_pos_embeddings": 2, "conv_pos_kernel_size": 3}),
    "unispeech_sat": (hf.UniSpeechSatModel, {}),
    "whisper": (WhisperEncoder, {}),
}
WITH_WEIGHT_NORM = [name for name in ENCODERS if name not in ("data2vec", "whisper")]
WEIGHTS = "model.safetensors"
BIN = "pytorch_model.bin"


def _model(kind=hf.Wav2Vec2Model, **values):
    torch.manual_seed(0)
    tiny = TINY_WHISPER if kind.config_class is hf.WhisperConfig else TINY
    model = kind(kind.config_class(**(tiny | values)))
    with torch.no_grad():
        for parameter in model.parameters():
            # Gains of one and biases of zero could change places unseen.
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def _save(folder, kind=hf.Wav2Vec2Model, save=None, **values):
    _model(kind, **values).save_pretrained(folder, **(save or {}))
    return folder


def _encoder_of(model):
    """The part of a model with heads that is an encoder of its own."""
    return next(part for part in model.modules() if type(part) in {kind for kind, _ in ENCODERS.values()})


@pytest.fixture
def checkpoint(tmp_path):
    return _save(tmp_path / "checkpoint")


@pytest.fixture(params=ENCODERS)
def every_checkpoint(request, tmp_path):
    kind, values = ENCODERS[request.param]
    return _save(tmp_path / "checkpoint", kind, **values)


@pytest.fixture
def whisper(tmp_path):
    return _save(tmp_path / "whisper", WhisperEncoder)


def _open(folder, **options):
    return open_encoder(EncoderConfig(checkpoint=str(folder), **options))


def _parameters(folder):
    return encoder_parameters(_open(folder).weights, _open(folder).arch)


def _rewrite(folder, change):
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _rewrite_config(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _write_preprocessor(folder, **values):
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def _as_torch(folder):
    """The same weights as PyTorch's own file."""
    tensors = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    torch.save({key: torch.from_numpy(value) for key, value in tensors.items()}, folder / BIN)
    return folder / BIN


def _assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            _assert_same(ours[name], value)
        else:
            np.testing.assert_array_equal(ours[name], value)
            assert ours[name].dtype == np.float32


# ---------------------------------------------------------------------------------------------------------------
# Description of an encoder.


@pytest.mark.parametrize("name", [name for name in ENCODERS if name != "whisper"])
def test_the_architecture_is_read_from_the_folder(name, tmp_path):
    kind, values = ENCODERS[name]
    values = values | {"layerdrop": 0.03}
    arch = _open(_save(tmp_path, kind, **values)).arch
    expected = {name: value for name, value in (TINY | values).items() if hasattr(arch, name)}
    assert len(expected) >= 10
    if "feat_extract_norm" in values or name == "data2vec":
        expected["feat_extract_norm"] = FeatureNorm.LAYER
    assert {name: getattr(arch, name) for name in expected} == expected
    assert arch.family is EncoderFamily(kind.config_class.model_type)


def test_whisper_s_names_of_the_common_fields_are_understood(tmp_path):
    regularisation = {"dropout": 0.2, "encoder_layerdrop": 0.03, "apply_spec_augment": True, "mask_time_prob": 0.07}
    arch = _open(_save(tmp_path, WhisperEncoder, **regularisation, activation_function="relu", init_std=0.3)).arch
    assert (arch.family, arch.hidden_size, arch.num_hidden_layers) == (EncoderFamily.WHISPER, 16, 1)
    assert (arch.num_attention_heads, arch.intermediate_size, arch.hidden_act) == (2, 24, "relu")
    assert (arch.num_mel_bins, arch.max_source_positions, arch.initializer_range) == (8, 20, 0.3)
    assert (arch.hidden_dropout, arch.layerdrop) == (0.2, 0.03)
    assert (arch.apply_spec_augment, arch.mask_time_prob) == (True, 0.07)


def test_what_config_json_leaves_out_is_the_default(checkpoint):
    values = json.loads((checkpoint / "config.json").read_text())
    del values["layer_norm_eps"], values["hidden_dropout"], values["mask_time_prob"]
    (checkpoint / "config.json").write_text(json.dumps(values))
    arch, default = _open(checkpoint).arch, Wav2Vec2Architecture()
    assert arch.layer_norm_eps == default.layer_norm_eps
    assert arch.hidden_dropout == default.hidden_dropout
    assert arch.mask_time_prob == default.mask_time_prob


def test_overrides_replace_the_checkpoint_s_regularisation(every_checkpoint):
    stored = _open(every_checkpoint).arch
    arch = _open(every_checkpoint, hidden_dropout=0.7, layerdrop=0.5, apply_spec_augment=False).arch
    assert (arch.hidden_dropout, arch.layerdrop, arch.apply_spec_augment) == (0.7, 0.5, False)
    assert arch.attention_dropout == stored.attention_dropout


def test_an_override_of_what_an_encoder_does_not_have_is_refused(checkpoint, whisper):
    assert _open(checkpoint, feat_proj_dropout=0.25).arch.feat_proj_dropout == 0.25
    with pytest.raises(CheckpointError, match=r"frequency_warp is 0\.1, but wav2vec2 encoders have no such setting"):
        _open(checkpoint, frequency_warp=0.1)
    with pytest.raises(CheckpointError, match=r"frequency_warp is 0\.1, but wav2vec2 encoders have no such setting"):
        open_encoder(EncoderConfig(checkpoint="", frequency_warp=0.1))
    with pytest.raises(CheckpointError, match=r"feat_proj_dropout is 0\.25, but whisper encoders have no such setting"):
        _open(whisper, feat_proj_dropout=0.25)


def test_freezing_more_layers_than_there_are_is_refused(every_checkpoint):
    assert _open(every_checkpoint, freeze_layers=1).arch.num_hidden_layers == 1
    with pytest.raises(CheckpointError, match=r"freeze_layers is 2; of .* there are 1 layers") as caught:
        _open(every_checkpoint, freeze_layers=2)
    assert str(every_checkpoint) in str(caught.value)


def test_more_layers_than_there_are_cannot_be_kept(every_checkpoint):
    assert _open(every_checkpoint, num_layers=1).arch == _open(every_checkpoint).arch
    with pytest.raises(CheckpointError, match=r"num_layers is 2; .* has 1 layers"):
        _open(every_checkpoint, num_layers=2)


def test_layers_of_random_weights_are_set_in_the_architecture():
    with pytest.raises(CheckpointError, match=r"num_layers is 2, but there is no checkpoint .*num_hidden_layers"):
        open_encoder(EncoderConfig(checkpoint="", num_layers=2))


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [(None, None, True), (True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
@pytest.mark.parametrize("kind", [hf.Wav2Vec2Model, hf.WavLMModel])
def test_waveform_normalisation_follows_the_preprocessor_unless_asked_for(tmp_path, kind, stored, asked, expected):
    checkpoint = _save(tmp_path, kind)
    if stored is not None:
        _write_preprocessor(checkpoint, do_normalize=stored)
    assert _open(checkpoint, normalize_waveform=asked).normalize_waveform is expected


def test_whisper_s_waveform_is_not_normalised(whisper):
    assert _open(whisper).normalize_waveform is False
    _write_preprocessor(whisper, sampling_rate=16_000, n_fft=400, hop_length=160, feature_size=8, chunk_length=30)
    assert _open(whisper).normalize_waveform is False


def test_another_sampling_rate_is_refused(every_checkpoint):
    _write_preprocessor(every_checkpoint, sampling_rate=8000)
    message = _refusal(every_checkpoint)
    assert str(every_checkpoint / "preprocessor_config.json") in message
    assert "sampling_rate is 8000; only 16000" in message


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("n_fft", 512, 400),
        ("hop_length", 200, 160),
        ("feature_size", 80, 8),
        ("dither", 0.1, 0.0),
        ("do_normalize", True, False),
    ],
)
def test_another_spectrogram_is_refused(whisper, name, value, expected):
    _write_preprocessor(whisper, **{name: value})
    message = _refusal(whisper)
    assert str(whisper / "preprocessor_config.json") in message
    assert f"{name} is {value}; only {expected}" in message


def test_without_a_checkpoint_the_configured_architecture_is_used():
    architecture = Wav2Vec2Architecture(hidden_size=32)
    encoder = open_encoder(EncoderConfig(checkpoint="", architecture=architecture, layerdrop=0.0))
    assert encoder.folder is None
    assert encoder.arch.hidden_size == 32
    assert encoder.arch.layerdrop == 0.0
    assert encoder.normalize_waveform


# ---------------------------------------------------------------------------------------------------------------
# Kinds of files.


@pytest.mark.parametrize(("kind", "values"), ENCODERS.values(), ids=ENCODERS)
def test_shards_equal_one_file(kind, values, tmp_path):
    whole = _save(tmp_path / "whole", kind, **values)
    shards = _save(tmp_path / "shards", kind, save={"max_shard_size": "4KB"}, **values)
    assert len(list(shards.glob("*.safetensors"))) > 1
    _assert_same(_parameters(shards)[0], _parameters(whole)[0])


def test_pytorch_s_own_files_equal_safetensors(every_checkpoint):
    expected, _ = _parameters(every_checkpoint)
    assert _open(every_checkpoint).weights.name == WEIGHTS
    state = torch.load(_as_torch(every_checkpoint))
    assert _open(every_checkpoint).weights.name == BIN
    _assert_same(_parameters(every_checkpoint)[0], expected)

    shards: tuple[dict, dict] = {}, {}
    for index, (key, value) in enumerate(state.items()):
        shards[index % 2][key] = value
    names = [f"pytorch_model-0000{number}-of-00002.bin" for number in (1, 2)]
    for name, shard in zip(names, shards, strict=True):
        torch.save(shard, every_checkpoint / name)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    (every_checkpoint / BIN).unlink()
    (every_checkpoint / f"{BIN}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    _assert_same(_parameters(every_checkpoint)[0], expected)


def test_a_weight_file_may_be_named_instead_of_its_folder(every_checkpoint):
    expected, _ = _parameters(every_checkpoint)
    folder = every_checkpoint
    other = folder / "step_3.safetensors"
    (folder / WEIGHTS).rename(other)
    (folder / WEIGHTS).write_bytes(b"not the one that was asked for")
    assert _open(other).weights == other
    assert _open(other).folder == folder
    _assert_same(_parameters(other)[0], expected)


def test_a_weight_file_without_a_config_beside_it_is_refused(checkpoint, tmp_path):
    lone = tmp_path / "lone" / WEIGHTS
    lone.parent.mkdir()
    (checkpoint / WEIGHTS).rename(lone)
    with pytest.raises(CheckpointError, match=r"has no config\.json") as caught:
        _open(lone)
    assert str(lone.parent) in str(caught.value)


def _named(**parts):
    return {f"{part}.{name}" for part, names in parts.items() for name in names.split()}


AFFINE = "weight bias"
POOLED = _named(projector=AFFINE, classifier=AFFINE)
QUANTIZED = _named(quantizer="codevectors weight_proj.weight weight_proj.bias", project_q=AFFINE, project_hid=AFFINE)


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        (hf.Wav2Vec2ForCTC, _named(lm_head=AFFINE)),
        (hf.Wav2Vec2ForSequenceClassification, POOLED),
        (hf.Wav2Vec2ForAudioFrameClassification, _named(classifier=AFFINE)),
        (hf.Wav2Vec2ForPreTraining, QUANTIZED),
        (hf.HubertForCTC, _named(lm_head=AFFINE)),
        (hf.HubertForSequenceClassification, POOLED),
        (hf.WavLMForCTC, _named(lm_head=AFFINE)),
        (hf.WavLMForSequenceClassification, POOLED | {"layer_weights"}),
        (
            hf.WavLMForXVector,
            POOLED
            | _named(feature_extractor=AFFINE, objective="weight")
            | _named(tdnn="0.kernel.weight 0.kernel.bias 1.kernel.weight 1.kernel.bias"),
        ),
        (hf.Data2VecAudioForCTC, _named(lm_head=AFFINE)),
        (hf.UniSpeechSatForCTC, _named(lm_head=AFFINE)),
        (
            hf.UniSpeechSatForPreTraining,
            QUANTIZED | _named(speaker_proj=AFFINE, layer_norm_for_extract=AFFINE) | {"label_embeddings_concat"},
        ),
        (hf.WhisperForAudioClassification, POOLED),
    ],
)
def test_heads_are_left_out_and_listed(kind, dropped, tmp_path):
    values = {"use_weighted_layer_sum": True} if "layer_weights" in dropped else {}
    model = _model(kind, **values)
    model.save_pretrained(tmp_path / "fine_tuned")
    _encoder_of(model).save_pretrained(tmp_path / "plain")
    parameters, names = _parameters(tmp_path / "fine_tuned")
    assert set(names) == dropped
    expected, nothing = _parameters(tmp_path / "plain")
    assert nothing == []
    _assert_same(parameters, expected)


@pytest.mark.parametrize("kind", [hf.WhisperModel, hf.WhisperForConditionalGeneration])
def test_whisper_s_decoder_is_left_out_and_listed(kind, tmp_path):
    model = _model(kind)
    model.save_pretrained(tmp_path / "whole")
    _encoder_of(model).save_pretrained(tmp_path / "plain")
    parameters, names = _parameters(tmp_path / "whole")
    assert len(names) == len(model.get_decoder().state_dict())
    assert all(name.removeprefix("model.").startswith("decoder.") for name in names)
    _assert_same(parameters, _parameters(tmp_path / "plain")[0])


@pytest.mark.parametrize("name", WITH_WEIGHT_NORM)
def test_both_spellings_of_weight_norm_are_read(name, tmp_path):
    kind, values = ENCODERS[name]
    folder = _save(tmp_path, kind, **values)
    expected, _ = _parameters(folder)
    stem = "encoder.pos_conv_embed.conv"
    new = {f"{stem}.parametrizations.weight.original0", f"{stem}.parametrizations.weight.original1"}
    old = {f"{stem}.weight_g", f"{stem}.weight_v"}

    def respell(tensors):
        before, after = (new, old) if new <= tensors.keys() else (old, new)
        for one, other in zip(sorted(before), sorted(after), strict=True):
            tensors[other] = tensors.pop(one)

    _rewrite(folder, respell)
    _assert_same(_parameters(folder)[0], expected)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, 2**-10), (torch.bfloat16, 2**-8)])
@pytest.mark.parametrize("as_torch", [False, True])
def test_half_precision_checkpoints_become_float32(checkpoint, dtype, precision, as_torch):
    exact, _ = _parameters(checkpoint)
    model = hf.Wav2Vec2Model.from_pretrained(checkpoint).to(dtype)
    model.save_pretrained(checkpoint)
    if as_torch:
        (checkpoint / WEIGHTS).unlink()
        torch.save(model.state_dict(), checkpoint / BIN)
    half, _ = _parameters(checkpoint)
    kernel, before = (tree["transformer"]["layer_0"]["attention"]["query"]["kernel"] for tree in (half, exact))
    assert kernel.dtype == np.float32
    assert (kernel != before).any()
    np.testing.assert_allclose(kernel, before, rtol=precision, atol=1e-7)


def test_without_spec_augment_a_stored_mask_vector_is_not_an_error(checkpoint):
    _rewrite_config(checkpoint, mask_time_prob=0.0, mask_feature_prob=0.0)
    parameters, dropped = _parameters(checkpoint)
    assert "masked_frame" not in parameters
    assert dropped == []


# ---------------------------------------------------------------------------------------------------------------
# The speech recognition head.


@pytest.mark.parametrize(
    "kind", [hf.Wav2Vec2ForCTC, hf.HubertForCTC, hf.WavLMForCTC, hf.Data2VecAudioForCTC, hf.UniSpeechSatForCTC]
)
def test_the_speech_recognition_head_is_the_checkpoint_s(kind, tmp_path):
    model = _model(kind)
    model.save_pretrained(tmp_path)
    encoder = _open(tmp_path)
    head = ctc_head(encoder.weights, encoder.arch, 12)
    assert head.kernel.shape == (16, 12)
    assert head.kernel.dtype == head.bias.dtype == np.float32
    np.testing.assert_array_equal(head.kernel, model.lm_head.weight.detach().numpy().T)
    np.testing.assert_array_equal(head.bias, model.lm_head.bias.detach().numpy())


@pytest.mark.parametrize("kind", [hf.Wav2Vec2Model, hf.Wav2Vec2ForPreTraining, hf.WhisperForConditionalGeneration])
def test_without_a_speech_recognition_head_there_is_none(kind, tmp_path):
    encoder = _open(_save(tmp_path, kind))
    assert ctc_head(encoder.weights, encoder.arch, 12) is None


def test_a_speech_recognition_head_for_other_symbols_is_refused(tmp_path):
    encoder = _open(_save(tmp_path, hf.HubertForCTC))
    with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \[12, 16\], .* 13 symbols") as caught:
        ctc_head(encoder.weights, encoder.arch, 13)
    assert str(tmp_path / WEIGHTS) in str(caught.value)


# ---------------------------------------------------------------------------------------------------------------
# Refusals.


def _refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        _parameters(folder)
    return str(caught.value)


def test_an_unused_key_is_refused(every_checkpoint):
    _rewrite(every_checkpoint, lambda tensors: tensors.update({"encoder.extra.weight": np.zeros((2, 3), np.float32)}))
    message = _refusal(every_checkpoint)
    assert str(every_checkpoint / WEIGHTS) in message
    assert "extra.weight [2, 3]" in message
    assert "missing" not in message


def test_a_layer_too_many_is_refused(tmp_path):
    folder = _save(tmp_path, num_hidden_layers=2)
    _rewrite_config(folder, num_hidden_layers=1)
    message = _refusal(folder)
    assert "unused encoder.layers.1.attention.k_proj.bias [16]" in message
    assert "and 4 more" in message, "16 tensors, 12 of them shown"


@pytest.mark.parametrize(("kind", "values"), ENCODERS.values(), ids=ENCODERS)
def test_layers_that_are_not_kept_are_not_read_and_the_others_are_the_same(kind, values, tmp_path):
    layers = "encoder_layers" if kind is WhisperEncoder else "num_hidden_layers"
    folder = _save(tmp_path, kind, **values | {layers: 3})
    encoder = _open(folder, num_layers=2)
    kept, dropped = encoder_parameters(encoder.weights, encoder.arch)
    expected, _ = _parameters(folder)
    assert expected["transformer"].pop("layer_2")
    _assert_same(kept, expected)
    assert not dropped


def test_beside_layers_that_are_not_kept_an_unused_key_is_refused(tmp_path):
    folder = _save(tmp_path, num_hidden_layers=2)
    extra = {"encoder.layers.1.extra.weight": np.zeros((2, 3), np.float32)}
    _rewrite(folder, lambda tensors: tensors.update(extra))
    encoder = _open(folder, num_layers=1)
    with pytest.raises(CheckpointError, match=r"unused encoder.layers.1.extra.weight \[2, 3\]"):
        encoder_parameters(encoder.weights, encoder.arch)


def test_every_key_is_needed(every_checkpoint):
    tensors = load_file(every_checkpoint / WEIGHTS)
    for key, value in tensors.items():
        save_file({name: other for name, other in tensors.items() if name != key}, every_checkpoint / WEIGHTS)
        message = _refusal(every_checkpoint)
        assert str(every_checkpoint / WEIGHTS) in message
        assert f"missing {key} {list(value.shape)}" in message
        assert message.count("\n") == 1


def test_another_shape_is_refused_even_with_as_many_entries(checkpoint):
    key = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    _rewrite(checkpoint, lambda tensors: tensors.update({key: np.zeros((16, 24), np.float32)}))
    message = _refusal(checkpoint)
    assert str(checkpoint / WEIGHTS) in message
    assert f"{key} has shape [16, 24]; config.json asks for [24, 16]" in message


@pytest.mark.parametrize(
    ("described", "stored", "missing"),
    [
        (hf.HubertModel, hf.Wav2Vec2ForCTC, "feature_extractor.conv_layers.0.conv.weight [8, 1, 10]"),
        (WhisperEncoder, hf.Wav2Vec2Model, "conv1.weight [16, 8, 3]"),
        (hf.Wav2Vec2Model, hf.WhisperModel, "feature_extractor.conv_layers.0.conv.weight [8, 1, 10]"),
        (hf.WavLMModel, hf.Wav2Vec2Model, "encoder.layers.0.attention.rel_attn_embed.weight [320, 2]"),
        (hf.Data2VecAudioModel, hf.Wav2Vec2Model, "encoder.pos_conv_embed.layers.0.conv.weight [16, 8, 19]"),
    ],
)
def test_weights_of_another_family_are_refused(described, stored, missing, tmp_path):
    folder = _save(tmp_path / "described", described)
    (_save(tmp_path / "stored", stored) / WEIGHTS).replace(folder / WEIGHTS)
    message = _refusal(folder)
    assert str(folder / WEIGHTS) in message
    assert f"missing {missing}" in message


@pytest.mark.parametrize("as_torch", [False, True])
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.5, 0.99, "not a file of tensors"])
def test_a_truncated_or_other_file_is_refused(checkpoint, kept, as_torch):
    path = _as_torch(checkpoint) if as_torch else checkpoint / WEIGHTS
    content = path.read_bytes()
    path.write_bytes(kept.encode() if isinstance(kept, str) else content[: int(kept * len(content))])
    message = _refusal(checkpoint)
    assert str(path) in message
    assert "damaged" in message


def test_a_pytorch_file_with_one_wrong_byte_is_read_right_or_refused(checkpoint):
    expected, _ = _parameters(checkpoint)
    path = _as_torch(checkpoint)
    content = path.read_bytes()
    messages = []
    # The archive's directory, whose every byte means something to the reader, lies at the end.
    for position in range(len(content) - 300, len(content)):
        path.write_bytes(content[:position] + bytes([content[position] ^ 0xFF]) + content[position + 1 :])
        try:
            parameters, _ = _parameters(checkpoint)
        except CheckpointError as error:
            messages.append(str(error))
        else:
            _assert_same(parameters, expected)
    assert len(messages) > 50
    assert all(str(path) in message for message in messages)


def test_a_pytorch_file_that_does_not_fit_is_refused_by_key(checkpoint):
    path = _as_torch(checkpoint)
    state = torch.load(path)
    state["encoder.layer_norm.weight"] = torch.zeros(17)
    state["encoder.extra"] = torch.zeros(2)
    del state["encoder.layer_norm.bias"]
    torch.save(state, path)
    message = _refusal(checkpoint)
    assert str(path) in message
    assert "encoder.layer_norm.weight has shape [17]; config.json asks for [16]" in message
    assert "missing encoder.layer_norm.bias [16]" in message
    assert "unused encoder.extra [2]" in message


def test_code_in_a_pytorch_file_is_refused_and_not_run(checkpoint, tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "written"), "w"))

    path = _as_torch(checkpoint)
    torch.save(torch.load(path) | {"encoder.layer_norm.weight": Evil()}, path)
    message = _refusal(checkpoint)
    assert str(path) in message
    assert "open" in message
    assert not (tmp_path / "written").exists()


def test_missing_weights_are_refused(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    message = _refusal(checkpoint)
    assert str(checkpoint) in message
    assert WEIGHTS in message
    assert BIN in message


def test_a_missing_shard_is_refused(tmp_path):
    folder = _save(tmp_path, save={"max_shard_size": "4KB"})
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.unlink()
    assert shard.name in _refusal(folder)


def test_an_index_without_a_weight_map_is_refused(checkpoint):
    (checkpoint / "model.safetensors.index.json").write_text("{}")
    message = _refusal(checkpoint)
    assert "model.safetensors.index.json" in message
    assert "weight_map" in message


def test_a_missing_config_is_refused(checkpoint):
    (checkpoint / "config.json").unlink()
    message = _refusal(checkpoint)
    assert f"{checkpoint} has no config.json" in message


@pytest.mark.parametrize("content", ["{", "[]", '{"model_type": "wav2vec2"'])
def test_a_config_that_is_no_json_object_is_refused(checkpoint, content):
    (checkpoint / "config.json").write_text(content)
    assert str(checkpoint / "config.json") in _refusal(checkpoint)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"model_type": "sew"}, "'sew'; there are encoders for wav2vec2, hubert,"),
        ({"add_adapter": True}, "add_adapter is True"),
        ({"adapter_attn_dim": 16}, "adapter_attn_dim is 16"),
        ({"feat_extract_norm": "batch"}, "feat_extract_norm is 'batch'"),
    ],
)
def test_another_encoder_is_refused(checkpoint, values, named):
    _rewrite_config(checkpoint, **values)
    message = _refusal(checkpoint)
    assert str(checkpoint / "config.json") in message
    assert named in message


def test_hubert_with_a_batch_norm_is_refused(tmp_path):
    message = _refusal(_save(tmp_path, hf.HubertModel, conv_pos_batch_norm=True))
    assert f"{tmp_path / 'config.json'}: conv_pos_batch_norm is True" in message


# ---------------------------------------------------------------------------------------------------------------
# Names.


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused_without_asking_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _watch_network(monkeypatch)
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        _open(name)
    assert "--config.model.encoder.checkpoint" in str(caught.value)
    assert asked == []


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _watch_network(monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        _open("facebook/wav2vec2-base")
    assert asked == ["facebook/wav2vec2-base"]
    message = str(caught.value)
    assert "'facebook/wav2vec2-base'" in message
    assert "OSError" in message
    assert "--config.model.encoder.checkpoint=FOLDER" in message
    assert WEIGHTS in message


@pytest.mark.parametrize(
    ("name", "hub_id"),
    [
        ("someone/wav2vec2-tiny", "someone/wav2vec2-tiny"),
        ("wav2vec2-base", "facebook/wav2vec2-base"),
        ("hubert-base", "facebook/hubert-base-ls960"),
        ("wavlm-large", "microsoft/wavlm-large"),
        ("whisper-tiny.en", "openai/whisper-tiny.en"),
    ],
)
@pytest.mark.parametrize("as_torch", [False, True])
def test_a_hub_id_or_short_name_is_read_from_where_the_hub_client_puts_it(
    name, hub_id, as_torch, monkeypatch, checkpoint, tmp_path
):
    if as_torch:
        _as_torch(checkpoint)
    monkeypatch.chdir(tmp_path)
    asked = _watch_network(monkeypatch, checkpoint)
    assert _open(name).folder == checkpoint
    # PyTorch's files are fetched only where there are no others.
    assert asked == [hub_id] * (2 if as_torch else 1)


def test_a_folder_goes_before_a_short_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _watch_network(monkeypatch)
    _save(tmp_path / "hubert-base", hf.HubertModel)
    assert _open("hubert-base").arch.hidden_size == 16
    assert asked == []


def test_an_unknown_short_name_suggests_near_ones(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _watch_network(monkeypatch)
    with pytest.raises(CheckpointError, match=r"short names near it: .*wavlm-base-plus"):
        _open("wavlm-bas-plus")
    assert asked == []


def _watch_network(monkeypatch, folder=None):
    """The ids that the Hub client is asked for; it gives the folder, or has no network."""
    import huggingface_hub

    asked = []

    def download(name, **options):
        asked.append(name)
        if folder is None:
            raise OSError("no network")
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked
