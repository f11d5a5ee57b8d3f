"""Any experiment in small: every path of it in a minute or two, on speech that is synthesised on the spot."""

import dataclasses

from jax_mtlser.architecture import EncoderFamily, Wav2Vec2Architecture
from jax_mtlser.config import (
    AudioConfig,
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    DemoConfig,
    ProtocolKind,
    Variant,
    VocabularySource,
)

__all__ = ["smoke_config"]

_CHECKPOINT = "model.encoder.checkpoint"


def smoke_config(config: Config) -> Config:
    """The experiment with all its variants, but one repeat of two folds, one epoch, 80 utterances.

    The corpus is the smallest demo, the encoder a tiny one from random weights. It keeps its family where that is
    one of wav2vec 2.0's; Whisper's encoders, which come from checkpoints only, become wav2vec 2.0's. What comes out
    says that the experiment runs, not how well.
    """
    small = config.copy()
    small.name, small.smoke = f"{config.name}_smoke", True
    small.corpus = CorpusConfig(kind=CorpusKind.DEMO, demo=DemoConfig(sentences_per_style=2))
    small.audio = AudioConfig()
    small.batching = BatchingConfig(batch_size=8, num_buckets=1)
    encoder = small.model.encoder
    encoder.architecture = _tiny(_family(encoder.checkpoint))
    encoder.checkpoint = ""
    encoder.freeze_layers = min(encoder.freeze_layers, 1)
    vocabulary = small.model.vocabulary
    if vocabulary.source is VocabularySource.CHECKPOINT:
        vocabulary.source = VocabularySource.TRANSCRIPTS
    vocabulary.language = "en"
    small.optimizer.learning_rate = 1e-3
    protocol = small.protocol
    protocol.folds, protocol.repeats = 2, 1
    protocol.only_folds = protocol.only_repeats = ()
    if protocol.kind is ProtocolKind.GROUPED:
        protocol.group_column = "session"
    training = small.training
    training.epochs, training.log_every_steps, training.tensorboard = 1, 1, False
    training.data_devices = training.member_devices = 1
    small.variants = tuple(_small_variant(variant) for variant in config.variants)
    return small


def _small_variant(variant: Variant) -> Variant:
    overrides = {
        path: value
        for path, value in variant.overrides.items()
        # Sizes that smoke has set for everyone.
        if not path.startswith(("batching.", "model.encoder.architecture.")) and path != "training.epochs"
    }
    if checkpoint := overrides.pop(_CHECKPOINT, ""):
        overrides["model.encoder.architecture.family"] = _family(checkpoint).value
    return dataclasses.replace(variant, overrides=overrides)


def _family(checkpoint: str) -> EncoderFamily:
    """Told from the checkpoint's name: nothing is downloaded for a smoke run."""
    name = checkpoint.lower()
    named = (EncoderFamily.HUBERT, EncoderFamily.WAVLM, EncoderFamily.DATA2VEC_AUDIO, EncoderFamily.UNISPEECH_SAT)
    return next((family for family in named if family.value in name), EncoderFamily.WAV2VEC2)


def _tiny(family: EncoderFamily) -> Wav2Vec2Architecture:
    return Wav2Vec2Architecture(
        family=family,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 16),
        conv_kernel=(40, 8),
        conv_stride=(20, 16),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        mask_time_length=4,
    )
