"""nEMO (Polish emotional speech, Christop 2024) from its folder, with a small encoder from random weights.

    python train.py --config configs/nemo.py --workdir runs/nemo --config.corpus.path=FOLDER

FOLDER holds metadata.csv (file, emotion, speaker, gender, sentence_id, text, ...). A proof that every part works
on real speech in a few minutes of CPU, not a good model: that takes a pre-trained encoder. Whole speakers are
held out, so the speaker head is not scored. Every speaker reads the same sentences: the word error rate is that
of sentences heard in training.
"""

from jax_mtlser.config import (
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    EncoderArchitecture,
    EncoderConfig,
    LearningRateSchedule,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
    ProtocolKind,
    TrainingConfig,
    VocabularyConfig,
    VocabularySource,
)


def get_config() -> Config:
    """The configuration."""
    return Config(
        name="nemo",
        corpus=CorpusConfig(kind=CorpusKind.TABLE, path="nemo"),
        model=ModelConfig(
            encoder=EncoderConfig(
                checkpoint="",
                architecture=EncoderArchitecture(
                    hidden_size=128,
                    num_hidden_layers=3,
                    num_attention_heads=4,
                    intermediate_size=256,
                    conv_dim=(128, 128, 128),
                    conv_kernel=(40, 8, 4),
                    conv_stride=(20, 4, 4),
                    num_conv_pos_embeddings=16,
                    num_conv_pos_embedding_groups=4,
                    do_stable_layer_norm=True,
                    layerdrop=0.0,
                    activation_dropout=0.0,
                ),
            ),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS, language="pl"),
        ),
        batching=BatchingConfig(batch_size=16, num_buckets=4),
        optimizer=OptimizerConfig(
            learning_rate=1e-3, schedule=LearningRateSchedule.COSINE, warmup_fraction=0.1, weight_decay=0.01
        ),
        protocol=ProtocolConfig(kind=ProtocolKind.GROUPED, folds=0, group_column="speaker", only_folds=(0,)),
        training=TrainingConfig(epochs=5),
    )
