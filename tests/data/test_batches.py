"""Batches: gathered or read, normalised as the reference does, prefetched in order."""

import threading
import time

import jax.numpy as jnp
import numpy as np
import pytest

from jax_mtlser.config import Residency
from jax_mtlser.data.batch_plan import FILL, PlannedBatch, make_buckets
from jax_mtlser.data.batches import BatchSource, gather, prefetch, waveform
from jax_mtlser.data.labels import Targets
from jax_mtlser.data.packed import PackedAudio

LENGTHS = np.array([700, 400, 1000, 650])


def source(residency: Residency) -> BatchSource:
    random = np.random.default_rng(0)
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    audio = PackedAudio(random.integers(-3000, 3000, offsets[-1]).astype(np.int16), offsets)
    rows = np.arange(4, dtype=np.int32)
    transcript = np.array([[1, 2, 3], [4, 0, 0], [5, 6, 0], [0, 0, 0]], np.int32)
    targets = Targets(rows, rows % 2, np.full(4, -1, np.int32), transcript, np.array([3, 1, 2, 0], np.int32))
    buckets = make_buckets(
        LENGTHS,
        targets.transcript_lengths,
        num_buckets=2,
        batch_size=3,
        batch_seconds=None,
        rows_multiple=1,
        multiple=50,
    )
    return BatchSource.create(audio, targets, buckets, residency)


def test_both_residencies_give_the_same_samples_and_zeros_behind_them():
    device, host = source(Residency.DEVICE), source(Residency.HOST)
    planned = PlannedBatch(len(device.buckets) - 1, np.array([2, 0, FILL]))
    one, other = device.get(planned), host.get(planned)
    assert one.audio is None
    assert other.offsets is None
    gathered = gather(
        jnp.asarray(device.resident_corpus()), one.offsets, one.lengths, device.buckets.bounds[planned.bucket]
    )
    np.testing.assert_array_equal(gathered, other.audio)
    np.testing.assert_array_equal(other.audio[0, :1000], host.audio[2])
    assert not other.audio[1, 700:].any()
    assert not other.audio[2].any()


def test_labels_follow_their_rows_and_filling_rows_have_none():
    batch = source(Residency.DEVICE).get(PlannedBatch(0, np.array([1, FILL, 0])))
    np.testing.assert_array_equal(batch.lengths, [400, 0, 700])
    np.testing.assert_array_equal(batch.emotion, [1, -1, 0])
    np.testing.assert_array_equal(batch.gender, [1, -1, 0])
    np.testing.assert_array_equal(batch.speaker, [-1, -1, -1])
    np.testing.assert_array_equal(batch.transcript_lengths, [1, 0, 3])
    np.testing.assert_array_equal(batch.transcript[:, :3], [[4, 0, 0], [0, 0, 0], [1, 2, 3]])


def test_waveforms_are_normalised_over_their_own_samples_as_the_reference_does():
    transformers = pytest.importorskip("transformers")
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=True)
    host = source(Residency.HOST)
    batch = host.get(PlannedBatch(len(host.buckets) - 1, np.array([2, 3, FILL])))
    ours = np.asarray(waveform(jnp.asarray(batch.audio), jnp.asarray(batch.lengths), normalize=True))
    for place, row in enumerate((2, 3)):
        samples = host.audio[row].astype(np.float32) / 32768
        theirs = extractor(samples, sampling_rate=16_000).input_values[0]
        np.testing.assert_allclose(ours[place, : len(samples)], theirs, atol=1e-5)
        assert not ours[place, len(samples) :].any()
    assert not ours[2].any()


def test_without_normalisation_full_scale_is_one():
    audio = jnp.array([[-32768, 16384, 0]], jnp.int16)
    np.testing.assert_array_equal(waveform(audio, jnp.array([3]), normalize=False), [[-1.0, 0.5, 0.0]])


def test_prefetching_keeps_the_order_and_raises_where_it_failed():
    def fail_at_three(item: int) -> int:
        if item == 3:
            raise OSError("disk")
        return item * 10

    results = prefetch(fail_at_three, range(6))
    assert [next(results) for _ in range(3)] == [(0, 0), (1, 10), (2, 20)]
    with pytest.raises(OSError, match="disk"):
        next(results)


def test_leaving_a_prefetch_early_ends_its_thread():
    for _ in prefetch(lambda item: item, range(1000)):
        break
    deadline = time.monotonic() + 5
    while any(thread.name == "prefetch" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_corpus_with_too_many_samples_for_the_device_is_refused_when_asked_for(monkeypatch):
    monkeypatch.setattr("jax_mtlser.data.batches.fits_on_device", lambda num_samples: False)
    with pytest.raises(ValueError, match=r"--config\.batching\.residency=host"):
        source(Residency.DEVICE)
    assert not source(Residency.AUTO).on_device
