"""From samples to calibrated emotion probabilities and nothing else: the auxiliary heads are dropped, as in the paper."""

import dataclasses
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from jax_mtlser.data.batches import normalized
from jax_mtlser.inference.exports.formats import ExportError, Judge
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel

__all__ = ["SerPath"]

_SHORTEST = 400  # samples; below a window of 25 ms the spectrogram's padding would need a rule of its own


@dataclasses.dataclass(frozen=True)
class SerPath:
    """The part of a model that emotion recognition needs.

    Attributes:
        model: the encoder with the emotion head.
        params: its parameters by path (``encoder/...``), float32.
        normalize: samples are brought to zero mean and unit variance first.
        temperature: what emotion logits are divided by; 1 where none was fitted.
    """

    model: MultitaskModel
    params: dict[str, np.ndarray]
    normalize: bool
    temperature: float

    @classmethod
    def of(cls, trained: TrainedModel) -> Self:
        """Drop every head but emotion's.

        Raises:
            ExportError: there is no trained emotion head.
        """
        if "emotion" not in trained.tasks:
            raise ExportError(
                f"{trained.name} has no trained emotion head ({', '.join(sorted(trained.tasks)) or 'no task'}); an "
                "export is verified by its emotion probabilities, so train with two or more emotions"
            )
        kept = {name: leaf for name, leaf in trained.params.items() if name in ("encoder", "emotion_head")}
        params = {
            jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
            for path, leaf in jax.tree_util.tree_leaves_with_path(kept)
        }
        model = trained.model.clone(sizes=HeadSizes(emotion=trained.model.sizes.emotion))
        return cls(model, params, trained.description["normalize_waveform"], trained.temperature or 1.0)

    @property
    def shortest(self) -> int:
        """Samples of the shortest padded input."""
        return max(_SHORTEST, self.model.arch.min_samples(), self.model.arch.hop())

    def probabilities(
        self,
        params: dict[str, Any],
        samples: Float[Array, "B S"],
        lengths: Int[Array, " B"],
        dtype: DTypeLike = jnp.float32,
    ) -> Float[Array, "B C"]:
        """What is exported.

        Args:
            params: by path.
            samples: at 16 kHz in [-1, 1); what lies behind an utterance has no effect.
            lengths: samples that belong to each utterance.
            dtype: of the computation.
        """
        valid = jnp.arange(samples.shape[1])[None, :] < lengths[:, None]
        x = jnp.where(valid, samples, 0.0)
        if self.normalize:
            x = normalized(x, lengths)
        model = self.model.clone(options=dataclasses.replace(self.model.options, dtype=dtype))
        output: Any = model.apply({"params": _tree(params)}, x, lengths, train=False)
        return jax.nn.softmax(output.emotion / self.temperature, axis=-1)

    def judge(self) -> Judge:
        """The computation as the package itself does it, compiled for each shape."""
        compiled = jax.jit(self.probabilities)
        params = jax.device_put(self.params)
        return lambda samples, lengths: np.asarray(compiled(params, samples, lengths))


def _tree(params: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, leaf in params.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree
