"""A finished member's model, read back from its own description: no configuration, no corpus."""

import dataclasses
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import HeadInput, architecture_from_dict
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.pretrained import export_encoder
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.run_folder import RunFolder
from jax_mtlser.training.checkpoint import load_model, load_model_description

__all__ = ["ModelError", "TrainedModel"]


class ModelError(ValueError):
    """No finished model where one was looked for; the message names what is there."""


@dataclasses.dataclass(frozen=True)
class TrainedModel:
    """Parameters and what they mean.

    Attributes:
        model: the network, computing in float32.
        params: its parameters, on the first device.
        description: labels, vocabulary and all else that was saved with them.
    """

    model: MultitaskModel
    params: Any
    description: dict[str, Any]

    @classmethod
    def load(cls, workdir: Path, member: str | None = None) -> Self:
        """Read the model of a run's member; without a name, of the only one.

        Raises:
            ModelError: no such run or member, none that is finished, or several to choose from.
        """
        run = RunFolder(workdir)
        finished = [folder.path.name for folder in run.members() if folder.model.is_dir()]
        if not finished:
            raise ModelError(f"{workdir} has no finished member; name the --workdir of a training that has one")
        if member is None and len(finished) > 1:
            raise ModelError(f"{workdir} has {len(finished)} finished members; choose with --member: {_some(finished)}")
        name = member or finished[0]
        if name not in finished:
            raise ModelError(f"{workdir} has no finished member {name!r}; there are {_some(finished)}")
        folder = run.member(name).model
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
        return cls(model, load_model(folder, like), description)

    @property
    def arch(self) -> EncoderArchitecture:
        """Shape of the encoder."""
        return self.model.arch

    def export_encoder(self, folder: Path) -> None:
        """Write the encoder as a folder that ``transformers`` loads; adapters are added into its kernels."""
        export_encoder(
            folder,
            self.params["encoder"],
            self.arch,
            normalize_waveform=self.description["normalize_waveform"],
            lora=self.model.options.lora,
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
