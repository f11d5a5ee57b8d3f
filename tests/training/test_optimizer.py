"""AdamW against PyTorch's, the schedule against its closed form, groups and clipping."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jax_mtlser.config import LearningRateSchedule, OptimizerConfig
from jax_mtlser.training.optimizer import Rates, apply_rates, gradient_transform, merge, schedule, split


def rates(encoder: float = 1.0, heads: float = 1.0, warmup: float = 0, total: float = 10) -> Rates:
    return Rates(*(jnp.float32(value) for value in (encoder, heads, warmup, total)))


def tree(seed: int) -> dict:
    random = np.random.default_rng(seed)
    shapes = {
        "encoder": {"feature_encoder": (3, 2), "layer_0": {"kernel": (2, 4), "bias": (4,)}},
        "emotion_head": (4, 2),
    }
    return jax.tree.map(
        lambda shape: jnp.asarray(random.standard_normal(shape), jnp.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def test_five_steps_equal_pytorchs_adamw_and_clipping():
    torch = pytest.importorskip("torch")
    config = OptimizerConfig(weight_decay=0.1, decay_biases_and_norms=True, clip_norm=0.5)
    params = tree(0)
    leaves, structure = jax.tree.flatten(params)
    theirs = [torch.nn.Parameter(torch.from_numpy(np.array(leaf))) for leaf in leaves]
    reference = torch.optim.AdamW(theirs, lr=0.01, weight_decay=0.1)
    transform = gradient_transform(config)
    state = transform.init(params)
    for step in range(5):
        gradients = tree(step + 1)
        for parameter, gradient in zip(theirs, jax.tree.leaves(gradients), strict=True):
            parameter.grad = torch.from_numpy(np.array(gradient))
        torch.nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
        updates, state = transform.update(gradients, state, params)
        params = optax.apply_updates(params, apply_rates(updates, rates(0.01, 0.01), jnp.float32(1)))
    for ours, other in zip(structure.flatten_up_to(params), theirs, strict=True):
        np.testing.assert_allclose(ours, other.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_biases_and_norms_are_not_decayed_by_default():
    params = tree(0)
    zero = jax.tree.map(jnp.zeros_like, params)
    transform = gradient_transform(OptimizerConfig(weight_decay=0.1))
    updates, _ = transform.update(zero, transform.init(params), params)
    np.testing.assert_allclose(updates["encoder"]["layer_0"]["kernel"], 0.1 * params["encoder"]["layer_0"]["kernel"])
    assert not updates["encoder"]["layer_0"]["bias"].any()


def test_heads_and_encoder_take_their_own_rates():
    ones = jax.tree.map(jnp.ones_like, tree(0))
    scaled = apply_rates(ones, rates(encoder=0.1, heads=2.0), jnp.float32(0.5))
    np.testing.assert_allclose(scaled["encoder"]["layer_0"]["bias"], -0.05)
    np.testing.assert_allclose(scaled["emotion_head"], -1.0)


def test_splitting_and_merging_gives_the_same_parameters():
    params = tree(0)
    for frozen in (False, True):
        parts = split(params, freeze_feature_encoder=frozen)
        jax.tree.map(np.testing.assert_array_equal, merge(*parts), params)
    trainable, frozen_part = split(params, freeze_feature_encoder=True)
    assert trainable["encoder"]["feature_encoder"] is None
    assert len(jax.tree.leaves(frozen_part)) == 1


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


def test_no_warm_up_starts_at_the_peak():
    assert float(schedule(jnp.int32(0), rates(warmup=0, total=10), LearningRateSchedule.LINEAR)) == 1.0
