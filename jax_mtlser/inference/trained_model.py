"""A finished member's model, read back from its own description: no configuration, no corpus."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import AudioConfig, HeadInput, architecture_from_dict
from jax_mtlser.data.labels import LabelMaps
from jax_mtlser.data.vocabulary import Vocabulary
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.pretrained import export_encoder
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model, load_model_description

__all__ = ["ModelError", "TrainedModel", "find_models"]


class ModelError(ValueError):
    """No finished model where one was looked for, or one that cannot do what is asked; the message says what is there."""


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Parameters and what they mean.

    Attributes:
        name: of the member.
        model: the network, computing in float32.
        params: its parameters, on the first device.
        description: labels, vocabulary and all else that was saved with them.
        temperature: what emotion logits are divided by to calibrate them; None where none was fitted.
    """

    name: str
    model: MultitaskModel
    params: Any
    description: dict[str, Any]
    temperature: float | None

    @classmethod
    def load(cls, workdir: Path, member: str | None = None) -> Self:
        """Read the model of a run's member; without a name, of the only one.

        Raises:
            ModelError: no such run or member, none that is finished, or several to choose from.
        """
        return cls.read(find_models(workdir, None if member is None else [member])[0])

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the model in a folder that :func:`find_models` names.

        Raises:
            ModelError: a damaged folder, or a calibration that is no temperature.
        """
        try:
            return cls._read(folder)
        except ModelError:
            raise
        except Exception as error:  # Orbax raises whatever the bytes lead it to; nothing in them is executed
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            raise ModelError(f"{folder} is damaged or no model of this package ({reason})") from error

    @classmethod
    def _read(cls, folder: Path) -> Self:
        member = MemberFolder(folder.parent)
        description = load_model_description(folder)
        lora = Lora(**description["lora"]) if description["lora"]["rank"] else None
        options = EncoderOptions(hf_compat=description["hf_compat"], lora=lora)
        model = MultitaskModel(
            architecture_from_dict(description["architecture"]),
            HeadSizes(**description["heads"]),
            options,
            HeadInput(description["head_input"]),
        )
        shortest = max(model.arch.min_samples(), model.arch.hop())
        audio, lengths = jnp.zeros((1, shortest)), jnp.array([shortest])
        shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), audio, lengths, train=False)["params"])
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), shapes)
        temperature = _temperature(member.result)
        return cls(member.path.name, model, load_model(folder, like), description, temperature)

    @property
    def arch(self) -> EncoderArchitecture:
        """Shape of the encoder."""
        return self.model.arch

    @property
    def labels(self) -> LabelMaps:
        """Class names of each head, in the order of its logits."""
        return LabelMaps.from_dict(self.description["labels"])

    @property
    def vocabulary(self) -> Vocabulary | None:
        """CTC symbols; None without an ASR head."""
        stored = self.description["vocabulary"]
        return Vocabulary.from_dict(stored) if stored else None

    @property
    def tasks(self) -> frozenset[str]:
        """``emotion, gender, speaker, asr``: those with a head that was trained, not one of weight 0."""
        heads = {task for task, size in self.description["heads"].items() if size}
        return frozenset(heads - set(self._described("untrained")))

    @property
    def limits(self) -> AudioConfig:
        """Which recordings the model was trained on."""
        return AudioConfig(**self._described("audio"))

    def _described(self, key: str) -> Any:
        if key not in self.description:
            raise ModelError(
                f"member {self.name} was saved by an earlier version of jax_mtlser, which did not describe {key!r}; "
                "train it again"
            )
        return self.description[key]

    def export_encoder(self, folder: Path, *, low_precision: bool = False) -> None:
        """Write the encoder as a folder that ``transformers`` loads; adapters are added into its kernels.

        Args:
            folder: made when missing.
            low_precision: matrices in bfloat16.
        """
        export_encoder(
            folder,
            self.params["encoder"],
            self.arch,
            normalize_waveform=self.description["normalize_waveform"],
            lora=self.model.options.lora,
            low_precision=low_precision,
        )


def find_models(
    folder: Path, members: Sequence[str] | Literal["all"] | None = None, *, several: bool = False
) -> list[Path]:
    """Folders of finished models.

    Args:
        folder: a run folder, the folder of one of its members, or that member's ``model``.
        members: names in a run folder, or all that are finished; None: the only one.
        several: whether the caller can use more than one.

    Raises:
        ModelError: no such run or member, none that is finished, or several and none named.
    """
    for single in (folder, folder / "model"):
        if (single / "description").is_dir() and (single / "params").is_dir():
            return [single]
    run = RunFolder(folder)
    finished = [member.path.name for member in run.members() if member.model.is_dir()]
    if not finished:
        raise ModelError(f"{folder} has no finished member; name the --workdir of a training that has one")
    if members is None and len(finished) > 1:
        options = _some(finished) + (", or all for the mean of their probabilities" if several else "")
        raise ModelError(f"{folder} has {len(finished)} finished members; choose with --member: {options}")
    names = finished if members is None or members == "all" else list(members)
    if unknown := [name for name in names if name not in finished]:
        raise ModelError(f"{folder} has no finished member {unknown[0]!r}; there are {_some(finished)}")
    return [run.member(name).model for name in names]


def _temperature(result: Path) -> float | None:
    calibration = read_json(result).get("calibration") if result.is_file() else None
    if calibration is None or calibration["temperature"] is None:
        return None
    temperature = calibration["temperature"]
    if not (isinstance(temperature, int | float) and math.isfinite(temperature) and temperature > 0):
        raise ModelError(f"{result}: calibration.temperature is {temperature!r}; it must be a number greater than 0")
    return float(temperature)


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
