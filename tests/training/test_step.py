"""The compiled step: equal on one and eight devices, with and without accumulation; masks and frozen groups."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_training import ARCH, ROWS, SIZES, corpus, knobs

from jax_mtlser.config import Freeze, LearningRateSchedule, Moments, OptimizerConfig, Residency
from jax_mtlser.data.batch_plan import PlannedBatch, make_buckets, plan_epoch
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.models.layers import LORA_PARAMETERS, Lora
from jax_mtlser.models.multitask import MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import StepSpec

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, schedule=LearningRateSchedule.CONSTANT, clip_norm=1.0)


_compiled: dict[str, tuple[CompiledSteps, Any]] = {}


class Setting:
    """A small model with compiled steps, which equal settings share as they do initial parameters, and its batches."""

    def __init__(self, *, devices: int = 1, accumulation: int = 1, residency=Residency.DEVICE, targets=None, **changes):
        key = repr((devices, accumulation, residency, sorted(changes.items())))
        audio, all_targets = corpus()
        arch = dataclasses.replace(ARCH, **changes.pop("arch", {}))
        self.buckets = make_buckets(
            audio.lengths, np.full(ROWS, 6), num_buckets=changes.pop("num_buckets", 1), batch_size=8,
            batch_seconds=None, rows_multiple=devices * accumulation, multiple=arch.hop(),
        )  # fmt: skip
        self.source = BatchSource.create(audio, targets or all_targets, self.buckets, residency)
        model = MultitaskModel(arch, SIZES, changes.pop("options", EncoderOptions()))
        optimizer = changes.pop("optimizer", OPTIMIZER)
        spec = StepSpec(model, optimizer, normalize_waveform=True, accumulation_steps=accumulation, **changes)
        resident = len(audio.samples) + self.buckets.bounds[-1] if self.source.on_device else None
        if key not in _compiled:
            steps = CompiledSteps(spec, self.buckets, make_mesh(devices), resident_samples=resident)
            steps.compile(knobs())
            # On the host, as a step may overwrite what it is given.
            _compiled[key] = steps, jax.device_get(steps.init_params(0))
        self.steps, params = _compiled[key]
        self.state = self.steps.init_state(params, 0)
        self.corpus = self.steps.put(self.source.resident_corpus())

    def run(self, planned, weights=None):
        batch = self.steps.put_batch(self.source.get(planned))
        values = self.steps.put(weights or knobs())
        self.state, metrics = self.steps.train(planned.bucket, self.state, batch, values, self.corpus)
        return jax.device_get(metrics)

    def train(self, steps: int = 3):
        metrics = [self.run(planned) for planned in plan_epoch(range(ROWS), self.buckets, seed=0, epoch=0)[:steps]]
        return metrics, jax.device_get(self.state.params)


def largest_difference(one, other) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, other)))


@functools.cache
def plain():
    return Setting().train()


@pytest.mark.parametrize(
    "changes",
    [
        {"devices": 8},
        pytest.param({"accumulation": 4}, marks=pytest.mark.slow),
        {"devices": 2, "accumulation": 2},
        {"plain": True},
    ],
)
def test_devices_accumulation_and_plain_formulas_do_not_change_the_training(changes):
    metrics, params = plain()
    other_metrics, other_params = Setting(**changes).train()
    for one, other in zip(metrics, other_metrics, strict=True):
        np.testing.assert_allclose(one.loss, other.loss, rtol=1e-5)
        np.testing.assert_allclose(one.gradient_norm, other.gradient_norm, rtol=1e-4)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), one.losses, other.losses)
    # Adam divides by the gradient's size, so where that is all rounding error, steps differ by up to the rate.
    assert largest_difference(params, other_params) < 1e-3


def test_eight_devices_see_the_same_gradient_sum_in_plain_descent():
    """The first Adam step is sign-like; the gradient norm and loss above are the exact comparison, this the update."""
    one, eight = Setting(), Setting(devices=8)
    planned = plan_epoch(range(ROWS), one.buckets, seed=3, epoch=0)[0]
    assert abs(float(one.run(planned).gradient_norm) - float(eight.run(planned).gradient_norm)) < 1e-5


def test_a_corpus_on_the_host_gives_the_same_training_bit_for_bit(monkeypatch, as_released):
    monkeypatch.setattr(f"{__name__}._compiled", {})
    options = as_released | {"xla_backend_optimization_level": 0}  # LLVM's optimisations change no order of sums
    monkeypatch.setattr("jax_mtlser.runtime.compiler_options", lambda: options)
    metrics, params = Setting().train()
    host_metrics, host_params = Setting(residency=Residency.HOST).train()
    assert [m.loss for m in metrics] == [m.loss for m in host_metrics]
    assert largest_difference(params, host_params) == 0.0


def test_heads_learn_alone_until_the_encoder_starts():
    setting, values = Setting(), knobs()
    values = values.replace(rates=values.rates.replace(encoder_start=np.float32(2)))
    states = [jax.device_get(setting.state.params)]
    reported = []
    for planned in plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)[:3]:
        reported.append(float(setting.run(planned, values).learning_rate))
        states.append(jax.device_get(setting.state.params))
    encoders = [state.pop("encoder") for state in states]
    assert [largest_difference(one, other) > 0 for one, other in itertools.pairwise(encoders)] == [False, False, True]
    assert all(largest_difference(one, other) > 0 for one, other in itertools.pairwise(states))
    assert reported[:2] == [0.0, 0.0]
    assert reported[2] > 0


def test_with_moments_in_bfloat16_a_saved_training_goes_on_to_the_same_bits(tmp_path):
    setting = Setting(optimizer=dataclasses.replace(OPTIMIZER, moments=Moments.BFLOAT16))
    first, second, third = plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)
    setting.run(first)
    moments = [leaf for leaf in jax.tree.leaves(setting.state.opt_state) if leaf.ndim]
    assert {leaf.dtype for leaf in moments} == {jnp.dtype(jnp.bfloat16)}
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints")
    try:
        checkpoints.save(setting.state, {"step": 1})
        checkpoints.wait()
        losses = [setting.run(planned).loss for planned in (second, third)]
        expected = jax.device_get((setting.state.params, setting.state.opt_state))
        setting.state = checkpoints.restore(1, setting.state)
    finally:
        checkpoints.close()
    assert [setting.run(planned).loss for planned in (second, third)] == losses
    jax.tree.map(np.testing.assert_array_equal, (setting.state.params, setting.state.opt_state), expected)
    # A step's update is computed before its moments are rounded, so the third loss is the first that rounding changes.
    exact = [metrics.loss for metrics in plain()[0][1:]]
    assert losses[0] == pytest.approx(exact[0], rel=1e-5)
    assert losses[1] == pytest.approx(exact[1], rel=1e-2)
    assert losses[1] != exact[1]


def test_changing_the_weights_compiles_nothing_and_scales_the_loss():
    setting = Setting()
    programs = setting.steps.num_programs
    planned = plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)[0]
    setting.run(planned)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    try:
        metrics = setting.run(planned, knobs(alpha=0.0, beta=2.0, gamma=0.5, rate=0.0))
        assert compiled == []
        jax.jit(lambda x: x * 12345)(1.0)
        assert compiled, "the listener hears no compilation, so its silence above proves nothing"
    finally:
        jax.monitoring.clear_event_listeners()
    losses = metrics.losses
    expected = losses.emotion.mean() + 2.0 * losses.speaker.mean() + 0.5 * losses.asr.mean()
    np.testing.assert_allclose(metrics.loss, expected, rtol=1e-6)
    assert setting.steps.num_programs == programs == 2 * len(setting.buckets)


def test_one_program_per_bucket_and_step_kind():
    setting = Setting(num_buckets=2)
    assert setting.steps.num_programs == 2 * 2
    assert set(setting.steps.seconds) == {(name, b) for name in ("train", "eval") for b in range(2)}


def test_a_rate_of_zero_changes_no_parameter():
    setting = Setting()
    before = jax.device_get(setting.state.params)
    setting.run(plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)[0], knobs(rate=0.0))
    assert largest_difference(before, jax.device_get(setting.state.params)) == 0.0


def test_a_task_without_labels_leaves_its_head_as_it_was():
    _, targets = corpus()
    nobody = np.full(ROWS, -1, np.int32)
    masked = dataclasses.replace(targets, gender=nobody, speaker=nobody, transcript_lengths=np.zeros(ROWS, np.int32))
    setting = Setting(targets=masked)
    before = jax.device_get(setting.state.params)
    metrics, after = setting.train(1)
    assert [float(getattr(metrics[0].losses, task).count) for task in ("gender", "speaker", "asr")] == [0, 0, 0]
    # Biases see no weight decay, so their change is the gradient's alone; kernels shrink by the decay.
    decay = 1 - OPTIMIZER.learning_rate * OPTIMIZER.weight_decay
    for head in ("gender_head", "speaker_head", "asr_head"):
        assert np.array_equal(before[head]["logits"]["bias"], after[head]["logits"]["bias"])
        np.testing.assert_allclose(after[head]["logits"]["kernel"], before[head]["logits"]["kernel"] * decay, rtol=1e-6)
    assert not np.array_equal(before["emotion_head"]["logits"]["bias"], after["emotion_head"]["logits"]["bias"])


def test_a_frozen_feature_encoder_stays_bit_identical_and_has_no_optimizer_state():
    setting = Setting(freeze=Freeze.FEATURE_ENCODER)
    before = jax.device_get(setting.state.params)
    _, after = setting.train()
    assert largest_difference(before["encoder"]["feature_encoder"], after["encoder"]["feature_encoder"]) == 0.0
    assert (
        largest_difference(before["encoder"]["transformer"]["layer_0"], after["encoder"]["transformer"]["layer_0"])
        > 0.0
    )
    trained = {slot.path[:2] for slot in setting.state.layout.slots}
    assert ("encoder", "feature_projection") in trained
    assert ("encoder", "feature_encoder") not in trained
    sizes = jax.tree.map(lambda stack: stack.size, setting.state.stacks)
    assert sum(leaf.size for leaf in jax.tree.leaves(setting.state.opt_state)) == 2 * sum(sizes.values()) + 1
    left_out = jax.tree.leaves(before["encoder"]["feature_encoder"])
    assert sum(sizes.values()) == sum(leaf.size for leaf in jax.tree.leaves(before)) - sum(x.size for x in left_out)


def test_with_adapters_the_frozen_encoder_stays_bit_identical_and_only_they_and_the_heads_learn():
    setting = Setting(freeze=Freeze.ENCODER, options=EncoderOptions(lora=Lora(rank=2, alpha=4.0)))
    before = jax.device_get(setting.state.params)
    _, after = setting.train()
    moved = {"adapter": [], "encoder": [], "head": []}
    for (path, one), other in zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True):
        names = [entry.key for entry in path]
        kind = "head" if names[0] != "encoder" else "adapter" if names[-1] in LORA_PARAMETERS else "encoder"
        moved[kind].append(not np.array_equal(one, other))
    assert all(moved["adapter"])
    assert all(moved["head"])
    assert not any(moved["encoder"])
    states = [leaf.size for leaf in jax.tree.leaves(setting.state.opt_state)]
    trained = sum(leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(before)
                  if path[0].key != "encoder" or path[-1].key in LORA_PARAMETERS)  # fmt: skip
    assert sum(states) == 2 * trained + 1, "two moments of what is trained, and a counter"


def test_steps_and_seeds_draw_different_dropout():
    noisy = {"hidden_dropout": 0.5}
    setting = Setting(arch=noisy)
    planned = plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)[0]
    losses = [float(setting.run(planned, knobs(rate=0.0)).loss) for _ in range(2)]
    assert losses[0] != losses[1]
    again = Setting(arch=noisy)
    assert float(again.run(planned, knobs(rate=0.0)).loss) == losses[0]


def test_the_step_reports_numbers_that_are_not_finite():
    setting = Setting()
    spoiled = jax.tree.map(lambda x: jnp.full_like(x, jnp.nan), setting.state.stacks)
    setting.state = dataclasses.replace(setting.state, stacks=setting.steps.put(spoiled))
    assert not setting.run(plan_epoch(range(ROWS), setting.buckets, seed=0, epoch=0)[0]).finite


def test_rows_that_only_fill_a_batch_change_nothing():
    setting = Setting()
    rows = np.arange(8)
    short = np.concatenate([rows[:5], np.full(3, -1)])
    whole, partial = setting.source.get(PlannedBatch(0, rows)), setting.source.get(PlannedBatch(0, short))
    params = setting.steps.ready(setting.state.params)
    full = setting.steps.evaluate(0, params, setting.steps.put_batch(whole), setting.corpus)
    part = setting.steps.evaluate(0, params, setting.steps.put_batch(partial), setting.corpus)
    np.testing.assert_allclose(full.emotion[:5], part.emotion[:5], atol=1e-6)
    assert float(part.losses.gender.count) == int((corpus()[1].gender[:5] >= 0).sum())
