"""Finding a checkpoint, describing its encoder, and reading its weights, strictly both ways."""

import dataclasses
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily
from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.pretrained.keys import UNUSED, entries, is_dropped_head, plain_key
from jax_mtlser.models.pretrained.model_config import read_architecture, read_normalize_waveform
from jax_mtlser.models.pretrained.presets import PRESETS
from jax_mtlser.models.pretrained.weight_files import WEIGHT_FILES, CheckpointError, find_weights, read_tensors

__all__ = ["CtcHead", "PretrainedEncoder", "ctc_head", "encoder_parameters", "open_encoder"]

Tree = dict[str, Any]

_OPTION = "--config.model.encoder.checkpoint"


@dataclasses.dataclass(frozen=True)
class PretrainedEncoder:
    """What is known of an encoder before its weights are read.

    Attributes:
        arch: shape and regularisation, with the run's overrides applied.
        normalize_waveform: zero mean and unit variance per utterance.
        weights: file, or index of the shards, that holds its weights; None for random weights.
    """

    arch: EncoderArchitecture
    normalize_waveform: bool
    weights: Path | None

    @property
    def folder(self) -> Path | None:
        """Where the weights lie, with the files that describe them."""
        return None if self.weights is None else self.weights.parent


@dataclasses.dataclass(frozen=True)
class CtcHead:
    """The speech recognition head of a ForCTC checkpoint.

    Attributes:
        kernel: float32 [D, V].
        bias: float32 [V].
    """

    kernel: np.ndarray
    bias: np.ndarray


def open_encoder(config: EncoderConfig) -> PretrainedEncoder:
    """Find the checkpoint and read its configuration.

    Raises:
        CheckpointError: nothing at that name, or an encoder that this package does not have.
    """
    overrides = config.regularisation()
    if not config.checkpoint:
        if config.num_layers is not None:
            raise CheckpointError(
                f"model.encoder.num_layers is {config.num_layers}, but there is no checkpoint to take layers from; set "
                "model.encoder.architecture.num_hidden_layers"
            )
        _check_overrides(overrides, config.architecture)
        described = dataclasses.replace(config.architecture, **overrides)
        return PretrainedEncoder(described, config.normalize_waveform is not False, None)
    weights = _find(config.checkpoint)
    found = read_architecture(weights.parent / "config.json")
    _check_overrides(overrides, found)
    if config.num_layers is not None:
        if config.num_layers > found.num_hidden_layers:
            raise CheckpointError(
                f"model.encoder.num_layers is {config.num_layers}; {config.checkpoint} has {found.num_hidden_layers} layers"
            )
        found = dataclasses.replace(found, num_hidden_layers=config.num_layers)
    if config.freeze_layers > found.num_hidden_layers:
        raise CheckpointError(
            f"model.encoder.freeze_layers is {config.freeze_layers}; of {config.checkpoint} there are "
            f"{found.num_hidden_layers} layers"
        )
    arch = dataclasses.replace(found, **overrides)
    normalize = read_normalize_waveform(weights.parent, arch)
    if config.normalize_waveform is not None:
        normalize = config.normalize_waveform
    if normalize and arch.family is EncoderFamily.WHISPER:
        raise CheckpointError(
            "model.encoder.normalize_waveform is True, but Whisper's spectrogram takes samples as they are; leave it out"
        )
    return PretrainedEncoder(arch, normalize, weights)


def _check_overrides(overrides: Mapping[str, Any], arch: EncoderArchitecture) -> None:
    unknown = [name for name in overrides if not hasattr(arch, name)]
    if unknown:
        raise CheckpointError(
            f"model.encoder.{unknown[0]} is {overrides[unknown[0]]}, but {arch.family.value} encoders have no such "
            f"setting; leave it out"
        )


def encoder_parameters(weights: Path, arch: EncoderArchitecture) -> tuple[Tree, list[str]]:
    """Read an encoder's weights as the parameter tree of :func:`~jax_mtlser.models.speech_encoder.speech_encoder`.

    Strict both ways: every parameter must be in the files with the right shape, and every tensor in the files
    must be used, heads excepted, and layers that ``config.json`` beside them describes but ``arch`` leaves out.

    Returns:
        The parameters (float32) and the names of the head tensors that were left out.

    Raises:
        CheckpointError: naming the file and the keys that are missing, unused or of another shape.
    """
    tensors = _read(weights, arch)
    dropped = sorted(key for key in tensors if is_dropped_head(key))
    for key in (*dropped, *_left_out(weights.parent / "config.json", arch)):
        tensors.pop(key, None)
    tree: Tree = {}
    problems: list[str] = []
    for entry in entries(arch):
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
        if entry.path != UNUSED:
            _insert(tree, entry.path, np.ascontiguousarray(entry.convert(tensor.astype(np.float32))))
    unused = [f"unused {key} {list(tensor.shape)}" for key, tensor in sorted(tensors.items())]
    if problems or unused:
        # Some of each kind: what is there often explains what is missing.
        some = problems[: max(6, 12 - len(unused))]
        some += unused[: 12 - len(some)]
        shown = "\n".join(f"  - {text}" for text in some)
        others = len(problems) + len(unused) - len(some)
        more = f"\n  and {others} more" if others else ""
        raise CheckpointError(
            f"{weights} does not fit the encoder that config.json beside it describes:\n{shown}{more}"
        )
    return tree, dropped


def _left_out(config: Path, arch: EncoderArchitecture) -> set[str]:
    """Keys of the layers that the checkpoint has behind the last one of ``arch``; none where no config tells."""
    if not config.is_file():
        return set()
    whole = dataclasses.replace(arch, num_hidden_layers=read_architecture(config).num_hidden_layers)
    kept = {key for entry in entries(arch) for key in entry.keys}
    return {key for entry in entries(whole) for key in entry.keys} - kept


def ctc_head(weights: Path, arch: EncoderArchitecture, num_symbols: int) -> CtcHead | None:
    """The speech recognition head of a checkpoint; None where it has none.

    Raises:
        CheckpointError: a head for another vocabulary.
    """
    tensors = _read(weights, arch)
    kernel, bias = tensors.get("lm_head.weight"), tensors.get("lm_head.bias")
    if kernel is None or bias is None:
        return None
    expected = (num_symbols, arch.hidden_size)
    if kernel.shape != expected or bias.shape != expected[:1]:
        raise CheckpointError(
            f"{weights}: lm_head.weight has shape {list(kernel.shape)}, but vocab.json beside it has {num_symbols} "
            f"symbols for {arch.hidden_size} channels"
        )
    return CtcHead(np.ascontiguousarray(kernel.astype(np.float32).T), bias.astype(np.float32))


def _read(weights: Path, arch: EncoderArchitecture) -> dict[str, np.ndarray]:
    return {plain_key(key, arch.family): value for key, value in read_tensors(weights).items()}


def _insert(tree: Tree, path: str, value: np.ndarray) -> None:
    *parents, name = path.split("/")
    for parent in parents:
        tree = tree.setdefault(parent, {})
    tree[name] = value


def _find(name: str) -> Path:
    """The weights that a folder, a file, a short name or a Hub id means."""
    path = Path(name).expanduser()
    if path.is_file():
        folder, weights = path.parent, path
    elif path.is_dir():
        folder, weights = path, None
    else:
        folder, weights = _download(_hub_id(name)), None
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json; point {_OPTION} at a folder in Hugging Face layout")
    return find_weights(folder) if weights is None else weights


def _hub_id(name: str) -> str:
    if name in PRESETS:
        return PRESETS[name]
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        near = difflib.get_close_matches(name, PRESETS, 3)
        hint = f" (short names near it: {', '.join(near)})" if near else ""
        raise CheckpointError(
            f"there is no folder {Path(name).expanduser()}; point {_OPTION} at a local folder or a Hub id like "
            f"facebook/wav2vec2-base{hint}"
        )
    return name


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download  # slow to import, and needed only here

    try:
        # Not every *.safetensors: some repositories hold other precisions beside the shards that the index names.
        weights = ["model.safetensors", "model-*.safetensors"]
        snapshot = Path(snapshot_download(name, allow_patterns=["*.json", *weights]))
        if not any(snapshot.glob("*.safetensors")):
            snapshot = Path(snapshot_download(name, allow_patterns=["*.json", "pytorch_model*.bin"]))
        return snapshot
    except Exception as error:
        raise CheckpointError(
            f"checkpoint {name!r} is neither a folder here nor could it be had from the Hugging Face Hub "
            f"({type(error).__name__}). Download it where there is a network and point {_OPTION}=FOLDER at it; "
            f"the folder needs config.json and {' or '.join(WEIGHT_FILES)}."
        ) from error
