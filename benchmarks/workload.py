"""What the benchmarks work on: a corpus' lengths, noise of these lengths with labels, compiled steps of a given shape.

Noise does: no benchmark here looks at accuracy, and speed depends on shapes alone.
"""

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.typing import DTypeLike

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, Wav2Vec2Architecture
from jax_mtlser.config import AudioConfig, Freeze, Moments, OptimizerConfig, Precision, TaskWeights
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import Buckets, make_buckets
from jax_mtlser.data.labels import Targets
from jax_mtlser.data.packed import PackedAudio, pack
from jax_mtlser.experiments import experiment
from jax_mtlser.models.frozen import FrozenPart
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.optimizer import Rates
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import Knobs, StepSpec, TrainState

__all__ = [
    "BASE_BOUNDS_SECONDS",
    "BATCH_SIZE",
    "ENCODERS",
    "PRECISIONS",
    "Shapes",
    "add_lengths_arguments",
    "add_shapes_arguments",
    "base_architecture",
    "buckets_for",
    "chosen",
    "compiled_steps",
    "compute_dtype",
    "corpus_audio",
    "encoder",
    "fixed_buckets",
    "initial_state",
    "knobs",
    "length_grouped",
    "lengths",
    "lengths_from",
    "lengths_name",
    "one_bucket",
    "shapes_from",
    "small_architecture",
    "synthetic_audio",
    "targets",
    "thinned",
    "thinned_rows",
    "tiny_architecture",
]

BATCH_SIZE = 8  # the paper's
ENCODERS = ("base", "small", "tiny")
PRECISIONS = tuple(precision.value for precision in Precision)
# IEMOCAP's 5,531 utterances of four emotions.
UTTERANCES = 5_531
MEAN_SECONDS, DEVIATION_SECONDS = 4.549, 3.230
SHORTEST_SECONDS, LONGEST_SECONDS = 0.58, 34.14
SYMBOLS_PER_SECOND = 12.6
# Where the eight buckets of least padding end on their real lengths (``padding.py``).
BASE_BOUNDS_SECONDS = (2.36, 3.54, 4.94, 6.76, 8.86, 12.18, 16.72, 34.14)

EMOTIONS, GENDERS, SPEAKERS, SYMBOLS = 4, 2, 10, 31
MEGABATCH = 50  # batches that transformers' LengthGroupedSampler sorts together at most
_LENGTHS_SEED = 0
_NOISE_PEAK = 3_000  # of 32,768


def lengths(path: Path | None = None) -> np.ndarray:
    """Samples of each utterance, int64.

    Args:
        path: NPZ file with the array ``samples`` (or with one array only); None draws from the log-normal
            distribution with IEMOCAP's mean and standard deviation, number of utterances and extremes.
    """
    if path is None:
        spread = np.log1p((DEVIATION_SECONDS / MEAN_SECONDS) ** 2)
        random = np.random.Generator(np.random.PCG64(_LENGTHS_SEED))
        seconds = random.lognormal(np.log(MEAN_SECONDS) - spread / 2, np.sqrt(spread), UTTERANCES)
        return (np.clip(seconds, SHORTEST_SECONDS, LONGEST_SECONDS) * SAMPLE_RATE).astype(np.int64)
    with np.load(path) as arrays:
        if "samples" not in arrays and len(arrays.files) != 1:
            raise SystemExit(f"{path} has no array 'samples'; it has {', '.join(arrays.files)}")
        return arrays["samples" if "samples" in arrays else arrays.files[0]].astype(np.int64)


def lengths_name(path: Path | None) -> str:
    """What a result calls the lengths: never by their path."""
    if path is None:
        return f"log-normal lengths with IEMOCAP's mean ({MEAN_SECONDS} s) and deviation ({DEVIATION_SECONDS} s)"
    return "IEMOCAP's real lengths" if "iemocap" in path.name.lower() else path.stem


def corpus_audio(folder: Path) -> tuple[str, PackedAudio]:
    """Name and decoded audio of a real corpus: a folder with ``metadata.csv``, or a CSV table."""
    manifest, audio, _ = pack(read_manifest(folder), AudioConfig())
    return manifest.name, audio


def add_lengths_arguments(parser: argparse.ArgumentParser) -> None:
    """``--lengths`` and ``--corpus``, of which at most one may be given."""
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--lengths", type=Path, help="NPZ file with the samples of each utterance")
    where.add_argument("--corpus", type=Path, help="folder with metadata.csv, or a CSV table")


def lengths_from(options: argparse.Namespace) -> tuple[str, np.ndarray]:
    """What a result calls the lengths, and the samples of each utterance, as the arguments say."""
    if options.corpus is not None:
        name, audio = corpus_audio(options.corpus)
        return f"the lengths of {name}", audio.lengths
    return lengths_name(options.lengths), lengths(options.lengths)


def thinned(lengths: np.ndarray, count: int | None) -> np.ndarray:
    """The lengths of :func:`thinned_rows`."""
    return lengths[thinned_rows(lengths, count)]


def thinned_rows(lengths: np.ndarray, count: int | None) -> np.ndarray:
    """``count`` utterances spread evenly over the sorted lengths, the longest among them; None or 0: all."""
    if not count or count >= len(lengths):
        return np.arange(len(lengths))
    places = np.linspace(0, len(lengths) - 1, count).round().astype(int)
    return np.argsort(lengths, kind="stable")[places]


def length_grouped(lengths: np.ndarray, batch_size: int, order: np.ndarray) -> np.ndarray:
    """The order of transformers' ``LengthGroupedSampler`` (``get_length_grouped_indices``), from a random order."""
    multiple = min(len(lengths) // (batch_size * 4), MEGABATCH) or 1
    size = multiple * batch_size
    megabatches = [
        np.array(sorted(order[start : start + size], key=lambda index: lengths[index], reverse=True))
        for start in range(0, len(order), size)
    ]
    # The longest utterance of all comes first, so that a lack of memory shows at once.
    longest = int(np.argmax([lengths[megabatch[0]] for megabatch in megabatches]))
    first, other = megabatches[0][0], megabatches[longest][0]
    megabatches[0][0], megabatches[longest][0] = other, first
    return np.concatenate(megabatches)


def synthetic_audio(lengths: np.ndarray, seed: int = 0) -> PackedAudio:
    """Noise of the given lengths, in memory (two bytes a sample)."""
    random = np.random.Generator(np.random.PCG64(seed))
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return PackedAudio(random.integers(-_NOISE_PEAK, _NOISE_PEAK, offsets[-1], dtype=np.int16), offsets)


def targets(lengths: np.ndarray, seed: int = 0, *, symbols_per_second: float = SYMBOLS_PER_SECOND) -> Targets:
    """Labels for all four tasks; every transcript fits into its utterance's frames.

    Args:
        lengths: samples of each utterance.
        seed: of the labels.
        symbols_per_second: mean length of a transcript.
    """
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    count = len(lengths)
    transcript_lengths = np.maximum(random.poisson(symbols_per_second * lengths / SAMPLE_RATE), 1).astype(np.int32)
    # A frame is 20 ms, and equal neighbours need a blank between them: half a symbol a frame always fits.
    transcript_lengths = np.minimum(transcript_lengths, np.maximum(lengths // 640 - 1, 1)).astype(np.int32)
    transcript = random.integers(1, SYMBOLS + 1, (count, transcript_lengths.max()), dtype=np.int32)
    transcript *= np.arange(transcript.shape[1]) < transcript_lengths[:, None]
    return Targets(
        emotion=random.integers(0, EMOTIONS, count, dtype=np.int32),
        gender=random.integers(0, GENDERS, count, dtype=np.int32),
        speaker=random.integers(0, SPEAKERS, count, dtype=np.int32),
        transcript=transcript,
        transcript_lengths=transcript_lengths,
    )


def chosen(targets: Targets, rows: np.ndarray) -> Targets:
    """The targets of some rows."""
    return Targets(**{field.name: getattr(targets, field.name)[rows] for field in dataclasses.fields(Targets)})


# --- Encoders --------------------------------------------------------------------------------------------


def base_architecture() -> Wav2Vec2Architecture:
    """wav2vec2-base."""
    return Wav2Vec2Architecture()


def small_architecture() -> Wav2Vec2Architecture:
    """The operations of wav2vec2-base at a fraction of the work: an IEMOCAP step takes under a second on two cores."""
    return Wav2Vec2Architecture(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        conv_dim=(16,) * 7,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
    )


def tiny_architecture() -> Wav2Vec2Architecture:
    """Compiles in seconds: to try a benchmark out, not to measure."""
    return Wav2Vec2Architecture(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(16, 16),
        conv_kernel=(10, 32),
        conv_stride=(10, 32),
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
    )


def encoder(name: str) -> Wav2Vec2Architecture:
    """The architecture that one of :data:`ENCODERS` names."""
    match name:
        case "base":
            return base_architecture()
        case "small":
            return small_architecture()
        case "tiny":
            return tiny_architecture()
    raise ValueError(f"encoder {name!r} is not one of {', '.join(ENCODERS)}")


# --- Shapes and programs ---------------------------------------------------------------------------------


def buckets_for(
    lengths: np.ndarray,
    targets: Targets,
    arch: EncoderArchitecture,
    *,
    num_buckets: int | None = None,
    batch_size: int = BATCH_SIZE,
    batch_seconds: float | None = None,
) -> Buckets:
    """The shapes that a run over these utterances would have."""
    return make_buckets(
        lengths,
        targets.transcript_lengths,
        num_buckets=num_buckets,
        batch_size=batch_size,
        batch_seconds=batch_seconds,
        rows_multiple=1,
        multiple=arch.hop(),
    )


def fixed_buckets(seconds: Sequence[float], arch: EncoderArchitecture, *, batch_size: int = BATCH_SIZE) -> Buckets:
    """Buckets that end at given lengths, one utterance of full length in each."""
    bounds = np.array([-(-round(bound * SAMPLE_RATE) // arch.hop()) * arch.hop() for bound in sorted(seconds)])
    return make_buckets(
        bounds,
        np.rint(bounds / SAMPLE_RATE * SYMBOLS_PER_SECOND).astype(int),
        num_buckets=len(bounds),
        batch_size=batch_size,
        batch_seconds=None,
        rows_multiple=1,
        multiple=arch.hop(),
    )


def one_bucket(buckets: Buckets, bucket: int) -> Buckets:
    """One of the shapes alone, for no utterances."""
    return Buckets(
        (buckets.bounds[bucket],),
        (buckets.batch_sizes[bucket],),
        (buckets.transcript_widths[bucket],),
        np.zeros(0, np.int64),
    )


@dataclasses.dataclass(frozen=True)
class Shapes:
    """Which programs a benchmark of programs compiles.

    Attributes:
        encoder: one of :data:`ENCODERS`.
        seconds: where the buckets end.
        batch_size: rows.
        precision: one of :data:`PRECISIONS`.
    """

    encoder: str
    seconds: tuple[float, ...]
    batch_size: int
    precision: str = "auto"

    @property
    def arch(self) -> Wav2Vec2Architecture:
        """Of the encoder."""
        return encoder(self.encoder)

    @property
    def dtype(self) -> DTypeLike:
        """Compute type."""
        return compute_dtype(self.precision)

    @property
    def buckets(self) -> Buckets:
        """See :func:`fixed_buckets`."""
        return fixed_buckets(self.seconds, self.arch, batch_size=self.batch_size)

    def stated(self) -> dict[str, Any]:
        """What a result says of them."""
        return {
            "encoder": self.encoder,
            "precision": jnp.dtype(self.dtype).name,
            "batch_size": self.batch_size,
            "bounds_seconds": [round(bound / SAMPLE_RATE, 2) for bound in self.buckets.bounds],
        }


def add_shapes_arguments(parser: argparse.ArgumentParser, presets: Mapping[str, Shapes]) -> None:
    """``--preset``, and what may differ from it."""
    parser.add_argument("--preset", choices=presets, default="cpu")
    parser.add_argument("--encoder", choices=ENCODERS, help="instead of the preset's")
    parser.add_argument("--seconds", type=float, nargs="+", help="where buckets end, instead of the preset's")
    parser.add_argument("--batch-size", type=int, help="instead of the preset's")
    parser.add_argument("--precision", choices=PRECISIONS, help="instead of the preset's")


def shapes_from(options: argparse.Namespace, presets: Mapping[str, Shapes]) -> Shapes:
    """The preset with what was given instead."""
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Shapes)}
    return dataclasses.replace(presets[options.preset], **{name: value for name, value in given.items() if value})


def compute_dtype(precision: str) -> DTypeLike:
    """``float32``, ``bfloat16``, or ``auto``: what a run on this machine would take."""
    return experiment.compute_dtype(Precision(precision))


def compiled_steps(
    arch: EncoderArchitecture,
    buckets: Buckets,
    dtype: DTypeLike = jnp.float32,
    *,
    freeze: Freeze = Freeze.NOTHING,
    lora_rank: int = 0,
    remat: bool = False,
    scan_layers: bool = False,
    resident_samples: int | None = None,
    resident_frames: int | None = None,
    frozen: FrozenPart = FrozenPart.NOTHING,
    accumulation_steps: int = 1,
    plain: bool = False,
    moments: Moments = Moments.FLOAT32,
    mesh: Mesh | None = None,
    members: int = 1,
) -> CompiledSteps:
    """Training and evaluation of the four-task model with the paper's optimizer; ``compile(knobs())`` compiles it.

    Args:
        arch: of the encoder.
        buckets: the shapes.
        dtype: compute type.
        freeze, lora_rank, remat, scan_layers: see :class:`~jax_mtlser.config.EncoderConfig`.
        resident_samples: length of the corpus on the device; None when batches bring their samples.
        resident_frames, frozen: length of a corpus of frames instead, and what they are.
        accumulation_steps: parts of a batch.
        plain: see :class:`~jax_mtlser.config.TrainingConfig`.
        moments: see :class:`~jax_mtlser.config.OptimizerConfig`.
        mesh: devices; None for one of this machine's.
        members: trainings in one step.
    """
    model = MultitaskModel(
        arch,
        HeadSizes(emotion=EMOTIONS, gender=GENDERS, speaker=SPEAKERS, asr=SYMBOLS + 1),
        EncoderOptions(
            dtype=dtype,
            lora=Lora(lora_rank, 2.0 * lora_rank) if lora_rank else None,
            remat=remat,
            scan_layers=scan_layers,
        ),
        frozen_encoder=freeze is Freeze.ENCODER and not lora_rank,
    )
    spec = StepSpec(
        model,
        OptimizerConfig(moments=moments),
        normalize_waveform=arch.family is not EncoderFamily.WHISPER,
        freeze=freeze,
        accumulation_steps=accumulation_steps,
        frozen=frozen,
        plain=plain,
    )
    return CompiledSteps(
        spec,
        buckets,
        mesh or make_mesh(1),
        resident_samples=resident_samples,
        resident_frames=resident_frames,
        members=members,
    )


def knobs(total_steps: int = 1_000) -> Knobs:
    """The paper's task weights and learning rate."""
    weights, optimizer = TaskWeights(), OptimizerConfig()

    def number(value: float) -> Any:
        return np.float32(value)

    rates = Rates(
        encoder=number(optimizer.learning_rate),
        heads=number(optimizer.learning_rate),
        layer_decay=number(optimizer.layer_decay),
        warmup_steps=number(round(optimizer.warmup_fraction * total_steps)),
        total_steps=number(total_steps),
        encoder_start=number(0),
    )
    shares: Any = np.array([1.0, weights.alpha, weights.beta, weights.gamma], np.float32)
    return Knobs(weights=shares, rates=rates)


def initial_state(steps: CompiledSteps, seed: int = 0) -> TrainState:
    """Random weights and a fresh optimizer, on the devices."""
    return steps.init_state(steps.init_params(seed), seed)
