"""Weights of the tasks' losses, chosen anew in every step inside the compiled program.

Methods that look at gradients do so at the encoder's output frames: they need each task's gradient through its own
head only, their decision needs only the K x K inner products of these, and one backward pass through the encoder
follows, with the combination that was chosen.
"""

from jax_mtlser.training.weighting.conflicts import cagrad, nash_mtl, pcgrad
from jax_mtlser.training.weighting.losses import LEARNING_RATES
from jax_mtlser.training.weighting.state import BatchView, Coefficients, WeightingKnobs, WeightingState
from jax_mtlser.training.weighting.weighting import Weighting

__all__ = [
    "LEARNING_RATES",
    "BatchView",
    "Coefficients",
    "Weighting",
    "WeightingKnobs",
    "WeightingState",
    "cagrad",
    "nash_mtl",
    "pcgrad",
]
