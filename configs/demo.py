"""The demo: four tasks on speech that is synthesised on the spot, a small encoder from random weights.

    python train.py --config configs/demo.py --workdir runs/demo

Two CPU cores need about four minutes. One fold of five is trained; --config.protocol.only_folds=0,1,2,3,4 does all.
"""

from jax_mtlser.config import (
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    DemoConfig,
    EncoderArchitecture,
    EncoderConfig,
    LearningRateSchedule,
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
        name="demo",
        corpus=CorpusConfig(
            kind=CorpusKind.DEMO,
            emotions=("angry", "happy", "neutral", "sad"),
            demo=DemoConfig(sentences_per_style=20),
        ),
        model=ModelConfig(
            encoder=EncoderConfig(
                checkpoint="",
                architecture=EncoderArchitecture(
                    hidden_size=128,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    intermediate_size=256,
                    conv_dim=(64, 64, 96, 128),
                    conv_kernel=(10, 8, 4, 4),
                    conv_stride=(5, 4, 4, 4),
                    num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=4,
                    do_stable_layer_norm=True,
                    layerdrop=0.0,
                    activation_dropout=0.0,
                    mask_time_prob=0.0,
                ),
            ),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS),
        ),
        weights=TaskWeights(alpha=0.4, beta=0.6, gamma=0.1),
        batching=BatchingConfig(batch_size=16, num_buckets=4),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule=LearningRateSchedule.COSINE, warmup_fraction=0.05, weight_decay=0.01
        ),
        protocol=ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=5, only_folds=(0,)),
        training=TrainingConfig(epochs=30),
    )
