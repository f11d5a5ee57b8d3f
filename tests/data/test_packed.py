import csv
import errno
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile

from jax_mtlser.config import AudioConfig
from jax_mtlser.corpora.manifest import Manifest, Utterance, read_manifest
from jax_mtlser.data import packed as packed_module
from jax_mtlser.data.audio import SAMPLE_RATE, AudioError
from jax_mtlser.data.packed import Skipped, pack, write_skipped

REAL_DATA = os.environ.get("MTLSER_REAL_DATA", "")


def manifest_of(*rows):
    """Rows are paths or (path, start, end)."""
    rows = [row if isinstance(row, tuple) else (row, 0.0, None) for row in rows]
    return Manifest(
        "test", tuple(Utterance(id=f"u{i}", path=path, start=s, end=e) for i, (path, s, e) in enumerate(rows))
    )


def tone(path, seconds=0.5, rate=SAMPLE_RATE, level=0.5, **kwargs):
    samples = level * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate)
    soundfile.write(path, samples, rate, **kwargs)
    return path


@pytest.fixture
def config(tmp_path):
    return AudioConfig(cache_dir=str(tmp_path / "cache"))


@pytest.fixture
def decoded(monkeypatch):
    """Paths that were decoded, in any order."""
    seen = []
    original = packed_module.decode
    monkeypatch.setattr(packed_module, "decode", lambda path, *a, **k: seen.append(path) or original(path, *a, **k))
    return seen


def entries(config):
    return sorted(Path(config.cache_dir).iterdir())


def test_rows_come_in_manifest_order(tmp_path, config):
    noise = np.random.default_rng(0)
    codes = [noise.integers(-32768, 32768, noise.integers(2000, 20000), dtype=np.int16) for _ in range(40)]
    paths = [tmp_path / f"{i}.{'flac' if i % 2 else 'wav'}" for i in range(40)]
    for path, values in zip(paths, codes, strict=True):
        soundfile.write(path, values, SAMPLE_RATE)
    calls = []
    kept, audio, skipped = pack(manifest_of(*paths), config, progress=lambda done, total: calls.append((done, total)))
    assert not skipped
    assert [u.path for u in kept.utterances] == paths
    assert len(audio) == len(kept) == 40
    assert calls == [(i, 40) for i in range(1, 41)]
    assert isinstance(audio.samples, np.memmap)
    assert audio.samples.dtype == np.int16
    assert audio.offsets.dtype == audio.lengths.dtype == np.int64
    assert audio.lengths.tolist() == [len(values) for values in codes]
    for row, values in enumerate(codes):
        np.testing.assert_array_equal(audio[row], values)
    np.testing.assert_array_equal(audio[-1], codes[-1])
    with pytest.raises(IndexError):
        audio[40]
    with pytest.raises(ValueError, match="read-only"):
        audio[0][0] = 1


def test_loud_floats_are_clipped_not_wrapped(tmp_path, config):
    soundfile.write(tmp_path / "a.wav", np.tile([1.5, -1.5, 1.0, -1.0], 1000), SAMPLE_RATE, subtype="FLOAT")
    _, audio, _ = pack(manifest_of(tmp_path / "a.wav"), config)
    assert audio[0][:4].tolist() == [32767, -32768, 32767, -32768]


def test_unusable_rows_are_listed_with_value_and_limit(tmp_path, config):
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty.wav").touch()
    noise = np.random.default_rng(0).normal(0, 0.1, 40000)
    soundfile.write(tmp_path / "cut.flac", noise, SAMPLE_RATE)
    (tmp_path / "cut.flac").write_bytes((tmp_path / "cut.flac").read_bytes()[:20000])
    soundfile.write(tmp_path / "zeros.wav", np.zeros(8000), SAMPLE_RATE)
    soundfile.write(tmp_path / "nothing.wav", np.zeros(0), SAMPLE_RATE)
    good = tone(tmp_path / "good.wav")
    expected = {
        tmp_path / "gone.wav": "the file does not exist",
        tmp_path / "text.wav": "unreadable audio: Format not recognised",
        tmp_path / "empty.wav": "unreadable audio: Format not recognised",
        tmp_path / "cut.flac": "unreadable audio: Error : flac decoder lost sync",
        tmp_path / "zeros.wav": "silent: every sample is 0, below the limit of -60 dBFS",
        tmp_path / "nothing.wav": "empty: 0 samples",
        tone(tmp_path / "quiet.wav", level=1e-4, subtype="FLOAT"): (
            "silent: the peak is -80.0 dBFS, below the limit of -60 dBFS"
        ),
        tone(tmp_path / "short.wav", 0.05): "too short: 0.05 s, below the limit of 0.1 s",
        tone(tmp_path / "long.wav", 36, 8000): "too long: 36 s, above the limit of 35 s",
    }
    kept, audio, skipped = pack(manifest_of(good, *expected, good), config)
    assert [u.id for u in kept.utterances] == ["u0", "u10"]
    assert len(audio) == 2
    assert {item.path: item.reason for item in skipped} == expected
    assert [item.id for item in skipped] == [f"u{i}" for i in range(1, 10)]
    assert pack(manifest_of(good, *expected, good), config)[2] == skipped  # the same from the cache


def test_limits_are_inclusive(tmp_path):
    limits = AudioConfig(min_seconds=0.5, max_seconds=1.0, cache_dir=str(tmp_path / "cache"))
    paths = [tone(tmp_path / f"{s}.wav", s, 44_100) for s in (0.5, 1.0, 0.49, 1.01)]
    kept, _, _ = pack(manifest_of(*paths), limits)
    assert [u.path for u in kept.utterances] == paths[:2]


def test_segments_of_one_file(tmp_path, config):
    codes = np.random.default_rng(0).integers(-20000, 20000, 3 * SAMPLE_RATE, dtype=np.int16)
    soundfile.write(tmp_path / "dialogue.wav", codes, SAMPLE_RATE)
    path = tmp_path / "dialogue.wav"
    rows = manifest_of((path, 1.0, 2.0), (path, 0.0, 0.5), (path, 2.5, None), (path, 2.0, 9.0))
    _, audio, skipped = pack(rows, config)
    np.testing.assert_array_equal(audio.samples, np.concatenate([codes[16000:32000], codes[:8000], codes[40000:]]))
    assert [item.reason for item in skipped] == ["segment outside the file: 2 s to 9 s, but the file lasts 3 s"]


def test_second_call_only_maps_whatever_the_names(tmp_path, config, decoded):
    paths = [tone(tmp_path / f"{i}.wav", 0.2 + i / 10) for i in range(3)]
    _, first, _ = pack(manifest_of(*paths), config)
    assert sorted(decoded) == paths
    decoded.clear()
    moved = [path.rename(tmp_path / f"moved {path.name}") for path in paths]
    kept, second, _ = pack(manifest_of(*moved), config, progress=lambda *_: pytest.fail("decoded again"))
    assert decoded == []
    assert [u.path for u in kept.utterances] == moved
    np.testing.assert_array_equal(first.samples, second.samples)
    assert len(entries(config)) == 1


def test_what_makes_a_new_entry(tmp_path, config):
    path = tone(tmp_path / "a.wav")
    other = tone(tmp_path / "b.wav", 0.4)
    pack(manifest_of(path, other), config)
    pack(manifest_of(other, path), config)
    pack(manifest_of(path, (other, 0.1, None)), config)
    pack(manifest_of(path, other), AudioConfig(min_seconds=0.2, cache_dir=config.cache_dir))
    assert len(entries(config)) == 4
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    _, audio, _ = pack(manifest_of(path, other), config)
    assert len(entries(config)) == 5
    np.testing.assert_array_equal(audio[0], soundfile.read(path, dtype="int16")[0])


def test_a_file_that_appears_is_seen(tmp_path, config):
    rows = manifest_of(tone(tmp_path / "a.wav"), tmp_path / "b.wav")
    assert len(pack(rows, config)[2]) == 1
    tone(tmp_path / "b.wav")
    assert pack(rows, config)[2] == ()


def test_each_file_is_hashed_once(tmp_path, config, monkeypatch):
    seen = []
    original = packed_module._file_digest
    monkeypatch.setattr(packed_module, "_file_digest", lambda path: seen.append(path) or original(path))
    path = tone(tmp_path / "a.wav")
    pack(manifest_of((path, 0.0, 0.2), (path, 0.2, 0.4), tone(tmp_path / "b.wav")), config)
    assert sorted(seen) == [path, tmp_path / "b.wav"]


def test_a_crash_leaves_nothing_that_counts(tmp_path, config, decoded):
    rows = manifest_of(*(tone(tmp_path / f"{i}.wav") for i in range(5)))

    def crash(done, _):
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(rows, config, progress=crash)
    assert entries(config) == []
    # What kill -9 leaves is not taken for an entry either.
    (Path(config.cache_dir) / "partial-x").mkdir()
    assert len(pack(rows, config)[1]) == 5


@pytest.mark.parametrize("name", ["samples.int16", "offsets.npy", "rows.json"])
@pytest.mark.parametrize("damage", [os.unlink, lambda path: path.write_bytes(path.read_bytes()[:-4])])
def test_damaged_entry_is_replaced(tmp_path, config, name, damage):
    rows = manifest_of(tone(tmp_path / "a.wav"), tone(tmp_path / "b.wav"))
    expected = np.array(pack(rows, config)[1].samples)
    (entry,) = entries(config)
    damage(entry / name)
    np.testing.assert_array_equal(pack(rows, config)[1].samples, expected)
    assert entries(config) == [entry]


def test_two_at_once(tmp_path, config):
    rows = manifest_of(*(tone(tmp_path / f"{i}.wav", 0.1 + i / 50) for i in range(20)))
    barrier, results, errors = threading.Barrier(3), [], []

    def attempt():
        waited = False

        def wait(*_):
            nonlocal waited
            if not waited:  # all are past the look-up before any of them is done
                barrier.wait(10)
                waited = True

        try:
            results.append(pack(rows, config, progress=wait)[1])
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(entries(config)) == 1
    for audio in results:
        np.testing.assert_array_equal(audio.samples, results[0].samples)


def test_nothing_usable(tmp_path, config):
    paths = [tmp_path / f"{i}.wav" for i in range(5)]
    for path in paths[2:]:
        soundfile.write(path, np.zeros(8000), SAMPLE_RATE)
    with pytest.raises(
        AudioError, match=r"none of the 5 utterances of test can be used \(3 x silent: .*2 x the file does"
    ):
        pack(manifest_of(*paths), config)
    assert entries(config) == []


def test_no_utterances(config):
    with pytest.raises(AudioError, match="no utterances"):
        pack(manifest_of(), config)


def test_cache_that_cannot_be_made(tmp_path):
    (tmp_path / "file").touch()
    rows = manifest_of(tone(tmp_path / "a.wav"))
    with pytest.raises(AudioError, match=r"/file/cache: Not a directory; .*--config\.audio\.cache_dir"):
        pack(rows, AudioConfig(cache_dir=str(tmp_path / "file" / "cache")))


def test_full_disk(tmp_path, config, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(packed_module, "_flush", full)
    with pytest.raises(AudioError, match=r"cache: No space left on device; .*--config\.audio\.cache_dir"):
        pack(manifest_of(tone(tmp_path / "a.wav")), config)
    assert entries(config) == []


def test_default_place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    pack(manifest_of(tone(tmp_path / "a.wav")), AudioConfig())
    assert len(list((tmp_path / "xdg" / "jax_mtlser" / "audio").iterdir())) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    pack(manifest_of(tmp_path / "a.wav"), AudioConfig())
    assert len(list((tmp_path / "home" / ".cache" / "jax_mtlser" / "audio").iterdir())) == 1


def test_write_skipped(tmp_path):
    items = [Skipped("a, b", Path("x/ż.wav"), 'too "short": 0.01 s'), Skipped("c", Path("y.wav"), "gone")]
    write_skipped(items, tmp_path / "skipped.csv")
    with (tmp_path / "skipped.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    assert rows == [["id", "path", "reason"], ["a, b", "x/ż.wav", 'too "short": 0.01 s'], ["c", "y.wav", "gone"]]


@pytest.mark.skipif(not REAL_DATA, reason="MTLSER_REAL_DATA does not name a folder that holds nemo16k")
def test_real_recordings(config):
    manifest = read_manifest(Path(REAL_DATA) / "nemo16k")
    kept, audio, skipped = pack(manifest, config)
    assert len(kept) == len(audio) == 2357
    assert skipped == ()
    for row in range(0, len(kept), 59):
        samples, rate = soundfile.read(kept.utterances[row].path, dtype="int16")
        assert rate == SAMPLE_RATE
        np.testing.assert_array_equal(audio[row], samples)
