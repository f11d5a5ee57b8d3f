"""Recordings in any format become mono samples at 16 kHz."""

import abc
import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

from jax_mtlser.config import AudioConfig

__all__ = [
    "SAMPLE_RATE",
    "ArrayRecording",
    "AudioError",
    "FileRecording",
    "Recording",
    "TooLongError",
    "UnreadableError",
    "decode",
    "from_int16",
    "to_int16",
    "usable",
]

SAMPLE_RATE = 16_000  # Hz; what every encoder here was pre-trained with

# One read allocates at most this many values (16 MiB), so memory follows the audio that is there and not
# what a header announces.
_BLOCK_VALUES = 2**22
# Outside this range of Hz a file's rate is no rate of audio, and conversion to 16 kHz could multiply its size.
_RATES = (1_000, 1_000_000)
# Tables round their times and lossy codecs pad: a segment may end this much after its file, and this much
# may be missing at the end of a read.
_TOLERANCE_SECONDS = 0.1
# libsndfile's SF_COUNT_MAX stands for "the header does not say".
_UNKNOWN_LENGTH = 2**62
_FULL_SCALE = 32_768  # int16 steps per 1.0; a power of two, so 16-bit sources come back bit for bit


class AudioError(ValueError):
    """Audio that cannot be used; the message is a short reason without the file's name."""


class UnreadableError(AudioError):
    """A file that libsndfile cannot read; another decoder may."""


class TooLongError(AudioError):
    """A recording that is longer than the caller allows."""


def decode(
    path: str | os.PathLike[str], start: float = 0.0, end: float | None = None, *, max_seconds: float | None = None
) -> Float32[np.ndarray, " S"]:
    """Decode one recording, or a segment of it, to mono at 16 kHz.

    Channels are averaged; other sampling rates are converted by soxr's HQ filter. Samples of a 16-bit,
    16 kHz, mono file come out as exact multiples of 2**-15. Only the segment is read. A PCM file that was cut
    short gives what is there; a compressed one is refused where the format shows that something is missing.

    Args:
        path: file in any format that libsndfile reads.
        start: of the segment, in seconds.
        end: of the segment, in seconds; None: the end of the file.
        max_seconds: a longer segment is refused on the header's word, before anything is decoded.

    Returns:
        Samples, full scale being 1.0. Float formats and resampling may exceed that.

    Raises:
        AudioError: missing, unreadable or truncated file, segment outside it, nothing in it, too long, or
            samples that are not finite.
    """
    with FileRecording(path) as recording:
        first, last = recording.span(start, end)
        seconds = (last - first) / recording.rate
        if max_seconds is not None and last - first > max_seconds * recording.rate:
            raise TooLongError(f"too long: {seconds:.6g} s, above the limit of {max_seconds:.6g} s")
        return recording.samples(first, last)


def usable(samples: Float32[np.ndarray, " S"], limits: AudioConfig) -> Int16[np.ndarray, " S"]:
    """Samples in the form that models hear, in training and ever after.

    Raises:
        AudioError: too short or too silent.
    """
    if len(samples) < limits.min_seconds * SAMPLE_RATE:
        raise AudioError(
            f"too short: {len(samples) / SAMPLE_RATE:.6g} s, below the limit of {limits.min_seconds:.6g} s"
        )
    peak = float(np.abs(samples).max())
    if peak < 10 ** (limits.silence_dbfs / 20):
        level = f"the peak is {20 * np.log10(peak):.1f} dBFS" if peak else "every sample is 0"
        raise AudioError(f"silent: {level}, below the limit of {limits.silence_dbfs:.6g} dBFS")
    return to_int16(samples)


def to_int16(samples: Float32[np.ndarray, " S"]) -> Int16[np.ndarray, " S"]:
    """Samples as they are packed: full scale, 1.0, is 32768."""
    # Floats above full scale (float files, overshoot of the resampling filter) are clipped, never wrapped.
    return np.clip(np.rint(samples * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype("<i2")


def from_int16(samples: Int16[np.ndarray, " S"]) -> Float32[np.ndarray, " S"]:
    """The inverse of :func:`to_int16`."""
    return samples.astype(np.float32) / np.float32(_FULL_SCALE)


class Recording(abc.ABC):
    """Audio that is read in pieces.

    Attributes:
        rate: its own sampling rate in Hz.
        frames: samples per channel; for a file, what its header says.
    """

    rate: int
    frames: int

    def span(self, start: float = 0.0, end: float | None = None) -> tuple[int, int]:
        """First frame, and the one behind the last, of a segment given in seconds (None: to the end).

        Raises:
            AudioError: nothing in it, or not within the recording.
        """
        if self.frames == 0:
            raise AudioError("empty: 0 samples")
        first = round(start * self.rate)
        last = self.frames if end is None else round(end * self.rate)
        if not 0 <= first < self.frames or last > self.frames + _TOLERANCE_SECONDS * self.rate:
            until = "the end" if end is None else f"{end:.6g} s"
            raise AudioError(
                f"segment outside the file: {start:.6g} s to {until}, but the file lasts {self.frames / self.rate:.6g} s"
            )
        if last <= first:
            raise AudioError(f"empty: the segment ends at {end:.6g} s and starts at {start:.6g} s")
        return first, min(last, self.frames)

    def samples(self, first: int, last: int) -> Float32[np.ndarray, " S"]:
        """Mono samples at 16 kHz of the frames from ``first`` up to, not including, ``last``.

        Raises:
            AudioError: unreadable or truncated, nothing in it, or samples that are not finite.
        """
        samples = self._mono(first, last)
        if missing := last - first - len(samples):
            _refuse_truncated(missing, last - first, self.rate)
        if not np.isfinite(samples).all():
            raise AudioError(f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples are NaN or infinite")
        if self.rate != SAMPLE_RATE:
            samples = soxr.resample(samples, self.rate, SAMPLE_RATE, quality="HQ")
        if not len(samples):
            raise AudioError("empty: 0 samples")
        return samples

    def outline(self, points: int) -> Float32[np.ndarray, " P"]:
        """The highest magnitude in each of ``points`` equal stretches, for drawing; samples that are not finite are 0.

        Raises:
            AudioError: unreadable.
        """
        edges = np.linspace(0, self.frames, points + 1).astype(int).tolist()
        stretches = (self._mono(first, last) for first, last in itertools.pairwise(edges))
        peaks = (np.nan_to_num(np.abs(samples), posinf=0.0).max(initial=0.0) for samples in stretches)
        return np.fromiter(peaks, np.float32, points)

    @abc.abstractmethod
    def _mono(self, first: int, last: int) -> Float32[np.ndarray, " F"]:
        """Up to ``last - first`` frames at the recording's own rate, channels averaged."""


class ArrayRecording(Recording):
    """Audio in memory."""

    def __init__(self, array: Any, rate: int) -> None:
        """Take an array.

        Args:
            array: ``[frames]`` or ``[frames, channels]``; floats with full scale 1.0, or 16- or 32-bit integers.
            rate: in Hz.

        Raises:
            AudioError: another shape or type, or no rate of audio.
        """
        array = np.asarray(array)
        if array.ndim not in (1, 2) or (array.ndim == 2 and not 0 < array.shape[1] <= max(array.shape[0], 1)):
            raise AudioError(f"an array of shape {list(array.shape)}; give [frames] or [frames, channels]")
        if array.dtype in (np.int16, np.int32):
            array = array.astype(np.float32) / -float(np.iinfo(array.dtype).min)
        elif not np.issubdtype(array.dtype, np.floating):
            raise AudioError(f"an array of {array.dtype}; give floats with full scale 1.0, int16 or int32")
        self.rate, self.frames = _checked_rate(rate), len(array)
        frames = array.astype(np.float32)
        self._samples = _averaged(frames if frames.ndim == 2 else frames[:, None])

    def _mono(self, first: int, last: int) -> Float32[np.ndarray, " F"]:
        return self._samples[first:last]


class FileRecording(Recording):
    """A file; pieces that follow or overlap each other are read once, front to back."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Open a file in any format that libsndfile reads.

        Raises:
            AudioError: missing, not a file, or no rate of audio.
            UnreadableError: not a format that libsndfile reads, or without a length.
        """
        path = Path(path)
        with _told_shortly():
            if not path.is_file():
                raise AudioError("not a file" if path.exists() else "the file does not exist")
            # Bytes, because names need not be valid UTF-8. TypeError is soundfile's answer to headerless formats.
            self._file = soundfile.SoundFile(os.fsencode(path) if os.name == "posix" else os.fspath(path))
        self.rate, self.frames = self._file.samplerate, self._file.frames
        self._kept_from, self._kept = 0, np.zeros(0, np.float32)
        try:
            _checked_rate(self.rate)
            if self.frames >= _UNKNOWN_LENGTH:
                raise UnreadableError("unreadable audio: its header does not give a length; encode it anew")
        except AudioError:
            self.close()
            raise

    def _mono(self, first: int, last: int) -> Float32[np.ndarray, " F"]:
        # Formats like MP3 seek by decoding from the start, so windows that overlap keep what they share.
        kept_to = self._kept_from + len(self._kept)
        with _told_shortly():
            if self._kept_from <= first <= kept_to:
                parts = [self._kept[first - self._kept_from : last - self._kept_from]]
            else:
                parts, kept_to = [], first
                self._file.seek(first)
            block = max(1, _BLOCK_VALUES // self._file.channels)
            while kept_to < last:
                frames = self._file.read(min(block, last - kept_to), dtype="float32", always_2d=True)
                if not len(frames):
                    break
                parts.append(_averaged(frames))
                kept_to += len(frames)
        samples = np.concatenate(parts) if parts else np.zeros(0, np.float32)
        if first + len(samples) == kept_to:  # the file stands where these samples end
            self._kept_from, self._kept = first, samples
        return samples

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextlib.contextmanager
def _told_shortly() -> Iterator[None]:
    """What goes wrong with a file, as a reason."""
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise UnreadableError(f"unreadable audio: {error.error_string.strip().rstrip('.')}") from None
    except (OSError, TypeError, UnicodeError) as error:
        raise UnreadableError(f"unreadable audio: {error}") from None


def _checked_rate(rate: int) -> int:
    if not _RATES[0] <= rate <= _RATES[1]:
        raise AudioError(f"a sampling rate of {rate} Hz; audio has {_RATES[0]} to {_RATES[1]} Hz")
    return int(rate)


def _averaged(frames: Float32[np.ndarray, "F C"]) -> Float32[np.ndarray, " F"]:
    return frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)


def _refuse_truncated(missing: int, count: int, rate: int) -> None:
    """Some decoders stop early without an error where a file was cut."""
    if missing > min(_TOLERANCE_SECONDS * rate, count / 2):
        raise AudioError(f"truncated: {count / rate:.6g} s announced, {(count - missing) / rate:.6g} s can be read")
