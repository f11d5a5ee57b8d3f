"""Several corpora as one, each in turn held out: trained on all others, tested on voices, texts and rooms unheard.

    python train.py --config configs/joined.py --workdir runs/joined --config.corpus.parts[0].path=/data/emo_db \
        --config.corpus.parts[1].path=/data/ravdess --config.corpus.parts[2].path=/data/crema_d

What the folders hold is said by `jax-mtlser corpus /data/emo_db /data/ravdess /data/crema_d --classes four`. Labels
are brought to one spelling (jax_mtlser/corpora/label_maps.py); relabel says what else is to be taken for a class.
"""

from jax_mtlser.config import (
    ClassSet,
    Config,
    CorpusConfig,
    CorpusKind,
    CorpusPart,
    EncoderConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    ProtocolKind,
    Selection,
    TaskWeights,
    TrainingConfig,
)


def get_config() -> Config:
    """The configuration."""
    return Config(
        name="joined",
        corpus=CorpusConfig(
            kind=CorpusKind.JOINED,
            classes=ClassSet.FOUR,
            parts=(
                CorpusPart(kind=CorpusKind.EMO_DB, path="emo_db"),
                CorpusPart(kind=CorpusKind.RAVDESS, path="ravdess", relabel={"calm": "neutral"}),
                CorpusPart(kind=CorpusKind.CREMA_D, path="crema_d"),
            ),
        ),
        model=ModelConfig(encoder=EncoderConfig(checkpoint="facebook/wav2vec2-base")),
        # Ten German sentences and fourteen English ones: nothing to learn speech recognition from.
        weights=TaskWeights(alpha=0.4, beta=0.0, gamma=0.0),
        optimizer=OptimizerConfig(learning_rate=3e-5, head_learning_rate=1e-3, warmup_fraction=0.1),
        protocol=ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="corpus", validation_fraction=0.0),
        training=TrainingConfig(epochs=20, selection=Selection.LAST),
    )
