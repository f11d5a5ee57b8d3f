"""A microphone instead of a file, played by a fake library."""

import csv
import sys
import types

import numpy as np
import pytest

from jax_mtlser.commands.predict import predict_command
from jax_mtlser.data.microphone import MicrophoneError, record
from jax_mtlser.inference.requests import from_microphone

RATE = 48_000


class PortAudioError(Exception):
    """What sounddevice raises."""


@pytest.fixture
def device(monkeypatch) -> types.ModuleType:
    """A library with one input device that hears a tone; what it is asked lies in ``asked``."""
    library = types.ModuleType("sounddevice")

    def rec(frames, **settings):
        library.asked = settings
        return 0.3 * np.sin(np.arange(frames) / 20, dtype=np.float32)[:, None]

    library.PortAudioError = PortAudioError
    library.query_devices = lambda kind: {"input": {"default_samplerate": float(RATE)}}[kind]
    library.rec = rec
    monkeypatch.setitem(sys.modules, "sounddevice", library)
    return library


def test_the_devices_own_rate_is_recorded(device):
    samples, rate = record(0.5)
    assert (samples.shape, samples.dtype, rate) == ((RATE // 2,), np.float32, RATE)
    assert device.asked == {"samplerate": RATE, "channels": 1, "dtype": "float32", "blocking": True}


def test_predict_judges_what_it_hears(device, run, recognizer, tmp_path, capsys):
    flags = ["--workdir", run, "--member", "r0_f0", "--microphone", "1.2", "-o", tmp_path / "o.csv"]
    assert predict_command(["jax-mtlser", *map(str, flags)]) == 0
    assert "recording 1.2 s from the microphone" in capsys.readouterr().out
    with (tmp_path / "o.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["file"], row["end"], row["error"]) == ("microphone", "1.2", "")
    assert row["emotion"] == recognizer(record(1.2)).emotion


def test_two_recordings_are_two_tasks(device):
    assert from_microphone(0.5).digest == from_microphone(0.5).digest
    assert from_microphone(0.5).digest != from_microphone(0.6).digest


def test_without_the_library_the_fix_is_told(monkeypatch, run, capsys):
    monkeypatch.setitem(sys.modules, "sounddevice", None)  # as if it were not installed
    flags = ["--workdir", str(run), "--member", "r0_f0", "--microphone", "1"]
    assert predict_command(["jax-mtlser", *flags]) == 1
    assert "error: sounddevice is not installed; pip install 'jax-mtlser[microphone]'" in capsys.readouterr().err


def test_without_portaudio_the_fix_is_told(monkeypatch):
    class Finder:
        def find_spec(self, name, path=None, target=None):
            if name == "sounddevice":
                raise OSError("PortAudio library not found")

    monkeypatch.delitem(sys.modules, "sounddevice", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    with pytest.raises(MicrophoneError, match=r"PortAudio library not found; install it, .*libportaudio2"):
        record(1.0)


def test_without_a_device_the_reason_is_told(device):
    def query(kind):
        raise PortAudioError("Error querying device -1")

    device.query_devices = query
    with pytest.raises(MicrophoneError, match="Error querying device -1; is a microphone connected and allowed"):
        record(1.0)


@pytest.mark.parametrize("seconds", [0, -1, 3601, float("nan"), float("inf")])
def test_lengths_that_cannot_be_recorded(device, seconds):
    with pytest.raises(MicrophoneError, match=r"s of microphone; give more than 0 and at most 3600 s"):
        record(seconds)


def test_one_source_at_a_time(run, capsys):
    flags = ["--workdir", str(run), "--microphone", "1", "a.wav"]
    assert predict_command(["jax-mtlser", *flags]) == 2
    assert "or a table with --list, or seconds with --microphone" in capsys.readouterr().err
