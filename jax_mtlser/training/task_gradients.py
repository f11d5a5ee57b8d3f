"""The gradient of a batch's weighted loss: in one backward pass, or split where the heads meet the encoder.

Split, each task's gradient at the encoder's output frames is there before anything goes back through the encoder.
That costs one backward pass through the heads, since each task reads its own copy of the frames, and one through
the encoder, with the combination that was chosen.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jax_mtlser.data.batches import Batch
from jax_mtlser.models.multitask import MultitaskModel, MultitaskOutput
from jax_mtlser.models.transformer import EncoderOutput
from jax_mtlser.training.losses import TASKS, LossSums
from jax_mtlser.training.optimizer import merge
from jax_mtlser.training.weighting import Coefficients

__all__ = ["Choose", "Objective", "Seen"]

# From mean losses [K] and, where there is one, their Gram matrix [K, K].
Choose = Callable[[Array, Array | None], Coefficients]


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a part of a batch contributes; the fields of all parts add up to those of the batch.

    Attributes:
        loss: float32, weighted by the heads' coefficients.
        means: float32 [K], divided by the whole batch's counts.
        sums: unweighted.
        gram: float32 [K, K] inner products of the gradients of ``means`` at the encoder's output; None where nobody
            asked.
    """

    loss: Array
    means: Array
    sums: LossSums
    gram: Array | None


jax.tree_util.register_dataclass(Seen)


@dataclasses.dataclass(frozen=True)
class Objective:
    """The four losses of a batch as functions of the trainable parameters.

    Attributes:
        model: the network.
        frozen: parameters that are not trained; None in the place of those that are.
        heard: the arguments ``audio`` and ``frozen`` of the model for a part.
        losses: of a part, from its logits.
        counts: float32 [K] labelled rows of the whole batch, so that parts add up to its mean.
        factors: see :meth:`~jax_mtlser.models.multitask.MultitaskModel.read`.
    """

    model: MultitaskModel
    frozen: Any
    heard: Callable[[Batch], dict[str, Any]]
    losses: Callable[[MultitaskOutput, Batch], LossSums]
    counts: Array
    factors: Mapping[str, Array]

    def values(self, trainable: Any, part: Batch, key: Array) -> tuple[Float[Array, " K"], LossSums]:
        """Mean losses and their sums; dropout and the like follow from ``key``."""
        output = self.model.apply(
            {"params": merge(trainable, self.frozen)},
            **self.heard(part),
            lengths=part.lengths,
            train=True,
            gradient_factors=self.factors,
            rngs=_streams(key),
        )
        sums = self.losses(output, part)  # type: ignore[arg-type]
        return self._means(sums), sums

    def joint_gradient(self, trainable: Any, part: Batch, key: Array, choose: Choose) -> tuple[Seen, Any]:
        """In one backward pass; the encoder gets what the heads' coefficients make of it."""

        def loss_of(trainable: Any) -> tuple[Array, tuple[Array, LossSums]]:
            means, sums = self.values(trainable, part, key)
            weights = choose(jax.lax.stop_gradient(means), None).heads
            return jnp.dot(weights, means), (means, sums)

        (loss, (means, sums)), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
        return Seen(loss, means, sums, None), gradients

    def split_gradient(self, trainable: Any, part: Batch, key: Array, choose: Choose) -> tuple[Seen, Any]:
        """Through the heads first; ``choose`` sees the Gram matrix and may treat heads and encoder differently."""
        heads = {name: tree for name, tree in trainable.items() if name != "encoder"}
        streams = _streams(key)

        def encode(encoder: Any) -> tuple[tuple[Any, Any], Array]:
            params = {"encoder": merge(encoder, self.frozen["encoder"])}
            encoded: Any = self.model.apply(
                {"params": params}, **self.heard(part), lengths=part.lengths, train=True, rngs=streams, method="encode"
            )
            return (encoded.frames, encoded.hidden_states), encoded.lengths

        features, encoder_backward, lengths = jax.vjp(encode, trainable["encoder"], has_aux=True)

        def read(heads: Any, features: Sequence[Any]) -> tuple[Array, tuple[Array, LossSums]]:
            copies = [EncoderOutput(frames, lengths, hidden_states) for frames, hidden_states in features]
            output: Any = self.model.apply(
                {"params": heads}, copies[0], train=True, copies=dict(zip(TASKS, copies, strict=True)),
                gradient_factors=self.factors, rngs=streams, method="read",
            )  # fmt: skip
            sums = self.losses(output, part)
            means = self._means(sums)
            return jnp.sum(means), (means, sums)

        # Task k reads copy k alone, so one backward pass of the sum keeps the tasks apart.
        gradient = jax.grad(read, argnums=(0, 1), has_aux=True)
        (of_heads, of_features), (means, sums) = gradient(heads, [features] * len(TASKS))
        stacked = jax.tree.map(lambda *tasks: jnp.stack(tasks).astype(jnp.float32), *of_features)
        gram = jnp.sum(jnp.stack([_inner_products(leaf) for leaf in jax.tree.leaves(stacked)]), axis=0)
        chosen = choose(means, gram)

        combined = jax.tree.map(
            lambda of_tasks, leaf: jnp.tensordot(chosen.encoder, of_tasks, 1, precision="highest").astype(leaf.dtype),
            stacked,
            features,
        )
        (of_encoder,) = encoder_backward(combined)
        weighted = {"encoder": of_encoder}
        for name, of_head in of_heads.items():
            weight = chosen.heads[TASKS.index(name.removesuffix("_head"))]
            weighted[name] = jax.tree.map(lambda leaf, weight=weight: weight * leaf, of_head)
        return Seen(jnp.dot(chosen.heads, means), means, sums, gram), weighted

    def _means(self, sums: LossSums) -> Float[Array, " K"]:
        totals = jnp.stack([getattr(sums, task).total for task in TASKS])
        return totals / jnp.maximum(self.counts, 1.0)


def _streams(key: Array) -> dict[str, Array]:
    streams = dict(zip(("dropout", "spec_augment", "layerdrop"), jax.random.split(key, 3), strict=True))
    # Not one of four: every run without it would draw other numbers than before.
    return {**streams, "frequency_warp": jax.random.fold_in(key, 3)}


def _inner_products(gradients: Float[Array, "K B T D"]) -> Float[Array, "K K"]:
    return jnp.einsum("kbtd,lbtd->kl", gradients, gradients, precision="highest")
