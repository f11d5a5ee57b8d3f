"""Pre-trained encoders in Hugging Face layout: the only place that knows their file and key names."""

import dataclasses
import json
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from jax_mtlser.config import EncoderArchitecture, EncoderConfig, FeatureNorm
from jax_mtlser.models.torch_file import TorchFileError, read_torch_file

__all__ = ["CheckpointError", "PretrainedEncoder", "encoder_parameters", "open_encoder"]

Tree = dict[str, Any]

_PREFIXES = ("wav2vec2.",)
# Parts of pre-training and fine-tuning checkpoints that are not the encoder.
_DROPPED_HEADS = re.compile(r"^(quantizer|project_q|project_hid|lm_head|classifier|projector|dropout_features)\b")
_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_OPTION = "--config.model.encoder.checkpoint"


class CheckpointError(ValueError):
    """A checkpoint that cannot be found or does not fit; the message names file and key."""


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """What is known of an encoder before its weights are read.

    Attributes:
        arch: shape and regularisation, with the run's overrides applied.
        normalize_waveform: zero mean and unit variance per utterance.
        folder: where the weights lie; None for random weights.
    """

    arch: EncoderArchitecture
    normalize_waveform: bool
    folder: Path | None


def open_encoder(config: EncoderConfig) -> PretrainedEncoder:
    """Find the checkpoint and read its configuration.

    Raises:
        CheckpointError: nothing at that name, or an encoder that this package does not have.
    """
    overrides = {
        name: value
        for name in (
            "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout",
            "layerdrop", "apply_spec_augment",
        )
        if (value := getattr(config, name)) is not None
    }  # fmt: skip
    if not config.checkpoint:
        arch = dataclasses.replace(config.architecture, **overrides)
        return PretrainedEncoder(arch, config.normalize_waveform is not False, None)
    folder = _find(config.checkpoint)
    arch = dataclasses.replace(_architecture(folder / "config.json"), **overrides)
    normalize = config.normalize_waveform
    if normalize is None:
        preprocessor = folder / "preprocessor_config.json"
        normalize = bool(_read_json(preprocessor).get("do_normalize", True)) if preprocessor.is_file() else True
    return PretrainedEncoder(arch, normalize, folder)


def encoder_parameters(folder: Path, arch: EncoderArchitecture) -> tuple[Tree, list[str]]:
    """Read an encoder's weights as the parameter tree of :class:`~jax_mtlser.models.SpeechEncoder`.

    Strict both ways: every parameter must be in the files with the right shape, and every tensor in the files
    must be used, heads excepted.

    Returns:
        The parameters (float32) and the names of the head tensors that were left out.

    Raises:
        CheckpointError: naming the file and the keys that are missing, unused or of another shape.
    """
    tensors, where = _read_tensors(folder)
    tensors = {_plain_key(key): value for key, value in tensors.items()}
    dropped = sorted(key for key in tensors if _DROPPED_HEADS.match(key))
    for key in dropped:
        del tensors[key]
    tree: Tree = {}
    problems: list[str] = []
    for entry in _entries(arch):
        found = [key for key in entry.keys if key in tensors]
        if not found:
            if not entry.optional:
                problems.append(f"missing {entry.keys[0]} {list(entry.source_shape)}")
            continue
        key, *_ = found
        tensor = tensors.pop(key)
        if tensor.shape != entry.source_shape:
            problems.append(f"{key} has shape {list(tensor.shape)}; config.json asks for {list(entry.source_shape)}")
            continue
        _insert(tree, entry.path, np.ascontiguousarray(entry.convert(tensor.astype(np.float32))))
    problems += [f"unused {key} {list(tensor.shape)}" for key, tensor in sorted(tensors.items())]
    if problems:
        shown = "\n".join(f"  - {text}" for text in problems[:12])
        more = f"\n  and {len(problems) - 12} more" if len(problems) > 12 else ""
        raise CheckpointError(f"{where} does not fit the encoder that config.json beside it describes:\n{shown}{more}")
    return tree, dropped


@dataclasses.dataclass(frozen=True)
class _Entry:
    """One parameter: its path here, its possible keys and shape there, and the way from there to here."""

    path: str
    keys: tuple[str, ...]
    source_shape: tuple[int, ...]
    convert: Callable[[np.ndarray], np.ndarray] = lambda array: array
    optional: bool = False


def _entries(arch: EncoderArchitecture) -> Iterator[_Entry]:
    hidden = arch.hidden_size
    if arch.mask_time_prob > 0 or arch.mask_feature_prob > 0:
        yield _Entry("masked_frame", ("masked_spec_embed",), (hidden,))
    else:
        # transformers leaves the parameter out then, but checkpoints written before may carry it.
        yield _Entry("unused_masked_frame", ("masked_spec_embed",), (hidden,), optional=True)
    channels = (1, *arch.conv_dim)
    for layer, width in enumerate(arch.conv_kernel):
        source = f"feature_extractor.conv_layers.{layer}"
        shape = (channels[layer + 1], channels[layer], width)
        yield _Entry(f"feature_encoder/conv_{layer}/kernel", (f"{source}.conv.weight",), shape, _reverse_axes)
        if arch.conv_bias:
            yield _Entry(f"feature_encoder/conv_{layer}/bias", (f"{source}.conv.bias",), shape[:1])
        if layer == 0 or arch.feat_extract_norm is FeatureNorm.LAYER:
            yield from _norm(f"feature_encoder/norm_{layer}", f"{source}.layer_norm", channels[layer + 1])
    yield from _norm("feature_projection/norm", "feature_projection.layer_norm", channels[-1])
    yield from _dense("feature_projection/projection", "feature_projection.projection", channels[-1], hidden)

    width, group = arch.num_conv_pos_embeddings, hidden // arch.num_conv_pos_embedding_groups
    source = "encoder.pos_conv_embed.conv"
    gain_keys = (f"{source}.parametrizations.weight.original0", f"{source}.weight_g")
    direction_keys = (f"{source}.parametrizations.weight.original1", f"{source}.weight_v")
    yield _Entry("positional_conv/gain", gain_keys, (1, 1, width), np.ravel)
    yield _Entry("positional_conv/direction", direction_keys, (hidden, group, width), _reverse_axes)
    yield _Entry("positional_conv/bias", (f"{source}.bias",), (hidden,))
    yield from _norm("norm", "encoder.layer_norm", hidden)
    for layer in range(arch.num_hidden_layers):
        here, there = f"layer_{layer}", f"encoder.layers.{layer}"
        for ours, theirs in (
            ("query", "q_proj"),
            ("key", "k_proj"),
            ("value", "v_proj"),
            ("output", "out_proj"),
        ):
            yield from _dense(f"{here}/attention/{ours}", f"{there}.attention.{theirs}", hidden, hidden)
        yield from _norm(f"{here}/attention_norm", f"{there}.layer_norm", hidden)
        feed_forward = f"{there}.feed_forward"
        wide = arch.intermediate_size
        yield from _dense(f"{here}/feed_forward/intermediate", f"{feed_forward}.intermediate_dense", hidden, wide)
        yield from _dense(f"{here}/feed_forward/output", f"{feed_forward}.output_dense", wide, hidden)
        yield from _norm(f"{here}/feed_forward_norm", f"{there}.final_layer_norm", hidden)


def _dense(here: str, there: str, inputs: int, outputs: int) -> Iterator[_Entry]:
    yield _Entry(f"{here}/kernel", (f"{there}.weight",), (outputs, inputs), np.transpose)
    yield _Entry(f"{here}/bias", (f"{there}.bias",), (outputs,))


def _norm(here: str, there: str, channels: int) -> Iterator[_Entry]:
    yield _Entry(f"{here}/scale", (f"{there}.weight",), (channels,))
    yield _Entry(f"{here}/bias", (f"{there}.bias",), (channels,))


def _reverse_axes(array: np.ndarray) -> np.ndarray:
    return array.transpose(2, 1, 0)  # [O, I, K] in PyTorch, [K, I, O] here


def _insert(tree: Tree, path: str, value: np.ndarray) -> None:
    *parents, name = path.split("/")
    if name == "unused_masked_frame":
        return
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def _plain_key(key: str) -> str:
    return next((key.removeprefix(prefix) for prefix in _PREFIXES if key.startswith(prefix)), key)


def _find(name: str) -> Path:
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"{folder} has no config.json; point {_OPTION} at a folder in Hugging Face layout")
        return folder
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise CheckpointError(
            f"there is no folder {folder}; point {_OPTION} at a local folder or a Hub id like facebook/wav2vec2-base"
        )
    from huggingface_hub import snapshot_download  # slow to import, and needed only here

    try:
        snapshot = Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
        if not any(snapshot.glob("*.safetensors")):
            snapshot = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
        return snapshot
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}). Download it where there is a network and point {_OPTION}=FOLDER at it; "
            "the folder needs config.json and model.safetensors or pytorch_model.bin."
        ) from error


def _architecture(path: Path) -> EncoderArchitecture:
    values = _read_json(path)
    if values.get("model_type") != "wav2vec2":
        raise CheckpointError(
            f"{path}: model_type is {values.get('model_type')!r}; this version reads 'wav2vec2' encoders"
        )
    for name, expected in (("add_adapter", False), ("adapter_attn_dim", None)):
        if values.get(name, expected) != expected:
            raise CheckpointError(f"{path}: {name} is {values[name]!r}; adapters are not supported, only {expected!r}")
    fields = {field.name for field in dataclasses.fields(EncoderArchitecture)}
    known: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if key in fields}
    if (norm := known.get("feat_extract_norm")) is not None:
        choices = [choice.value for choice in FeatureNorm]
        if norm not in choices:
            raise CheckpointError(f"{path}: feat_extract_norm is {norm!r}; supported are {', '.join(choices)}")
        known["feat_extract_norm"] = FeatureNorm(norm)
    return EncoderArchitecture(**known)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds no JSON object")
    return values


def _read_tensors(folder: Path) -> tuple[dict[str, np.ndarray], Path]:
    """All tensors of a folder, and the file that an error message should name."""
    for name in _WEIGHT_FILES:
        index, file = folder / f"{name}.index.json", folder / name
        if index.is_file():
            return _read_shards(index), index
        if file.is_file():
            return dict(_read_file(file)), file
    raise CheckpointError(f"{folder} has no weights: neither {' nor '.join(_WEIGHT_FILES)}")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map, which names the file of each tensor")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(weight_map.values())):
        file = index.parent / Path(name).name  # shards lie beside their index, whatever the map says
        if not file.is_file():
            raise CheckpointError(f"{index.parent} has no {file.name}, which {index.name} names")
        tensors.update(_read_file(file))
    return tensors


def _read_file(file: Path) -> Mapping[str, np.ndarray]:
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    try:
        return read_torch_file(file)
    except TorchFileError as error:
        raise CheckpointError(f"{file} cannot be used: {error}") from error


def _read_safetensors(file: Path) -> Mapping[str, np.ndarray]:
    try:
        with safe_open(file, framework="numpy") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{file} is damaged or no safetensors file: {error}") from error
