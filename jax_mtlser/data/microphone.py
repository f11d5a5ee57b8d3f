"""Sound from a microphone: the only module that knows ``sounddevice``, which is imported when something is recorded."""

import types

import numpy as np
from jaxtyping import Float32

from jax_mtlser.data.audio import AudioError

__all__ = ["MicrophoneError", "record"]

_MOST_SECONDS = 3600.0


class MicrophoneError(AudioError):
    """Nothing can be recorded; the message says what is missing."""


def record(seconds: float) -> tuple[Float32[np.ndarray, " F"], int]:
    """Record one channel of the default input device.

    Args:
        seconds: how long; greater than 0, at most an hour.

    Returns:
        Samples with full scale 1.0, and the device's own rate in Hz.

    Raises:
        MicrophoneError: the library or a device is missing, the device fails, or another length.
    """
    if not 0 < seconds <= _MOST_SECONDS:
        raise MicrophoneError(f"{seconds:g} s of microphone; give more than 0 and at most {_MOST_SECONDS:g} s")
    sounddevice = _library()
    try:
        # The device's own rate, since few of them know 16 kHz; conversion is that of any other recording.
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
        samples = sounddevice.rec(round(seconds * rate), samplerate=rate, channels=1, dtype="float32", blocking=True)
    except (sounddevice.PortAudioError, ValueError) as error:
        raise MicrophoneError(f"nothing can be recorded: {error}; is a microphone connected and allowed?") from None
    return np.asarray(samples, np.float32)[:, 0], rate


def _library() -> types.ModuleType:
    try:
        import sounddevice
    except ImportError:
        raise MicrophoneError("sounddevice is not installed; pip install 'jax-mtlser[microphone]'") from None
    except OSError as error:  # the package without the system's library
        raise MicrophoneError(f"{error}; install it, on Debian and Ubuntu: apt install libportaudio2") from None
    return sounddevice
