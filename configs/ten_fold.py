"""The paper's main experiment: four tasks on IEMOCAP, random stratified 10-fold cross-validation, 10 repeats.

    python train.py --config configs/ten_fold.py --workdir runs/ten_fold \
        --config.corpus.path=/data/IEMOCAP_full_release

Wang, Yao, Yi (Appl. Sci. 2026, 16(10), 5166), Table 1 and 2: wav2vec 2.0 base, AdamW, learning rate 1e-5, batches
of 8, 100 epochs, alpha 0.4, beta 0.6, gamma 0.1; published WA 83.86 +- 0.66, UA 84.23 +- 0.63.

The paper does not say which checkpoint it starts from, whether the feature encoder is frozen, and how it warms up,
decays, clips and selects; these follow Cai et al. 2021, its direct ancestor, except the selection, which never
looks at the test fold: 10 % of the training part is held out to choose the epoch. One repeat is
--config.protocol.repeats=1, one fold --config.protocol.only_folds=0,.

Random utterance folds put turns of one dialogue on both sides; read the warning that the report prints.
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
        name="ten_fold",
        corpus=CorpusConfig(kind=CorpusKind.IEMOCAP, path="IEMOCAP_full_release"),
        model=ModelConfig(
            encoder=EncoderConfig(checkpoint="facebook/wav2vec2-base"),
            vocabulary=VocabularyConfig(source=VocabularySource.PAPER),
        ),
        weights=TaskWeights(alpha=0.4, beta=0.6, gamma=0.1),
        batching=BatchingConfig(batch_size=8, num_buckets=8),
        optimizer=OptimizerConfig(learning_rate=1e-5, warmup_fraction=0.1, weight_decay=0.01),
        protocol=ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=10, repeats=10),
        training=TrainingConfig(epochs=100),
    )
