"""Several trainings in one program: state, batch and knobs with a leading axis over members, one step for all.

A member is a fold, a seed, a weighting of the tasks: whatever differs in numbers and not in shapes. In a population it
takes the steps that it would take alone, with the same batches and random numbers; only the order of sums inside
matrix products may differ.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int16

from jax_mtlser.data.batches import Batch
from jax_mtlser.models import products
from jax_mtlser.training.step import Knobs, StepMetrics, StepSpec, TrainState, train_step

__all__ = ["population_step", "stack_members", "take_member"]


def population_step(
    spec: StepSpec,
    num_samples: int,
    state: TrainState,
    batch: Batch,
    knobs: Knobs,
    corpus: Int16[Array, " total"],
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step of P members; see :func:`~jax_mtlser.training.step.train_step`.

    Every array of ``state``, ``batch``, ``knobs`` and of the results has a leading axis of P; the corpus is shared. A
    member whose batch has no utterance keeps its state, and its metrics count nothing.
    """
    step = functools.partial(train_step, spec, num_samples)
    with products.formulation(batched=True):
        stepped, metrics = jax.vmap(step, in_axes=(0, 0, 0, None))(state, batch, knobs, corpus)
    active = jnp.any(batch.lengths > 0, axis=1)

    def kept(new: Array, old: Array) -> Array:
        return jnp.where(active.reshape(-1, *[1] * (new.ndim - 1)), new, old)

    return jax.tree.map(kept, stepped, state), metrics


def stack_members(members: Sequence[Any]) -> Any:
    """Trees of equal shapes, such as states, as one with a leading axis over members."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)


def take_member(population: Any, index: Array | int) -> Any:
    """One member's part of a population's tree."""
    return jax.tree.map(lambda leaf: leaf[index], population)
