"""What recordings suffer on their way to a recogniser: noise, rooms, telephones, codecs, levels.

Pure functions on float32 mono audio at 16 kHz. Each returns as many samples as it was given, aligned with
them, so that labels, lengths and compiled shapes stay what they were. Randomness comes from a generator that
:func:`generator` derives from (seed, purpose, utterance id): the same utterance is degraded in the same way in
any order, on any number of threads.

SNR is the mean power of the speech over its active frames against the mean power of the noise over all of its
samples. Over all of the speech's samples instead, an utterance with long pauses would get less noise under its
words than one without. See :func:`active_power` for what counts as active.
"""

import hashlib
import io
import math
from collections.abc import Sequence

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32
from scipy import signal

from jax_mtlser.data.audio import SAMPLE_RATE

__all__ = [
    "MP3_KBPS",
    "OPUS_KBPS",
    "DegradationError",
    "active_power",
    "add_noise",
    "babble",
    "clip_peaks",
    "fit_full_scale",
    "gain",
    "generator",
    "mp3",
    "opus",
    "pink_noise",
    "reverberate",
    "room_impulse_response",
    "telephone",
    "white_noise",
]

Audio = Float32[np.ndarray, " S"]

_FRAME = SAMPLE_RATE // 50  # 20 ms
# Speech frames stand some 9 dB above the active level at most; ITU-T P.56 draws its line 15.9 dB below that level.
_ACTIVE_RANGE_DB = 25.0
_PINK_FLOOR_HZ = 20.0  # below, the spectrum is flat: nothing is heard there, and a drift would take all power
_DIRECT_SECONDS = 0.0025  # before this, a room has not answered yet
_TELEPHONE_RATE, _TELEPHONE_BAND = 8_000, (300.0, 3_400.0)
# Linear phase: nothing is delayed. Hamming's main lobe is 3.3 rates / taps wide: 53 dB down 50 Hz off the band.
_TELEPHONE_FILTER = signal.firwin(513, _TELEPHONE_BAND, fs=_TELEPHONE_RATE, pass_zero=False, window="hamming")
MP3_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # of MPEG-2 layer III, which 16 kHz uses
OPUS_KBPS = (6.0, 256.0)  # what libsndfile's compression levels 1 and 0 stand for
_MP3_DELAY = 1105  # samples: LAME's encoder (576) and any layer III decoder (529)


class DegradationError(ValueError):
    """A degradation that cannot be done; the message names the value, the limit and the fix."""


def generator(seed: int, purpose: str, utterance: str) -> np.random.Generator:
    """Random numbers of one utterance: the same for the same three arguments, unrelated for others."""
    digest = hashlib.sha256(f"{purpose}\0{utterance}".encode()).digest()
    return np.random.Generator(np.random.PCG64([seed, int.from_bytes(digest[:16], "little")]))


# --- Levels ----------------------------------------------------------------------------------------------


def active_power(speech: Float[np.ndarray, " S"]) -> float:
    """Mean power of speech over its active frames.

    Frames of 20 ms are active when their power lies within 25 dB of the strongest frame's. A part of a frame at
    the end is left out; audio below 20 ms is one frame.
    """
    whole = len(speech) // _FRAME * _FRAME
    frames = speech[:whole].reshape(-1, _FRAME) if whole else speech[None]
    power = np.square(frames, dtype=np.float64).mean(axis=1) if frames.size else np.zeros(1)
    return float(power[power >= power.max() * 10 ** (-_ACTIVE_RANGE_DB / 10)].mean())


def gain(audio: Audio, decibels: float) -> Audio:
    """Louder, or with a negative value quieter. Values may exceed full scale."""
    return audio * np.float32(10 ** (decibels / 20))


def clip_peaks(audio: Audio, decibels: float) -> Audio:
    """Cut off what exceeds a level ``decibels`` below the utterance's own peak; the rest keeps its level."""
    limit = np.abs(audio).max(initial=np.float32(0)) * np.float32(10 ** (-decibels / 20))
    return np.clip(audio, -limit, limit)


def fit_full_scale(audio: Audio) -> Audio:
    """Scaled down as a whole where its peak exceeds full scale, so that 16 bits hold it without clipping."""
    peak = np.abs(audio).max(initial=np.float32(0))
    return audio / peak if peak > 1 else audio


# --- Noise -----------------------------------------------------------------------------------------------


def add_noise(speech: Audio, noise: Float[np.ndarray, " S"], snr: float) -> Audio:
    """Speech with noise at a signal-to-noise ratio; see the module's text for its definition.

    Args:
        speech: the utterance.
        noise: as long; its level does not matter.
        snr: in dB.

    Returns:
        The sum, which may exceed full scale.

    Raises:
        DegradationError: lengths differ, or one of the two is silent and so has no SNR.
    """
    if len(speech) != len(noise):
        raise DegradationError(f"noise of {len(noise)} samples cannot be added to speech of {len(speech)}")
    power = float(np.square(noise, dtype=np.float64).mean()) if len(noise) else 0.0
    wanted = active_power(speech) * 10 ** (-snr / 10)
    if power == 0 or wanted == 0:
        raise DegradationError(f"the {'noise' if power == 0 else 'speech'} is silent, so no SNR can be set")
    return (speech + noise * math.sqrt(wanted / power)).astype(np.float32)


def white_noise(samples: int, random: np.random.Generator) -> Float[np.ndarray, " S"]:
    """Gaussian noise with the same power at all frequencies."""
    return random.standard_normal(samples)


def pink_noise(samples: int, random: np.random.Generator) -> Float[np.ndarray, " S"]:
    """Gaussian noise whose power falls by 10 dB per decade (3 dB per octave) from 20 Hz on."""
    # At least a second is drawn: a short stretch of pink noise is a cut, not a period.
    length = max(samples, SAMPLE_RATE)
    spectrum = np.fft.rfft(random.standard_normal(length))
    frequencies = np.fft.rfftfreq(length, 1 / SAMPLE_RATE)
    spectrum /= np.sqrt(np.maximum(frequencies, _PINK_FLOOR_HZ))
    spectrum[0] = 0
    return np.fft.irfft(spectrum, length)[:samples]


def babble(samples: int, voices: Sequence[Float[np.ndarray, " _"]], random: np.random.Generator) -> np.ndarray:
    """Several people talking at once, all equally loud, each utterance repeated from a random place on.

    Args:
        samples: length of the result.
        voices: one utterance per talker, none of them silent.
        random: chooses where each starts.
    """
    total = np.zeros(samples)
    for voice in voices:
        start = int(random.integers(len(voice)))
        total += np.resize(np.roll(voice, -start), samples) / math.sqrt(active_power(voice))
    return total


# --- Rooms -----------------------------------------------------------------------------------------------


def room_impulse_response(seconds: float, random: np.random.Generator) -> Float[np.ndarray, " R"]:
    """A simulated room: the direct sound, then Gaussian noise that decays exponentially (Polack, 1988).

    The reverberation carries as much energy as the direct sound, as at a room's critical distance.

    Args:
        seconds: reverberation time T60, in which the sound decays by 60 dB.
        random: draws the noise.

    Returns:
        The response until it has decayed by 60 dB; its first sample is the direct sound, 1.
    """
    time = np.arange(max(2, round((seconds + _DIRECT_SECONDS) * SAMPLE_RATE))) / SAMPLE_RATE - _DIRECT_SECONDS
    tail = np.where(time >= 0, random.standard_normal(len(time)) * 10 ** (-3 * time / seconds), 0)
    response = tail / math.sqrt(np.square(tail).sum())
    response[0] = 1
    return response


def reverberate(speech: Audio, response: Float[np.ndarray, " R"]) -> Audio:
    """Speech in a room, at the power it had, the direct sound where the speech was.

    Args:
        speech: the utterance; the reverberation behind its end is cut off.
        response: impulse response; its largest sample counts as the direct sound, and what comes before it
            is left out.

    Raises:
        DegradationError: the response is silent.
    """
    response = response[int(np.argmax(np.abs(response))) :] if len(response) else response
    if not len(response) or response[0] == 0:
        raise DegradationError("the impulse response is silent")
    wet = signal.oaconvolve(speech.astype(np.float64), response)[: len(speech)] if len(speech) else speech
    before, after = np.square(speech, dtype=np.float64).sum(), np.square(wet).sum()
    return (wet * math.sqrt(before / after) if after > 0 else wet).astype(np.float32)


# --- Channels and codecs ---------------------------------------------------------------------------------


def telephone(speech: Audio) -> Audio:
    """A narrow-band call: 8 kHz, 300 to 3400 Hz, 8 bits a sample by the mu-law of ITU-T G.711."""
    if not len(speech):
        return speech
    narrow = soxr.resample(speech, SAMPLE_RATE, _TELEPHONE_RATE, quality="HQ")
    half = len(_TELEPHONE_FILTER) // 2
    narrow = signal.oaconvolve(narrow, _TELEPHONE_FILTER)[half : half + len(narrow)]
    stream = io.BytesIO()
    raw = {"format": "RAW", "subtype": "ULAW"}
    soundfile.write(stream, narrow, _TELEPHONE_RATE, **raw)
    stream.seek(0)
    coded, _ = soundfile.read(stream, samplerate=_TELEPHONE_RATE, channels=1, dtype="float32", **raw)
    return _as_long(soxr.resample(coded, _TELEPHONE_RATE, SAMPLE_RATE, quality="HQ"), len(speech))


def mp3(speech: Audio, kbps: float) -> Audio:
    """Coded as MP3 at a constant bit rate and decoded again, by the codec in libsndfile (LAME, mpg123).

    Args:
        speech: the utterance.
        kbps: one of :data:`MP3_KBPS`.

    Raises:
        DegradationError: another bit rate, or a libsndfile without MP3.
    """
    if kbps not in MP3_KBPS:
        raise DegradationError(f"MP3 at 16 kHz has no {kbps:g} kbit/s; it has {', '.join(map(str, MP3_KBPS))}")
    low, high = MP3_KBPS[0], MP3_KBPS[-1]
    # libsndfile maps levels linearly to bit rates, and refuses the very lowest one at level 1.
    level = min(1 - (kbps - low) / (high - low), 0.999)
    decoded = _coded(speech, "MP3", "MPEG_LAYER_III", compression_level=level, bitrate_mode="CONSTANT")
    # From 40 kbit/s on, the first frame has room for a note of the delay, and the decoder removes it itself.
    return _as_long(decoded if len(decoded) == len(speech) else decoded[_MP3_DELAY:], len(speech))


def opus(speech: Audio, kbps: float) -> Audio:
    """Coded as Opus (variable bit rate, as in calls over the internet) and decoded again, by libsndfile's codec.

    Args:
        speech: the utterance.
        kbps: aimed-at bit rate, 6 to 256; the container adds some 3 kbit/s.

    Raises:
        DegradationError: another bit rate, or a libsndfile without Opus.
    """
    low, high = OPUS_KBPS
    if not low <= kbps <= high:
        raise DegradationError(f"Opus has no {kbps:g} kbit/s; use {low:g} to {high:g}")
    decoded = _coded(speech, "OGG", "OPUS", compression_level=1 - (kbps - low) / (high - low))
    return _as_long(decoded, len(speech))


def _coded(speech: Audio, container: str, codec: str, **options: object) -> Audio:
    if not len(speech):
        return speech
    stream = io.BytesIO()
    try:
        soundfile.write(stream, fit_full_scale(speech), SAMPLE_RATE, format=container, subtype=codec, **options)
        stream.seek(0)
        return soundfile.read(stream, dtype="float32")[0]
    except (soundfile.LibsndfileError, ValueError, TypeError) as error:  # unknown formats and options differ by release
        raise DegradationError(
            f"the installed libsndfile {soundfile.__libsndfile_version__} (soundfile {soundfile.__version__}) cannot "
            f"write and read {codec}: {error}; install soundfile 0.13 or newer from PyPI, whose libsndfile 1.2 can"
        ) from None


def _as_long(audio: Float[np.ndarray, " _"], samples: int) -> Audio:
    """Cut, or filled with zeros, behind its end."""
    audio = audio[:samples].astype(np.float32)
    return np.pad(audio, (0, samples - len(audio)))
