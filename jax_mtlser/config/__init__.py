"""Every setting of a run, as a tree of typed dataclasses, and one :func:`validate` that judges it.

Files in ``configs/`` return a :class:`Config`; flags such as ``--config.optimizer.learning_rate=2e-5``
change single fields. Nothing below the training loop sees a :class:`Config`: each module takes the
small dataclass it needs. Enums, not strings, choose between behaviours.
"""

from jax_mtlser.config.corpus import AudioConfig, CorpusConfig, CorpusKind, DemoConfig
from jax_mtlser.config.dicts import architecture_from_dict, from_dict, to_dict
from jax_mtlser.config.errors import ConfigError
from jax_mtlser.config.model import EncoderConfig, Freeze, HeadInput, ModelConfig, VocabularyConfig, VocabularySource
from jax_mtlser.config.protocol import ProtocolConfig, ProtocolKind
from jax_mtlser.config.run import Config
from jax_mtlser.config.training import (
    BatchingConfig,
    CtcNormalization,
    HeadMode,
    LearningRateSchedule,
    OptimizerConfig,
    Precision,
    Residency,
    Selection,
    TaskWeights,
    TrainingConfig,
    WeightingMethod,
)
from jax_mtlser.config.validation import validate

__all__ = [
    "AudioConfig",
    "BatchingConfig",
    "Config",
    "ConfigError",
    "CorpusConfig",
    "CorpusKind",
    "CtcNormalization",
    "DemoConfig",
    "EncoderConfig",
    "Freeze",
    "HeadInput",
    "HeadMode",
    "LearningRateSchedule",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "ProtocolConfig",
    "ProtocolKind",
    "Residency",
    "Selection",
    "TaskWeights",
    "TrainingConfig",
    "VocabularyConfig",
    "VocabularySource",
    "WeightingMethod",
    "architecture_from_dict",
    "from_dict",
    "to_dict",
    "validate",
]
