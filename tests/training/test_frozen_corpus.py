"""Frames of the encoder's frozen part, computed once: the training on them is the one on samples."""

import dataclasses

import jax
import numpy as np
import pytest
from small_training import ARCH, ROWS, SIZES, corpus, knobs

from jax_mtlser.config import (
    Freeze,
    HeadInput,
    LearningRateSchedule,
    OptimizerConfig,
    Residency,
    WeightingMethod,
)
from jax_mtlser.data.batch_plan import make_buckets, plan_epoch
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.models.frozen import FrozenPart, frozen_part
from jax_mtlser.models.multitask import MultitaskModel
from jax_mtlser.training.frozen_corpus import frozen_corpus
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import StepSpec

# Dropout and SpecAugment behind the frozen part must be the same ones.
NOISY = dataclasses.replace(ARCH, num_hidden_layers=2, hidden_dropout=0.1, mask_time_prob=0.2, mask_time_length=4)


def trained(freeze, *, kept: bool, head_input=HeadInput.LAST, method=WeightingMethod.FIXED, devices=1):
    """An epoch over two buckets, and what the last batch is judged to be."""
    audio, targets = corpus()
    buckets = make_buckets(
        audio.lengths, np.full(ROWS, 6), num_buckets=2, batch_size=8, batch_seconds=None, rows_multiple=devices,
        multiple=ARCH.hop(),
    )  # fmt: skip
    source = BatchSource.create(audio, targets, buckets, Residency.DEVICE)
    model = MultitaskModel(NOISY, SIZES, head_input=head_input, frozen_encoder=freeze is Freeze.ENCODER)
    optimizer = OptimizerConfig(learning_rate=1e-2, schedule=LearningRateSchedule.CONSTANT)
    part = frozen_part(NOISY, freeze, lora=False, hf_compat=False) if kept else FrozenPart.NOTHING
    spec = StepSpec(
        model, optimizer, normalize_waveform=True, freeze=freeze, freeze_layers=1, method=method, frozen=part
    )
    samples, frames = len(audio.samples) + buckets.bounds[-1], None
    if kept:
        offsets = np.concatenate([[0], np.cumsum(NOISY.num_frames(audio.lengths))])
        source = dataclasses.replace(source, frame_offsets=offsets)
        samples, frames = None, int(offsets[-1] + NOISY.num_frames(buckets.bounds[-1]))
    steps = CompiledSteps(spec, buckets, make_mesh(devices), resident_samples=samples, resident_frames=frames)
    params = steps.init_params(0)
    state = steps.init_state(params, 0)
    plan = plan_epoch(range(ROWS), buckets, seed=0, epoch=0)
    steps.compile(knobs(), names=("train", "frozen") if kept else ("train",))
    steps.compile(None, names=("eval",), buckets=[plan[-1].bucket])
    done = []
    resident = steps.put(
        frozen_corpus(steps, source, params["encoder"], lambda *count: done.append(count))
        if kept
        else source.resident_corpus()
    )
    losses, seen = [], []
    for planned in plan:
        batch = steps.put_batch(source.get(planned))
        state, metrics = steps.train(planned.bucket, state, batch, steps.put(knobs()), resident)
        losses.append(float(metrics.loss))
        seen.append(planned.bucket)
    judged = jax.device_get(steps.evaluate(planned.bucket, steps.ready(state.params), batch, resident))
    assert set(seen) == {0, 1}
    assert not kept or done[-1] == (ROWS, ROWS)
    return losses, jax.device_get(state.params), judged


@pytest.mark.parametrize(
    ("freeze", "options"),
    [
        (Freeze.FEATURE_ENCODER, {}),
        pytest.param(Freeze.LAYERS, {"method": WeightingMethod.PCGRAD, "devices": 4}, marks=pytest.mark.slow),
        pytest.param(Freeze.ENCODER, {"head_input": HeadInput.WEIGHTED_SUM}, marks=pytest.mark.slow),
    ],
)
def test_training_on_kept_frames_is_training_on_samples(freeze, options):
    losses, params, judged = trained(freeze, kept=False, **options)
    kept_losses, kept_params, kept_judged = trained(freeze, kept=True, **options)
    np.testing.assert_allclose(kept_losses, losses, rtol=1e-6)
    assert losses[0] != losses[-1]
    # Where a gradient is rounding error, Adam still takes a whole step.
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=1e-4), kept_params, params)
    np.testing.assert_allclose(kept_judged.emotion, judged.emotion, atol=1e-5)


def test_only_what_neither_learns_nor_draws_nor_sees_padding_can_be_kept():
    def part(freeze, **given):
        return frozen_part(ARCH, freeze, **{"lora": False, "hf_compat": False, **given})

    assert part(Freeze.NOTHING) is FrozenPart.NOTHING
    assert part(Freeze.FEATURE_ENCODER) is part(Freeze.LAYERS) is FrozenPart.FEATURES
    assert part(Freeze.ENCODER) is FrozenPart.ENCODER
    assert part(Freeze.ENCODER, lora=True) is FrozenPart.FEATURES
    assert part(Freeze.ENCODER, hf_compat=True) is FrozenPart.NOTHING
