"""What is read off the shared encoder: utterance classes from the pooled frames, symbols from each frame."""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_mtlser.models.layers import Dense

__all__ = ["Head"]


class Head(nn.Module):
    """Dropout and one affine map to logits, in float32 (v* or v to z in the paper).

    Attributes:
        classes: number of logits.
        dropout: rate in training.
    """

    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"], *, train: bool) -> Float[Array, "*batch C"]:
        x = nn.Dropout(self.dropout, deterministic=not train)(x.astype(jnp.float32))
        return Dense(self.classes, jnp.float32, name="logits")(x)
