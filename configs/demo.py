"""The demo: four tasks on speech that is synthesised on the spot, a small encoder from random weights.

    python train.py --config configs/demo.py --workdir runs/demo

Two CPU cores need about five minutes. One fold of five is trained; --config.protocol.only_folds=0,1,2,3,4 does all.
"""

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.config import (
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    DemoConfig,
    EncoderConfig,
    LearningRateSchedule,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    ProtocolKind,
    Selection,
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
            demo=DemoConfig(sentences_per_style=40),
        ),
        model=ModelConfig(
            encoder=EncoderConfig(
                checkpoint="",
                architecture=Wav2Vec2Architecture(
                    hidden_size=128,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    intermediate_size=256,
                    # Few, wide strides: the usual seven layers would spend the minutes on the first two.
                    conv_dim=(64, 128, 128),
                    conv_kernel=(100, 6, 4),
                    conv_stride=(20, 4, 4),
                    num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=4,
                    do_stable_layer_norm=True,
                    hidden_dropout=0.05,
                    attention_dropout=0.0,
                    activation_dropout=0.0,
                    final_dropout=0.0,
                    layerdrop=0.0,
                    mask_time_prob=0.0,
                ),
            ),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS),
        ),
        # The paper's weights, but twice its gamma: this encoder learns to spell from nothing.
        weights=TaskWeights(alpha=0.4, beta=0.6, gamma=0.2),
        batching=BatchingConfig(batch_size=8, num_buckets=3),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule=LearningRateSchedule.COSINE, warmup_fraction=0.1, weight_decay=0.01
        ),
        protocol=ProtocolConfig(kind=ProtocolKind.STRATIFIED, folds=5, only_folds=(0,)),
        # With 128 validation utterances the best epoch is mostly chance; the rate has decayed by the last one.
        training=TrainingConfig(epochs=22, selection=Selection.LAST),
    )
