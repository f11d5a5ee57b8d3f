"""Your own recordings: a pre-trained encoder on a CSV table, tested on speakers that it has not heard.

    python train.py --config configs/own_recordings.py --workdir runs/mine --config.corpus.path=table.csv \
        --config.model.encoder.checkpoint=FOLDER_OR_HUB_ID --config.model.vocabulary.language=de

The table needs a column `path`; `emotion`, `gender`, `speaker` and `text` are used where they are filled in, and
`start`, `end` (seconds) cut utterances out of longer files. Without a `speaker` column, use
--config.protocol.kind=stratified, or group by any other column with --config.protocol.group_column=NAME.
"""

from jax_mtlser.config import (
    Config,
    CorpusConfig,
    CorpusKind,
    EncoderConfig,
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
        name="own_recordings",
        corpus=CorpusConfig(kind=CorpusKind.TABLE, path="table.csv"),
        model=ModelConfig(
            encoder=EncoderConfig(checkpoint="facebook/wav2vec2-base"),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS),
        ),
        optimizer=OptimizerConfig(learning_rate=3e-5, head_learning_rate=1e-3),
        protocol=ProtocolConfig(kind=ProtocolKind.GROUPED, folds=5, group_column="speaker"),
        training=TrainingConfig(epochs=30),
    )
