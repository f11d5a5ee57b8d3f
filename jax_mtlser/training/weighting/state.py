"""What weighting methods see, decide and remember. K counts the tasks, in the order of ``losses.TASKS``."""

import dataclasses
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

__all__ = ["BatchView", "Coefficients", "EpochLosses", "Learned", "WeightingKnobs", "WeightingState"]

# Moments of the small optimizer behind learned weights; its learning rate is a knob.
_ADAM = optax.scale_by_adam()


@flax.struct.dataclass
class WeightingKnobs:
    """Traced settings, float32 scalars but for the first; a method reads those that concern it.

    Attributes:
        steps_per_epoch: int32, optimizer steps.
        learning_rate: of learned weights.
        gradnorm_alpha: how strongly GradNorm pulls training speeds together.
        temperature: of DWA's softmax.
        cagrad_c: radius in which CAGrad may leave the mean gradient, as a share of that one's norm.
        famo_decay: of FAMO's logits.
    """

    steps_per_epoch: Array
    learning_rate: Array
    gradnorm_alpha: Array
    temperature: Array
    cagrad_c: Array
    famo_decay: Array


@flax.struct.dataclass
class BatchView:
    """What a method may know of a whole batch, over all its parts and devices.

    Attributes:
        losses: float32 [K] mean over the labelled rows; 0 without one.
        counts: float32 [K] labelled rows.
        gram: float32 [K, K] inner products of the gradients of ``losses`` with respect to the encoder's output
            frames; None for methods that do not look at gradients.
    """

    losses: Array
    counts: Array
    gram: Array | None = None


@flax.struct.dataclass
class Coefficients:
    """The decision for one step: float32 [K] each, 0 for tasks that are left out.

    Attributes:
        encoder: of each task's gradient at the encoder's output.
        heads: of each task's gradient in its own head.
    """

    encoder: Array
    heads: Array


@flax.struct.dataclass
class Learned:
    """A number for each task, learned by Adam with moments and bias correction of its own for each.

    Attributes:
        values: float32 [K].
        adam: each leaf with leading axis K.
    """

    values: Array
    adam: Any

    @classmethod
    def create(cls, values: Float[Array, " K"]) -> "Learned":
        """Before the first update."""
        return cls(values, jax.vmap(_ADAM.init)(values))

    def descend(self, gradient: Float[Array, " K"], rate: Float[Array, ""], where: Bool[Array, " K"]) -> "Learned":
        """One step of Adam; values outside ``where`` keep value, moments and counter."""
        direction, adam = jax.vmap(_ADAM.update)(gradient, self.adam)
        moved = Learned(self.values - rate * direction, adam)
        return jax.tree.map(lambda new, old: jnp.where(where, new, old), moved, self)


@flax.struct.dataclass
class EpochLosses:
    """Mean losses of epochs, gathered step by step.

    Attributes:
        total, count: float32 [K] sums over the labelled rows of the running epoch.
        last, before: float32 [K] means of the last epoch and of the one before it; 0 where there was none yet.
    """

    total: Array
    count: Array
    last: Array
    before: Array

    @classmethod
    def create(cls, tasks: int) -> "EpochLosses":
        """Before the first step."""
        nothing = jnp.zeros(tasks, jnp.float32)
        return cls(nothing, nothing, nothing, nothing)

    def add(self, batch: BatchView) -> "EpochLosses":
        """With the rows of one more batch."""
        return dataclasses.replace(
            self, total=self.total + batch.losses * batch.counts, count=self.count + batch.counts
        )

    def turned(self, boundary: Bool[Array, ""]) -> "EpochLosses":
        """At an epoch's ``boundary`` its means become the last ones; elsewhere nothing changes.

        A task without any labelled row in an epoch keeps the means it had.
        """
        counted = boundary & (self.count > 0)
        return EpochLosses(
            total=jnp.where(boundary, 0.0, self.total),
            count=jnp.where(boundary, 0.0, self.count),
            last=jnp.where(counted, self.mean(), self.last),
            before=jnp.where(counted, self.last, self.before),
        )

    def mean(self) -> Float[Array, " K"]:
        """Of the running epoch so far; 0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


@flax.struct.dataclass
class WeightingState:
    """What a method carries from step to step; empty for those that carry nothing.

    Attributes:
        learned: logarithms of weights (Uncertainty Weighting, IMTL-L), weights (GradNorm), logits (FAMO).
        epochs: DWA's; of the first epoch alone for GradNorm.
    """

    learned: Learned | None = None
    epochs: EpochLosses | None = None
