"""Weighting methods and adversarial heads inside the training step."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_training
from jax.sharding import NamedSharding, PartitionSpec

from jax_mtlser.config import CtcNormalization, HeadInput, OptimizerConfig, Residency, WeightingMethod
from jax_mtlser.data.batch_plan import Buckets, PlannedBatch
from jax_mtlser.data.batches import Batch, BatchSource
from jax_mtlser.models.multitask import TASKS, HeadSizes, MultitaskModel
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.losses import task_losses
from jax_mtlser.training.population import population_step, stack_members
from jax_mtlser.training.sharding import make_mesh
from jax_mtlser.training.step import Knobs, Reversal, StepSpec, create_state, train_step
from jax_mtlser.training.task_gradients import Objective
from jax_mtlser.training.weighting import Coefficients, WeightingKnobs

SAMPLES = 16_000
ARCH = dataclasses.replace(
    small_training.ARCH,
    hidden_size=16,
    intermediate_size=16,
    conv_dim=(16,),
    conv_kernel=(640,),
    conv_stride=(320,),
    num_conv_pos_embeddings=3,
)
DROPOUT = dataclasses.replace(ARCH, hidden_dropout=0.2, final_dropout=0.2)
SIZES = small_training.SIZES
# Most of the time here is compilation, and these programs run a few steps.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def spec(method=WeightingMethod.FIXED, sizes=SIZES, arch=ARCH, head_input=HeadInput.LAST, accumulation=1) -> StepSpec:
    return StepSpec(
        MultitaskModel(arch, sizes, EncoderOptions(), head_input),
        OptimizerConfig(),
        normalize_waveform=True,
        ctc_normalization=CtcNormalization.LABELS,
        method=method,
        accumulation_steps=accumulation,
    )


def knobs(weights=(1.0, 0.4, 0.6, 0.1), reversal=None, rate=1e-2, **changes) -> Knobs:
    values = {"learning_rate": 0.02, "gradnorm_alpha": 1.5, "temperature": 2.0, "cagrad_c": 0.5, "famo_decay": 1e-3}
    numbers = {name: np.float32(value) for name, value in (values | changes).items()}
    weighting = WeightingKnobs(steps_per_epoch=np.int32(3), **numbers)
    return Knobs(np.array(weights, np.float32), small_training.knobs(rate=rate).rates, weighting, reversal)


@functools.cache
def batch(first: int = 0) -> Batch:
    audio, targets = small_training.corpus()
    buckets = Buckets((SAMPLES,), (8,), (8,), np.zeros(small_training.ROWS, int))
    source = BatchSource.create(audio, targets, buckets, Residency.HOST)
    return jax.tree.map(jnp.asarray, source.get(PlannedBatch(0, np.arange(first, first + 8))))


@functools.cache
def params(head_input: HeadInput = HeadInput.LAST):
    model = spec(head_input=head_input).model
    arguments = jnp.zeros((1, SAMPLES)), jnp.full(1, SAMPLES)
    return jit(lambda key: model.init(key, *arguments, train=False)["params"])(jax.random.key(0))


@functools.cache
def compiled(method: WeightingMethod, sizes: HeadSizes, accumulation: int):
    return jit(functools.partial(train_step, spec(method, sizes, accumulation=accumulation), SAMPLES))


def train(batches, values: Knobs, method=WeightingMethod.FIXED, sizes=SIZES, accumulation=1):
    known = {f"{task}_head" for task in TASKS if getattr(sizes, task)} | {"encoder"}
    begin = {name: tree for name, tree in params().items() if name in known}
    state, step = create_state(spec(method, sizes), begin, 0), compiled(method, sizes, accumulation)
    metrics = []
    for rows in batches:
        state, reported = step(state, rows, values, jnp.zeros(1, jnp.int16))
        metrics.append(jax.device_get(reported))
    return state, metrics


def objective(factors=None, **changes) -> Objective:
    model, rows = spec(arch=DROPOUT, **changes).model, batch()
    labelled = [rows.emotion, rows.gender, rows.speaker]
    counts = jnp.array([jnp.sum(labels >= 0) for labels in labelled] + [jnp.sum(rows.transcript_lengths > 0)])
    return Objective(
        model,
        jax.tree.map(lambda _: None, params(head_input=model.head_input)),
        lambda part: {"audio": part.audio / 32768.0},
        lambda output, part: task_losses(output, part, normalization=spec().ctc_normalization, blank=0),
        counts.astype(jnp.float32),
        factors or {},
    )


def assert_close(one, other, tolerance=1e-5):
    scale = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(other))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=tolerance * scale, rtol=1e-4), one, other)


# Gradients


@pytest.mark.parametrize("head_input", [HeadInput.LAST, pytest.param(HeadInput.WEIGHTED_SUM, marks=pytest.mark.slow)])
def test_the_split_gradient_is_the_weighted_sum_of_each_tasks_own(head_input):
    judged, key = objective(head_input=head_input), jax.random.key(5)
    trainable = params(head_input=head_input)
    encoder, heads = jnp.array([1.0, -0.3, 2.0, 0.05]), jnp.array([0.7, 1.1, 0.2, 0.9])

    @jit
    def both(trainable):
        split = judged.split_gradient(trainable, batch(), key, lambda *_: Coefficients(encoder, heads))
        return split, jax.jacrev(lambda tree: judged.values(tree, batch(), key)[0])(trainable)

    (seen, ours), of_tasks = both(trainable)
    for name, tree in ours.items():
        weights = encoder if name == "encoder" else heads
        assert_close(tree, jax.tree.map(lambda leaf, w=weights: jnp.tensordot(w, leaf, 1), of_tasks[name]))
    np.testing.assert_allclose(seen.loss, heads @ seen.means, rtol=1e-6)


def test_the_gram_matrix_is_that_of_the_gradients_at_the_encoders_output():
    judged, key, model = objective(), jax.random.key(5), spec(arch=DROPOUT).model
    nothing = lambda *_: Coefficients(jnp.ones(4), jnp.ones(4))
    seen, _ = jit(lambda tree: judged.split_gradient(tree, batch(), key, nothing))(params())

    def means(frames, encoded):
        streams = dict(zip(("dropout", "spec_augment", "layerdrop"), jax.random.split(key, 3), strict=True))
        output = model.apply(
            {"params": params()}, dataclasses.replace(encoded, frames=frames), train=True, rngs=streams, method="read"
        )
        sums = judged.losses(output, batch())
        return jnp.stack([getattr(sums, task).mean() for task in TASKS])

    streams = dict(zip(("dropout", "spec_augment", "layerdrop"), jax.random.split(key, 3), strict=True))
    encoded = jit(
        lambda: model.apply(
            {"params": params()}, batch().audio / 32768.0, batch().lengths, train=True, rngs=streams, method="encode"
        )
    )()
    gradients = jit(jax.jacrev(means))(encoded.frames, encoded).reshape(4, -1)
    np.testing.assert_allclose(seen.gram, gradients @ gradients.T, rtol=1e-4, atol=1e-8)


def test_a_reversed_head_learns_as_before_and_the_encoder_hears_the_opposite():
    key, only_speaker = jax.random.key(5), lambda *_: Coefficients(jnp.eye(4)[2], jnp.eye(4)[2])
    plain, reversed_ = objective(), objective(factors={"speaker": jnp.float32(-0.7), "gender": jnp.float32(1.0)})
    for kind in ("joint_gradient", "split_gradient"):
        gradient = lambda judged, kind=kind: jit(getattr(judged, kind), static_argnums=3)
        _, ours = gradient(plain)(params(), batch(), key, only_speaker)
        _, other = gradient(reversed_)(params(), batch(), key, only_speaker)
        assert_close(other["encoder"], jax.tree.map(lambda leaf: -0.7 * leaf, ours["encoder"]))
        assert_close(other["speaker_head"], ours["speaker_head"], 1e-7)
        assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(ours["encoder"])) > 1e-4


def test_reversal_rises_from_nothing_to_its_strength():
    speaker = Reversal(adversarial=np.array([False, False, True, False]), strength=np.float32(0.5))
    values = dataclasses.replace(knobs(reversal=speaker), weighting=None)
    values = dataclasses.replace(values, rates=dataclasses.replace(values.rates, total_steps=np.float32(4)))
    _, metrics = train([batch()] * 5, values)
    expected = [-0.6 * 0.5 * (2 / (1 + np.exp(-10 * step / 4)) - 1) for step in range(5)]
    np.testing.assert_allclose([m.weights[2] for m in metrics], expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([m.weights[[0, 1, 3]] for m in metrics], np.tile(np.float32([1, 0.4, 0.1]), (5, 1)))
    assert metrics[4].losses.speaker.mean() > 0


def test_a_weight_of_zero_is_a_head_that_is_off():
    """The encoder and the other heads train as in a model without the head; that is why there is no third mode."""
    values = knobs(weights=(1.0, 0.4, 0.0, 0.1))
    with_head, _ = train([batch()] * 3, values)
    without, _ = train([batch()] * 3, values, sizes=dataclasses.replace(SIZES, speaker=0))
    kept = {name: tree for name, tree in with_head.params.items() if name != "speaker_head"}
    assert_close(kept, without.params, 1e-5)


# Steps


# One of each kind in every run: weights learned, by gradient norms, by combined gradients. The others are slow.
QUICK = (WeightingMethod.UNCERTAINTY, WeightingMethod.GRADNORM, WeightingMethod.NASH_MTL)


@pytest.mark.parametrize(
    "method",
    [pytest.param(method, marks=[] if method in QUICK else [pytest.mark.slow]) for method in WeightingMethod],
)
def test_every_method_learns_a_batch_by_heart(method):
    _, metrics = train([batch()] * 60, knobs(), method)
    for task in TASKS:
        losses = [float(getattr(m.losses, task).mean()) for m in metrics]
        assert np.isfinite(losses).all()
        assert losses[-1] < 0.9 * losses[0], f"{task}: {losses}"
    assert all(m.finite for m in metrics)
    weights = [m.weights for m in metrics]
    if method is WeightingMethod.FIXED:
        assert weights == [None] * 60
    else:
        assert np.isfinite(weights).all()
        if method in (WeightingMethod.EQUAL, WeightingMethod.RLW, WeightingMethod.DWA, WeightingMethod.GRADNORM,
                      WeightingMethod.FAMO):  # fmt: skip
            np.testing.assert_allclose(np.sum(weights, axis=1), 4.0, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "devices"),
    [
        (WeightingMethod.GRADNORM, 2),
        pytest.param(WeightingMethod.FAMO, 1, marks=pytest.mark.slow),
        pytest.param(WeightingMethod.CAGRAD, 1, marks=pytest.mark.slow),
    ],
)
def test_devices_and_parts_of_a_batch_change_no_weight(method, devices):
    """One method of each kind: with a memory of gradients, with losses before and after, with a choice to solve."""
    mesh = make_mesh(devices)
    batches = [batch(0), batch(8), batch(16)]
    shared = [jax.device_put(rows, NamedSharding(mesh, PartitionSpec("data"))) for rows in batches]
    everywhere = jax.device_put(knobs(), NamedSharding(mesh, PartitionSpec()))
    one, metrics = train(batches, knobs(), method)
    other, other_metrics = train(shared, everywhere, method, accumulation=2)
    for mine, theirs in zip(metrics, other_metrics, strict=True):
        np.testing.assert_allclose(mine.weights, theirs.weights, rtol=2e-3)
        np.testing.assert_allclose(mine.gradient_norm, theirs.gradient_norm, rtol=2e-3)
    pairs = zip(jax.tree.leaves(one.weighting), jax.tree.leaves(other.weighting), strict=True)
    for mine, theirs in pairs:
        np.testing.assert_allclose(mine, theirs, rtol=2e-3, atol=1e-4)


def test_a_population_trains_its_members_as_if_each_were_alone():
    method = WeightingMethod.GRADNORM
    settings = [knobs(gradnorm_alpha=0.2, learning_rate=0.1), knobs(rate=3e-3, weights=(1, 0, 1, 1))]
    alone = [train([batch()] * 3, values, method) for values in settings]
    state = stack_members([create_state(spec(method), params(), 0)] * 2)
    step = jit(functools.partial(population_step, spec(method), SAMPLES))
    for number in range(3):
        state, metrics = step(state, stack_members([batch()] * 2), stack_members(settings), jnp.zeros(1, jnp.int16))
        expected = [reported[number].weights for _, reported in alone]
        np.testing.assert_allclose(metrics.weights, expected, rtol=1e-3, atol=1e-5)
    learned = [member.weighting.learned.values for member, _ in alone]
    np.testing.assert_allclose(state.weighting.learned.values, learned, rtol=1e-3)


@pytest.mark.parametrize("method", [WeightingMethod.GRADNORM, WeightingMethod.DWA, WeightingMethod.RLW])
def test_what_a_method_remembers_is_saved_and_restored(method, tmp_path):
    state, _ = train([batch()] * 4, knobs(), method)
    checkpoints = TrainingCheckpoints(tmp_path / "checkpoints")
    try:
        checkpoints.save(state, {"step": 4})
        checkpoints.wait()
        assert checkpoints.latest_progress() == {"step": 4}
        restored = checkpoints.restore(4, create_state(spec(method), params(), 0))
    finally:
        checkpoints.close()
    assert int(restored.step) == 4
    jax.tree.map(np.testing.assert_array_equal, restored.weighting, state.weighting)
    assert bool(jax.tree.leaves(state.weighting)) == (method is not WeightingMethod.RLW)
