"""Weights of the tasks' losses, chosen anew in every step inside the compiled program.

Methods that look at gradients do so at the encoder's output frames: they need each task's gradient through its own
head only, their decision needs only the K x K inner products of these, and one backward pass through the encoder
follows, with the combination that was chosen.

Losses, counts and inner products are sums over rows, so a batch that is shared by devices or worked through in parts
gives the weights that it gives whole, to rounding. Two things to know: where a rule has a jump (PCGrad's sign of a
product, CAGrad's choice among equal minima) rounding may fall on either side of it, and each part has its own dropout.
A method that decides by the batch goes forward twice when the batch is worked through in parts.
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
