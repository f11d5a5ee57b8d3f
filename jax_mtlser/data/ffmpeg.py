"""Formats that libsndfile does not read (m4a, wma, webm, film), by way of the ffmpeg program where it is installed."""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from jax_mtlser.data.audio import SAMPLE_RATE, AudioError, FileRecording, TooLongError, UnreadableError

__all__ = ["open_recording"]

# Bounds of one conversion, for files that are made to exhaust a machine.
_MOST_HOURS = 24
_MOST_SECONDS_OF_WORK = 900
_LEAST_SECONDS_OF_WORK = 30
_MOST_BYTES_PER_ALLOCATION = 256 * 2**20

# Containers of one recording. Playlists (hls, concat, dash) are not among them: they name other files and hosts,
# which ffmpeg would open.
_FORMATS = (
    "aac,ac3,adts,aiff,amr,amrnb,amrwb,ape,asf,asf_o,au,avi,caf,dts,eac3,flac,flv,g722,gsm,loas,m4v,matroska,mov,mp3,"
    "mpc,mpc8,mpeg,mpegts,mpegvideo,mxf,nut,ogg,rm,spdif,tak,truehd,tta,voc,w64,wav,webm,wsd,wv,xwma"
)


@contextlib.contextmanager
def open_recording(path: str | os.PathLike[str], *, max_seconds: float | None = None) -> Iterator[FileRecording]:
    """Open a recording, through ffmpeg when libsndfile cannot.

    ffmpeg then averages the channels and resamples; its output lies in a temporary folder until the context ends.

    Args:
        path: of the recording.
        max_seconds: a longer recording is refused, on the header's word where libsndfile reads it, otherwise as soon
            as ffmpeg has written so much; None: 24 hours of ffmpeg's output.

    Raises:
        AudioError: missing or unreadable; the message says whether ffmpeg could have helped.
        TooLongError: longer than ``max_seconds``.
    """
    with contextlib.ExitStack() as stack:
        try:
            recording = FileRecording(path)
        except UnreadableError as error:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="jax_mtlser_"))
            recording = FileRecording(_converted(Path(path), Path(folder) / "decoded.wav", str(error), max_seconds))
        stack.enter_context(recording)
        if max_seconds is not None and recording.frames > max_seconds * recording.rate:
            seconds = recording.frames / recording.rate
            raise TooLongError(f"too long: {seconds:.6g} s, above the limit of {max_seconds:.6g} s")
        yield recording


def _converted(path: Path, output: Path, reason: str, max_seconds: float | None) -> Path:
    """Decode a file to 16-bit mono WAV at 16 kHz."""
    if path.stat().st_size == 0:
        raise AudioError("empty: the file has 0 bytes")
    program = shutil.which("ffmpeg")
    if program is None:
        raise AudioError(f"{reason}; ffmpeg reads more formats, but is not installed")
    most_bytes, most_work = _MOST_HOURS * 3600 * SAMPLE_RATE * 2, float(_MOST_SECONDS_OF_WORK)
    if max_seconds is not None:
        # A second more than allowed, so that what fills it is too long.
        most_bytes = min(most_bytes, round((max_seconds + 1) * SAMPLE_RATE * 2))
        most_work = min(most_work, max(_LEAST_SECONDS_OF_WORK, max_seconds))
    command = [
        program, "-nostdin", "-hide_banner", "-loglevel", "error", "-xerror",
        "-max_alloc", str(_MOST_BYTES_PER_ALLOCATION),
        "-protocol_whitelist", "file", "-format_whitelist", _FORMATS,
        # With the protocol in front, no name is taken for an option or an address.
        "-i", f"file:{path.absolute()}", "-map", "0:a:0",
        "-ac", "1", "-ar", str(SAMPLE_RATE), "-c:a", "pcm_s16le", "-fs", str(most_bytes), str(output),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, timeout=most_work, check=False)
    except subprocess.TimeoutExpired:
        raise AudioError(f"ffmpeg did not finish within {most_work:g} s") from None
    if done.returncode or not output.is_file():
        raise AudioError(f"{reason}; ffmpeg: {_reason(done.stderr.decode(errors='replace'), path, done.returncode)}")
    if output.stat().st_size >= most_bytes:
        shown = f"{_MOST_HOURS} h" if max_seconds is None else f"the limit of {max_seconds:.6g} s"
        raise TooLongError(f"too long: more than {shown} of audio")
    return output


def _reason(errors: str, path: Path, status: int) -> str:
    """The first thing that went wrong; what follows tells its consequences."""
    if "matches no streams" in errors:
        return "there is no sound in it"
    first = errors.strip().partition("\n")[0] or f"exit status {status}"
    return re.sub(r"^(\[[^\]]*\]\s*)+", "", first).replace(f"file:{path.absolute()}", "the file").strip().rstrip(".")
