"""From a batch plan to arrays: gathered on the device from the resident corpus, or read from the memory map."""

import dataclasses
import os
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int16, Int32, Int64, Shaped

from jax_mtlser.config import ConfigError, Residency
from jax_mtlser.data.batch_plan import FILL, Buckets, PlannedBatch
from jax_mtlser.data.labels import MISSING, Targets
from jax_mtlser.data.packed import PackedAudio

__all__ = ["Batch", "BatchSource", "fits_on_device", "gather", "normalized", "prefetch", "waveform"]

# A resident corpus may take this share of the accelerator's memory.
_MEMORY_SHARE = 0.25


@flax.struct.dataclass
class Batch:
    """One batch as the step sees it.

    Attributes:
        audio: int16 [B, S], zero behind each utterance; None when the step gathers it from the resident corpus.
        offsets: int32 [B] first sample, or frame, of each utterance in the resident corpus; None with ``audio``.
        lengths: int32 [B] samples of each utterance; 0 in rows that only fill the batch.
        emotion, gender, speaker: int32 [B], -1 where not known.
        transcript: int32 [B, N].
        transcript_lengths: int32 [B].
    """

    audio: Array | None
    offsets: Array | None
    lengths: Array
    emotion: Array
    gender: Array
    speaker: Array
    transcript: Array
    transcript_lengths: Array


def fits_on_device(entries: int, bytes_each: int = 2) -> bool:
    """Whether a corpus of so many samples, or frames, may live on the accelerator (on a CPU: in memory)."""
    if entries >= 2**31:  # offsets are int32
        return False
    limit = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if limit is None:
        limit = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return entries * bytes_each <= _MEMORY_SHARE * limit


@dataclasses.dataclass(frozen=True)
class BatchSource:
    """Turns planned batches into arrays.

    Attributes:
        audio: the corpus.
        targets: of every utterance.
        buckets: the padded shapes.
        on_device: batches carry offsets into :meth:`resident_corpus` instead of samples.
        frame_offsets: int64 [N + 1] of each utterance in a resident corpus of frames, which then takes the place of
            that of samples; see :func:`~jax_mtlser.training.frozen_corpus.frozen_corpus`.
    """

    audio: PackedAudio
    targets: Targets
    buckets: Buckets
    on_device: bool
    frame_offsets: Int64[np.ndarray, " N+1"] | None = None

    @classmethod
    def create(cls, audio: PackedAudio, targets: Targets, buckets: Buckets, residency: Residency) -> "BatchSource":
        """Decide where the corpus lies.

        Raises:
            ConfigError: it was to lie on the accelerator and does not fit.
        """
        fits = fits_on_device(len(audio.samples) + buckets.bounds[-1])
        if residency is Residency.DEVICE and not fits:
            raise ConfigError(
                f"the corpus ({len(audio.samples) * 2 / 2**30:.1f} GiB) does not fit on the accelerator; "
                "use --config.batching.residency=host"
            )
        return cls(audio, targets, buckets, residency is not Residency.HOST and fits)

    def resident_corpus(self) -> np.ndarray:
        """int16 samples of all utterances, with room behind the last for the longest bucket."""
        if not self.on_device:
            return np.zeros(1, np.int16)
        return np.concatenate([self.audio.samples, np.zeros(self.buckets.bounds[-1], np.int16)])

    def get(self, planned: PlannedBatch) -> Batch:
        """The arrays of one batch, on the host."""
        starts = self.audio.offsets if self.frame_offsets is None else self.frame_offsets
        real = planned.rows != FILL
        rows = np.where(real, planned.rows, 0)
        targets, width = self.targets, self.buckets.transcript_widths[planned.bucket]

        def labels(values: np.ndarray) -> np.ndarray:
            return np.where(real, values[rows], MISSING).astype(np.int32)

        transcript_lengths = np.where(real, targets.transcript_lengths[rows], 0).astype(np.int32)
        stored = targets.transcript[rows, :width] * real[:, None]
        transcript = np.pad(stored, ((0, 0), (0, width - stored.shape[1]))).astype(np.int32)
        return Batch(
            audio=None if self.on_device else self.samples(planned)[0],  # type: ignore[arg-type]
            offsets=np.where(real, starts[rows], 0).astype(np.int32) if self.on_device else None,  # type: ignore[arg-type]
            lengths=np.where(real, self.audio.lengths[rows], 0).astype(np.int32),  # type: ignore[arg-type]
            emotion=labels(targets.emotion),  # type: ignore[arg-type]
            gender=labels(targets.gender),  # type: ignore[arg-type]
            speaker=labels(targets.speaker),  # type: ignore[arg-type]
            transcript=transcript,  # type: ignore[arg-type]
            transcript_lengths=transcript_lengths,  # type: ignore[arg-type]
        )

    def samples(self, planned: PlannedBatch) -> tuple[Int16[np.ndarray, "B S"], Int32[np.ndarray, " B"]]:
        """The samples of one batch, on the host, and how many each row has."""
        audio = np.zeros((len(planned.rows), self.buckets.bounds[planned.bucket]), np.int16)
        for place, row in enumerate(planned.rows):
            if row != FILL:
                samples = self.audio[int(row)]
                audio[place, : len(samples)] = samples
        return audio, np.where(planned.rows != FILL, self.audio.lengths[planned.rows], 0).astype(np.int32)


def gather(
    corpus: Shaped[Array, "total *C"], offsets: Int[Array, " B"], lengths: Int[Array, " B"], count: int
) -> Shaped[Array, "B S *C"]:
    """Cut utterances out of the resident corpus, ``count`` samples or frames each, zero behind their own."""
    cut = jax.vmap(lambda start: jax.lax.dynamic_slice_in_dim(corpus, start, count))(offsets)
    own = jnp.arange(count)[None] < lengths[:, None]
    return jnp.where(own.reshape(*own.shape, *[1] * (corpus.ndim - 1)), cut, 0)


def waveform(audio: Int16[Array, "B S"], lengths: Int[Array, " B"], *, normalize: bool) -> Float[Array, "B S"]:
    """Samples as float32 in [-1, 1), or with zero mean and unit variance over each utterance's own samples."""
    x = audio.astype(jnp.float32) / 32768.0
    return normalized(x, lengths) if normalize else x


def normalized(x: Float[Array, "B S"], lengths: Int[Array, " B"]) -> Float[Array, "B S"]:
    """Zero mean and unit variance over each utterance's own samples, zero behind them."""
    valid = jnp.arange(x.shape[1])[None] < lengths[:, None]
    count = jnp.maximum(lengths, 1)[:, None]
    mean = jnp.sum(jnp.where(valid, x, 0.0), axis=1, keepdims=True) / count
    variance = jnp.sum(jnp.where(valid, jnp.square(x - mean), 0.0), axis=1, keepdims=True) / count
    # 1e-7: the constant of Hugging Face's feature extractor.
    return jnp.where(valid, (x - mean) * jax.lax.rsqrt(variance + 1e-7), 0.0)


_In = TypeVar("_In")
_Out = TypeVar("_Out")


def prefetch(function: Callable[[_In], _Out], items: Iterable[_In], depth: int = 2) -> Iterator[tuple[_In, _Out]]:
    """``(item, function(item))`` in order, computed by one thread up to ``depth`` items ahead.

    An exception in ``function`` is raised here, at its item. Leaving the loop early ends the thread.
    """
    results: queue.Queue = queue.Queue(maxsize=depth)
    stop = threading.Event()
    end = object()

    def put(value: object) -> None:
        while not stop.is_set():
            try:
                return results.put(value, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put((item, function(item)))
            put(end)
        except BaseException as error:
            put(error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while (result := results.get()) is not end:
            if isinstance(result, BaseException):
                raise result
            yield result
    finally:
        stop.set()
        thread.join()
