"""What is read off the shared encoder: utterance classes from the pooled frames, symbols from each frame."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_mtlser.models.layers import Dense

__all__ = ["Head"]


class Head(nn.Module):
    """Dropout and one affine map to logits, in float32 (v* or v to z in the paper).

    Given several layers' representations instead of one, the head reads their weighted average, with weights that
    it learns (a softmax of one number per layer, equal at first; SUPERB, Yang et al. 2021).

    Attributes:
        classes: number of logits.
        dropout: rate in training.
    """

    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(
        self, x: Float[Array, "*batch D"] | Sequence[Float[Array, "*batch D"]], *, train: bool
    ) -> Float[Array, "*batch C"]:
        if isinstance(x, Sequence):
            weights = jax.nn.softmax(self.param("layer_weights", jax.nn.initializers.zeros, (len(x),)))
            y = weights[0] * x[0].astype(jnp.float32)
            for index in range(1, len(x)):
                y = y + weights[index] * x[index].astype(jnp.float32)
        else:
            y = x.astype(jnp.float32)
        y = nn.Dropout(self.dropout, deterministic=not train)(y)
        return Dense(self.classes, name="logits")(y)
