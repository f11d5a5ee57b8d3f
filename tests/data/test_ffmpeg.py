"""Recordings that only ffmpeg reads, and what must not happen while it does."""

import os
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import soundfile

from jax_mtlser.data import ffmpeg
from jax_mtlser.data.audio import AudioError, TooLongError, decode
from jax_mtlser.data.ffmpeg import open_recording


@pytest.fixture
def installed(tmp_path, monkeypatch) -> str:
    """ffmpeg as if it were installed; its path."""
    program = imageio_ffmpeg.get_ffmpeg_exe()
    (tmp_path / "bin").mkdir()
    os.symlink(program, tmp_path / "bin" / "ffmpeg")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return program


@pytest.fixture
def sine(tmp_path) -> Path:
    samples = 0.5 * np.sin(2 * np.pi * 440 * np.arange(48_000) / 48_000)
    soundfile.write(tmp_path / "sine.wav", np.stack([samples, samples], axis=1), 48_000)
    return tmp_path / "sine.wav"


def convert(program: str, source: Path, target: Path) -> Path:
    subprocess.run([program, "-loglevel", "error", "-i", source, target], check=True, stdin=subprocess.DEVNULL)
    return target


@pytest.mark.parametrize("suffix", ["m4a", "mkv", "wma", "mp4", "webm"])
def test_formats_that_libsndfile_does_not_read(installed, sine, tmp_path, suffix):
    path = convert(installed, sine, tmp_path / f"-i żółć 'a' 😀.{suffix}")
    with pytest.raises(AudioError):
        decode(path)
    with open_recording(path) as recording:
        samples = recording.samples(*recording.span())
    assert recording.rate == 16_000
    assert abs(len(samples) - 16_000) < 1600
    spectrum = np.abs(np.fft.rfft(samples[2000:14_000]))
    assert np.argmax(spectrum) * 16_000 / 12_000 == pytest.approx(440, abs=2)
    assert np.abs(samples[2000:14_000]).max() == pytest.approx(0.5, abs=0.05)


def test_temporary_files_are_gone_afterwards(installed, sine, tmp_path, monkeypatch):
    path = convert(installed, sine, tmp_path / "a.m4a")
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    with open_recording(path):
        assert list((tmp_path / "scratch").iterdir())
    (tmp_path / "b.m4a").write_bytes(b"nothing" * 100)
    with pytest.raises(AudioError), open_recording(tmp_path / "b.m4a"):
        pass
    assert not list((tmp_path / "scratch").iterdir())


def test_without_ffmpeg_the_reason_says_that_it_might_help(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "a.m4a").write_bytes(b"nothing" * 100)
    with pytest.raises(AudioError, match=r"^unreadable audio: .*; ffmpeg reads more formats, but is not installed$"):
        open_recording(tmp_path / "a.m4a").__enter__()


def test_what_ffmpeg_cannot_read_either_is_told_shortly(installed, tmp_path):
    (tmp_path / "a.m4a").write_bytes(bytes(range(256)) * 40)
    with pytest.raises(AudioError, match=r"^unreadable audio: .*; ffmpeg: moov atom not found$") as error:
        open_recording(tmp_path / "a.m4a").__enter__()
    assert str(tmp_path) not in str(error.value)
    assert "\n" not in str(error.value)


def test_a_cut_film_is_refused(installed, sine, tmp_path):
    path = convert(installed, sine, tmp_path / "a.m4a")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(AudioError):
        open_recording(path).__enter__()


def test_film_without_sound(installed, tmp_path):
    path = tmp_path / "mute.mp4"
    source = ["-f", "lavfi", "-i", "color=size=16x16:duration=1"]
    subprocess.run([installed, "-loglevel", "error", *source, path], check=True, stdin=subprocess.DEVNULL)
    with pytest.raises(AudioError, match=r"ffmpeg: there is no sound in it$"):
        open_recording(path).__enter__()


@pytest.mark.parametrize("name", ["list.m3u8", "list.m4a", "list.wav", "list.ffconcat"])
def test_a_playlist_opens_no_other_file(installed, sine, tmp_path, name):
    for text in (
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{sine}\n#EXT-X-ENDLIST\n",
        f"ffconcat version 1.0\nfile {sine.name}\n",
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(AudioError):
            open_recording(tmp_path / name).__enter__()


def test_limits_of_time_and_size(installed, sine, tmp_path, monkeypatch):
    path = convert(installed, sine, tmp_path / "a.m4a")
    with monkeypatch.context() as patch:
        patch.setattr(ffmpeg, "_MOST_HOURS", 0.5 / 3600)
        with pytest.raises(AudioError, match="too long: more than"):
            open_recording(path).__enter__()
    monkeypatch.setattr(ffmpeg, "_MOST_SECONDS_OF_WORK", 1e-4)
    with pytest.raises(AudioError, match="did not finish within"):
        open_recording(path).__enter__()


def test_a_callers_limit_holds_with_and_without_ffmpeg(installed, sine, tmp_path, monkeypatch):
    path = convert(installed, sine, tmp_path / "a.m4a")
    with open_recording(path, max_seconds=1.1) as recording:
        assert recording.frames == pytest.approx(16_000, abs=1600)
    with open_recording(sine, max_seconds=1.0) as recording:
        assert recording.frames == 48_000
    for own in (path, sine):
        with pytest.raises(TooLongError, match=r"^too long: [\d.]+ s, above the limit of 0.5 s$"):
            open_recording(own, max_seconds=0.5).__enter__()
    long = tmp_path / "long.wav"
    soundfile.write(long, 0.1 * np.ones(480_000), 48_000)
    with pytest.raises(TooLongError, match="more than the limit of 2 s of audio"):
        open_recording(convert(installed, long, tmp_path / "long.m4a"), max_seconds=2).__enter__()
