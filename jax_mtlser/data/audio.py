"""Recordings in any format become mono samples at 16 kHz."""

import os
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32

__all__ = ["SAMPLE_RATE", "AudioError", "decode"]

SAMPLE_RATE = 16_000  # Hz; what every encoder here was pre-trained with

# One read allocates at most this many values (16 MiB), so memory follows the audio that is there and not
# what a header announces.
_BLOCK_VALUES = 2**22
# Tables round their times and lossy codecs pad: a segment may end this much after its file, and this much
# may be missing at the end of a read.
_TOLERANCE_SECONDS = 0.1
# libsndfile's SF_COUNT_MAX stands for "the header does not say".
_UNKNOWN_LENGTH = 2**62


class AudioError(ValueError):
    """Audio that cannot be used; the message is a short reason without the file's name."""


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
    path = Path(path)
    try:
        if not path.is_file():
            raise AudioError("not a file" if path.exists() else "the file does not exist")
        # TypeError is soundfile's answer to headerless formats such as .raw.
        with soundfile.SoundFile(os.fspath(path)) as file:
            first, count = _segment(file.frames, file.samplerate, start, end)
            if max_seconds is not None and count > max_seconds * file.samplerate:
                raise AudioError(f"too long: {count / file.samplerate:.6g} s, above the limit of {max_seconds:.6g} s")
            samples = _read_mono(file, first, count)
            rate = file.samplerate
    except soundfile.LibsndfileError as error:
        raise AudioError(f"unreadable audio: {error.error_string.strip().rstrip('.')}") from None
    except (OSError, TypeError, UnicodeError) as error:
        raise AudioError(f"unreadable audio: {error}") from None
    if missing := count - len(samples):
        _refuse_truncated(missing, count, rate)
    if not np.isfinite(samples).all():
        raise AudioError(f"{np.count_nonzero(~np.isfinite(samples))} of {len(samples)} samples are NaN or infinite")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE, quality="HQ")
    if not len(samples):
        raise AudioError("empty: 0 samples")
    return samples


def _segment(frames: int, rate: int, start: float, end: float | None) -> tuple[int, int]:
    """First frame and number of frames of a segment, judged against the length that the header gives."""
    if frames >= _UNKNOWN_LENGTH:
        raise AudioError("unreadable audio: its header does not give a length; encode it anew")
    if frames == 0:
        raise AudioError("empty: 0 samples")
    first = round(start * rate)
    last = frames if end is None else round(end * rate)
    if not 0 <= first < frames or last > frames + _TOLERANCE_SECONDS * rate:
        until = "the end" if end is None else f"{end:.6g} s"
        raise AudioError(
            f"segment outside the file: {start:.6g} s to {until}, but the file lasts {frames / rate:.6g} s"
        )
    if last <= first:
        raise AudioError(f"empty: the segment ends at {end:.6g} s and starts at {start:.6g} s")
    return first, min(last, frames) - first


def _read_mono(file: soundfile.SoundFile, first: int, count: int) -> Float32[np.ndarray, " F"]:
    """Up to ``count`` frames from ``first`` on, at the file's own rate, channels averaged."""
    if first:
        file.seek(first)
    block = max(1, _BLOCK_VALUES // file.channels)
    parts: list[np.ndarray] = []
    while count > 0:
        frames = file.read(min(block, count), dtype="float32", always_2d=True)
        if not len(frames):
            break
        parts.append(frames[:, 0] if file.channels == 1 else frames.mean(axis=1, dtype=np.float32))
        count -= len(frames)
    return np.concatenate(parts) if parts else np.zeros(0, np.float32)


def _refuse_truncated(missing: int, count: int, rate: int) -> None:
    """Some decoders stop early without an error where a file was cut."""
    if missing > min(_TOLERANCE_SECONDS * rate, count / 2):
        raise AudioError(f"truncated: {count / rate:.6g} s announced, {(count - missing) / rate:.6g} s can be read")
