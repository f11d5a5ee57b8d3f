"""A small model, a corpus of noise with labels, and settings: what several tests train on."""

import numpy as np

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.data.labels import Targets
from jax_mtlser.data.packed import PackedAudio
from jax_mtlser.models.multitask import HeadSizes
from jax_mtlser.training.optimizer import Rates
from jax_mtlser.training.step import Knobs

ROWS = 24
ARCH = Wav2Vec2Architecture(
    hidden_size=24,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=32,
    conv_dim=(16, 16, 16),
    conv_kernel=(10, 8, 4),
    conv_stride=(5, 8, 8),
    num_conv_pos_embeddings=9,
    num_conv_pos_embedding_groups=2,
    hidden_dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    final_dropout=0.0,
    layerdrop=0.0,
    mask_time_prob=0.0,
)
SIZES = HeadSizes(emotion=4, gender=2, speaker=3, asr=7)


def corpus() -> tuple[PackedAudio, Targets]:
    random = np.random.default_rng(0)
    lengths = random.integers(6_000, 16_000, ROWS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    audio = PackedAudio(random.integers(-8000, 8000, offsets[-1]).astype(np.int16), offsets)
    transcript_lengths = random.integers(0, 6, ROWS).astype(np.int32)
    transcript = random.integers(1, 7, (ROWS, 6)) * (np.arange(6) < transcript_lengths[:, None])
    targets = Targets(
        emotion=random.integers(-1, 4, ROWS).astype(np.int32),
        gender=random.integers(-1, 2, ROWS).astype(np.int32),
        speaker=random.integers(-1, 3, ROWS).astype(np.int32),
        transcript=transcript.astype(np.int32),
        transcript_lengths=transcript_lengths,
    )
    return audio, targets


def knobs(alpha: float = 0.4, beta: float = 0.6, gamma: float = 0.1, rate: float = 1e-2) -> Knobs:
    number = np.float32
    rates = Rates(
        encoder=number(rate),
        heads=number(rate),
        layer_decay=number(1),
        warmup_steps=number(0),
        total_steps=number(100),
        encoder_start=number(0),
    )
    return Knobs(weights=np.array([1, alpha, beta, gamma], np.float32), rates=rates)
