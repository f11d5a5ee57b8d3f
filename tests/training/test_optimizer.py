"""AdamW against PyTorch's, the schedule against its closed form, groups and clipping."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mtlser.architecture import Wav2Vec2Architecture
from jax_mtlser.config import Freeze, LearningRateSchedule, Moments, OptimizerConfig
from jax_mtlser.training import optimizer
from jax_mtlser.training.optimizer import Rates, Trainable, global_norm, gradient_transform, merge, schedule, split
from jax_mtlser.training.stacks import Layout

ARCH = Wav2Vec2Architecture(num_hidden_layers=3)


def rates(encoder: float = 1.0, heads: float = 1.0, decay: float = 1.0, warmup: float = 0, total: float = 10) -> Rates:
    return Rates(*(jnp.float32(value) for value in (encoder, heads, decay, warmup, total, 0)))


def tree(seed: int) -> dict:
    random = np.random.default_rng(seed)
    shapes = {
        "encoder": {
            "feature_encoder": (3, 2),
            "positions": (5, 2),
            "transformer": {
                "norm": (2,),
                "layer_0": {"kernel": (2, 4), "bias": (4,), "lora_down": (2, 1), "lora_up": (1, 4)},
                "layer_1": {"kernel": (2, 4), "bias": (4,)},
                "layer_2": {"kernel": (2, 4), "bias": (4,)},
            },
        },
        "emotion_head": (4, 2),
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def steps_of(updates: dict, rates: Rates, share: float, which: Trainable) -> dict:
    layout = Layout.of(updates, which)
    return layout.unpack(layout.scaled(layout.pack(updates), rates, jnp.float32(share), jnp.float32(share)))


def test_five_steps_equal_pytorchs_adamw_and_clipping():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(weight_decay=0.1, decay_biases_and_norms=True, clip_norm=0.5)
    params = tree(0)
    leaves, structure = jax.tree.flatten(params)
    layout = Layout.of(params, Trainable(ARCH))
    stacks = layout.pack(params)
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for leaf in leaves]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    transform = gradient_transform(config)
    state = transform.init(stacks)
    for step in range(5):
        gradients = tree(step + 1)
        for parameter, gradient in zip(theirs, jax.tree.leaves(gradients), strict=True):
            parameter.grad = torch.from_numpy(np.array(gradient))
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
        updates, state = transform.update(layout.pack(gradients), state, stacks)
        stacks = optax.apply_updates(stacks, layout.scaled(updates, rates(0.01, 0.01), jnp.float32(1), jnp.float32(1)))
    for ours, other in zip(structure.flatten_up_to(layout.unpack(stacks)), theirs, strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), rtol=2e-5, atol=1e-6)


def adam_state(moments: Moments, gradients: list[dict], before: int = 0) -> optax.ScaleByAdamState:
    """Moments after a step with each of the gradients, the first of which is counted as step ``before + 1``."""
    transform = gradient_transform(OptimizerConfig(moments=moments, clip_norm=None))
    adam, *others = transform.init(gradients[0])
    state = (adam._replace(count=adam.count + before), *others)
    update = jax.jit(lambda gradient, state: transform.update(gradient, state, gradient)[1])
    for gradient in gradients:
        state = update(gradient, state)
    return state[0]


def test_moments_in_bfloat16_are_rounded_to_a_neighbour_and_right_on_average():
    gradients = {"matrix": jnp.full((300, 200), 0.737), "vector": jnp.full((40_000,), -1.3e-4)}
    exact = adam_state(Moments.FLOAT32, [gradients])
    compact = adam_state(Moments.BFLOAT16, [gradients])
    for kind in ("mu", "nu"):
        for name in gradients:
            rounded = getattr(compact, kind)[name]
            assert rounded.dtype == jnp.bfloat16
            values = np.asarray(rounded.astype(jnp.float32), np.float64)
            value = float(getattr(exact, kind)[name].ravel()[0])
            neighbours, counts = np.unique(values, return_counts=True)
            assert len(neighbours) == 2
            assert neighbours[0] < value < neighbours[1]
            # One unit in the last of bfloat16's 8 binary places.
            assert np.diff(neighbours)[0] == 2.0 ** (np.floor(np.log2(abs(value))) - 7)
            share = (value - neighbours[0]) / np.diff(neighbours)[0]
            assert abs(counts[1] / values.size - share) < 4 * np.sqrt(share * (1 - share) / values.size)


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -0.75, 2.0**-130, np.inf, -np.inf, np.nan])
def test_what_bfloat16_holds_exactly_is_not_rounded(value):
    bits = jnp.asarray([0, 1, 2**15, 2**16 - 1], jnp.uint32)
    rounded = optimizer._rounded(jnp.full(4, value, jnp.float32), bits)
    assert rounded.dtype == jnp.bfloat16
    np.testing.assert_array_equal(rounded.astype(jnp.float32), np.full(4, value, np.float32))
    if not np.isnan(value):
        assert (jnp.signbit(rounded) == np.signbit(value)).all()


def test_moments_in_bfloat16_follow_gradients_that_become_smaller():
    large, small = ({"matrix": jnp.full((100, 100), value)} for value in (1.0, 0.1))
    gradients = [large] * 100 + [small] * 500
    exact, compact = (adam_state(moments, gradients) for moments in Moments)
    nu, expected = np.asarray(compact.nu["matrix"], np.float32), float(exact.nu["matrix"][0, 0])
    # To the nearest value, it would stay where it was after the large ones.
    assert expected < 0.7 * float(adam_state(Moments.FLOAT32, [large] * 100).nu["matrix"][0, 0])
    assert nu.mean() == pytest.approx(expected, rel=0.01)
    assert nu.std() < 0.1 * expected


def test_members_round_moments_as_they_would_alone():
    gradients = {"matrix": jnp.full((30, 20), 0.737), "vector": jnp.full((50,), -1.3e-4)}
    transform = gradient_transform(OptimizerConfig(moments=Moments.BFLOAT16, clip_norm=None))
    adam, *others = transform.init(gradients)
    states = [(adam._replace(count=adam.count + before), *others) for before in (0, 7)]
    update = lambda state: transform.update(gradients, state, gradients)[1][0]
    together = jax.jit(jax.vmap(update))(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states))
    for member, state in enumerate(states):
        own = jax.tree.map(lambda leaf, member=member: leaf[member], together)
        jax.tree.map(np.testing.assert_array_equal, own, jax.jit(update)(state))
    assert (together.mu["matrix"][0] != together.mu["matrix"][1]).any()


def test_no_two_parameters_moments_or_steps_are_rounded_alike():
    gradients = {name: jnp.full((50, 400), 0.737) for name in ("first", "second")}
    states = [adam_state(Moments.BFLOAT16, [gradients], before) for before in (0, 1, 1000)]
    draws = [
        (leaf > jnp.mean(leaf, dtype=jnp.float32)).ravel()
        for state in states
        for kind in (state.mu, state.nu)
        for leaf in kind.values()
    ]
    correlations = np.corrcoef(np.array(draws))[np.triu_indices(len(draws), 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(draws[0].size)


@pytest.mark.parametrize("shape", [(64, 1000), (7, 3), (16,), ()])
def test_the_global_norm_is_that_of_all_entries_together(shape):
    leaves = [np.random.default_rng(seed).standard_normal(shape).astype(np.float32) for seed in (0, 1)]
    expected = np.sqrt(sum(np.square(leaf, dtype=np.float64).sum() for leaf in leaves))
    np.testing.assert_allclose(jax.jit(global_norm)([*map(jnp.asarray, leaves)]), expected, rtol=1e-6)


def test_biases_and_norms_are_not_decayed_by_default():
    params = tree(0)
    zero = jax.tree.map(jnp.zeros_like, params)
    transform = gradient_transform(OptimizerConfig(weight_decay=0.1))
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_allclose(
        updates["encoder"]["transformer"]["layer_0"]["kernel"],
        0.1 * params["encoder"]["transformer"]["layer_0"]["kernel"],
    )
    assert not updates["encoder"]["transformer"]["layer_0"]["bias"].any()


def test_heads_and_encoder_take_their_own_rates():
    ones = jax.tree.map(jnp.ones_like, tree(0))
    scaled = steps_of(ones, rates(encoder=0.1, heads=2.0), 0.5, Trainable(ARCH))
    np.testing.assert_allclose(scaled["encoder"]["transformer"]["layer_0"]["bias"], -0.05)
    np.testing.assert_allclose(scaled["emotion_head"], -1.0)


@pytest.mark.parametrize(("pre_norm", "norm"), [(False, 0.125), (True, 1.0)])
def test_layer_decay_lowers_the_rate_from_layer_to_layer(pre_norm, norm):
    ones = jax.tree.map(jnp.ones_like, tree(0))
    which = Trainable(dataclasses.replace(ARCH, do_stable_layer_norm=pre_norm))
    scaled = steps_of(ones, rates(heads=2.0, decay=0.5), -1.0, which)
    transformer = scaled["encoder"]["transformer"]
    np.testing.assert_allclose(scaled["emotion_head"], 2.0)
    np.testing.assert_allclose(transformer["layer_2"]["kernel"], 1.0)
    np.testing.assert_allclose(transformer["layer_1"]["kernel"], 0.5)
    np.testing.assert_allclose(transformer["layer_0"]["bias"], 0.25)
    np.testing.assert_allclose(scaled["encoder"]["feature_encoder"], 0.125)
    # In front of the first layer (post-LN) or behind the last one (pre-LN).
    np.testing.assert_allclose(transformer["norm"], norm)


FROZEN = {
    "nothing": (Trainable(ARCH), {"positions"}),
    "feature encoder": (Trainable(ARCH, Freeze.FEATURE_ENCODER), {"positions", "feature_encoder"}),
    "one layer": (
        Trainable(ARCH, Freeze.LAYERS, 1),
        {"positions", "feature_encoder", "layer_0/bias", "layer_0/kernel", "norm"},
    ),
    "encoder but adapters": (
        Trainable(ARCH, Freeze.ENCODER),
        {"positions", "feature_encoder", "norm"}
        | {f"layer_{layer}/{name}" for layer in range(3) for name in ("bias", "kernel")},
    ),
}


@pytest.mark.parametrize("name", FROZEN)
def test_what_is_frozen_and_that_merging_and_unpacking_undo_splitting_and_packing(name):
    which, expected = FROZEN[name]
    params = tree(0)
    trainable, frozen = split(params, which)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in
             jax.tree_util.tree_leaves_with_path(frozen)]  # fmt: skip
    assert {path.removeprefix("encoder/").removeprefix("transformer/") for path in paths} == expected
    assert len(jax.tree.leaves(trainable)) + len(paths) == len(jax.tree.leaves(params))
    layout = Layout.of(trainable, which)
    stacks = layout.pack(trainable)
    assert len(stacks) <= len(jax.tree.leaves(trainable))
    jax.tree.map(np.testing.assert_array_equal, merge(layout.unpack(stacks), frozen), params)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (LearningRateSchedule.CONSTANT, [0.5, 1.0, 1.0, 1.0, 1.0]),
        (LearningRateSchedule.LINEAR, [0.5, 1.0, 1.0, 0.5, 0.0]),
        (LearningRateSchedule.COSINE, [0.5, 1.0, 1.0, 0.5, 0.0]),
    ],
)
def test_the_schedule_warms_up_and_decays(shape, expected):
    steps = jnp.array([0, 1, 2, 6, 10])
    values = [float(schedule(step, rates(warmup=2, total=10), shape)) for step in steps]
    np.testing.assert_allclose(values, expected, atol=1e-6)


@pytest.mark.parametrize("shape", LearningRateSchedule)
def test_a_group_that_starts_later_stands_still_before_and_has_the_same_schedule_behind(shape):
    early, late = (rates(warmup=2, total=total) for total in (10, 14))
    before = [float(schedule(jnp.int32(step), late, shape, jnp.float32(4))) for step in range(4)]
    assert before == [0.0] * 4
    for step in range(11):
        behind = schedule(jnp.int32(step + 4), late, shape, jnp.float32(4))
        np.testing.assert_allclose(behind, schedule(jnp.int32(step), early, shape), rtol=1e-6)


def test_no_warm_up_starts_at_the_peak():
    assert float(schedule(jnp.int32(0), rates(warmup=0, total=10), LearningRateSchedule.LINEAR)) == 1.0
