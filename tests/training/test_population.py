"""A member trained in a population equals the same member trained alone: folds, seeds, weights, devices."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_training import ARCH, ROWS, SIZES, corpus

from jax_mtlser.config import LearningRateSchedule, OptimizerConfig
from jax_mtlser.data.batch_plan import FILL, make_buckets, plan_epoch, plan_together
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.models.multitask import MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.optimizer import Rates
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import Knobs, StepSpec

MEMBERS = (
    {"seed": 3, "rows": range(0, 16), "weights": (1.0, 0.4, 0.6, 0.1), "rate": 1e-3},
    {"seed": 4, "rows": range(8, ROWS), "weights": (1.0, 0.0, 1.0, 0.0), "rate": 3e-3},
    {"seed": 3, "rows": range(3, 8), "weights": (1.0, 0.2, 0.1, 0.5), "rate": 1e-3},
    {"seed": 9, "rows": range(0, ROWS, 2), "weights": (1.0, 0.0, 0.0, 1.0), "rate": 2e-3},
)
EPOCHS = 2


@functools.cache
def setting(members: int, *, member_devices: int = 1):
    audio, targets = corpus()
    arch = dataclasses.replace(ARCH, hidden_dropout=0.1, attention_dropout=0.1, layerdrop=0.2, mask_time_prob=0.1)
    buckets = make_buckets(
        audio.lengths, np.full(ROWS, 6), num_buckets=2, batch_size=4, batch_seconds=None, rows_multiple=1,
        multiple=arch.hop(),
    )  # fmt: skip
    model = MultitaskModel(arch, SIZES, EncoderOptions())
    optimizer = OptimizerConfig(schedule=LearningRateSchedule.LINEAR, clip_norm=1.0)
    resident = len(audio.samples) + buckets.bounds[-1]
    steps = CompiledSteps(
        StepSpec(model, optimizer, normalize_waveform=True), buckets, make_mesh(1, member_devices),
        resident_samples=resident, members=members,
    )  # fmt: skip
    source = BatchSource(audio, targets, buckets, on_device=True)
    steps.compile(knobs_of(MEMBERS[0]), names=("train",))
    return steps, source


def knobs_of(member: dict) -> Knobs:
    number = np.float32
    rates = Rates(number(member["rate"]), number(2e-3), number(0.9), number(2), number(20), number(0))
    return Knobs(weights=np.array(member["weights"], np.float32), rates=rates)


def alone(member: dict):
    steps, source = setting(1)
    state = steps.init_state(steps.init_params(member["seed"]), member["seed"])
    knobs, resident, losses = steps.put(knobs_of(member)), steps.put(source.resident_corpus()), []
    for epoch in range(EPOCHS):
        for planned in plan_epoch(member["rows"], source.buckets, seed=member["seed"], epoch=epoch):
            state, metrics = steps.train(planned.bucket, state, steps.put_batch(source.get(planned)), knobs, resident)
            losses.append(float(metrics.loss))
    return jax.device_get(state.params), losses, int(state.step)


def together(members, *, member_devices: int = 1):
    steps, source = setting(len(members), member_devices=member_devices)
    states = [steps.init_state(steps.init_params(m["seed"]), m["seed"]) for m in members]
    state, resident = steps.together(states), steps.put(source.resident_corpus())
    knobs = jax.device_put(steps.together([knobs_of(m) for m in members]), steps.by_member)
    losses: list[list[float]] = [[] for _ in members]
    missed = 0
    for epoch in range(EPOCHS):
        plan = plan_together(
            [m["rows"] for m in members], source.buckets, seeds=[m["seed"] for m in members], epoch=epoch
        )
        for batches in plan:
            batch = steps.put_batches([source.get(planned) for planned in batches])
            state, metrics = steps.train(batches[0].bucket, state, batch, knobs, resident)
            for index, planned in enumerate(batches):
                if np.any(planned.rows != FILL):
                    losses[index].append(float(metrics.loss[index]))
                else:
                    missed += 1
    assert missed > 0, "no member has ever waited: the test does not show what it should"
    found = [steps.member_of(state, index) for index in range(len(members))]
    return [(jax.device_get(one.params), own, int(one.step)) for one, own in zip(found, losses, strict=True)]


def assert_equal(found, expected, tolerance: float) -> None:
    params, losses, step = found
    other_params, other_losses, other_step = expected
    assert step == other_step
    np.testing.assert_allclose(losses, other_losses, rtol=tolerance)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance), params, other_params)


@functools.cache
def on_one_device():
    return together(MEMBERS)


# In every run, experiments/test_populations.py trains members together and alone, through the runner.
@pytest.mark.slow
def test_members_together_equal_each_alone():
    for found, member in zip(on_one_device(), MEMBERS, strict=True):
        assert_equal(found, alone(member), 2e-5)


@pytest.mark.slow
def test_members_on_four_devices_equal_those_on_one():
    for found, expected in zip(together(MEMBERS, member_devices=4), on_one_device(), strict=True):
        assert_equal(found, expected, 2e-5)
