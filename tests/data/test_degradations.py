"""Degradations as physics says: exact SNRs and levels, slopes and band limits, aligned codecs, no order effects."""

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal

from jax_mtlser.data import degradations
from jax_mtlser.data.degradations import (
    MP3_KBPS,
    DegradationError,
    active_power,
    add_noise,
    babble,
    clip_peaks,
    fit_full_scale,
    gain,
    generator,
    mp3,
    opus,
    pink_noise,
    reverberate,
    room_impulse_response,
    telephone,
    white_noise,
)

RATE = 16_000


def decibels(ratio: float) -> float:
    return 10 * np.log10(ratio)


def speech_like(seconds: float = 2.0, seed: int = 0) -> np.ndarray:
    """Harmonics of 120 Hz in bursts of a third of a second, with pauses between."""
    time = np.arange(int(RATE * seconds)) / RATE
    random = np.random.default_rng(seed)
    voice = sum(np.sin(2 * np.pi * 120 * k * time + random.uniform(0, 6)) / k for k in range(1, 30))
    return (0.1 * voice * (np.sin(2 * np.pi * 1.5 * time) > 0)).astype(np.float32)


def level(spectrum: np.ndarray, frequencies: np.ndarray, low: float, high: float) -> float:
    return decibels(spectrum[(frequencies >= low) & (frequencies < high)].mean())


# --- Levels ---


def test_the_active_power_of_a_tone_does_not_depend_on_the_silence_around_it():
    tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)
    padded = np.concatenate([np.zeros(3 * RATE), tone, np.zeros(RATE)])
    assert active_power(tone) == pytest.approx(0.125, rel=1e-6)
    assert active_power(padded) == pytest.approx(0.125, rel=1e-6)


def test_frames_more_than_25_db_below_the_strongest_are_no_speech():
    tone = np.sin(2 * np.pi * 500 * np.arange(RATE) / RATE)
    for below, counts in ((24, True), (26, False)):
        quiet = tone * 10 ** (-below / 20)
        expected = (0.5 + 0.5 * 10 ** (-below / 10)) / 2 if counts else 0.5
        assert active_power(np.concatenate([tone, quiet])) == pytest.approx(expected, rel=1e-6)


@given(st.floats(-60, 60))
def test_gain_changes_the_level_by_as_many_decibels(value):
    speech = speech_like(0.1)
    changed = gain(speech, value)
    assert decibels(
        np.square(changed, dtype=np.float64).sum() / np.square(speech, dtype=np.float64).sum()
    ) == pytest.approx(value, abs=1e-4)


@given(st.floats(0.1, 60))
def test_clipping_cuts_at_its_level_and_leaves_what_is_below(value):
    speech = speech_like(0.1)
    clipped = clip_peaks(speech, value)
    limit = np.abs(speech).max() * 10 ** (-value / 20)
    assert np.abs(clipped).max() == pytest.approx(limit, rel=1e-6)
    below = np.abs(speech) < limit * (1 - 1e-6)
    assert np.array_equal(clipped[below], speech[below])
    assert np.array_equal(np.sign(clipped), np.sign(speech))


def test_only_what_exceeds_full_scale_is_scaled_down():
    quiet, loud = np.float32([0.5, -0.25]), np.float32([0.5, -4.0])
    assert fit_full_scale(quiet) is quiet
    assert fit_full_scale(loud).tolist() == [0.125, -1.0]


# --- Noise ---


@settings(deadline=None, max_examples=40)
@given(st.floats(-30, 60), st.integers(1, 3 * RATE), st.integers(0, 2**31))
def test_the_snr_is_exact(snr, samples, seed):
    random = np.random.default_rng(seed)
    speech = (random.uniform(0.001, 0.9) * random.standard_normal(samples)).astype(np.float32)
    noisy = add_noise(speech, 100 * random.standard_normal(samples), snr)
    added = noisy.astype(np.float64) - speech
    # The sum is float32: very quiet noise under loud speech is rounded, which is not a matter of its level.
    tolerance = 1e-3 if snr <= 40 else 2e-2
    assert decibels(active_power(speech) / np.square(added).mean()) == pytest.approx(snr, abs=tolerance)


def test_pauses_do_not_lower_the_noise():
    tone = np.float32(0.3) * np.sin(2 * np.pi * 300 * np.arange(RATE) / RATE).astype(np.float32)
    padded = np.concatenate([tone, np.zeros(3 * RATE, np.float32)])
    added = add_noise(padded, np.random.default_rng(0).standard_normal(len(padded)), 10) - padded
    assert decibels(0.045 / np.square(added, dtype=np.float64).mean()) == pytest.approx(10, abs=1e-3)


@pytest.mark.parametrize("silent", ["speech", "noise"])
def test_silence_has_no_snr(silent):
    sounds = {"speech": np.ones(100, np.float32), "noise": np.ones(100)} | {silent: np.zeros(100, np.float32)}
    with pytest.raises(DegradationError, match=f"the {silent} is silent"):
        add_noise(sounds["speech"], sounds["noise"], 10)


def test_noise_of_another_length_is_refused():
    with pytest.raises(DegradationError, match="noise of 9 samples cannot be added to speech of 10"):
        add_noise(np.ones(10, np.float32), np.ones(9), 10)


@pytest.mark.parametrize(("draw", "slope"), [(white_noise, 0.0), (pink_noise, -10.0)])
def test_noise_has_the_slope_of_its_colour(draw, slope):
    frequencies, spectrum = signal.welch(draw(60 * RATE, np.random.default_rng(0)), RATE, nperseg=8192)
    inside = (frequencies > 30) & (frequencies < 7_900)
    found, _ = np.polyfit(np.log10(frequencies[inside]), decibels(spectrum[inside]), 1)
    assert found == pytest.approx(slope, abs=0.25)  # dB per decade
    octaves = [level(spectrum, frequencies, low, 2 * low) for low in (125, 250, 500, 1000, 2000, 4000 - 100)]
    assert np.diff(octaves) == pytest.approx(slope * np.log10(2), abs=0.4)


def test_babble_is_the_sum_of_equally_loud_voices():
    # Three tones of very different level and length: each must carry a third of the power.
    time = np.arange(4 * RATE) / RATE
    tones = [
        a * np.sin(2 * np.pi * f * time[:n])
        for a, f, n in ((0.9, 400, 64_000), (0.01, 900, 16_000), (0.1, 2000, 8_000))
    ]
    mixed = babble(3 * RATE, tones, np.random.default_rng(0))
    power = np.abs(np.fft.rfft(mixed)) ** 2
    shares = [power[3 * f - 6 : 3 * f + 7].sum() / power.sum() for f in (400, 900, 2000)]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.01)


# --- Rooms ---


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_a_simulated_room_decays_as_long_as_it_says(seconds):
    response = room_impulse_response(seconds, np.random.default_rng(0))
    assert response[0] == 1
    tail = np.square(response[1:])
    assert tail.sum() == pytest.approx(1)  # as much energy as the direct sound
    backwards = decibels(np.cumsum(tail[::-1])[::-1] / tail.sum())  # Schroeder's integral
    time = np.arange(len(backwards)) / RATE
    inside = (backwards < -5) & (backwards > -35)
    slope, _ = np.polyfit(time[inside], backwards[inside], 1)
    assert -60 / slope == pytest.approx(seconds, rel=0.05)


def test_a_room_keeps_place_and_power_of_the_speech():
    speech = speech_like()
    echo = np.zeros(3000)
    echo[700], echo[2000] = 0.5, 0.2  # 700 samples pass before the direct sound
    wet = reverberate(speech, echo)
    expected = speech.astype(np.float64)
    expected[1300:] += 0.4 * speech[:-1300]
    expected *= np.sqrt(np.square(speech, dtype=np.float64).sum() / np.square(expected).sum())
    assert np.allclose(wet, expected, atol=1e-5)
    assert reverberate(speech, np.float64([1])) == pytest.approx(speech, abs=1e-6)
    with pytest.raises(DegradationError, match="impulse response is silent"):
        reverberate(speech, np.zeros(10))


# --- Channels and codecs ---


def test_a_telephone_passes_300_to_3400_hz():
    noise = (0.1 * np.random.default_rng(0).standard_normal(20 * RATE)).astype(np.float32)
    frequencies, before = signal.welch(noise, RATE, nperseg=4096)
    _, after = signal.welch(telephone(noise), RATE, nperseg=4096)
    change = lambda low, high: level(after, frequencies, low, high) - level(before, frequencies, low, high)
    assert change(400, 3_300) == pytest.approx(0, abs=0.3)
    # Below and above stands only what 8-bit quantisation puts there.
    assert change(20, 200) < -33
    assert change(3_500, 3_900) < -33
    assert change(4_300, 8_000) < -60


def test_a_telephone_has_no_more_than_256_levels_and_no_delay():
    time = np.arange(RATE) / RATE
    tone = (0.5 * np.sin(2 * np.pi * 1_000 * time)).astype(np.float32)
    error = telephone(tone)[2000:-2000] - tone[2000:-2000]
    ratio = decibels(np.square(tone).mean() / np.square(error).mean())
    assert 33 < ratio < 45  # G.711 gives about 38 dB over its range; a delay of one sample would leave 8 dB


@pytest.mark.parametrize(
    ("codec", "kbps", "ratio"), [(mp3, 8, 8), (mp3, 32, 14), (mp3, 64, 20), (opus, 16, 8), (opus, 64, 20)]
)
def test_a_codec_gives_back_the_utterance_in_its_place(codec, kbps, ratio):
    speech = speech_like() + np.float32(0.002) * np.random.default_rng(1).standard_normal(2 * RATE).astype(np.float32)
    decoded = codec(speech, kbps)
    error = decibels(np.square(speech).sum() / np.square(decoded - speech).sum())
    assert ratio < error < 60  # coded, and aligned: shifted speech would come out below 3 dB


def test_higher_bit_rates_are_nearer_to_the_original():
    speech = speech_like()
    for codec, rates in ((mp3, (8, 24, 64)), (opus, (6, 16, 64))):
        errors = [np.square(codec(speech, kbps) - speech).sum() for kbps in rates]
        assert errors == sorted(errors, reverse=True)
        assert errors[0] > 2 * errors[-1]


@pytest.mark.parametrize("kbps", MP3_KBPS)
def test_every_mp3_rate_is_the_rate_of_the_stream(kbps, monkeypatch):
    sizes = []
    write = soundfile.write

    def measured(stream, *args, **kwargs):
        write(stream, *args, **kwargs)
        sizes.append(stream.tell())

    monkeypatch.setattr(degradations.soundfile, "write", measured)
    mp3(speech_like(20), kbps)
    assert sizes[0] * 8 / 20 / 1000 == pytest.approx(kbps, rel=0.03)


def test_rates_that_do_not_exist_are_named():
    with pytest.raises(DegradationError, match="no 33 kbit/s; it has 8, 16"):
        mp3(speech_like(0.1), 33)
    with pytest.raises(DegradationError, match="Opus has no 500 kbit/s; use 6 to 256"):
        opus(speech_like(0.1), 500)


def test_a_libsndfile_without_the_codec_is_named_with_the_fix(monkeypatch):
    def refuse(*args, **kwargs):
        raise soundfile.LibsndfileError(0, "Format not recognised: ")

    monkeypatch.setattr(degradations.soundfile, "write", refuse)
    with pytest.raises(
        DegradationError, match=r"installed libsndfile .* cannot write and read MPEG_LAYER_III.*soundfile 0\.13"
    ):
        mp3(speech_like(0.1), 32)


# --- All of them ---

EVERY = {
    "white": lambda x, r: add_noise(x, white_noise(len(x), r), 5),
    "pink": lambda x, r: add_noise(x, pink_noise(len(x), r), 5),
    "babble": lambda x, r: add_noise(x, babble(len(x), [speech_like(0.3), speech_like(0.5)], r), 5),
    "reverb": lambda x, r: reverberate(x, room_impulse_response(0.3, r)),
    "telephone": lambda x, r: telephone(x),
    "mp3": lambda x, r: mp3(x, 16),
    "opus": lambda x, r: opus(x, 8),
    "gain": lambda x, r: gain(x, -12),
    "clip": lambda x, r: clip_peaks(x, 12),
}


@pytest.mark.parametrize("name", EVERY)
@settings(deadline=None, max_examples=15)
@given(samples=st.integers(1, 20_000), seed=st.integers(0, 1000))
def test_length_and_type_stay_and_values_are_finite(name, samples, seed):
    speech = (0.3 * np.random.default_rng(seed).standard_normal(samples)).astype(np.float32)
    before = speech.copy()
    after = EVERY[name](speech, generator(seed, name, "u"))
    assert after.shape == (samples,)
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    assert np.array_equal(speech, before)
    assert np.array_equal(after, EVERY[name](speech, generator(seed, name, "u")))


def test_every_seed_purpose_and_utterance_has_its_own_random_numbers():
    names = [(0, "white", "a"), (1, "white", "a"), (0, "pink", "a"), (0, "white", "b"), (0, "whitea", "")]
    drawn = [tuple(generator(*name).integers(2**62, size=2)) for name in names]
    assert len(set(drawn)) == len(names)
    assert tuple(generator(*names[0]).integers(2**62, size=2)) == drawn[0]
