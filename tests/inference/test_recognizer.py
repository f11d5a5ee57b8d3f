"""A trained run asked from Python: the training's own numbers, in any company."""

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

import jax_mtlser
from jax_mtlser.config import Precision
from jax_mtlser.data.audio import AudioError
from jax_mtlser.data.batch_plan import Buckets
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.inference.ensemble import Ensemble
from jax_mtlser.inference.hearing import Windows, WindowsError
from jax_mtlser.inference.recognition import Asked, Recognition
from jax_mtlser.inference.recognizer import UNKNOWN, Answer, Checkpoint, Recognizer, Segment
from jax_mtlser.inference.trained_model import ModelError, TrainedModel
from jax_mtlser.run_folder import RunFolder, read_json, write_json

SAME = 1e-5


def noise(seconds: float, seed: int, rate: int = 16_000) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def numbers(said: Recognition) -> np.ndarray:
    return np.array([*said.probabilities.values(), *said.gender_probabilities.values()])


@pytest.mark.parametrize("member", ["r0_f0", "r0_f1"])
def test_same_probabilities_as_the_evaluation_in_training(run, corpus, member):
    rows = read_predictions(RunFolder(run).member(member).predictions)
    recognizer = Recognizer.load(run, member)
    answers = recognizer([corpus / "wav" / f"{row.id}.wav" for row in rows], speaker=True, transcript=True)
    assert len(answers) > 10
    for row, said in zip(rows, answers, strict=True):
        np.testing.assert_allclose(
            numbers(said), [*row.emotion_probabilities, *row.gender_probabilities], rtol=0, atol=SAME
        )
        assert said.speaker == row.speaker_predicted
        assert said.transcript == row.text_predicted
        assert (said.emotion, said.gender) == (row.emotion_predicted, row.gender_predicted)


def test_an_answer_does_not_depend_on_its_company(run, recognizer):
    sources = [(noise(seconds, number), 16_000) for number, seconds in enumerate(np.linspace(0.1, 1.5, 17))]
    alone = [recognizer(source, embedding=True) for source in sources]
    for seed, batch_seconds in enumerate((4.0, 32.0)):
        other = Recognizer.load(run, "r0_f0", batch_seconds=batch_seconds)
        order = random.Random(seed).sample(range(len(sources)), len(sources))
        together = other([sources[i] for i in order], embedding=True)
        for i, said in zip(order, together, strict=True):
            np.testing.assert_allclose(numbers(said), numbers(alone[i]), rtol=0, atol=SAME)
            np.testing.assert_allclose(said.embedding, alone[i].embedding, rtol=0, atol=SAME)


def test_where_padding_counts_company_does_not_change_it(run, monkeypatch):
    (member,) = Recognizer.load(run, "r0_f0").members
    options = dataclasses.replace(member.model.options, hf_compat=True)
    member = dataclasses.replace(member, model=member.model.clone(options=options))
    ensemble = Ensemble([member], calibrated=False, dtype=np.float32, batch_seconds=4.0)
    clip = (3e4 * noise(0.5, 0)).astype(np.int16)
    longer = [(3e4 * noise(1.4, number)).astype(np.int16) for number in (1, 2)]

    def said(*others: np.ndarray) -> np.ndarray:
        return ensemble.scores([clip, clip, *others], Asked(embedding=True))[0].embedding

    alone = said()
    np.testing.assert_allclose(said(*longer), alone, rtol=0, atol=1e-6)
    # Otherwise the clips would have joined the others, and been padded as far.
    monkeypatch.setattr("jax_mtlser.inference.ensemble.Buckets", lambda *values: Buckets(*values[:4]))
    assert np.abs(said(*longer) - alone).max() > 1e-3


def test_lengths_and_numbers_of_recordings_compile_a_bounded_number_of_programs(run):
    recognizer = Recognizer.load(run, "r0_f1", batch_seconds=4.0)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        for number in range(1, 40):
            recognizer([(noise(seconds, number), 16_000) for seconds in np.linspace(0.1, 1.5, number)])
    finally:
        jax.monitoring.clear_event_listeners()
    # Two lengths (1 and 1.5 s), and batches of one or of many.
    assert 2 <= len(compiled) <= 4


def test_a_path_and_an_array_are_heard_alike(recognizer, tmp_path):
    stereo = np.stack([noise(0.7, 0, 44_100), noise(0.7, 1, 44_100)], axis=1)
    codes = np.rint(stereo * 32767).astype(np.int16)
    soundfile.write(tmp_path / "a.wav", codes, 44_100)
    from_file = recognizer(tmp_path / "a.wav")
    for array in (codes, codes.astype(np.int32) * 2**16, codes / 32768):
        said = recognizer((array, 44_100))
        assert numbers(said).tolist() == numbers(from_file).tolist()
        assert (said.start, said.end) == (0.0, 0.7)
    mono = recognizer((codes.astype(np.float64).mean(axis=1) / 32768, 44_100))
    np.testing.assert_allclose(numbers(mono), numbers(from_file), rtol=0, atol=SAME)


@pytest.mark.parametrize(
    ("array", "rate", "message"),
    [
        (np.zeros((2, 16_000)), 16_000, r"shape \[2, 16000\]; give \[frames\] or \[frames, channels\]"),
        (np.zeros(16_000, np.uint8), 16_000, "array of uint8"),
        (np.zeros(16_000), 16_000, "silent: every sample is 0"),
        (np.zeros(0), 16_000, "empty"),
        (np.full(16_000, np.nan), 16_000, "16000 of 16000 samples are NaN"),
        (np.ones(16_000), 10, "sampling rate of 10 Hz; audio has 1000 to"),
        (np.ones(800), 16_000, "too short: 0.05 s, below the limit of 0.1 s"),
    ],
)
def test_arrays_that_cannot_be_used_say_why(recognizer, array, rate, message):
    with pytest.raises(AudioError, match=message):
        recognizer((array, rate))


def test_in_a_list_the_bad_one_is_named_and_each_goes_on(recognizer, corpus, tmp_path):
    good, bad = corpus / "wav" / "tone00.wav", tmp_path / "none.wav"
    with pytest.raises(AudioError, match=r"none\.wav: the file does not exist"):
        recognizer([good, bad, good])
    answers = list(recognizer.each([good, bad, good]))
    assert [type(answer) for answer in answers] == [Recognition, AudioError, Recognition]
    assert recognizer([]) == []


def test_an_ensemble_is_the_mean_of_its_members(run, corpus):
    paths = sorted((corpus / "wav").iterdir())[:5]
    each = [np.stack([numbers(said) for said in Recognizer.load(run, name)(paths)]) for name in ("r0_f0", "r0_f1")]
    assert np.abs(each[0] - each[1]).max() > 1e-3, "members that agree prove nothing"
    for members in ("all", ["r0_f1", "r0_f0"]):
        together = np.stack([numbers(said) for said in Recognizer.load(run, members)(paths)])
        np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=0, atol=1e-6)
    transcripts = Recognizer.load(run, "all")(paths, transcript=True, speaker=True)
    assert all(said.transcript is not None and said.speaker for said in transcripts)


def test_temperatures_are_applied_by_default_and_said(run, calibrated_run, corpus):
    path = corpus / "wav" / "tone00.wav"
    plain = Recognizer.load(run, "r0_f0")(path)
    assert not plain.calibrated
    calibrated = Recognizer.load(calibrated_run, "r0_f0")
    said = calibrated(path)
    logits = np.log(list(plain.probabilities.values())) / 0.25
    expected = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose(list(said.probabilities.values()), expected, rtol=0, atol=SAME)
    assert said.gender_probabilities == pytest.approx(plain.gender_probabilities, abs=SAME)
    assert said.calibrated
    assert calibrated.calibration == "emotion probabilities are calibrated (temperature: r0_f0 0.25)"
    raw = Recognizer.load(calibrated_run, "r0_f0", calibrated=False)
    assert numbers(raw(path)).tolist() == numbers(plain).tolist()
    assert "not calibrated, as asked" in raw.calibration
    each = [Recognizer.load(calibrated_run, name)(path).probabilities["sad"] for name in ("r0_f0", "r0_f1")]
    both = Recognizer.load(calibrated_run, "all")(path).probabilities["sad"]
    assert both == pytest.approx(sum(each) / 2, abs=1e-6)


@pytest.mark.parametrize("calibration", [None, {"temperature": None}])
def test_a_run_without_a_temperature_says_so(calibrated_run, corpus, calibration):
    result = RunFolder(calibrated_run).member("r0_f0").result
    write_json(result, read_json(result) | {"calibration": calibration})
    assert "not calibrated: the run holds no temperature" in Recognizer.load(calibrated_run, "r0_f0").calibration
    both = Recognizer.load(calibrated_run, "all")
    assert not both(corpus / "wav" / "tone00.wav").calibrated
    assert "calibrated in part (temperature: r0_f0 none, r0_f1 2)" in both.calibration


@pytest.mark.parametrize("temperature", [0, -1.0, "warm"])
def test_a_temperature_that_is_none_is_refused(calibrated_run, temperature):
    result = RunFolder(calibrated_run).member("r0_f0").result
    write_json(result, read_json(result) | {"calibration": {"temperature": temperature}})
    with pytest.raises(ModelError, match=r"calibration\.temperature is .*greater than 0"):
        Recognizer.load(calibrated_run, "r0_f0")


def test_low_confidence_is_called_unknown(run, corpus):
    path = corpus / "wav" / "tone00.wav"
    plain = Recognizer.load(run, "r0_f0")(path)
    above = Recognizer.load(run, "r0_f0", unknown_below=plain.confidence + 1e-3)(path)
    assert (above.emotion, above.confidence) == (UNKNOWN, plain.confidence)
    assert above.probabilities == plain.probabilities
    assert Recognizer.load(run, "r0_f0", unknown_below=plain.confidence - 1e-3)(path).emotion == plain.emotion
    for threshold in (0.0, 1.5):
        with pytest.raises(ModelError, match="a probability from 0"):
            Recognizer.load(run, "r0_f0", unknown_below=threshold)


def test_a_long_recording_is_the_mean_of_equal_parts(recognizer):
    samples = np.concatenate([noise(1.4, 0), noise(1.4, 1) * 0.2, noise(1.4, 2)])
    said = recognizer((samples, 16_000), embedding=True)
    parts = recognizer([(part, 16_000) for part in np.split(samples, 3)], embedding=True)
    assert (said.parts, said.start, said.end) == (3, 0.0, 4.2)
    np.testing.assert_allclose(numbers(said), np.mean([numbers(part) for part in parts], axis=0), atol=1e-6)
    np.testing.assert_allclose(said.embedding, np.mean([part.embedding for part in parts], axis=0), atol=1e-5)
    # A silent part says nothing.
    samples[: len(samples) // 3] = 0
    expected = np.mean([numbers(part) for part in parts[1:]], axis=0)
    np.testing.assert_allclose(numbers(recognizer((samples, 16_000))), expected, atol=1e-6)


def test_a_timeline_is_made_of_segments(recognizer, tmp_path):
    soundfile.write(tmp_path / "a.flac", noise(5.0, 3, 44_100), 44_100)
    windows = Windows(seconds=1.0, hop=0.3, smooth=1)
    timeline = [answer.recognition for answer in recognizer.timeline(tmp_path / "a.flac", windows)]
    starts = [said.start for said in timeline]
    assert starts[:4] == pytest.approx([0.0, 0.3, 0.6, 0.9], abs=1e-4)
    assert starts[-1] == 4.0
    segments = [Segment(tmp_path / "a.flac", said.start, said.end) for said in timeline]
    alone = [event.recognition for event in recognizer.stream(segments) if isinstance(event, Answer)]
    for one, other in zip(timeline, alone, strict=True):
        np.testing.assert_allclose(numbers(one), numbers(other), rtol=0, atol=SAME)
    smooth = recognizer.timeline(tmp_path / "a.flac", dataclasses.replace(windows, smooth=3))
    np.testing.assert_allclose(
        numbers(smooth[1].recognition), np.mean([numbers(said) for said in timeline[:3]], axis=0), atol=1e-6
    )


def test_silence_in_a_timeline_is_told_and_not_averaged(recognizer):
    samples = np.concatenate([noise(2.0, 0), np.zeros(32_000, np.float32), noise(2.0, 1)])
    windows = Windows(seconds=1.0, hop=1.0, smooth=3)
    answers = recognizer.timeline((samples, 16_000), windows)
    silent = [isinstance(answer.recognition, str) for answer in answers]
    assert silent == [False, False, True, True, False, False]
    alone = [numbers(recognizer((samples[i * 16_000 : (i + 1) * 16_000], 16_000))) for i in (0, 1)]
    np.testing.assert_allclose(numbers(answers[1].recognition), np.mean(alone, axis=0), atol=1e-6)
    with pytest.raises(AudioError, match="silent"):
        recognizer.timeline((samples * 0, 16_000), windows)
    with pytest.raises(WindowsError, match=r"window is 3 s; the model was trained on 0\.1 to 1\.5 s"):
        recognizer.timeline((samples, 16_000), Windows(seconds=3.0, hop=1.0))


def test_a_stream_that_goes_on_at_a_checkpoint_gives_the_same_bits(run):
    recognizer = Recognizer.load(run, "r0_f0", batch_seconds=0.3)
    segments = [Segment((noise(seconds, number), 16_000))
                for number, seconds in enumerate(np.random.default_rng(0).uniform(0.1, 7.0, 40))]  # fmt: skip
    for windows in (None, Windows(seconds=1.0, hop=0.5)):
        whole = list(recognizer.stream(segments, windows=windows))
        checkpoints = [event.recordings for event in whole if isinstance(event, Checkpoint)]
        assert checkpoints[-1] == len(segments)
        assert len(checkpoints) > 3
        for done in (checkpoints[0], checkpoints[2]):
            rest = [event for event in recognizer.stream(segments[done:], windows=windows) if isinstance(event, Answer)]
            expected = [event for event in whole if isinstance(event, Answer) and event.recording >= done]
            assert [dataclasses.replace(answer, recording=answer.recording + done) for answer in rest] == expected


def test_what_the_members_cannot_tell_is_refused(run):
    both = Recognizer.load(run, "all")
    with pytest.raises(ModelError, match="embeddings of different members"):
        both((noise(1.0, 0), 16_000), embedding=True)
    one, other = both.members

    def changed(member: TrainedModel, **description) -> TrainedModel:
        return dataclasses.replace(member, description=member.description | description)

    def ensemble(*members: TrainedModel) -> Ensemble:
        return Ensemble(members, calibrated=True, dtype=np.float32, batch_seconds=None)

    mute = ensemble(changed(one, untrained=["asr", "gender", "speaker"]))
    for asked in (Asked(speaker=True), Asked(transcript=True)):
        with pytest.raises(ModelError, match="has no trained"):
            mute.require(asked)
    assert mute.scores([np.ones(16_000, np.int16)], Asked())[0].gender is None
    labels = other.description["labels"]
    strangers = ensemble(one, changed(other, labels=labels | {"speaker": ["S0", "S1", "S9"]}))
    strangers.require(Asked())
    with pytest.raises(ModelError, match="different speakers"):
        strangers.require(Asked(speaker=True))
    with pytest.raises(ModelError, match="know different emotion classes"):
        ensemble(one, changed(other, labels=labels | {"emotion": ["sad", "angry"]}))
    symbols = other.description["vocabulary"] | {"symbols": ["<pad>", "<unk>", "|", "X", "Y"]}
    with pytest.raises(ModelError, match="write different symbols"):
        ensemble(one, changed(other, vocabulary=symbols)).require(Asked(transcript=True))
    older = dataclasses.replace(one, description={k: v for k, v in one.description.items() if k != "untrained"})
    with pytest.raises(ModelError, match="earlier version of jax_mtlser"):
        ensemble(older)


def test_where_models_are_looked_for(run, tmp_path, corpus):
    path = corpus / "wav" / "tone00.wav"
    expected = Recognizer.load(run, "r0_f1")(path)
    member = RunFolder(run).member("r0_f1")
    for folder in (member.path, member.model, str(member.model)):
        assert Recognizer.load(folder)(path) == expected
    moved = shutil.copytree(member.model, tmp_path / "elsewhere")
    assert Recognizer.load(moved)(path) == expected
    for folder, names, message in (
        (run, None, "2 finished members; choose with --member: r0_f0, r0_f1, or all"),
        (run, "r7_f0", "no finished member 'r7_f0'; there are r0_f0, r0_f1"),
        (tmp_path, None, "has no finished member; name the --workdir"),
    ):
        with pytest.raises(ModelError, match=message):
            Recognizer.load(folder, names)


def test_bfloat16_is_close(run, recognizer, corpus):
    path = corpus / "wav" / "tone00.wav"
    low = Recognizer.load(run, "r0_f0", precision=Precision.BFLOAT16)
    difference = np.abs(numbers(low(path)) - numbers(recognizer(path))).max()
    assert 0 < difference < 2e-2
    assert low.settings["dtype"] == "bfloat16"


def test_the_package_offers_it_without_loading_jax():
    assert jax_mtlser.Recognizer is Recognizer
    with pytest.raises(AttributeError, match="no attribute 'Recogniser'"):
        jax_mtlser.Recogniser  # noqa: B018
    code = "import sys, jax_mtlser; print('jax' in sys.modules)"
    root = Path(jax_mtlser.__file__).parents[1]
    shown = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"


def test_the_description_is_json(recognizer):
    assert json.loads(json.dumps(recognizer.settings)) == recognizer.settings
    assert len(recognizer.fingerprint) == 32
