"""AdamW with a warm-up schedule, parameter groups and clipping; frozen parameters are not even differentiated."""

import enum
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from jax_mtlser.config import LearningRateSchedule, OptimizerConfig

__all__ = ["Group", "Rates", "apply_rates", "gradient_transform", "group_of", "merge", "schedule", "split"]

Params = Any


class Group(enum.Enum):
    """What a parameter belongs to."""

    ENCODER = "encoder"
    HEADS = "heads"
    FROZEN = "frozen"


@flax.struct.dataclass
class Rates:
    """Learning rates and the length of the schedule: float32 scalars, traced, so changing them compiles nothing.

    Attributes:
        encoder, heads: peak learning rate of each group.
        warmup_steps: steps in which the rate rises linearly from zero.
        total_steps: steps of the whole training.
    """

    encoder: Array
    heads: Array
    warmup_steps: Array
    total_steps: Array


def group_of(path: tuple[Any, ...], *, freeze_feature_encoder: bool) -> Group:
    """The group of the parameter at a key path of the model's tree."""
    names = [entry.key for entry in path]
    if names[0] != "encoder":
        return Group.HEADS
    if freeze_feature_encoder and names[1] == "feature_encoder":
        return Group.FROZEN
    return Group.ENCODER


def split(params: Params, *, freeze_feature_encoder: bool) -> tuple[Params, Params]:
    """Trainable and frozen parameters: two trees of the whole shape, with None for what is in the other."""

    def pick(frozen: bool) -> Params:
        def keep(path: tuple[Any, ...], leaf: Any) -> Any:
            group = group_of(path, freeze_feature_encoder=freeze_feature_encoder)
            return leaf if (group is Group.FROZEN) == frozen else None

        return jax.tree_util.tree_map_with_path(keep, params)

    return pick(False), pick(True)


def merge(trainable: Params, frozen: Params) -> Params:
    """The inverse of :func:`split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def gradient_transform(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW up to the learning rate, which :func:`apply_rates` multiplies in."""
    decayed = None if config.decay_biases_and_norms else functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    parts = [
        optax.scale_by_adam(config.beta1, config.beta2, config.eps),
        optax.add_decayed_weights(config.weight_decay, decayed),
    ]
    if config.clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(config.clip_norm))
    return optax.chain(*parts)


def schedule(step: Int[Array, ""], rates: Rates, shape: LearningRateSchedule) -> Float[Array, ""]:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant or down to 0."""
    done = step.astype(jnp.float32)
    warm = jnp.minimum((done + 1) / jnp.maximum(rates.warmup_steps, 1.0), 1.0)
    decay_steps = jnp.maximum(rates.total_steps - rates.warmup_steps, 1.0)
    left = 1.0 - jnp.clip((done - rates.warmup_steps) / decay_steps, 0.0, 1.0)
    match shape:
        case LearningRateSchedule.CONSTANT:
            return warm
        case LearningRateSchedule.LINEAR:
            return warm * left
        case LearningRateSchedule.COSINE:
            return warm * 0.5 * (1.0 - jnp.cos(jnp.pi * left))


def apply_rates(updates: Params, rates: Rates, share: Float[Array, ""]) -> Params:
    """Turn AdamW's direction into a step: minus the group's learning rate times the direction."""

    def scaled(path: tuple[Any, ...], update: Array) -> Array:
        heads = group_of(path, freeze_feature_encoder=False) is Group.HEADS
        return -share * (rates.heads if heads else rates.encoder) * update

    return jax.tree_util.tree_map_with_path(scaled, updates)
