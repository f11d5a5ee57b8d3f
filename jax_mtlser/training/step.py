"""The training step and the evaluation step: pure functions of (state, batch, knobs), jitted in sharding.py."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int16

from jax_mtlser.config import CtcNormalization, Freeze, LearningRateSchedule, OptimizerConfig
from jax_mtlser.data.batches import Batch, gather_audio, waveform
from jax_mtlser.models import products
from jax_mtlser.models.multitask import MultitaskModel, MultitaskOutput
from jax_mtlser.training.losses import TASKS, LossSums, ctc_feasible, task_losses
from jax_mtlser.training.optimizer import (
    Rates,
    Trainable,
    gradient_transform,
    merge,
    schedule,
    split,
)
from jax_mtlser.training.stacks import Layout, Stacks

__all__ = [
    "Evaluation",
    "Knobs",
    "StepMetrics",
    "StepSpec",
    "TrainState",
    "create_state",
    "eval_step",
    "train_step",
]


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: int32, optimizer steps taken.
        stacks: the trainable parameters, float32, as they are optimised.
        frozen: all others, in the model's tree, with None for the trainable ones.
        opt_state: of the stacks.
        key: typed random key of the run; never changed, steps fold their number into it.
        layout: which parameter lies where in the stacks.
    """

    step: Array
    stacks: Stacks
    frozen: Any
    opt_state: Any
    key: Array
    layout: Layout = flax.struct.field(pytree_node=False)

    @property
    def params(self) -> Any:
        """The model's parameters: a copy, in one call, on the devices where the state is."""
        return _params_of(self)


@jax.jit
def _params_of(state: TrainState) -> Any:
    return merge(state.layout.unpack(state.stacks), state.frozen)


@flax.struct.dataclass
class Knobs:
    """Numbers that may change between runs without a new compilation.

    Attributes:
        weights: float32 [4], of emotion (1), gender (alpha), speaker (beta) and speech recognition (gamma).
        rates: learning rates.
    """

    weights: Array
    rates: Rates


@dataclasses.dataclass(frozen=True)
class StepSpec:
    """What is compiled into a step.

    Attributes:
        model: the network.
        optimizer: settings of AdamW; learning rates are taken from the knobs instead.
        normalize_waveform: see :func:`~jax_mtlser.data.batches.waveform`.
        freeze: the part of the encoder that is not trained.
        freeze_layers: see :class:`Trainable`.
        ctc_normalization: see :class:`CtcNormalization`.
        blank: CTC symbol.
        accumulation_steps: equal parts in which a batch is worked through.
        plain: see :class:`~jax_mtlser.config.TrainingConfig`.
    """

    model: MultitaskModel
    optimizer: OptimizerConfig
    normalize_waveform: bool
    freeze: Freeze = Freeze.NOTHING
    freeze_layers: int = 0
    ctc_normalization: CtcNormalization = CtcNormalization.NONE
    blank: int = 0
    accumulation_steps: int = 1
    plain: bool = False

    @property
    def schedule(self) -> LearningRateSchedule:
        """Shape of the learning rate."""
        return self.optimizer.schedule

    @property
    def trainable(self) -> Trainable:
        """Which parameters are trained."""
        return Trainable(self.model.arch, self.freeze, self.freeze_layers)


@flax.struct.dataclass
class StepMetrics:
    """What a training step reports; scalars on the device until somebody looks.

    Attributes:
        losses: sums per task, unweighted.
        loss: the weighted total that was minimised.
        gradient_norm: before clipping.
        learning_rate: of the encoder.
        finite: loss and gradient are finite numbers.
    """

    losses: LossSums
    loss: Array
    gradient_norm: Array
    learning_rate: Array
    finite: Array


@flax.struct.dataclass
class Evaluation:
    """What an evaluation step gives, row by row.

    Attributes:
        losses: sums per task.
        emotion, gender, speaker: float32 [B, C] probabilities; None without the head.
        symbols: int32 [B, T] most probable symbol of each frame; None without the head.
        frame_lengths: int32 [B].
    """

    losses: LossSums
    emotion: Array | None
    gender: Array | None
    speaker: Array | None
    symbols: Array | None
    frame_lengths: Array


def create_state(spec: StepSpec, params: Any, seed: Array) -> TrainState:
    """State before the first step. ``seed`` is traced: another seed compiles nothing."""
    trainable, frozen = split(params, spec.trainable)
    layout = Layout.of(trainable, spec.trainable)
    stacks = layout.pack(trainable)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        stacks=stacks,
        frozen=frozen,
        opt_state=gradient_transform(spec.optimizer).init(stacks),
        key=jax.random.key(seed),
        layout=layout,
    )


def train_step(
    spec: StepSpec,
    num_samples: int,
    state: TrainState,
    batch: Batch,
    knobs: Knobs,
    corpus: Int16[Array, " total"],
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step.

    Args:
        spec: static.
        num_samples: padded length of the batch; static.
        state: donated by the caller.
        batch: B rows; with accumulation, row ``j`` belongs to part ``j % accumulation_steps``.
        knobs: weights and learning rates.
        corpus: the resident corpus, or one unused sample.
    """
    layout, frozen = state.layout, state.frozen
    trainable = layout.unpack(state.stacks)
    step_key = jax.random.fold_in(state.key, state.step)
    counts = _label_counts(spec, batch)

    def loss_of(trainable: Any, part: Batch, key: Array) -> tuple[Array, LossSums]:
        streams = dict(zip(("dropout", "spec_augment", "layerdrop"), jax.random.split(key, 3), strict=True))
        params = merge(trainable, frozen)
        output = _apply(spec, num_samples, params, part, corpus, train=True, rngs=streams)
        sums = _losses(spec, output, part)
        # Divided by the counts of the whole batch, so that the parts add up to its mean.
        means = jnp.stack([getattr(sums, task).total / count for task, count in zip(TASKS, counts, strict=True)])
        return jnp.dot(knobs.weights, means), sums

    def gradient(part: Batch, key: Array) -> tuple[Array, LossSums, Stacks]:
        # Of the tree, not of the stacks: the gradient of a slice is a stack that is zero around it.
        (loss, sums), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable, part, key)
        return loss, sums, layout.pack(gradients)

    with products.formulation(plain=spec.plain):
        if spec.accumulation_steps == 1:
            loss, sums, gradients = gradient(batch, step_key)
        else:
            loss, sums, gradients = _accumulate(spec.accumulation_steps, gradient, batch, step_key)

    with jax.named_scope("optimizer"):
        updates, opt_state = gradient_transform(spec.optimizer).update(gradients, state.opt_state, state.stacks)
        share = schedule(state.step, knobs.rates, spec.schedule)
        stacks = optax.apply_updates(state.stacks, layout.scaled(updates, knobs.rates, share))
        norm = optax.tree.norm(gradients)
    metrics = StepMetrics(
        losses=sums,
        loss=loss,
        gradient_norm=norm,
        learning_rate=share * knobs.rates.encoder,
        finite=jnp.isfinite(loss) & jnp.isfinite(norm),
    )
    state = dataclasses.replace(state, step=state.step + 1, stacks=stacks, opt_state=opt_state)
    return state, metrics


def eval_step(
    spec: StepSpec, num_samples: int, params: Any, batch: Batch, corpus: Int16[Array, " total"]
) -> Evaluation:
    """Probabilities and losses of one batch, without dropout."""
    with products.formulation(plain=spec.plain):
        output = _apply(spec, num_samples, params, batch, corpus, train=False, rngs=None)
        losses = _losses(spec, output, batch)

    def probabilities(logits: Array | None) -> Array | None:
        return None if logits is None else jax.nn.softmax(logits, axis=-1)

    return Evaluation(
        losses=losses,
        emotion=probabilities(output.emotion),
        gender=probabilities(output.gender),
        speaker=probabilities(output.speaker),
        symbols=None if output.asr is None else jnp.argmax(output.asr, axis=-1).astype(jnp.int32),
        frame_lengths=output.frame_lengths,
    )


def _apply(
    spec: StepSpec, num_samples: int, params: Any, batch: Batch, corpus: Array, *, train: bool, rngs: Any
) -> MultitaskOutput:
    audio = batch.audio
    if audio is None:
        assert batch.offsets is not None
        audio = gather_audio(corpus, batch.offsets, batch.lengths, num_samples)
    x = waveform(audio, batch.lengths, normalize=spec.normalize_waveform)
    return spec.model.apply({"params": params}, x, batch.lengths, train=train, rngs=rngs)  # type: ignore[return-value]


def _losses(spec: StepSpec, output: MultitaskOutput, batch: Batch) -> LossSums:
    return task_losses(output, batch, normalization=spec.ctc_normalization, blank=spec.blank)


def _label_counts(spec: StepSpec, batch: Batch) -> tuple[Array, ...]:
    """Rows that each task's loss will count, from the labels alone; at least 1."""
    frames = jnp.maximum(spec.model.arch.num_frames(batch.lengths), 0)
    spelled = (batch.transcript_lengths > 0) & ctc_feasible(frames, batch.transcript, batch.transcript_lengths)
    known = [labels >= 0 for labels in (batch.emotion, batch.gender, batch.speaker)]
    return tuple(jnp.maximum(jnp.sum(rows), 1).astype(jnp.float32) for rows in (*known, spelled))


def _accumulate(
    parts: int, gradient: Callable[[Batch, Array], tuple[Array, LossSums, Stacks]], batch: Batch, key: Array
) -> tuple[Array, LossSums, Stacks]:
    """Sum of losses and gradients over the parts of a batch, one after the other."""
    # Part j takes rows j, j + parts, ...: rows stay on their device when the batch is sharded.
    split_batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(*part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(gradient, jax.tree.map(lambda x: x[0], split_batch), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (split_batch, keys))
    return total
