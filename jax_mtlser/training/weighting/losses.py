"""Rules that weigh tasks by their losses, and GradNorm, which weighs them by the size of their gradients.

``where`` is a mask of the tasks that take part: all that are balanced where a rule does not look at the batch, and
those of them with a labelled row in the batch where it does.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jax_mtlser.config import WeightingMethod
from jax_mtlser.training.weighting.state import BatchView, EpochLosses, Learned, WeightingKnobs

__all__ = [
    "LEARNING_RATES",
    "dwa",
    "famo",
    "famo_update",
    "gradnorm_gradient",
    "gradnorm_update",
    "learned_scale_gradient",
    "learned_scale_update",
    "rlw",
    "share",
]

# Of learned weights, where the configuration gives none. The two loss scales move with the losses, over epochs; the
# others answer to single steps.
LEARNING_RATES = {
    WeightingMethod.UNCERTAINTY: 1e-3,
    WeightingMethod.IMTL_L: 1e-3,
    WeightingMethod.GRADNORM: 0.025,
    WeightingMethod.FAMO: 0.025,
}

# A learned scale has no bound of its own: a task that is solved has a loss near 0, and 1 / 0 is what it moves to.
_LARGEST_LOG_WEIGHT = 4.0
_SMALLEST_GRADNORM_WEIGHT = 1e-3
_FAMO_EPSILON = 1e-8  # under the logarithm

Mask = Bool[Array, " K"]
Vector = Float[Array, " K"]


def share(logits: Vector, where: Mask) -> Vector:
    """Softmax over the tasks in ``where``; 0 for all others, and for all when there is none."""
    largest = jnp.max(jnp.where(where, logits, -jnp.inf), initial=-1e30)
    raised = jnp.where(where, jnp.exp(jnp.where(where, logits - largest, 0.0)), 0.0)
    return raised / jnp.maximum(jnp.sum(raised), 1e-30)


def rlw(key: Key[Array, ""], where: Mask) -> Vector:
    """Random loss weighting (Lin et al. 2022): K times the softmax of K normal numbers, drawn in each step."""
    return jnp.sum(where) * share(jax.random.normal(key, where.shape), where)


def dwa(epochs: EpochLosses, temperature: Float[Array, ""], where: Mask) -> Vector:
    """Dynamic weight average (Liu, Johns and Davison 2019): more for tasks whose loss falls more slowly.

    K times the softmax of (last epoch's mean loss / that of the epoch before) / temperature; 1 for all in the first
    two epochs.
    """
    known = (epochs.last > 0) & (epochs.before > 0)
    ratio = jnp.where(known, epochs.last / jnp.where(known, epochs.before, 1.0), 1.0)
    return jnp.sum(where) * share(ratio / temperature, where)


def learned_scale_gradient(log_weights: Vector, losses: Vector, offset: float) -> Vector:
    """Gradient of ``exp(u) L - offset u`` with respect to u, the logarithm of a task's weight.

    Uncertainty weighting (Kendall, Gal and Cipolla 2018, for classification) is offset 1/2 with u = -log sigma^2:
    ``exp(-s) L + s / 2``, fixed point exp(u) = 1 / (2 L). IMTL-L (Liu et al. 2021) is offset 1: ``exp(u) L - u``,
    fixed point 1 / L. The one is half the other in the end, and both make every task's weighted loss the same.
    """
    return jnp.exp(log_weights) * losses - offset


def learned_scale_update(
    learned: Learned, batch: BatchView, knobs: WeightingKnobs, where: Mask, offset: float
) -> Learned:
    """One step of the logarithms of weights on a batch's losses."""
    gradient = learned_scale_gradient(learned.values, batch.losses, offset)
    learned = learned.descend(gradient, knobs.learning_rate, where)
    return dataclasses.replace(learned, values=jnp.minimum(learned.values, _LARGEST_LOG_WEIGHT))


def gradnorm_gradient(weights: Vector, norms: Vector, progress: Vector, alpha: Float[Array, ""], where: Mask) -> Vector:
    """Gradient of GradNorm's own loss with respect to the weights (Chen et al. 2018, equation 2).

    The loss is the sum of |w_i n_i - target_i|, and the targets count as constants. Since n_i does not depend on the
    weights, no second backward pass is needed.

    Args:
        weights: w.
        norms: n, of each task's gradient without its weight.
        progress: loss divided by initial loss; lower is further.
        alpha: 0 makes all weighted norms equal; above, slow tasks get more.
        where: tasks with a labelled row.
    """
    count = jnp.maximum(jnp.sum(where), 1)

    def mean(values: Vector) -> Float[Array, ""]:
        return jnp.sum(jnp.where(where, values, 0.0)) / count

    rate = jnp.where(where, progress, 1.0) / jnp.maximum(mean(progress), 1e-30)
    target = mean(weights * norms) * jnp.maximum(rate, 1e-30) ** alpha
    return jnp.where(where, jnp.sign(weights * norms - target) * norms, 0.0)


def gradnorm_update(
    learned: Learned, epochs: EpochLosses, batch: BatchView, chance: Vector, knobs: WeightingKnobs, where: Mask
) -> Learned:
    """One step of GradNorm's weights; their sum stays as it is.

    Args:
        learned: the weights.
        epochs: losses of the first epoch, the current batch included.
        batch: with its Gram matrix.
        chance: initial loss of each classifier, log C; NaN where none can be told, as for CTC: there the mean of
            the first epoch stands in.
        knobs: learning rate and alpha.
        where: tasks with a labelled row.
    """
    assert batch.gram is not None
    first = epochs.mean()
    initial = jnp.where(jnp.isnan(chance), jnp.where(first > 0, first, 1.0), chance)
    norms = jnp.sqrt(jnp.diagonal(batch.gram))
    gradient = gradnorm_gradient(learned.values, norms, batch.losses / initial, knobs.gradnorm_alpha, where)
    before = jnp.sum(jnp.where(where, learned.values, 0.0))
    learned = learned.descend(gradient, knobs.learning_rate, where)
    weights = jnp.where(where, jnp.maximum(learned.values, _SMALLEST_GRADNORM_WEIGHT), learned.values)
    # Among the tasks of this batch, so that one without labels keeps its weight.
    after = jnp.sum(jnp.where(where, weights, 0.0))
    return dataclasses.replace(learned, values=jnp.where(where, weights * before / jnp.maximum(after, 1e-30), weights))


def famo(logits: Vector, losses: Vector, where: Mask) -> Vector:
    """FAMO's weights (Liu et al. 2023): those of the gradient of sum z_i log L_i, z the softmax of logits.

    Scaled to the sum K, the number of tasks in ``where``; in the paper they sum to 1.
    """
    relative = share(logits, where) / (losses + _FAMO_EPSILON)
    return jnp.sum(where) * relative / jnp.maximum(jnp.sum(relative), 1e-30)


def famo_update(learned: Learned, before: Vector, after: Vector, knobs: WeightingKnobs, where: Mask) -> Learned:
    """One step of FAMO's logits: less for the tasks whose log loss fell most.

    Args:
        learned: the logits.
        before, after: losses of the same batch before and after the parameters' step.
        knobs: learning rate and decay.
        where: tasks with a labelled row.
    """
    share_now = share(learned.values, where)
    fell = jnp.where(where, jnp.log(before + _FAMO_EPSILON) - jnp.log(after + _FAMO_EPSILON), 0.0)
    # Transposed Jacobian of the softmax times what each fell by.
    gradient = share_now * (fell - jnp.sum(share_now * fell))
    return learned.descend(gradient + knobs.famo_decay * learned.values, knobs.learning_rate, where)
