"""Losses as (sum, count), so that parts of a batch, devices and hosts add up to exactly the whole batch's mean."""

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from jax_mtlser.config import CtcNormalization
from jax_mtlser.data.batches import Batch
from jax_mtlser.models import products
from jax_mtlser.models.multitask import TASKS, MultitaskOutput
from jax_mtlser.training.ctc import ctc_loss

__all__ = ["TASKS", "LossSums", "Sum", "cross_entropy", "ctc", "ctc_feasible", "task_losses"]


@flax.struct.dataclass
class Sum:
    """A mean that is not divided yet: both float32 scalars."""

    total: Array
    count: Array

    def __add__(self, other: "Sum") -> "Sum":
        return Sum(self.total + other.total, self.count + other.count)

    def mean(self) -> Array:
        """0 where nothing was counted."""
        return self.total / jnp.maximum(self.count, 1.0)


@flax.struct.dataclass
class LossSums:
    """One sum per task, and the number of transcripts that CTC had to leave out.

    Attributes:
        infeasible: utterances whose transcript is longer than their frames can spell.
    """

    emotion: Sum
    gender: Sum
    speaker: Sum
    asr: Sum
    infeasible: Array

    def __add__(self, other: "LossSums") -> "LossSums":
        tasks = {task: getattr(self, task) + getattr(other, task) for task in TASKS}
        return LossSums(**tasks, infeasible=self.infeasible + other.infeasible)


def cross_entropy(logits: Float[Array, "B C"] | None, labels: Int[Array, " B"]) -> Sum:
    """Softmax cross-entropy over the rows with a label (0 or greater); nothing without a head."""
    if logits is None:
        return _nothing()
    known = labels >= 0
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.where(known, labels, 0))
    return Sum(jnp.sum(jnp.where(known, losses, 0.0)), jnp.sum(known).astype(jnp.float32))


def ctc_feasible(
    frame_lengths: Int[Array, " B"], labels: Int[Array, "B N"], label_lengths: Int[Array, " B"]
) -> Bool[Array, " B"]:
    """Whether the frames can spell the transcript: one per symbol, and a blank between equal neighbours."""
    inside = jnp.arange(1, labels.shape[1])[None] < label_lengths[:, None]
    repeats = jnp.sum((labels[:, 1:] == labels[:, :-1]) & inside, axis=1)
    return label_lengths + repeats <= frame_lengths


def ctc(
    logits: Float[Array, "B T V"] | None,
    frame_lengths: Int[Array, " B"],
    labels: Int[Array, "B N"],
    label_lengths: Int[Array, " B"],
    *,
    normalization: CtcNormalization,
    blank: int = 0,
) -> tuple[Sum, Array]:
    """CTC loss (Graves et al. 2006) over the rows with a transcript that their frames can spell.

    An impossible transcript has a loss of about 1e5; such rows are masked here and counted. Computed by
    :func:`~jax_mtlser.training.ctc.ctc_loss`; in the plain formulation by ``optax.ctc_loss``.

    Returns:
        The loss and the number of infeasible rows.
    """
    if logits is None:
        return _nothing(), jnp.zeros((), jnp.float32)
    given = label_lengths > 0
    feasible = ctc_feasible(frame_lengths, labels, label_lengths)
    counted = given & feasible
    lengths = jnp.where(counted, label_lengths, 0)
    frame_padding = jnp.arange(logits.shape[1])[None] >= frame_lengths[:, None]
    label_padding = jnp.arange(labels.shape[1])[None] >= lengths[:, None]
    arguments = (logits, frame_padding.astype(jnp.float32), labels, label_padding.astype(jnp.float32))
    loss_of = optax.ctc_loss if products.is_plain() else ctc_loss
    with jax.named_scope("ctc"):  # program_report tells its kernels by it
        losses = loss_of(*arguments, blank_id=blank)
    match normalization:
        case CtcNormalization.LABELS:
            losses = losses / jnp.maximum(lengths, 1)
        case CtcNormalization.FRAMES:
            losses = losses / jnp.maximum(frame_lengths, 1)
    total = Sum(jnp.sum(jnp.where(counted, losses, 0.0)), jnp.sum(counted).astype(jnp.float32))
    return total, jnp.sum(given & ~feasible).astype(jnp.float32)


def task_losses(output: MultitaskOutput, batch: Batch, *, normalization: CtcNormalization, blank: int) -> LossSums:
    """The four losses of a batch."""
    asr, infeasible = ctc(
        output.asr,
        output.frame_lengths,
        batch.transcript,
        batch.transcript_lengths,
        normalization=normalization,
        blank=blank,
    )
    return LossSums(
        emotion=cross_entropy(output.emotion, batch.emotion),
        gender=cross_entropy(output.gender, batch.gender),
        speaker=cross_entropy(output.speaker, batch.speaker),
        asr=asr,
        infeasible=infeasible,
    )


def _nothing() -> Sum:
    return Sum(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))
