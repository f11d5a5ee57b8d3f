"""The whole configuration of a run."""

import dataclasses
from typing import Self

from jax_mtlser.config.corpus import AudioConfig, CorpusConfig
from jax_mtlser.config.dicts import from_dict, to_dict
from jax_mtlser.config.model import ModelConfig
from jax_mtlser.config.protocol import ProtocolConfig
from jax_mtlser.config.training import BatchingConfig, OptimizerConfig, TaskWeights, TrainingConfig

__all__ = ["Config"]


@dataclasses.dataclass(kw_only=True)
class Config:
    """A whole run."""

    name: str
    corpus: CorpusConfig
    audio: AudioConfig = dataclasses.field(default_factory=AudioConfig)
    batching: BatchingConfig = dataclasses.field(default_factory=BatchingConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    weights: TaskWeights = dataclasses.field(default_factory=TaskWeights)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def copy(self) -> Self:
        """A deep copy."""
        return from_dict(type(self), to_dict(self))
