"""Whisper's log-mel spectrogram, inside the compiled step, equal to its feature extractor's."""

import functools

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jax_mtlser.models import products

__all__ = ["HOP", "WINDOW", "log_mel", "mel_filters", "warped"]

HOP = 160  # 10 ms
WINDOW = 400  # 25 ms
_SAMPLE_RATE = 16_000

# Slaney's mel scale: linear below 1 kHz (3 mel per 200 Hz), logarithmic above (27 mel per factor 6.4).
_CORNER, _PER_HERTZ, _PER_LOG = 15.0, 3 / 200, 27 / np.log(6.4)
_TOP = _CORNER + _PER_LOG * np.log(_SAMPLE_RATE / 2 / 1000)


def log_mel(audio: Float[Array, "B S"], num_bins: int, *, whole_window: bool) -> Float[Array, "B M F"]:
    """Log-mel spectrogram with Whisper's scaling: clamped 80 dB below its maximum, then about [-1, 1.5].

    Frames are centred on multiples of 10 ms; ``M = ceil(S / 160)``.

    Args:
        audio: samples in [-1, 1), zero behind each utterance.
        num_bins: mel channels ``F``.
        whole_window: the audio ends where Whisper's 30 s window ends, and is mirrored there as at its start;
            otherwise silence goes on behind it, as it does behind a shorter utterance in that window.
    """
    frames = -(-audio.shape[1] // HOP)
    # Up to two further frames still touch the last samples, and count for the maximum as in the window of 30 s.
    total = frames if whole_window else frames + 2
    half = WINDOW // 2
    length = (total + 2) * HOP
    x = jnp.pad(audio, ((0, 0), (0, max(half + 1 - audio.shape[1], 0))))
    behind = x[:, -half - 1 : -1][:, ::-1] if whole_window else jnp.zeros((x.shape[0], half), x.dtype)
    x = jnp.concatenate([x[:, 1 : half + 1][:, ::-1], x, behind], axis=1)
    x = jnp.pad(x, ((0, 0), (0, max(length - x.shape[1], 0))))[:, :length]
    hops = x.reshape(x.shape[0], total + 2, HOP)
    windows = jnp.concatenate([hops[:, :-2], hops[:, 1:-1], hops[:, 2:, : WINDOW - 2 * HOP]], axis=-1)
    power = products.power_spectrum(windows * _hann()[None, None])
    mel = products.matmul(power, jnp.asarray(mel_filters(num_bins)), jnp.float32)
    level = jnp.log10(jnp.maximum(mel, 1e-10))
    level = jnp.maximum(level, level.max(axis=(1, 2), keepdims=True) - 8.0)
    return (level[:, :frames] + 4.0) / 4.0


def warped(mel: Float[Array, "B M F"], factors: Float[Array, " B"]) -> Float[Array, "B M F"]:
    """The spectrogram as it would be if all frequencies of a row had been multiplied by its factor, at the same speed.

    Levels between two channels are interpolated; what would come from below the first or above the last repeats them.

    Source of the idea: Jaitly and Hinton, "Vocal tract length perturbation (VTLP) improves speech recognition", 2013, where
    the highest frequencies are compressed instead of cut off.
    """
    channels = mel.shape[2]
    # Channels stand at equal distances on the mel scale, the first at one distance from 0.
    distance = _TOP / (channels + 1)
    hertz = jnp.asarray(_hertz(np.arange(1, channels + 1) * distance), jnp.float32)[None] / factors[:, None]
    mels = jnp.where(hertz < 1000, hertz * _PER_HERTZ, _CORNER + _PER_LOG * jnp.log(jnp.maximum(hertz, 1000) / 1000))
    places = jnp.clip(mels / distance - 1, 0, channels - 1)
    shares = jnp.maximum(0, 1 - jnp.abs(places[:, :, None] - jnp.arange(channels)[None, None]))
    return products.einsum("bmf,bwf->bmw", mel, shares, jnp.float32)


def _hertz(mels: np.ndarray) -> np.ndarray:
    return np.where(mels < _CORNER, mels / _PER_HERTZ, 1000 * np.exp((mels - _CORNER) / _PER_LOG))


def _hann() -> np.ndarray:
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)).astype(np.float32)


@functools.cache
def mel_filters(num_bins: int) -> np.ndarray:
    """Triangular filters on Slaney's mel scale, each of unit area: float32 [201, num_bins].

    Args:
        num_bins: filters between 0 and 8000 Hz.
    """
    edges = _hertz(np.linspace(0, _TOP, num_bins + 2))
    hertz = np.linspace(0, _SAMPLE_RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (hertz - edges[:-2]) / np.diff(edges)[:-1]
    falling = (edges[2:] - hertz) / np.diff(edges)[1:]
    filters = np.maximum(np.minimum(rising, falling), 0) * (2 / (edges[2:] - edges[:-2]))
    return filters.astype(np.float32)
