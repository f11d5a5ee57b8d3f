"""What is read off the shared encoder: utterance classes from the pooled frames, symbols from each frame."""

from collections.abc import Sequence

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_mtlser.models import products
from jax_mtlser.models.dropout import dropout
from jax_mtlser.models.layers import Affine, AffineParameters, affine_maps

__all__ = ["Head", "HeadInputs", "logits", "utterance_logits"]


@flax.struct.dataclass
class HeadInputs:
    """What a head multiplies: float32 [*batch, D], and its affine map to logits."""

    x: Array
    map: AffineParameters


class Head(nn.Module):
    """Dropout in front of one affine map to logits, in float32 (v* or v to z in the paper).

    Given several layers' representations instead of one, the head reads their weighted average, with weights that
    it learns (a softmax of one number per layer, equal at first; SUPERB, Yang et al. 2021). Heads are multiplied
    outside, where several can be at once: :func:`logits`, :func:`utterance_logits`.

    Attributes:
        classes: number of logits.
        dropout: rate in training.
    """

    classes: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "*batch D"] | Sequence[Float[Array, "*batch D"]], *, train: bool) -> HeadInputs:
        if isinstance(x, Sequence):
            weights = jax.nn.softmax(self.param("layer_weights", jax.nn.initializers.zeros, (len(x),)))
            y = weights[0] * x[0].astype(jnp.float32)
            for index in range(1, len(x)):
                y = y + weights[index] * x[index].astype(jnp.float32)
        else:
            y = x.astype(jnp.float32)
        key = self.make_rng("dropout") if train and self.dropout > 0 else None
        return HeadInputs(dropout(y, self.dropout, key), Affine(self.classes, name="logits")(y.shape[-1]))


def logits(head: HeadInputs) -> Float[Array, "*batch C"]:
    """One head's logits, in float32."""
    return affine_maps(head.x, [head.map], jnp.float32)[0]


def utterance_logits(heads: Sequence[HeadInputs]) -> list[Float[Array, "B C"]]:
    """Logits of heads that each read one vector per utterance: one product for all, padded to the most classes."""
    if len(heads) < 2 or products.is_plain():
        return [logits(head) for head in heads]
    widest = max(head.map.kernel.shape[1] for head in heads)

    def padded(x: Array) -> Array:
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, widest - x.shape[-1])])

    inputs = jnp.stack([head.x for head in heads])
    kernels = jnp.stack([padded(head.map.kernel) for head in heads])
    biases = jnp.stack([padded(head.map.bias) for head in heads if head.map.bias is not None])
    joined = products.einsum("nbd,ndc->nbc", inputs, kernels, jnp.float32) + biases[:, None]
    return [y[:, : head.map.kernel.shape[1]] for y, head in zip(joined, heads, strict=True)]
