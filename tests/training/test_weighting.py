"""Each weighting rule against its published formula, another solver, or the condition that defines its solution."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from jax_mtlser.config import WeightingMethod
from jax_mtlser.training.weighting import BatchView, Weighting, WeightingKnobs, cagrad, nash_mtl, pcgrad
from jax_mtlser.training.weighting.losses import famo, famo_update, gradnorm_gradient, learned_scale_gradient
from jax_mtlser.training.weighting.state import Learned

CLASSES = (4, 2, 10, 30)
EVERYONE = jnp.ones(4, bool)
LEARNING = (
    WeightingMethod.UNCERTAINTY,
    WeightingMethod.IMTL_L,
    WeightingMethod.GRADNORM,
    WeightingMethod.DWA,
    WeightingMethod.FAMO,
)


def knobs(**changes) -> WeightingKnobs:
    values = {"learning_rate": 0.02, "gradnorm_alpha": 1.5, "temperature": 2.0, "cagrad_c": 0.5, "famo_decay": 0.0}
    numbers = {name: jnp.float32(value) for name, value in (values | changes).items() if name != "steps_per_epoch"}
    return WeightingKnobs(steps_per_epoch=jnp.int32(changes.get("steps_per_epoch", 2)), **numbers)


def view(losses, counts=(2, 2, 2, 2), gram=None) -> BatchView:
    return BatchView(jnp.array(losses, jnp.float32), jnp.array(counts, jnp.float32), gram)


def gram_of(gradients) -> jax.Array:
    return jnp.array(gradients @ gradients.T, jnp.float32)


def draw(seed: int, tasks: int = 4, dimensions: int = 6) -> np.ndarray:
    """Gradients of very different sizes that agree and conflict."""
    random = np.random.default_rng(seed)
    return random.standard_normal((tasks, dimensions)) * 10.0 ** random.uniform(-2, 1, (tasks, 1))


SEEDS = st.integers(0, 2**31 - 1)
WHERE = st.lists(st.booleans(), min_size=4, max_size=4).map(np.array)


# Learned scales


@pytest.mark.parametrize(("method", "factor"), [(WeightingMethod.UNCERTAINTY, 0.5), (WeightingMethod.IMTL_L, 1.0)])
def test_learned_scales_come_to_rest_where_every_weighted_loss_is_the_same(method, factor):
    losses = np.array([0.3, 1.4, 0.02, 40.0], np.float32)
    weighting = Weighting(method, CLASSES, unbounded=3)
    step = lambda _, state: weighting.updated(state, EVERYONE, view(losses), jnp.int32(0), knobs())
    state = jax.lax.fori_loop(0, 8000, step, weighting.initial_state())
    weights = weighting.coefficients(state, jnp.ones(4), EVERYONE, view(losses), jax.random.key(0), None).encoder
    np.testing.assert_allclose(weights * losses, factor, rtol=2e-2)


def test_uncertainty_weighting_descends_its_published_objective():
    s, losses = jnp.array([0.2, -0.5, 1.0, 0.0]), jnp.array([1.3, 0.4, 2.0, 55.0])
    objective = lambda s: jnp.sum(jnp.exp(-s) * losses + s / 2)
    # Learned is the logarithm of the weight, u = -s.
    np.testing.assert_allclose(learned_scale_gradient(-s, losses, 0.5), -jax.grad(objective)(s), rtol=1e-6)
    imtl = lambda s: jnp.sum(jnp.exp(s) * losses - s)
    np.testing.assert_allclose(learned_scale_gradient(s, losses, 1.0), jax.grad(imtl)(s), rtol=1e-6)


def test_a_solved_task_does_not_get_an_endless_weight():
    weighting = Weighting(WeightingMethod.UNCERTAINTY, CLASSES, unbounded=3)
    step = lambda _, state: weighting.updated(state, EVERYONE, view([0.0] * 4), jnp.int32(0), knobs())
    state = jax.lax.fori_loop(0, 1000, step, weighting.initial_state())
    np.testing.assert_allclose(state.learned.values, 4.0)


# GradNorm


def toy_losses(h: jax.Array) -> jax.Array:
    return jnp.array([jnp.sum((h - 1) ** 2), jnp.sum(jnp.sin(h)) + 3, 0.1 * jnp.sum(h**4), jnp.exp(h[0])])


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.5])
def test_gradnorms_gradient_is_that_of_the_second_backward_pass(alpha):
    h, initial = jnp.array([0.3, -1.2, 0.7]), jnp.array([4.0, 2.5, 1.0, 3.0])
    weights = jnp.array([0.5, 1.7, 0.8, 1.0])

    def gradnorm_loss(weights: jax.Array) -> jax.Array:
        norms = jnp.stack([
            jnp.linalg.norm(jax.grad(lambda h, i=i: weights[i] * toy_losses(h)[i])(h)) for i in range(4)
        ])  # fmt: skip
        progress = toy_losses(h) / initial
        target = jax.lax.stop_gradient(jnp.mean(norms) * (progress / jnp.mean(progress)) ** alpha)
        return jnp.sum(jnp.abs(norms - target))

    norms = jnp.linalg.norm(jax.jacobian(toy_losses)(h), axis=1)
    ours = gradnorm_gradient(weights, norms, toy_losses(h) / initial, jnp.float32(alpha), EVERYONE)
    np.testing.assert_allclose(ours, jax.grad(gradnorm_loss)(weights), rtol=1e-5)
    assert np.ptp(np.sign(ours)) == 2, "some weights rise and some fall"


def test_gradnorm_without_alpha_makes_weighted_gradients_equally_long_and_keeps_the_sum():
    norms = np.array([0.2, 1.0, 3.0, 0.5])
    weighting = Weighting(WeightingMethod.GRADNORM, CLASSES, unbounded=3)
    batch = view([1.0, 0.5, 2.0, 60.0], gram=jnp.diag(jnp.array(norms**2, jnp.float32)))
    settings = knobs(gradnorm_alpha=0.0, learning_rate=0.003)
    step = lambda number, state: weighting.updated(state, EVERYONE, batch, number, settings)
    state = jax.lax.fori_loop(0, 3000, step, weighting.initial_state())
    weights = np.array(state.learned.values)
    np.testing.assert_allclose(weights.sum(), 4.0, rtol=1e-5)
    np.testing.assert_allclose(weights * norms / (weights * norms).mean(), 1.0, atol=0.05)


def test_gradnorm_gives_more_to_the_task_that_lags_behind():
    weighting = Weighting(WeightingMethod.GRADNORM, CLASSES, unbounded=3)
    state = weighting.initial_state()
    # CTC has no loss of guessing: its first epoch, two steps here, says where it began.
    for number, transcript_loss in enumerate([60.0, 40.0, 50.0, 50.0, 50.0, 50.0]):
        losses = [0.1, 0.1, 0.1, transcript_loss]
        state = weighting.updated(state, EVERYONE, view(losses, gram=jnp.eye(4)), jnp.int32(number), knobs())
    assert float(state.epochs.mean()[3]) == 50.0
    weights = np.array(state.learned.values)
    assert weights[3] > 1 > weights[2], "at its initial loss, against far below it"


# DWA and RLW


def test_dwa_follows_the_ratio_of_the_last_two_epochs_means():
    weighting = Weighting(WeightingMethod.DWA, CLASSES, unbounded=3)
    random = np.random.default_rng(0)
    losses, counts = random.uniform(0.1, 3.0, (4, 3, 4)), random.integers(1, 5, (4, 3, 4))
    state, settings = weighting.initial_state(), knobs(steps_per_epoch=3)
    means = (losses * counts).sum(1) / counts.sum(1)
    for epoch in range(4):
        for part in range(3):
            step = jnp.int32(3 * epoch + part)
            batch = view(losses[epoch, part], counts[epoch, part])
            state = weighting.started(state, step, settings)
            weights = weighting.coefficients(state, jnp.ones(4), EVERYONE, batch, jax.random.key(0), settings).encoder
            expected = np.ones(4)
            if epoch >= 2:
                raised = np.exp(means[epoch - 1] / means[epoch - 2] / 2.0)
                expected = 4 * raised / raised.sum()
            np.testing.assert_allclose(weights, expected, rtol=1e-5)
            state = weighting.updated(state, EVERYONE, batch, step, settings)


def test_random_weights_sum_to_the_number_of_tasks_and_are_alike_on_average():
    weighting = Weighting(WeightingMethod.RLW, CLASSES, unbounded=3)
    state, three = weighting.initial_state(), jnp.array([True, True, False, True])
    draws = jax.vmap(
        lambda key: weighting.coefficients(state, jnp.zeros(4), three, view([1.0] * 4), key, None).encoder
    )(jax.random.split(jax.random.key(0), 4000))
    np.testing.assert_allclose(draws.sum(1), 3.0, rtol=1e-5)
    np.testing.assert_allclose(draws.mean(0), [1, 1, 0, 1], atol=0.05)
    assert draws[:, 0].std() > 0.3


# FAMO


def test_famos_weights_are_the_gradient_of_the_weighted_log_losses():
    logits, losses = jnp.array([0.1, -0.4, 0.0, 1.0]), jnp.array([0.5, 2.0, 0.1, 70.0])
    share = jax.nn.softmax(logits)
    gradient = jax.grad(lambda losses: jnp.sum(share * jnp.log(losses)))(losses)
    np.testing.assert_allclose(famo(logits, losses, EVERYONE), 4 * gradient / gradient.sum(), rtol=1e-4)


def test_famos_update_is_the_transposed_jacobian_of_the_softmax():
    learned = Learned.create(jnp.array([0.1, -0.4, 0.0, 1.0]))
    before, after = jnp.array([0.5, 2.0, 1.0, 70.0]), jnp.array([0.4, 1.9, 1.1, 69.0])
    _, transposed = jax.vjp(jax.nn.softmax, learned.values)
    (gradient,) = transposed(jnp.log(before) - jnp.log(after))
    expected = learned.descend(gradient + 0.01 * learned.values, jnp.float32(0.02), EVERYONE)
    ours = famo_update(learned, before, after, knobs(famo_decay=0.01), EVERYONE)
    np.testing.assert_allclose(ours.values, expected.values, rtol=1e-5)
    np.testing.assert_allclose(ours.adam.mu, expected.adam.mu, rtol=1e-4)


def test_famo_does_not_ask_a_solved_task_to_improve():
    learned, before = Learned.create(jnp.zeros(4)), jnp.array([1.0, 1e-5, 2.0, 50.0])
    weights = famo(learned.values, before, EVERYONE)
    np.testing.assert_allclose(weights[1] / weights[0], 1 / 0.05, rtol=1e-5)
    moved = famo_update(learned, before, before * jnp.array([0.9, 1e-3, 1.0, 0.9]), knobs(), EVERYONE)
    assert float(moved.values[1]) == 0
    assert moved.values[2] > 0 > moved.values[0], "the share of what did not fall grows"


def test_famo_comes_to_the_shares_whose_worst_log_loss_falls_fastest():
    """Along fixed log gradients the shares solve min |sum z g|^2, where all tasks with a share fall at one rate."""
    gradients = np.array([[1.0, 0.2, 0.0], [0.1, 0.8, 0.3], [-0.3, 0.1, 0.9], [4.0, 4.0, 4.0]])
    gram = gradients @ gradients.T
    solution = scipy.optimize.minimize(
        lambda z: z @ gram @ z / 2, np.full(4, 0.25), bounds=[(0, 1)] * 4,
        constraints={"type": "eq", "fun": lambda z: z.sum() - 1}, tol=1e-12,
    ).x  # fmt: skip

    def step(_: int, learned: Learned) -> Learned:
        fell = 0.01 * jnp.array(gram, jnp.float32) @ jax.nn.softmax(learned.values)
        return famo_update(learned, jnp.ones(4), jnp.exp(-fell), knobs(learning_rate=0.003), EVERYONE)

    learned = jax.lax.fori_loop(0, 20_000, step, Learned.create(jnp.zeros(4)))
    shares = np.array(jax.nn.softmax(learned.values))
    np.testing.assert_allclose(shares, solution, atol=0.02)
    rates = gram @ shares
    np.testing.assert_allclose(rates[:3], rates[:3].mean(), rtol=0.05)
    assert rates[3] > 2 * rates[0], "a task that falls by itself needs no share"


# Gradients that conflict


def pcgrad_of_vectors(gradients: np.ndarray, order: np.ndarray) -> np.ndarray:
    total = np.zeros(gradients.shape[1])
    for task, others in enumerate(order):
        projected = gradients[task].copy()
        for other in others:
            if other != task and (product := projected @ gradients[other]) < 0:
                projected -= product / (gradients[other] @ gradients[other]) * gradients[other]
        total += projected
    return total


@settings(max_examples=40, deadline=None)
@given(SEEDS)
def test_pcgrad_is_the_projection_of_the_vectors(seed):
    gradients, key = draw(seed), jax.random.key(seed)
    coefficients = np.array(jax.jit(pcgrad)(gram_of(gradients), key, EVERYONE))
    order = np.argsort(jax.random.uniform(key, (4, 4)), axis=1)
    expected = pcgrad_of_vectors(gradients, order)
    np.testing.assert_allclose(coefficients @ gradients, expected, atol=2e-4 * np.abs(gradients).max())


def test_pcgrad_of_two_leaves_nothing_that_points_against_either_and_draws_its_order():
    gradients = np.array([[1.0, 0.0], [-2.0, 1.0]])
    both = jnp.ones(2, bool)
    combined = np.array(pcgrad(gram_of(gradients), jax.random.key(0), both)) @ gradients
    # (1, 0) without its part along (-2, 1), plus (-2, 1) without its part along (1, 0).
    np.testing.assert_allclose(combined, np.array([0.2, 0.4]) + np.array([0.0, 1.0]), rtol=1e-5)
    assert (gradients @ combined >= -1e-6).all()
    three = draw(3, 4, 2)
    outcomes = {tuple(np.array(pcgrad(gram_of(three), jax.random.key(k), EVERYONE)).round(4)) for k in range(20)}
    assert len(outcomes) > 1


def cagrad_objective(gradients: np.ndarray, c: float, w: np.ndarray) -> float:
    mean, combined = gradients.mean(0), w @ gradients
    return float(combined @ mean + c * np.linalg.norm(mean) * np.linalg.norm(combined))


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.floats(0.05, 0.95))
def test_cagrad_finds_what_a_general_solver_finds(seed, c):
    gradients = draw(seed)
    gradients /= np.linalg.norm(gradients, axis=1).max()
    starts = [np.full(4, 0.25), *np.eye(4)]
    objective = functools.partial(cagrad_objective, gradients, c)
    found = [
        scipy.optimize.minimize(
            objective, start, bounds=[(0, 1)] * 4, constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
            method="SLSQP", options={"ftol": 1e-14, "maxiter": 500},
        )
        for start in starts
    ]  # fmt: skip
    best = min(found, key=lambda result: result.fun)
    coefficients = np.array(jax.jit(cagrad)(gram_of(gradients), jnp.float32(c), EVERYONE), np.float64)
    # The coefficients are (1 + 4 c |g0| w / |g_w|) / (1 + c).
    w = coefficients * (1 + c) - 1
    w /= w.sum()
    assert (w >= -1e-5).all()
    assert objective(w) <= best.fun + 2e-3 * np.linalg.norm(gradients.mean(0))
    direction = (1 + c) / 4 * coefficients @ gradients
    mean = gradients.mean(0)
    assert np.linalg.norm(direction - mean) <= (c + 5e-3) * np.linalg.norm(mean)
    # The worst-off task does at least as well as with the mean gradient.
    assert (gradients @ direction).min() >= (gradients @ mean).min() - 1e-3 * np.linalg.norm(mean)


def test_cagrad_without_radius_is_equal_weighting():
    np.testing.assert_allclose(cagrad(gram_of(draw(0)), jnp.float32(0), EVERYONE), 1.0, rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_nash_mtl_solves_the_bargaining_condition(seed):
    gradients = draw(seed)
    gram = gradients @ gradients.T
    a = np.array(jax.jit(nash_mtl)(gram_of(gradients), EVERYONE), np.float64)
    assert (a > 0).all()
    np.testing.assert_allclose(a * (gram @ a) / np.linalg.norm(gram), 1.0, atol=2e-2)


def test_nash_mtl_finds_what_a_root_finder_finds():
    gradients = draw(7)
    gram = gradients @ gradients.T / np.linalg.norm(gradients @ gradients.T)
    root = scipy.optimize.root(lambda x: gram @ np.exp(x) * np.exp(x) - 1, -np.log(np.diag(gram)) / 2)
    assert root.success
    np.testing.assert_allclose(nash_mtl(gram_of(gradients), EVERYONE), np.exp(root.x), rtol=1e-3)


@pytest.mark.parametrize(
    "rule", [lambda g, m: pcgrad(g, jax.random.key(0), m), lambda g, m: cagrad(g, 0.5, m), nash_mtl]
)
def test_gradients_that_vanish_or_cancel_out_give_finite_combinations(rule):
    rule = jax.jit(rule)
    for gradients in (
        np.zeros((4, 2)),
        np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]]),
        np.ones((4, 2)),
        np.eye(4) * [1, 1, 0, 0],
    ):
        for where in (EVERYONE, jnp.array([True, False, False, False]), jnp.zeros(4, bool)):
            for scale in (1.0, 1e-9, 1e6):
                assert np.isfinite(rule(gram_of(scale * gradients), where)).all()


# What holds for all


def decide(weighting, state, where, batch, seed=0):
    return weighting.coefficients(state, jnp.full(4, 7.0), where, batch, jax.random.key(seed), knobs())


def trained(weighting, where, batches) -> object:
    state = weighting.initial_state()
    for number, batch in enumerate(batches):
        state = weighting.started(state, jnp.int32(number), knobs())
        state = weighting.updated(state, where, batch, jnp.int32(number), knobs(), 0.9 * batch.losses)
    return state


@pytest.mark.parametrize("method", list(WeightingMethod))
def test_a_task_without_labelled_rows_disturbs_nobody(method):
    """Its loss and gradient are 0, and so is its count; all others are weighed, and learn, as if it were not there."""
    weighting = Weighting(method, CLASSES, unbounded=3)
    gradients = draw(5)
    gradients[1] = 0
    absent = view([0.9, 0.0, 1.3, 40.0], (2, 0, 1, 2), gram_of(gradients))
    without = jnp.array([True, False, True, True])
    state = trained(weighting, EVERYONE, [absent] * 5)
    alone = trained(weighting, without, [absent] * 5)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), state, alone)
    if state.learned is not None:
        begin = weighting.initial_state().learned
        jax.tree.map(lambda now, then: np.testing.assert_array_equal(now[1], then[1]), state.learned, begin)
    if weighting.depends_on_batch and method is not WeightingMethod.PCGRAD:  # its random order has a place for everyone
        chosen, expected = decide(weighting, state, EVERYONE, absent), decide(weighting, state, without, absent)
        np.testing.assert_allclose(chosen.encoder[without], expected.encoder[without], rtol=1e-5)
        assert float(chosen.encoder[1]) == 0


@pytest.mark.parametrize("method", [m for m in WeightingMethod if m is not WeightingMethod.FIXED])
def test_methods_start_from_equal_weights_and_leave_other_tasks_theirs(method):
    weighting = Weighting(method, (4, 2, 0, 30), unbounded=3)
    weights, adversarial = jnp.array([1.0, 0.4, 0.6, 0.0]), jnp.array([False, True, False, False])
    balanced = weighting.balanced(weights, adversarial)
    assert balanced.tolist() == [True, False, False, False], "no head, adversarial, and no weight"
    batch = view([1.0, 0.7, 0.0, 30.0], (2, 2, 0, 2), gram_of(draw(1)))
    chosen = weighting.coefficients(weighting.initial_state(), weights, balanced, batch, jax.random.key(0), knobs())
    np.testing.assert_allclose(chosen.encoder[:2], [1.0, 0.4], rtol=1e-4)
    np.testing.assert_allclose(chosen.heads[:2], [1.0, 0.4], rtol=1e-4)
    assert float(chosen.encoder[3]) == float(chosen.heads[3]) == 0


@pytest.mark.parametrize("method", LEARNING)
def test_members_of_a_population_learn_their_own_weights(method):
    weighting = Weighting(method, CLASSES, unbounded=3)
    batches = [view(np.array([0.9, 0.2, 1.3, 40.0]) * scale, gram=gram_of(draw(scale))) for scale in (1, 2, 3)]
    alone = [trained(weighting, EVERYONE, [batch] * 4) for batch in batches]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *batches)
    together = jax.vmap(lambda batch: trained(weighting, EVERYONE, [batch] * 4))(stacked)
    for member, state in enumerate(alone):
        of_member = jax.tree.map(lambda leaf, member=member: leaf[member], together)
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5), of_member, state)
