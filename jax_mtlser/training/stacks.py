"""Trainable parameters as a few large arrays: those of one shape stacked, the others end to end.

An optimizer treats every parameter alike, so what it does to two hundred arrays it can do to ten. On an accelerator
that is the difference between some five hundred small kernels in each step and a few dozen.
"""

import collections
import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_mtlser.training.optimizer import Rates, Trainable

__all__ = ["Layout", "Stacks"]

Stacks = dict[str, Array]

# Biases and scales, [N]; matrices that have no twin, [1, N]: what has two axes or more sees weight decay.
_VECTORS, _SINGLES = "vectors", "singles"


@dataclasses.dataclass(frozen=True)
class Slot:
    """Where a parameter lies.

    Attributes:
        path: its names in the model's tree.
        shape: its own.
        stack: name of the array that holds it.
        start: its index along the array's first axis; where parameters lie end to end, its first element.
        layers_above: see :meth:`Trainable.layers_above`.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    stack: str
    start: int
    layers_above: int

    @property
    def axis(self) -> int:
        """Of the stack, along which its parameters follow each other."""
        # The last: along the first of [N, 1], XLA moves one element at a time on a CPU.
        return 1 if self.stack == _SINGLES else 0

    def entries(self) -> int:
        """Entries of that axis."""
        return math.prod(self.shape) if self.stack in (_VECTORS, _SINGLES) else 1


@dataclasses.dataclass(frozen=True)
class Layout:
    """The place of every trainable parameter; hashable, so that it can be part of a compiled function.

    Attributes:
        slots: in the order of the tree's leaves.
        structure: of the tree, with None for what is not trained.
    """

    slots: tuple[Slot, ...]
    structure: jax.tree_util.PyTreeDef

    @classmethod
    def of(cls, trainable: Any, which: Trainable) -> Self:
        """The layout of a tree of parameters, or of their shapes, with None for what is not trained."""
        leaves = jax.tree_util.tree_leaves_with_path(trainable)
        twins = collections.Counter(leaf.shape for _, leaf in leaves)
        ends: dict[str, int] = {}
        slots = []
        for path, leaf in leaves:
            stack = "x".join(map(str, leaf.shape)) if twins[leaf.shape] > 1 else _SINGLES
            if leaf.ndim < 2:
                stack = _VECTORS
            names = tuple(entry.key for entry in path)
            slot = Slot(names, leaf.shape, stack, ends.get(stack, 0), which.layers_above(path))
            ends[stack] = slot.start + slot.entries()
            slots.append(slot)
        return cls(tuple(slots), jax.tree.structure(trainable))

    def pack(self, trainable: Any) -> Stacks:
        """The stacks of a tree: of parameters, or of their gradients."""
        parts: dict[str, list[Array]] = {}
        for slot, leaf in zip(self.slots, jax.tree.leaves(trainable), strict=True):
            shape = {_VECTORS: (-1,), _SINGLES: (1, -1)}.get(slot.stack, (1, *slot.shape))
            parts.setdefault(slot.stack, []).append(leaf.reshape(shape))
        axes = {slot.stack: slot.axis for slot in self.slots}
        return {name: jnp.concatenate(leaves, axes[name]) for name, leaves in parts.items()}

    def unpack(self, stacks: Stacks) -> Any:
        """The inverse of :meth:`pack`."""
        leaves = []
        for slot in self.slots:
            end = slot.start + slot.entries()
            entries = jax.lax.slice_in_dim(stacks[slot.stack], slot.start, end, axis=slot.axis)
            leaves.append(entries.reshape(slot.shape))
        return jax.tree.unflatten(self.structure, leaves)

    def scaled(self, updates: Stacks, rates: Rates, encoder: Float[Array, ""], heads: Float[Array, ""]) -> Stacks:
        """Turn AdamW's direction into a step: minus each parameter's learning rate times the direction.

        Args:
            updates: the direction.
            rates: peak learning rates.
            encoder, heads: shares of the peak at this step.
        """
        rates = dataclasses.replace(rates, encoder=encoder * rates.encoder, heads=heads * rates.heads)
        slots: dict[str, list[Slot]] = {}
        for slot in self.slots:
            slots.setdefault(slot.stack, []).append(slot)
        return {name: -_rates_of(slots[name], rates, update.ndim) * update for name, update in updates.items()}


def _rates_of(slots: Sequence[Slot], rates: Rates, rank: int) -> Array:
    """Learning rate of each entry of a stack, ready to be multiplied with it."""

    def rate(slot: Slot) -> Array:
        return rates.heads if slot.path[0] != "encoder" else rates.encoder * rates.layer_decay**slot.layers_above

    axis = slots[0].axis
    return jnp.concatenate(
        [jnp.full([slot.entries() if place == axis else 1 for place in range(rank)], rate(slot)) for slot in slots],
        axis,
    )
