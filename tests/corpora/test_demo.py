"""The synthesised corpus: what it holds, that it is the same each time, and how it fails."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("espeakng_loader")

from jax_mtlser.config import DemoConfig
from jax_mtlser.corpora import demo
from jax_mtlser.corpora.demo import make_demo_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError

SMALL = DemoConfig(sentences_per_style=1)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return make_demo_corpus(tmp_path_factory.mktemp("demo"), SMALL)


def recordings(manifest: Manifest) -> dict[str, str]:
    return {u.id: hashlib.sha256(u.path.read_bytes()).hexdigest() for u in manifest.utterances}


def samples(path: Path) -> np.ndarray:
    return soundfile.read(path, dtype="float64")[0]


def fundamental_hz(path: Path) -> float:
    """Median over the loud frames of the autocorrelation's highest peak between 70 and 350 Hz."""
    frames = np.lib.stride_tricks.sliding_window_view(samples(path), 640)[::320]
    frames = frames[np.mean(frames**2, axis=1) > 0.1 * np.mean(frames**2, axis=1).max()] * np.hanning(640)
    correlation = np.fft.irfft(np.abs(np.fft.rfft(frames, 2048)) ** 2)[:, :640]
    correlation /= np.fft.irfft(np.abs(np.fft.rfft(np.hanning(640), 2048)) ** 2)[:640] + 1.0
    low, high = 16_000 // 350, 16_000 // 70
    return 16_000 / float(np.median(low + correlation[:, low:high].argmax(axis=1)))


def test_every_voice_speaks_its_sentence_in_every_style(corpus: Manifest) -> None:
    assert corpus.name == "demo"
    assert len(corpus) == 40
    assert corpus.counts("emotion") == dict.fromkeys(("angry", "happy", "neutral", "sad"), 10)
    assert corpus.counts("gender") == {"female": 20, "male": 20}
    assert sorted(corpus.counts("speaker")) == ["F1", "F2", "F3", "F4", "F5", "M1", "M2", "M3", "M4", "M5"]
    for speaker in corpus.counts("speaker"):
        own = [u for u in corpus.utterances if u.speaker == speaker]
        assert len({(u.text, u.column("sentence_id")) for u in own}) == 1
    for session in ("S1", "S2", "S3", "S4", "S5"):
        speakers = {u.speaker for u in corpus.utterances if u.column("session") == session}
        assert speakers == {f"F{session[1]}", f"M{session[1]}"}


def test_recordings_are_short_16_khz_mono_without_clipping_or_digital_silence(corpus: Manifest) -> None:
    for utterance in corpus.utterances:
        info = soundfile.info(utterance.path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        assert 0.5 < info.duration < 4
        wave = samples(utterance.path)
        assert 0.03 < np.abs(wave).max() < 1
        noise_db = 10 * np.log10(np.mean(wave[:480] ** 2) / np.mean(wave**2))
        assert -40 < noise_db < -20


def test_styles_and_voices_can_be_heard(corpus: Manifest) -> None:
    def mean(measure, **labels: str) -> float:
        chosen = [u for u in corpus.utterances if all(u.column(k) == v for k, v in labels.items())]
        return float(np.mean([measure(u.path) for u in chosen]))

    duration = lambda path: soundfile.info(path).duration
    for speaker in corpus.counts("speaker"):
        assert mean(duration, speaker=speaker, emotion="sad") > 1.15 * mean(duration, speaker=speaker, emotion="angry")
    assert mean(fundamental_hz, emotion="happy") > 1.15 * mean(fundamental_hz, emotion="sad")
    assert mean(fundamental_hz, gender="female") > 1.4 * mean(fundamental_hz, gender="male")


def test_words_are_few_and_sentences_vary() -> None:
    plan = demo._plan(DemoConfig(sentences_per_style=20))
    words = {word for spoken in plan for word in spoken.text.split()}
    assert 20 <= len(words) <= 35
    assert {len(spoken.text.split()) for spoken in plan} == {3, 4, 5}
    assert len({spoken.text for spoken in plan}) > 100
    assert len({spoken.id for spoken in plan}) == len(plan) == 800


def test_same_settings_give_the_same_bits_in_this_and_in_a_fresh_process(corpus: Manifest, tmp_path: Path) -> None:
    expected = recordings(corpus)
    assert recordings(make_demo_corpus(tmp_path / "again", SMALL)) == expected
    code = (
        "import pathlib, sys; from jax_mtlser.config import DemoConfig; "
        "from jax_mtlser.corpora.demo import make_demo_corpus; "
        "make_demo_corpus(pathlib.Path(sys.argv[1]), DemoConfig(sentences_per_style=1))"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "fresh")], check=True)
    assert recordings(make_demo_corpus(tmp_path / "fresh", SMALL)) == expected


def test_a_complete_corpus_is_read_and_an_unfinished_one_made_anew(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        assert total == 40
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_demo_corpus(tmp_path, SMALL, progress=stop)
    assert not (tmp_path / "manifest.csv").exists()

    steps: list[tuple[int, int]] = []
    count = lambda done, total: steps.append((done, total))
    made = make_demo_corpus(tmp_path, SMALL, progress=count)
    assert steps == [(done, 40) for done in range(1, 41)]
    assert make_demo_corpus(tmp_path, SMALL, progress=count) == made
    assert len(steps) == 40

    made.utterances[0].path.unlink()
    assert recordings(make_demo_corpus(tmp_path, SMALL)).keys() == recordings(made).keys()


def test_other_settings_replace_the_recordings(tmp_path: Path) -> None:
    first = make_demo_corpus(tmp_path, SMALL)
    before = recordings(first)
    second = make_demo_corpus(tmp_path, DemoConfig(sentences_per_style=1, seed=1))
    assert set(recordings(second).values()).isdisjoint(before.values())
    assert {path.stem for path in (tmp_path / "wav").iterdir()} == {u.id for u in second.utterances}


def test_a_table_of_the_user_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("path,emotion\na.wav,happy\n")
    with pytest.raises(ManifestError, match=r"not a demo corpus.*--config\.corpus\.path"):
        make_demo_corpus(tmp_path, SMALL)
    assert (tmp_path / "manifest.csv").read_text().startswith("path,emotion")
    assert not (tmp_path / "wav").exists()


def test_recordings_of_the_user_stay(tmp_path: Path) -> None:
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav" / "F1_mine.wav").write_bytes(b"mine")
    make_demo_corpus(tmp_path, SMALL)
    assert (tmp_path / "wav" / "F1_mine.wav").read_bytes() == b"mine"


def test_without_the_extra_the_message_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ManifestError, match=r'needs espeak-ng; install.*"jax-mtlser\[demo\]"'):
        make_demo_corpus(tmp_path / "demo", SMALL)
    assert not (tmp_path / "demo").exists()


def test_espeak_that_does_not_start_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("espeakng_loader.get_data_path", lambda: str(tmp_path / "nothing"))
    with pytest.raises(ManifestError, match=r"did not start.*nothing"):
        make_demo_corpus(tmp_path / "demo", SMALL)
    monkeypatch.setattr("espeakng_loader.get_library_path", lambda: str(tmp_path / "nothing.so"))
    with pytest.raises(ManifestError, match=r"cannot be loaded.*nothing\.so"):
        make_demo_corpus(tmp_path / "demo", SMALL)


def test_an_error_inside_the_synthesis_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise MemoryError("no room for samples")

    monkeypatch.setattr(np.ctypeslib, "as_array", fail)
    with pytest.raises(MemoryError, match="no room"):
        make_demo_corpus(tmp_path, SMALL)
    assert not (tmp_path / "manifest.csv").exists()


def test_more_sentences_than_the_grammar_has_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"sentences_per_style is 100000, but .* has 2910 sentences"):
        make_demo_corpus(tmp_path, DemoConfig(sentences_per_style=100_000))
