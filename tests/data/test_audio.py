import os
import struct
import threading
import tracemalloc

import numpy as np
import pytest
import soundfile

from jax_mtlser.data.audio import SAMPLE_RATE, ArrayRecording, AudioError, FileRecording, decode


def sine(seconds, rate, hertz=1000.0, level=0.5):
    return level * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)


def write(path, samples, rate=SAMPLE_RATE, **kwargs):
    soundfile.write(path, samples, rate, **kwargs)
    return path


def peak_of_spectrum(samples):
    """Frequency in Hz and amplitude of the strongest component."""
    window = np.hanning(len(samples))
    spectrum = np.abs(np.fft.rfft(samples * window)) * 2 / window.sum()
    return np.argmax(spectrum) * SAMPLE_RATE / len(samples), spectrum.max()


@pytest.mark.parametrize("rate", [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_frequency_level_and_length_survive_resampling(tmp_path, rate):
    samples = decode(write(tmp_path / "a.wav", sine(1.0, rate), rate, subtype="FLOAT"))
    assert samples.dtype == np.float32
    assert samples.shape == (SAMPLE_RATE,)
    hertz, level = peak_of_spectrum(samples)
    assert hertz == pytest.approx(1000, abs=1)
    assert level == pytest.approx(0.5, rel=1e-3)


def test_resampling_does_not_alias(tmp_path):
    samples = decode(write(tmp_path / "a.wav", sine(1.0, 48_000, hertz=15_000), 48_000, subtype="FLOAT"))
    # Without the low-pass filter this would be a tone of 1 kHz; the ends ring where the tone is cut.
    assert np.abs(samples[1000:-1000]).max() < 1e-4


def test_channels_are_averaged(tmp_path):
    left, right = sine(0.5, SAMPLE_RATE, 300), sine(0.5, SAMPLE_RATE, 700, 0.25)
    samples = decode(write(tmp_path / "a.wav", np.stack([left, right], 1), subtype="FLOAT"))
    np.testing.assert_allclose(samples, (left + right) / 2, atol=1e-7)


@pytest.mark.parametrize("suffix", ["wav", "flac", "aiff", "au", "w64"])
def test_sixteen_bit_sources_are_exact(tmp_path, suffix):
    codes = np.arange(-32768, 32768, dtype=np.int16)
    samples = decode(write(tmp_path / f"a.{suffix}", codes))
    np.testing.assert_array_equal(samples * 32768, codes)


@pytest.mark.parametrize("suffix", ["mp3", "ogg"])
def test_lossy_formats(tmp_path, suffix):
    samples = decode(write(tmp_path / f"a.{suffix}", sine(1.0, SAMPLE_RATE)))
    hertz, level = peak_of_spectrum(samples)
    assert (hertz, level) == (pytest.approx(1000, abs=2), pytest.approx(0.5, rel=0.05))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
def test_segment(tmp_path, suffix):
    codes = np.arange(SAMPLE_RATE, dtype=np.int16)
    path = write(tmp_path / f"a.{suffix}", codes)
    np.testing.assert_array_equal(decode(path, 0.25, 0.5) * 32768, codes[4000:8000])
    np.testing.assert_array_equal(decode(path, start=0.75) * 32768, codes[12000:])
    np.testing.assert_array_equal(decode(path, end=0.1) * 32768, codes[:1600])


def test_segment_of_another_rate(tmp_path):
    samples = np.concatenate([np.zeros(44_100), sine(1.0, 44_100)])
    segment = decode(write(tmp_path / "a.wav", samples, 44_100), 1.0, 1.5)
    assert segment.shape == (8000,)
    assert peak_of_spectrum(segment)[0] == pytest.approx(1000, abs=2)


def test_segment_may_end_a_little_after_the_file(tmp_path):
    assert decode(write(tmp_path / "a.wav", sine(1.0, SAMPLE_RATE)), 0.5, 1.05).shape == (8000,)


@pytest.mark.parametrize(("start", "end"), [(0.5, 2.0), (1.0, None), (3.0, 4.0), (-1.0, None)])
def test_segment_outside_the_file(tmp_path, start, end):
    path = write(tmp_path / "a.wav", sine(1.0, SAMPLE_RATE))
    with pytest.raises(AudioError, match=r"segment outside the file: .*the file lasts 1 s"):
        decode(path, start, end)


def test_segment_without_samples(tmp_path):
    path = write(tmp_path / "a.wav", sine(1.0, SAMPLE_RATE))
    with pytest.raises(AudioError, match="empty"):
        decode(path, 0.5, 0.5)


def test_too_long_is_judged_from_the_header(tmp_path):
    path = write(tmp_path / "a.flac", np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE * 3))
    # Most of the audio is gone: decoding would fail for another reason.
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(AudioError, match=r"^too long: 3 s, above the limit of 2.5 s$"):
        decode(path, max_seconds=2.5)


def test_limit_is_inclusive_and_holds_for_the_segment(tmp_path):
    path = write(tmp_path / "a.wav", sine(3.0, 44_100), 44_100)
    assert len(decode(path, max_seconds=3.0)) == 48_000
    assert len(decode(path, 1.0, 2.0, max_seconds=1.0)) == 16_000


def test_missing_file(tmp_path):
    with pytest.raises(AudioError, match=r"^the file does not exist$"):
        decode(tmp_path / "a.wav")


def test_folder(tmp_path):
    with pytest.raises(AudioError, match=r"^not a file$"):
        decode(tmp_path)


@pytest.mark.parametrize("name", ["a.wav", "a.mp3", "a.raw", "a.txt"])
@pytest.mark.parametrize("content", [b"", b"dear diary, today I recorded nothing\n" * 30])
def test_no_audio(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"^unreadable audio: ") as error:
        decode(path)
    assert str(tmp_path) not in str(error.value)


def test_audio_of_length_zero(tmp_path):
    with pytest.raises(AudioError, match=r"^empty: 0 samples$"):
        decode(write(tmp_path / "a.wav", np.zeros(0, np.int16)))


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
def test_truncated_file(tmp_path, suffix):
    noise = np.random.default_rng(0).normal(0, 0.1, SAMPLE_RATE * 4)
    path = write(tmp_path / f"a.{suffix}", noise)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(AudioError, match=r"^(unreadable audio|truncated): \S"):
        decode(path)


def test_truncated_wav_gives_what_is_there(tmp_path):
    codes = np.arange(10_000, dtype=np.int16)
    path = write(tmp_path / "a.wav", codes)
    path.write_bytes(path.read_bytes()[:-10_000])
    np.testing.assert_array_equal(decode(path) * 32768, codes[:5000])


def test_wav_header_that_claims_two_gigabytes(tmp_path):
    codes = np.arange(1000, dtype=np.int16)
    path = write(tmp_path / "a.wav", codes)
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = struct.pack("<I", 2**31 + 36), struct.pack("<I", 2**31)
    path.write_bytes(content)
    tracemalloc.start()
    samples = decode(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(samples * 32768, codes)
    assert peak < 1e6


def claim_frames(path, frames):
    """Overwrite the 36-bit number of samples in a FLAC file's header."""
    content = bytearray(path.read_bytes())
    word = int.from_bytes(content[18:26], "big")
    content[18:26] = (word >> 36 << 36 | frames).to_bytes(8, "big")
    path.write_bytes(content)


def test_flac_header_that_claims_fifty_days(tmp_path):
    path = write(tmp_path / "a.flac", sine(1.0, SAMPLE_RATE))
    claim_frames(path, 2**36 - 1)
    with pytest.raises(AudioError, match=r"^too long: 4\.29497e\+06 s"):
        decode(path, max_seconds=35)
    tracemalloc.start()
    with pytest.raises(AudioError):
        decode(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1e8


def test_flac_header_without_a_length(tmp_path):
    path = write(tmp_path / "a.flac", sine(1.0, SAMPLE_RATE))
    claim_frames(path, 0)
    with pytest.raises(AudioError, match="header does not give a length"):
        decode(path, max_seconds=35)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_samples_that_are_not_finite(tmp_path, value):
    samples = sine(1.0, SAMPLE_RATE)
    samples[100] = value
    with pytest.raises(AudioError, match="1 of 16000 samples are NaN or infinite"):
        decode(write(tmp_path / "a.wav", samples, subtype="FLOAT"))


def test_unicode_name(tmp_path):
    path = write(tmp_path / "głos – 日本語 ’é.wav", sine(0.5, SAMPLE_RATE))
    assert len(decode(path)) == 8000


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_named_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    answers = []

    def attempt():
        with pytest.raises(AudioError) as error:
            decode(tmp_path / "a.wav")
        answers.append(str(error.value))

    thread = threading.Thread(target=attempt, daemon=True)
    thread.start()
    thread.join(5)
    assert answers == ["not a file"]


def test_an_outline_is_the_peak_of_each_stretch(tmp_path):
    samples = np.zeros(1000)
    samples[[0, 499, 500, 999]] = [0.25, -0.5, 0.125, np.nan]
    write(tmp_path / "a.wav", samples, 8_000, subtype="FLOAT")
    with FileRecording(tmp_path / "a.wav") as recording:
        recording.samples(300, 600)  # wherever it was read before
        assert recording.outline(4).tolist() == [0.25, 0.5, 0.125, 0.0]
        assert recording.outline(4000).max() == 0.5  # more points than samples
    assert ArrayRecording(samples, 8_000).outline(1).tolist() == [0.5]
