"""Recordings as uploads, and the limits of the tests' server."""

import io

import numpy as np
import soundfile

MAX_SECONDS = 20.0
MAX_MEGABYTES = 1.0


def noise(seconds: float, rate: int = 16_000) -> np.ndarray:
    return 0.1 * np.random.default_rng(round(1000 * seconds)).standard_normal(round(seconds * rate))


def sound(samples: np.ndarray, form: str = "WAV", rate: int = 16_000, **kind: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=form, **kind)
    return file.getvalue()


def wav(seconds: float) -> bytes:
    return sound(noise(seconds))
