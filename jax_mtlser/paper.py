"""The recipe of Wang, Yao, Yi (Appl. Sci. 2026, 16(10), 5166), Table 1, which the configurations of its experiments share.

The paper does not say which checkpoint it starts from, whether the feature encoder is frozen, and how it warms up,
decays, clips and selects. Those settings follow Cai et al. 2021, its direct ancestor, except the selection: 10 % of
each training part is held out to choose the epoch, and the test fold is scored once.
"""

import dataclasses
import itertools

from jax_mtlser.config import (
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    EncoderConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    ProtocolKind,
    TaskWeights,
    TrainingConfig,
    Variant,
    VocabularyConfig,
    VocabularySource,
)

__all__ = ["WEIGHTS", "by_session", "emotion_alone", "table_1", "task_subsets"]

# The best of the paper's Table 3.
WEIGHTS = TaskWeights(alpha=0.4, beta=0.6, gamma=0.1)
# Gender, speaker and speech recognition: what Table 4 calls the auxiliary tasks, and the weight of each.
_AUXILIARY = {"GR": "alpha", "SR": "beta", "ASR": "gamma"}


def table_1(name: str, *, folds: int, repeats: int, checkpoint: str = "facebook/wav2vec2-base") -> Config:
    """Four tasks on IEMOCAP with the paper's weights, in random stratified folds.

    Args:
        name: of the run.
        folds: of each cross-validation.
        repeats: with different seeds.
        checkpoint: the encoder.
    """
    return Config(
        name=name,
        corpus=CorpusConfig(kind=CorpusKind.IEMOCAP, path="IEMOCAP_full_release"),
        model=ModelConfig(
            encoder=EncoderConfig(checkpoint=checkpoint),
            vocabulary=VocabularyConfig(source=VocabularySource.PAPER),
        ),
        weights=dataclasses.replace(WEIGHTS),
        batching=BatchingConfig(batch_size=8),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_fraction=0.1, weight_decay=0.01),
        protocol=ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=folds, repeats=repeats),
        training=TrainingConfig(epochs=100),
    )


def emotion_alone(name: str, *, repeats: int) -> Config:
    """The same recipe in five folds, without the auxiliary tasks: what experiments on single weights start from.

    Args:
        name: of the run.
        repeats: with different seeds.
    """
    config = table_1(name, folds=5, repeats=repeats)
    config.weights = TaskWeights(alpha=0.0, beta=0.0, gamma=0.0)
    return config


def by_session(name: str, *, checkpoint: str) -> Config:
    """The same recipe, tested on a session whose speakers, dialogues and recordings training has not heard.

    Args:
        name: of the run.
        checkpoint: the encoder.
    """
    config = table_1(name, folds=5, repeats=1, checkpoint=checkpoint)
    config.protocol = ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="session")
    return config


def task_subsets(weights: TaskWeights) -> tuple[Variant, ...]:
    """Emotion with every subset of the auxiliary tasks, as Table 4 has them.

    Args:
        weights: of the tasks that take part; the others get 0.
    """
    return tuple(
        Variant(
            name="+".join(("SER", *subset)),
            overrides={
                f"weights.{field}": getattr(weights, field) if task in subset else 0.0
                for task, field in _AUXILIARY.items()
            },
        )
        for size in range(len(_AUXILIARY) + 1)
        for subset in itertools.combinations(_AUXILIARY, size)
    )
