"""Import of checkpoints is strict both ways, and each refusal names file, key and what to do."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from jax_mtlser.architecture import FeatureNorm, Wav2Vec2Architecture
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.pretrained import CheckpointError, encoder_parameters, open_encoder

torch = pytest.importorskip("torch")

from transformers import (  # noqa: E402
    Wav2Vec2Config,
    Wav2Vec2ForCTC,
    Wav2Vec2ForPreTraining,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
)

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
    "vocab_size": 12,
    # Parts of other checkpoint kinds, made small.
    "num_codevectors_per_group": 4,
    "codevector_dim": 8,
    "proj_codevector_dim": 8,
    "classifier_proj_size": 8,
}
WEIGHTS = "model.safetensors"


def _save(folder, kind=Wav2Vec2Model, **values):
    torch.manual_seed(0)
    options = values.pop("save", {})
    kind(Wav2Vec2Config(**(TINY | values))).save_pretrained(folder, **options)
    return folder


@pytest.fixture
def checkpoint(tmp_path):
    return _save(tmp_path / "checkpoint")


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


def _assert_same(ours, expected):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, dict):
            _assert_same(ours[name], value)
        else:
            np.testing.assert_array_equal(ours[name], value)
            assert ours[name].dtype == np.float32


def test_the_architecture_is_read_from_the_folder(tmp_path):
    values = {"feat_extract_norm": "layer", "conv_bias": True, "do_stable_layer_norm": True, "layerdrop": 0.03}
    arch = _open(_save(tmp_path, **values)).arch
    expected = {name: value for name, value in (TINY | values).items() if hasattr(arch, name)}
    assert {name: getattr(arch, name) for name in expected} == expected | {"feat_extract_norm": FeatureNorm.LAYER}


def test_what_config_json_leaves_out_is_the_default(checkpoint):
    values = json.loads((checkpoint / "config.json").read_text())
    del values["layer_norm_eps"], values["hidden_dropout"], values["mask_time_prob"]
    (checkpoint / "config.json").write_text(json.dumps(values))
    arch, default = _open(checkpoint).arch, Wav2Vec2Architecture()
    assert arch.layer_norm_eps == default.layer_norm_eps
    assert arch.hidden_dropout == default.hidden_dropout
    assert arch.mask_time_prob == default.mask_time_prob


def test_overrides_replace_the_checkpoint_s_regularisation(checkpoint):
    arch = _open(checkpoint, hidden_dropout=0.0, layerdrop=0.5, apply_spec_augment=False).arch
    assert (arch.hidden_dropout, arch.layerdrop, arch.apply_spec_augment) == (0.0, 0.5, False)
    assert arch.attention_dropout == 0.1


@pytest.mark.parametrize(
    ("stored", "asked", "expected"),
    [(None, None, True), (True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_waveform_normalisation_follows_the_preprocessor_unless_asked_for(checkpoint, stored, asked, expected):
    if stored is not None:
        (checkpoint / "preprocessor_config.json").write_text(json.dumps({"do_normalize": stored}))
    assert _open(checkpoint, normalize_waveform=asked).normalize_waveform is expected


def test_without_a_checkpoint_the_configured_architecture_is_used():
    architecture = Wav2Vec2Architecture(hidden_size=32)
    encoder = open_encoder(EncoderConfig(checkpoint="", architecture=architecture, layerdrop=0.0))
    assert encoder.folder is None
    assert encoder.arch.hidden_size == 32
    assert encoder.arch.layerdrop == 0.0
    assert encoder.normalize_waveform


# ---------------------------------------------------------------------------------------------------------------
# Kinds of files.


def test_shards_equal_one_file(tmp_path):
    whole = _save(tmp_path / "whole")
    shards = _save(tmp_path / "shards", save={"max_shard_size": "4KB"})
    assert len(list(shards.glob("*.safetensors"))) > 1
    _assert_same(_parameters(shards)[0], _parameters(whole)[0])


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        (Wav2Vec2ForCTC, {"lm_head.weight", "lm_head.bias"}),
        (
            Wav2Vec2ForSequenceClassification,
            {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"},
        ),
        (
            Wav2Vec2ForPreTraining,
            {"quantizer.codevectors"}
            | {
                f"{part}.{name}"
                for part in ("quantizer.weight_proj", "project_q", "project_hid")
                for name in ("weight", "bias")
            },
        ),
    ],
)
def test_heads_are_left_out_and_listed(kind, dropped, tmp_path):
    plain = _save(tmp_path / "plain")
    fine_tuned = _save(tmp_path / "fine_tuned", kind)
    prefix = "wav2vec2."
    encoder = load_file(plain / WEIGHTS)
    _rewrite(fine_tuned, lambda tensors: tensors.update({prefix + key: value for key, value in encoder.items()}))
    parameters, names = _parameters(fine_tuned)
    assert set(names) == dropped
    _assert_same(parameters, _parameters(plain)[0])


def test_the_old_spelling_of_weight_norm_is_read_too(checkpoint):
    expected, _ = _parameters(checkpoint)
    stem = "encoder.pos_conv_embed.conv"

    def respell(tensors):
        tensors[f"{stem}.weight_g"] = tensors.pop(f"{stem}.parametrizations.weight.original0")
        tensors[f"{stem}.weight_v"] = tensors.pop(f"{stem}.parametrizations.weight.original1")

    _rewrite(checkpoint, respell)
    _assert_same(_parameters(checkpoint)[0], expected)


def test_half_precision_checkpoints_become_float32(checkpoint):
    exact, _ = _parameters(checkpoint)
    Wav2Vec2Model.from_pretrained(checkpoint).half().save_pretrained(checkpoint)
    half, _ = _parameters(checkpoint)
    kernel = half["transformer"]["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(
        kernel, exact["transformer"]["layer_0"]["attention"]["query"]["kernel"], rtol=2**-10, atol=1e-7
    )


def test_bfloat16_checkpoints_become_float32(checkpoint):
    exact, _ = _parameters(checkpoint)
    Wav2Vec2Model.from_pretrained(checkpoint).bfloat16().save_pretrained(checkpoint)
    rounded, _ = _parameters(checkpoint)
    kernel = rounded["transformer"]["layer_0"]["attention"]["query"]["kernel"]
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(
        kernel, exact["transformer"]["layer_0"]["attention"]["query"]["kernel"], rtol=2**-8, atol=1e-7
    )


def test_without_spec_augment_a_stored_mask_vector_is_not_an_error(checkpoint):
    _rewrite_config(checkpoint, mask_time_prob=0.0, mask_feature_prob=0.0)
    parameters, dropped = _parameters(checkpoint)
    assert "masked_frame" not in parameters
    assert dropped == []


# ---------------------------------------------------------------------------------------------------------------
# Refusals.


def _refusal(folder):
    with pytest.raises(CheckpointError) as caught:
        _parameters(folder)
    return str(caught.value)


def test_an_unused_key_is_refused(checkpoint):
    _rewrite(checkpoint, lambda tensors: tensors.update({"encoder.extra.weight": np.zeros((2, 3), np.float32)}))
    message = _refusal(checkpoint)
    assert str(checkpoint / WEIGHTS) in message
    assert "unused encoder.extra.weight [2, 3]" in message


def test_a_layer_too_many_is_refused(tmp_path):
    folder = _save(tmp_path, num_hidden_layers=2)
    _rewrite_config(folder, num_hidden_layers=1)
    message = _refusal(folder)
    assert "unused encoder.layers.1.attention.k_proj.bias [16]" in message
    assert "and 4 more" in message, "16 tensors, 12 of them shown"


def test_a_missing_key_is_refused(checkpoint):
    _rewrite(checkpoint, lambda tensors: tensors.pop("encoder.layers.0.attention.q_proj.weight"))
    message = _refusal(checkpoint)
    assert str(checkpoint / WEIGHTS) in message
    assert "missing encoder.layers.0.attention.q_proj.weight [16, 16]" in message


def test_a_missing_mask_vector_is_refused(checkpoint):
    _rewrite(checkpoint, lambda tensors: tensors.pop("masked_spec_embed"))
    assert "missing masked_spec_embed [16]" in _refusal(checkpoint)


def test_another_shape_is_refused_even_with_as_many_entries(checkpoint):
    key = "encoder.layers.0.feed_forward.intermediate_dense.weight"
    _rewrite(checkpoint, lambda tensors: tensors.update({key: np.zeros((16, 24), np.float32)}))
    message = _refusal(checkpoint)
    assert str(checkpoint / WEIGHTS) in message
    assert f"{key} has shape [16, 24]; config.json asks for [24, 16]" in message


def test_a_truncated_file_is_refused(checkpoint):
    path = checkpoint / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    message = _refusal(checkpoint)
    assert str(path) in message
    assert "damaged" in message


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_another_kind_of_file_is_refused(checkpoint, content):
    (checkpoint / WEIGHTS).write_bytes(content)
    assert str(checkpoint / WEIGHTS) in _refusal(checkpoint)


def test_missing_weights_are_refused(checkpoint):
    (checkpoint / WEIGHTS).unlink()
    message = _refusal(checkpoint)
    assert str(checkpoint) in message
    assert WEIGHTS in message


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


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_folder_that_is_not_there_is_refused_without_asking_the_network(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    _forbid_network(monkeypatch)
    with pytest.raises(CheckpointError, match="there is no folder") as caught:
        _open(name)
    assert "--config.model.encoder.checkpoint" in str(caught.value)


def test_a_hub_id_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    asked = _forbid_network(monkeypatch)
    with pytest.raises(CheckpointError) as caught:
        _open("facebook/wav2vec2-base")
    assert asked == ["facebook/wav2vec2-base"]
    message = str(caught.value)
    assert "'facebook/wav2vec2-base'" in message
    assert "OSError" in message
    assert "--config.model.encoder.checkpoint=FOLDER" in message
    assert WEIGHTS in message


def test_a_hub_id_is_read_from_where_the_hub_client_puts_it(monkeypatch, checkpoint, tmp_path):
    import huggingface_hub

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(checkpoint))
    assert _open("someone/wav2vec2-tiny").folder == checkpoint


def _forbid_network(monkeypatch):
    import huggingface_hub

    asked = []

    def refuse(name, **options):
        asked.append(name)
        raise OSError("no network")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", refuse)
    return asked
