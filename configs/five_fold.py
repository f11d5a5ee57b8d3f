"""The paper's 5-fold experiment: as ``ten_fold.py``, with 5 folds and 5 repeats.

    python train.py --config configs/five_fold.py --workdir runs/five_fold \
        --config.corpus.path=/data/IEMOCAP_full_release

Published: WA 83.24 +- 0.75, UA 83.36 +- 0.73 (Wang, Yao, Yi 2026, Table 2).
"""

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
    VocabularyConfig,
    VocabularySource,
)


def get_config() -> Config:
    """The configuration."""
    return Config(
        name="five_fold",
        corpus=CorpusConfig(kind=CorpusKind.IEMOCAP, path="IEMOCAP_full_release"),
        model=ModelConfig(
            encoder=EncoderConfig(checkpoint="facebook/wav2vec2-base"),
            vocabulary=VocabularyConfig(source=VocabularySource.PAPER),
        ),
        weights=TaskWeights(alpha=0.4, beta=0.6, gamma=0.1),
        batching=BatchingConfig(batch_size=8, num_buckets=8),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_fraction=0.1, weight_decay=0.01),
        protocol=ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=5, repeats=5),
        training=TrainingConfig(epochs=100),
    )
