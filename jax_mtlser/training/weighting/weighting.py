"""The chosen method as the step uses it: a state, a decision before the backward pass, an update behind it."""

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jax_mtlser.config import WeightingMethod
from jax_mtlser.training.weighting import conflicts, losses
from jax_mtlser.training.weighting.state import (
    BatchView,
    Coefficients,
    EpochLosses,
    Learned,
    WeightingKnobs,
    WeightingState,
)

__all__ = ["Weighting"]

_UNCERTAINTY_OFFSET, _IMTL_OFFSET = 0.5, 1.0  # see losses.learned_scale_gradient
_COMBINING = (WeightingMethod.PCGRAD, WeightingMethod.CAGRAD, WeightingMethod.NASH_MTL)


@dataclasses.dataclass(frozen=True)
class Weighting:
    """A weighting method for K tasks; static, so one compiled program serves all its settings.

    Attributes:
        method: which.
        classes: of each task's head; 0 where the model has none.
        unbounded: index of the task whose initial loss cannot be told from its classes (CTC).
    """

    method: WeightingMethod
    classes: tuple[int, ...]
    unbounded: int

    @property
    def watches_gradients(self) -> bool:
        """Needs the Gram matrix of the tasks' gradients at the encoder's output."""
        return self.method is WeightingMethod.GRADNORM or self.method in _COMBINING

    @property
    def depends_on_batch(self) -> bool:
        """Decides by the whole batch's losses or gradients, so nothing can go back before all its parts are seen."""
        return self.method is WeightingMethod.FAMO or self.method in _COMBINING

    @property
    def looks_back(self) -> bool:
        """Needs the batch's losses once more behind the parameters' step."""
        return self.method is WeightingMethod.FAMO

    def initial_state(self) -> WeightingState:
        """Before the first step: every task weighs the same."""
        tasks = len(self.classes)
        match self.method:
            case WeightingMethod.UNCERTAINTY | WeightingMethod.IMTL_L | WeightingMethod.FAMO:
                return WeightingState(learned=Learned.create(jnp.zeros(tasks)))
            case WeightingMethod.GRADNORM:
                return WeightingState(Learned.create(jnp.ones(tasks)), EpochLosses.create(tasks))
            case WeightingMethod.DWA:
                return WeightingState(epochs=EpochLosses.create(tasks))
            case _:
                return WeightingState()

    def balanced(self, weights: Float[Array, " K"], adversarial: Bool[Array, " K"]) -> Bool[Array, " K"]:
        """Tasks that the method weighs: those with a head and a weight above 0 that do not work against the encoder."""
        return (weights > 0) & ~adversarial & (jnp.array(self.classes) > 0)

    def started(self, state: WeightingState, step: Int[Array, ""], knobs: WeightingKnobs | None) -> WeightingState:
        """The state at the begin of a step: the first of an epoch closes the one before."""
        if self.method is not WeightingMethod.DWA:
            return state
        assert knobs is not None
        assert state.epochs is not None
        boundary = (step > 0) & (step % knobs.steps_per_epoch == 0)
        return dataclasses.replace(state, epochs=state.epochs.turned(boundary))

    def coefficients(
        self,
        state: WeightingState,
        weights: Float[Array, " K"],
        balanced: Bool[Array, " K"],
        batch: BatchView,
        key: Key[Array, ""],
        knobs: WeightingKnobs | None,
    ) -> Coefficients:
        """How much each task counts in this step.

        Args:
            state: at the begin of the step.
            weights: of the configuration; they hold for tasks outside ``balanced``, and for all with FIXED.
            balanced: see :meth:`balanced`.
            batch: read by methods that depend on it only.
            key: of this step.
            knobs: may be None for methods without settings.
        """
        if self.method is WeightingMethod.FIXED:
            return Coefficients(weights, weights)
        present = balanced & (batch.counts > 0)
        plain = balanced.astype(jnp.float32)
        heads: Array | None = None
        match self.method:
            case WeightingMethod.EQUAL:
                encoder = plain
            case WeightingMethod.RLW:
                encoder = losses.rlw(key, balanced)
            case WeightingMethod.UNCERTAINTY | WeightingMethod.IMTL_L:
                encoder = jnp.exp(_learned(state).values)
            case WeightingMethod.GRADNORM:
                # Weights of tasks that are not balanced never move from 1, so the others keep the sum K.
                encoder = _learned(state).values
            case WeightingMethod.DWA:
                assert knobs is not None
                assert state.epochs is not None
                encoder = losses.dwa(state.epochs, knobs.temperature, balanced)
            case WeightingMethod.FAMO:
                encoder = losses.famo(_learned(state).values, batch.losses, present)
            case WeightingMethod.PCGRAD:
                encoder, heads = conflicts.pcgrad(_gram(batch), key, present), plain
            case WeightingMethod.CAGRAD:
                assert knobs is not None
                encoder, heads = conflicts.cagrad(_gram(batch), knobs.cagrad_c, present), plain
            case WeightingMethod.NASH_MTL:
                encoder = conflicts.nash_mtl(_gram(batch), present)
        encoder = jnp.where(balanced, encoder, weights)
        return Coefficients(encoder, encoder if heads is None else jnp.where(balanced, heads, weights))

    def updated(
        self,
        state: WeightingState,
        balanced: Bool[Array, " K"],
        batch: BatchView,
        step: Int[Array, ""],
        knobs: WeightingKnobs | None,
        losses_after: Float[Array, " K"] | None = None,
    ) -> WeightingState:
        """The state behind a step.

        Args:
            state: at its begin.
            balanced: see :meth:`balanced`.
            batch: what the step saw.
            step: its number, from 0.
            knobs: see :meth:`coefficients`.
            losses_after: of the same batch with the new parameters; for methods that look back.
        """
        present = balanced & (batch.counts > 0)
        match self.method:
            case WeightingMethod.UNCERTAINTY | WeightingMethod.IMTL_L:
                assert knobs is not None
                offset = _UNCERTAINTY_OFFSET if self.method is WeightingMethod.UNCERTAINTY else _IMTL_OFFSET
                learned = losses.learned_scale_update(_learned(state), batch, knobs, present, offset)
                return dataclasses.replace(state, learned=learned)
            case WeightingMethod.GRADNORM:
                assert knobs is not None
                assert state.epochs is not None
                first = step < knobs.steps_per_epoch
                counted = dataclasses.replace(batch, counts=jnp.where(first, batch.counts, 0.0))
                epochs = state.epochs.add(counted)
                learned = losses.gradnorm_update(_learned(state), epochs, batch, self._chance(), knobs, present)
                return WeightingState(learned, epochs)
            case WeightingMethod.DWA:
                assert state.epochs is not None
                return dataclasses.replace(state, epochs=state.epochs.add(batch))
            case WeightingMethod.FAMO:
                assert knobs is not None
                assert losses_after is not None
                learned = losses.famo_update(_learned(state), batch.losses, losses_after, knobs, present)
                return dataclasses.replace(state, learned=learned)
            case _:
                return state

    def _chance(self) -> Float[Array, " K"]:
        """Cross-entropy of guessing; NaN where that is not the initial loss."""
        values = [math.log(max(size, 2)) for size in self.classes]
        values[self.unbounded] = math.nan
        return jnp.array(values)


def _learned(state: WeightingState) -> Learned:
    assert state.learned is not None
    return state.learned


def _gram(batch: BatchView) -> Float[Array, "K K"]:
    assert batch.gram is not None
    return batch.gram
