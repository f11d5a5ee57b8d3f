"""A run that takes seconds: tones instead of speech, one small layer, real files and folders."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
import soundfile
from rich.console import Console

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.config import (
    AudioConfig,
    BatchingConfig,
    Config,
    CorpusConfig,
    CorpusKind,
    EncoderConfig,
    HeadStart,
    ModelConfig,
    OptimizerConfig,
    Precision,
    ProtocolConfig,
    TrainingConfig,
    VocabularyConfig,
    VocabularySource,
    grid,
)
from jax_mtlser.corpora.manifest import Manifest, Utterance, write_manifest
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.training.progress import Display

EMOTIONS = ("angry", "sad")
SHORT_SECONDS = 1.5
WORDS = ("A", "BA", "AB A")


def write_corpus(folder: Path, utterances: int = 30, **dropped: None) -> Path:
    """A folder of tones whose pitch tells the speaker and whose loudness contour tells the emotion.

    Args:
        folder: where to.
        utterances: how many.
        **dropped: columns to leave out, as ``text=None``.
    """
    random = np.random.default_rng(0)
    rows = []
    for number in range(utterances):
        speaker, emotion = number % 3, EMOTIONS[(number // 3) % 2]
        seconds = random.uniform(0.4, 0.8)
        time = np.arange(int(16_000 * seconds)) / 16_000
        wave = 0.3 * np.sin(2 * np.pi * (200 + 150 * speaker) * time) + 0.02 * random.standard_normal(len(time))
        if emotion == "sad":
            wave *= np.linspace(1.0, 0.1, len(time))
        path = folder / "wav" / f"tone{number:02d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, wave, 16_000)
        labels = {
            "emotion": emotion,
            "gender": "female" if speaker == 1 else "male",
            "speaker": f"S{speaker}",
            "text": WORDS[number % 3],
        }
        labels |= dropped
        rows.append(Utterance(id=path.stem, path=path, groups={"session": str(number % 5)}, **labels))
    write_manifest(Manifest("tones", tuple(rows)), folder / "manifest.csv")
    return folder


def tiny_config(corpus: Path, *, epochs: int = 2) -> Config:
    """Two folds of a one-layer encoder; one bucket, so two programs."""
    return Config(
        name="tiny",
        corpus=CorpusConfig(kind=CorpusKind.TABLE, path=str(corpus)),
        model=ModelConfig(
            encoder=EncoderConfig(
                checkpoint="",
                architecture=Wav2Vec2Architecture(
                    hidden_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    intermediate_size=16,
                    conv_dim=(8, 16),
                    conv_kernel=(40, 8),
                    conv_stride=(20, 16),
                    num_conv_pos_embeddings=3,
                    num_conv_pos_embedding_groups=2,
                    mask_time_length=4,
                ),
            ),
            vocabulary=VocabularyConfig(source=VocabularySource.TRANSCRIPTS),
        ),
        batching=BatchingConfig(batch_size=4, num_buckets=1),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        protocol=ProtocolConfig(folds=2, validation_fraction=0.2),
        # One device: the suite emulates eight, and batches of four do not divide over them. The same numbers on processors
        # with and without bfloat16 products.
        training=TrainingConfig(
            epochs=epochs,
            precision=Precision.FLOAT32,
            data_devices=1,
            log_every_steps=1,
            tensorboard=False,
        ),
    )


def short_run(corpus: Path, folder: Path, **protocol: Any) -> Path:
    """A run of one epoch, trained and evaluated on recordings of at most ``SHORT_SECONDS``."""
    config = tiny_config(corpus, epochs=1)
    config.audio = AudioConfig(max_seconds=SHORT_SECONDS)
    config.protocol = dataclasses.replace(config.protocol, **protocol)
    assert train_run(config, folder, Display(Console(file=io.StringIO()))) == 0
    return folder


def saved_parameters(workdir: Path, member: str = "r0_f0") -> Any:
    """The parameters of a finished member as NumPy arrays."""
    return jax.tree.map(np.asarray, TrainedModel.load(workdir, member).params)


def get_config(kind: str = "") -> Config:
    """For command lines: ``--config tests/experiments/tiny.py --config.corpus.path=FOLDER``.

    Args:
        kind: ``variants`` (behind a colon): two weights of gender, so four members of four epochs; ``hosts``: on two
            devices and from fitted heads, one member that no float32 parameter survives, and one that trains. Its convolution
            for positions is wide, so that evaluation has a spectrum to share.
    """
    config = tiny_config(Path())
    if kind == "variants":
        config.training.epochs = 4
        config.variants = grid({"weights.alpha": (0.0, 0.4)})
    if kind == "hosts":
        config.training = dataclasses.replace(config.training, epochs=6, data_devices=2)
        architecture = config.model.encoder.architecture
        config.model.encoder.architecture = dataclasses.replace(architecture, num_conv_pos_embeddings=9)
        config.protocol.only_folds, config.model.head_start = (0,), HeadStart.REGRESSION
        config.variants = grid({"optimizer.learning_rate": (1e38, 1e-3)})
    return config
