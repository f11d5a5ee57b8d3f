"""Every setting of a run, as a tree of typed dataclasses, and one :func:`validate` that judges it.

Files in ``configs/`` return a :class:`Config`; flags such as ``--config.optimizer.learning_rate=2e-5``
change single fields. Nothing below the training loop sees a :class:`Config`: each module takes the
small dataclass it needs. Enums, not strings, choose between behaviours.
"""

from jax_mtlser.config.corpus import AudioConfig, ClassSet, CorpusConfig, CorpusKind, CorpusPart, DemoConfig
from jax_mtlser.config.dicts import architecture_from_dict, from_dict, to_dict
from jax_mtlser.config.errors import ConfigError
from jax_mtlser.config.model import (
    EncoderConfig,
    Freeze,
    HeadInput,
    HeadStart,
    ModelConfig,
    VocabularyConfig,
    VocabularySource,
)
from jax_mtlser.config.protocol import Mates, ProtocolConfig, ProtocolKind
from jax_mtlser.config.run import Config
from jax_mtlser.config.training import (
    BatchingConfig,
    CtcNormalization,
    HeadMode,
    LearningRateSchedule,
    Moments,
    OptimizerConfig,
    Precision,
    Residency,
    Selection,
    TaskWeights,
    TrainingConfig,
    WeightingMethod,
)
from jax_mtlser.config.validation import validate
from jax_mtlser.config.variants import Variant, grid

__all__ = [
    "AudioConfig",
    "BatchingConfig",
    "ClassSet",
    "Config",
    "ConfigError",
    "CorpusConfig",
    "CorpusKind",
    "CorpusPart",
    "CtcNormalization",
    "DemoConfig",
    "EncoderConfig",
    "Freeze",
    "HeadInput",
    "HeadMode",
    "HeadStart",
    "LearningRateSchedule",
    "Mates",
    "ModelConfig",
    "Moments",
    "OptimizerConfig",
    "Precision",
    "ProtocolConfig",
    "ProtocolKind",
    "Residency",
    "Selection",
    "TaskWeights",
    "TrainingConfig",
    "Variant",
    "VocabularyConfig",
    "VocabularySource",
    "WeightingMethod",
    "architecture_from_dict",
    "from_dict",
    "grid",
    "to_dict",
    "validate",
]
