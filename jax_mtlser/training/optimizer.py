"""AdamW with a warm-up schedule, parameter groups and clipping; frozen parameters are not even differentiated."""

import dataclasses
import functools
import itertools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt32

from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import Freeze, LearningRateSchedule, Moments, OptimizerConfig
from jax_mtlser.models import products
from jax_mtlser.models.layers import LORA_PARAMETERS
from jax_mtlser.models.random_bits import random_bits

__all__ = ["Rates", "Trainable", "global_norm", "gradient_transform", "merge", "schedule", "split"]

_SUMS_AT_ONCE = 16

Params = Any


@flax.struct.dataclass
class Rates:
    """Learning rates and the length of the schedule: float32 scalars, traced, so changing them compiles nothing.

    Attributes:
        encoder, heads: peak learning rate of each group.
        layer_decay: factor from each transformer layer to the one below it.
        warmup_steps: steps in which the rate rises linearly from zero.
        total_steps: steps of the whole training.
        encoder_start: steps in which the heads learn alone.
    """

    encoder: Array
    heads: Array
    layer_decay: Array
    warmup_steps: Array
    total_steps: Array
    encoder_start: Array


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Which parameters are trained, told from their place in the model's tree.

    Attributes:
        arch: of the encoder.
        freeze: the part of the encoder that is not trained.
        freeze_layers: first layers that are not trained; with ``Freeze.LAYERS``.
    """

    arch: EncoderArchitecture
    freeze: Freeze = Freeze.NOTHING
    freeze_layers: int = 0

    def is_frozen(self, path: tuple[Any, ...]) -> bool:
        """Whether the parameter at a key path keeps its value."""
        names = [entry.key for entry in path]
        if names[0] != "encoder" or names[-1] in LORA_PARAMETERS:
            return False
        if names[1] == "positions":
            return True  # Whisper's sinusoids are a table, not weights
        match self.freeze:
            case Freeze.NOTHING:
                return False
            case Freeze.FEATURE_ENCODER:
                return names[1] == "feature_encoder"
            case Freeze.LAYERS:
                return self._height(names) <= self.freeze_layers
            case Freeze.ENCODER:
                return True

    def layers_above(self, path: tuple[Any, ...]) -> int:
        """Transformer layers between a parameter and the heads; 0 for the last layer and for the heads."""
        names = [entry.key for entry in path]
        return 0 if names[0] != "encoder" else self.arch.num_hidden_layers - self._height(names)

    def _height(self, names: list[str]) -> int:
        """0 below the first transformer layer, then the layer's number from 1; a norm belongs where it is applied."""
        if names[1] != "transformer":
            return 0
        if names[2] == "norm":
            return self.arch.num_hidden_layers if self.arch.pre_norm else 0
        return int(names[2].removeprefix("layer_")) + 1


def split(params: Params, which: Trainable) -> tuple[Params, Params]:
    """Trainable and frozen parameters: two trees of the whole shape, with None for what is in the other."""

    def pick(frozen: bool) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: leaf if which.is_frozen(path) == frozen else None, params
        )

    return pick(False), pick(True)


def merge(trainable: Params, frozen: Params) -> Params:
    """The inverse of :func:`split`."""
    return jax.tree.map(lambda a, b: b if a is None else a, trainable, frozen, is_leaf=lambda leaf: leaf is None)


def gradient_transform(config: OptimizerConfig) -> optax.GradientTransformation:
    """AdamW up to the learning rate, which :meth:`~jax_mtlser.training.stacks.Layout.scaled` multiplies in."""
    decayed = None if config.decay_biases_and_norms else functools.partial(jax.tree.map, lambda leaf: leaf.ndim > 1)
    adam = optax.scale_by_adam(config.beta1, config.beta2, config.eps)
    parts = [
        adam if config.moments is Moments.FLOAT32 else _with_bfloat16_moments(adam),
        optax.add_decayed_weights(config.weight_decay, decayed),
    ]
    if config.clip_norm is not None:
        parts.insert(0, _clip(config.clip_norm))
    return optax.chain(*parts)


def _with_bfloat16_moments(adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same with both moments kept in bfloat16 from one step to the next; a step computes in float32.

    Rounding is stochastic. To the nearest value, a second moment could not fall: a step takes at most a thousandth of it
    (one minus beta2), and neighbours in bfloat16 lie four to eight thousandths apart.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        state: Any = adam.init(params)
        return state._replace(mu=_cast(state.mu, jnp.bfloat16), nu=_cast(state.nu, jnp.bfloat16))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        exact = state._replace(mu=_cast(state.mu, jnp.float32), nu=_cast(state.nu, jnp.float32))
        updates, after = adam.update(updates, exact, params)
        # No seed of its own: what two trainings round differs anyway, and the step is part of the state that is saved.
        words = jax.random.key_data(jax.random.fold_in(jax.random.key(0), after.count))
        leaves, structure = jax.tree.flatten(after.mu)
        ends = itertools.accumulate((leaf.size for leaf in leaves), initial=0)
        firsts = jax.tree.unflatten(structure, list(ends)[:-1])

        def rounded(moments: Any, shift: int) -> Any:
            # Of 32 bits for a parameter, 16 for each of its moments.
            round_ = lambda x, first: _rounded(x, (random_bits(words, x.shape, first) >> shift) & 0xFFFF)
            return jax.tree.map(round_, moments, firsts)

        return updates, after._replace(mu=rounded(after.mu, 0), nu=rounded(after.nu, 16))

    return optax.GradientTransformation(init, update)


def _cast(tree: Any, dtype: DTypeLike) -> Any:
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)


def _rounded(x: Float[Array, "*shape"], bits: UInt32[Array, "*shape"]) -> Float[Array, "*shape"]:
    """In bfloat16: one of the two neighbours, such that the mean over all bits (0 to 65,535) is the number itself."""
    # The upper half of a float32 is a bfloat16; what a sum carries over from the lower half goes to the next one.
    upper = (jax.lax.bitcast_convert_type(x, jnp.uint32) + bits) >> 16
    neighbour = jax.lax.bitcast_convert_type(upper.astype(jnp.uint16), jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), neighbour, x.astype(jnp.bfloat16))


def global_norm(tree: Any) -> Float[Array, ""]:
    """Root of the sum of all squares."""
    return jnp.sqrt(jnp.sum(jnp.stack([_sum_of_squares(leaf) for leaf in jax.tree.leaves(tree)])))


def _sum_of_squares(x: Array) -> Array:
    squares = jnp.square(x.astype(jnp.float32)).reshape(-1)
    if products.on_cpu() and squares.size % _SUMS_AT_ONCE == 0:
        # jaxlib 0.10 adds one number after the other there; these sums fill vector registers.
        squares = jnp.sum(squares.reshape(_SUMS_AT_ONCE, -1), axis=0)
    return jnp.sum(squares)


def _clip(limit: float) -> optax.GradientTransformation:
    """optax's clipping by the global norm, with one factor for all instead of a division of every entry."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        factor = jnp.minimum(1.0, limit / global_norm(updates))
        return jax.tree.map(lambda leaf: leaf * factor, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def schedule(
    step: Int[Array, ""], rates: Rates, shape: LearningRateSchedule, start: Float[Array, ""] | float = 0.0
) -> Float[Array, ""]:
    """Share of the peak learning rate at a step, counted from 0: linear warm-up, then constant or down to 0.

    Before ``start`` it is 0; warm-up and decay share the steps behind it.
    """
    done = step.astype(jnp.float32) - start
    warm = jnp.clip((done + 1) / jnp.maximum(rates.warmup_steps, 1.0), 0.0, 1.0)
    warm = jnp.where(done < 0, 0.0, warm)
    decay_steps = jnp.maximum(rates.total_steps - start - rates.warmup_steps, 1.0)
    left = 1.0 - jnp.clip((done - rates.warmup_steps) / decay_steps, 0.0, 1.0)
    match shape:
        case LearningRateSchedule.CONSTANT:
            return warm
        case LearningRateSchedule.LINEAR:
            return warm * left
        case LearningRateSchedule.COSINE:
            return warm * 0.5 * (1.0 - jnp.cos(jnp.pi * left))
