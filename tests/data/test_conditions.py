"""Conditions as they are written, and a corpus degraded by them: reproducible, in place, by others' voices."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.data.audio import from_int16
from jax_mtlser.data.conditions import (
    CLEAN,
    DEFAULT_CONDITIONS,
    Condition,
    ConditionKind,
    describe_kinds,
    parse_conditions,
)
from jax_mtlser.data.degradations import DegradationError, active_power
from jax_mtlser.data.degrader import Degrader, Sounds
from jax_mtlser.data.packed import PackedAudio

WHITE, BABBLE, NOISE, ROOM = (
    Condition(ConditionKind.WHITE, 10),
    Condition(ConditionKind.BABBLE, 10),
    Condition(ConditionKind.NOISE, 10),
    Condition(ConditionKind.ROOM),
)


def corpus(utterances: int = 20, speakers: int = 2, samples: int = 4000) -> Degrader:
    """Each utterance a tone of its own frequency, 100 Hz apart; speakers in turn."""
    time = np.arange(samples) / 16_000
    tones = [0.2 * np.sin(2 * np.pi * (1000 + 100 * i) * time) for i in range(utterances)]
    packed = PackedAudio(
        (np.concatenate(tones) * 32768).astype(np.int16), np.arange(utterances + 1, dtype=np.int64) * samples
    )
    rows = [
        Utterance(id=f"u{i}", path=Path(f"{i}.wav"), speaker=f"S{i % speakers}" if speakers else None)
        for i in range(utterances)
    ]
    return Degrader(Manifest("tones", tuple(rows)), packed)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["white:20,0"], [Condition(ConditionKind.WHITE, 20), Condition(ConditionKind.WHITE, 0)]),
        (["telephone", "gain:-20"], [Condition(ConditionKind.TELEPHONE), Condition(ConditionKind.GAIN, -20)]),
        (["white:5", "white:5.0"], [Condition(ConditionKind.WHITE, 5)]),
    ],
)
def test_conditions_are_read_as_written(words, expected):
    assert list(parse_conditions(words)) == expected


def test_names_read_back_to_the_same_conditions():
    every = (CLEAN, *DEFAULT_CONDITIONS, NOISE, ROOM)
    assert parse_conditions([condition.name for condition in every]) == every
    assert {condition.kind for condition in every} == set(ConditionKind)
    assert all(kind.value in describe_kinds() for kind in ConditionKind)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("wite:10", "no condition 'wite'; did you mean white?"),
        ("xyz", "no condition 'xyz'; there are clean, white"),
        ("white", r"white needs a value \(SNR, -30 to 60 dB\), such as white:10"),
        ("white:", "'' is no number"),
        ("white:ten", "'ten' is no number"),
        ("white:nan", "out of range"),
        ("white:100", "white:100 is out of range; use -30 to 60 dB"),
        ("telephone:3", "telephone takes no value"),
        ("reverb:0", "out of range; use 0.05 to 10 s"),
        ("mp3:33", "MP3 at 16 kHz has no 33 kbit/s; use 8, 16"),
    ],
)
def test_a_condition_that_cannot_be_is_refused_with_the_limits(word, message):
    with pytest.raises(DegradationError, match=message):
        parse_conditions([word])


@pytest.mark.parametrize(
    "condition", [c for c in DEFAULT_CONDITIONS if c.value in (None, 10, 0.3, 16, -30, 6)], ids=str
)
def test_an_utterance_is_degraded_alike_in_any_order(condition):
    degrader = corpus()
    whole = degrader.corpus(range(20), condition)
    some = degrader.corpus([17, 3], condition)
    assert np.array_equal(whole.offsets, degrader.audio.offsets)
    for row in (3, 17):
        assert np.array_equal(some[row], whole[row])
        assert not np.array_equal(whole[row], degrader.audio[row])
    assert not some[4].any()
    other_order = Degrader(degrader.manifest.subset([3]), PackedAudio(degrader.audio[3], np.array([0, 4000])))
    if condition.kind is not ConditionKind.BABBLE:  # which needs the others
        assert np.array_equal(other_order.corpus([0], condition)[0], whole[3])


def test_clean_is_the_corpus_itself():
    degrader = corpus()
    assert degrader.corpus(range(20), CLEAN) is degrader.audio


def test_the_noise_of_an_utterance_is_the_same_at_every_snr_and_another_for_another_seed():
    degrader = corpus()
    speech = from_int16(degrader.audio[0])
    at = lambda snr, seed=0: (
        Degrader(degrader.manifest, degrader.audio, seed=seed).utterance(0, Condition(ConditionKind.WHITE, snr))
        - speech
    )
    assert np.allclose(at(10), at(20) * np.sqrt(10), atol=1e-6)
    assert abs(np.corrcoef(at(10), at(10, seed=1))[0, 1]) < 0.1
    assert 10 * np.log10(active_power(speech) / np.square(at(10), dtype=np.float64).mean()) == pytest.approx(
        10, abs=1e-3
    )


def test_babble_is_made_of_others_only():
    degrader = corpus()
    added = degrader.utterance(0, BABBLE) - from_int16(degrader.audio[0])
    spectrum = np.abs(np.fft.rfft(added))
    bins = [round((1000 + 100 * i) * 4000 / 16_000) for i in range(20)]
    heard = {i for i, place in enumerate(bins) if spectrum[place] > 0.1 * spectrum.max()}
    assert len(heard) == 6
    assert all(i % 2 == 1 for i in heard)  # the other speaker's


def test_babble_never_holds_the_utterance_itself_where_speakers_are_not_known():
    degrader = corpus(utterances=7, speakers=0)
    spectrum = np.abs(np.fft.rfft(degrader.utterance(2, BABBLE) - from_int16(degrader.audio[2])))
    assert spectrum[round(1200 * 4000 / 16_000)] < 0.01 * spectrum.max()


def test_babble_without_enough_others_is_refused_before_anything_is_done():
    with pytest.raises(DegradationError, match="babble needs 6 utterances by others than S0, and tones has 5"):
        corpus(utterances=10, speakers=2).check([WHITE, BABBLE])
    with pytest.raises(DegradationError, match="6 utterances beside the one that is judged, and tones has 4"):
        corpus(utterances=5, speakers=0).check([BABBLE])
    corpus(utterances=5).check([WHITE])
    corpus(utterances=12).check([BABBLE])


def test_loud_speech_under_noise_keeps_its_snr_at_16_bits():
    degrader = corpus()
    loud = Degrader(
        degrader.manifest, PackedAudio((degrader.audio.samples * 4).astype(np.int16), degrader.audio.offsets)
    )
    noisy = from_int16(loud.corpus([0], Condition(ConditionKind.WHITE, 0))[0])
    assert np.abs(noisy).max() >= 0.999
    speech = from_int16(loud.audio[0]).astype(np.float64)
    share = noisy @ speech / (speech @ speech)  # scaled down as a whole
    ratio = active_power(share * speech) / np.square(noisy - share * speech).mean()
    assert share < 0.6
    assert 10 * np.log10(ratio) == pytest.approx(0, abs=0.3)


def test_gain_beyond_full_scale_is_clipped_not_wrapped():
    degrader = corpus()
    louder = degrader.corpus([0], Condition(ConditionKind.GAIN, 20))[0].astype(int)
    assert louder.max() == 32767
    assert louder.min() == -32768
    assert np.array_equal(np.sign(louder), np.sign(degrader.audio[0]))


# --- The user's recordings ---


@pytest.fixture
def noise(tmp_path) -> Path:
    folder = tmp_path / "noise"
    (folder / "deep").mkdir(parents=True)
    time = np.arange(48_000) / 48_000
    hum = np.stack([np.sin(2 * np.pi * 300 * time), np.zeros(48_000)], axis=1)
    soundfile.write(folder / "deep" / "hum.flac", 0.1 * hum, 48_000)
    silence_then_click = np.zeros(80_000)
    silence_then_click[79_000:] = 0.5
    soundfile.write(folder / "click.wav", silence_then_click, 16_000)
    (folder / "readme.txt").write_text("not audio")
    return folder


def test_own_noise_is_found_in_sub_folders_and_never_silent(noise, tmp_path):
    sounds = Sounds.load([NOISE], noise, None, str(tmp_path / "cache"))
    assert sounds.left_out == ()
    base = corpus()
    degrader = Degrader(base.manifest, base.audio, sounds)
    hums = 0
    for row in range(20):
        speech = from_int16(base.audio[row])
        added = degrader.utterance(row, NOISE) - speech
        assert 10 * np.log10(active_power(speech) / np.square(added, dtype=np.float64).mean()) == pytest.approx(
            10, abs=1e-2
        )
        hums += np.abs(np.fft.rfft(added)).argmax() == 75  # 300 Hz, resampled from 48 kHz
    assert 0 < hums < 20


def test_other_noise_has_another_fingerprint(noise, tmp_path):
    base, cache = corpus(), str(tmp_path / "cache")
    before = Degrader(base.manifest, base.audio, Sounds.load([NOISE], noise, None, cache)).fingerprint(NOISE)
    assert before == Degrader(base.manifest, base.audio, Sounds.load([NOISE], noise, None, cache)).fingerprint(NOISE)
    (noise / "click.wav").unlink()
    assert before != Degrader(base.manifest, base.audio, Sounds.load([NOISE], noise, None, cache)).fingerprint(NOISE)
    assert Degrader(base.manifest, base.audio, seed=1).fingerprint(WHITE) != Degrader(
        base.manifest, base.audio
    ).fingerprint(WHITE)


def test_own_rooms_are_used_and_unusable_ones_named(tmp_path):
    response = np.zeros(500)
    response[[100, 300]] = 0.01, 0.005
    soundfile.write(tmp_path / "room.wav", response, 16_000, subtype="FLOAT")
    soundfile.write(tmp_path / "silent.wav", np.zeros(500), 16_000)
    sounds = Sounds.load([ROOM], None, tmp_path)
    assert len(sounds.rooms) == 1
    assert "silent.wav: silent" in sounds.left_out[0]
    base = corpus()
    speech = from_int16(base.audio[0])
    echoed = speech.copy()
    echoed[200:] += 0.5 * speech[:-200]
    echoed *= np.sqrt(np.square(speech).sum() / np.square(echoed).sum())
    assert np.allclose(Degrader(base.manifest, base.audio, sounds).utterance(0, ROOM), echoed, atol=1e-5)


@pytest.mark.parametrize(
    ("conditions", "noise_folder", "rooms_folder", "message"),
    [
        ([NOISE], None, None, "the condition noise needs recordings; name their folder with --noise DIR"),
        ([ROOM], None, None, "the condition room needs recordings; name their folder with --rooms DIR"),
        ([WHITE], ".", None, "--noise is given, but no condition uses it; add --condition noise:20,10,0"),
        ([NOISE], "nowhere", None, "nowhere is missing; name a folder"),
        ([NOISE], "empty", None, "there is no recording in .*empty"),
        ([NOISE], "broken", None, "no recording in .*broken can be used"),
        ([ROOM], None, "broken", "no impulse response in .*broken can be used"),
    ],
)
def test_recordings_that_are_missing_or_superfluous_are_told_at_once(
    tmp_path, conditions, noise_folder, rooms_folder, message
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.wav").write_bytes(b"no audio")
    folders = [None if name is None else tmp_path / name for name in (noise_folder, rooms_folder)]
    with pytest.raises(DegradationError, match=message):
        Sounds.load(conditions, *folders, str(tmp_path / "cache"))


def test_a_missing_codec_is_told_before_anything_is_judged(monkeypatch):
    def refuse(*args, **kwargs):
        raise soundfile.LibsndfileError(0, "Unsupported encoding: ")

    monkeypatch.setattr(soundfile, "write", refuse)
    with pytest.raises(DegradationError, match="cannot write and read OPUS"):
        Sounds.load([Condition(ConditionKind.OPUS, 16)], None, None)
