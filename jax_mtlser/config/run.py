"""The whole configuration of a run."""

import dataclasses
from typing import Self

from jax_mtlser.config.corpus import AudioConfig, CorpusConfig
from jax_mtlser.config.dicts import from_dict, to_dict
from jax_mtlser.config.model import ModelConfig
from jax_mtlser.config.protocol import ProtocolConfig
from jax_mtlser.config.training import BatchingConfig, OptimizerConfig, TaskWeights, TrainingConfig
from jax_mtlser.config.variants import Variant, apply_overrides

__all__ = ["Config"]


@dataclasses.dataclass(kw_only=True)
class Config:
    """A whole run, or an experiment of several.

    Attributes:
        variants: what is compared: each is trained on every fold. Empty: the configuration itself is trained.
        smoke: every path of the experiment in a minute or two, on the demo corpus with a tiny random encoder
            (experiments/smoke.py); read by the command line. The numbers mean nothing.
    """

    name: str
    corpus: CorpusConfig
    audio: AudioConfig = dataclasses.field(default_factory=AudioConfig)
    batching: BatchingConfig = dataclasses.field(default_factory=BatchingConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    weights: TaskWeights = dataclasses.field(default_factory=TaskWeights)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)
    variants: tuple[Variant, ...] = ()
    smoke: bool = False

    def copy(self) -> Self:
        """A deep copy."""
        return from_dict(type(self), to_dict(self))

    def under(self, variant: Variant | None) -> Self:
        """The settings that a variant is trained with, itself without variants; None changes nothing.

        Raises:
            ConfigError: for a field or an enum value that does not exist.
        """
        values = {**to_dict(self), "variants": []}
        return from_dict(type(self), apply_overrides(values, variant.overrides if variant else {}))
