"""The training step and the evaluation step: pure functions of (state, batch, knobs), jitted in sharding.py."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, Int16

from jax_mtlser.config import CtcNormalization, Freeze, LearningRateSchedule, OptimizerConfig, WeightingMethod
from jax_mtlser.data.batches import Batch, gather, waveform
from jax_mtlser.models import products
from jax_mtlser.models.frozen import FrozenPart, frozen_frames
from jax_mtlser.models.gradient_scale import reversal_factor
from jax_mtlser.models.multitask import MultitaskModel, MultitaskOutput
from jax_mtlser.training.losses import TASKS, LossSums, ctc_feasible, task_losses
from jax_mtlser.training.optimizer import (
    Rates,
    Trainable,
    global_norm,
    gradient_transform,
    merge,
    schedule,
    split,
)
from jax_mtlser.training.stacks import Layout, Stacks
from jax_mtlser.training.task_gradients import Choose, Objective, Seen
from jax_mtlser.training.weighting import BatchView, Coefficients, Weighting, WeightingKnobs, WeightingState

__all__ = [
    "Evaluation",
    "Knobs",
    "Reversal",
    "StepMetrics",
    "StepSpec",
    "TrainState",
    "create_state",
    "eval_step",
    "frozen_step",
    "hear_step",
    "train_step",
]

# int16 [total], the samples; with StepSpec.frozen, float [total, C] frames, one array or one for each layer.
Corpus = Any

# Apart from the numbers of a batch's parts, which are folded into the same key.
_WEIGHTING_STREAM = 2**31 - 1


@flax.struct.dataclass
class TrainState:
    """Everything that training changes.

    Attributes:
        step: int32, optimizer steps taken.
        stacks: the trainable parameters, float32, as they are optimised.
        frozen: all others, in the model's tree, with None for the trainable ones.
        opt_state: of the stacks.
        weighting: what the weighting method remembers.
        key: typed random key of the run; never changed, steps fold their number into it.
        layout: which parameter lies where in the stacks.
    """

    step: Array
    stacks: Stacks
    frozen: Any
    opt_state: Any
    weighting: WeightingState
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
class Reversal:
    """Which heads work against the encoder.

    Attributes:
        adversarial: bool [4].
        strength: float32, what the schedule rises to.
    """

    adversarial: Array
    strength: Array


@flax.struct.dataclass
class Knobs:
    """Numbers that may change between runs without a new compilation.

    Attributes:
        weights: float32 [4], of emotion (1), gender (alpha), speaker (beta) and speech recognition (gamma).
        rates: learning rates.
        weighting: settings of the weighting method; None is enough for those that have none.
        reversal: None when no head is adversarial.
    """

    weights: Array
    rates: Rates
    weighting: WeightingKnobs | None = None
    reversal: Reversal | None = None


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
        method: what weighs the tasks.
        frozen: the part of the encoder whose frames lie on the devices instead of the samples.
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
    method: WeightingMethod = WeightingMethod.FIXED
    frozen: FrozenPart = FrozenPart.NOTHING
    plain: bool = False

    @property
    def weighting(self) -> Weighting:
        """The method with the heads that it weighs."""
        classes = tuple(getattr(self.model.sizes, task) for task in TASKS)
        return Weighting(self.method, classes, unbounded=TASKS.index("asr"))

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
        loss: the tasks' mean losses, weighted as in their heads, without what a method adds to them.
        weights: float32 [4], what each task's gradient was multiplied by on its way into the encoder; None where
            that is what the knobs say.
        gradient_norm: before clipping.
        learning_rate: of the encoder.
        finite: loss and gradient are finite numbers.
    """

    losses: LossSums
    loss: Array
    weights: Array | None
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
        pooled: float32 [B, D]; see :class:`~jax_mtlser.models.multitask.MultitaskOutput`.
    """

    losses: LossSums
    emotion: Array | None
    gender: Array | None
    speaker: Array | None
    symbols: Array | None
    frame_lengths: Array
    pooled: Array


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
        weighting=spec.weighting.initial_state(),
        key=jax.random.key(seed),
        layout=layout,
    )


def train_step(
    spec: StepSpec,
    num_samples: int,
    state: TrainState,
    batch: Batch,
    knobs: Knobs,
    corpus: Corpus,
) -> tuple[TrainState, StepMetrics]:
    """One optimizer step.

    Args:
        spec: static.
        num_samples: padded length of the batch; static.
        state: donated by the caller.
        batch: B rows; with accumulation, row ``j`` belongs to part ``j % accumulation_steps``.
        knobs: weights and learning rates.
        corpus: on the devices, or one unused sample.
    """
    layout, frozen = state.layout, state.frozen
    trainable = layout.unpack(state.stacks)
    step_key = jax.random.fold_in(state.key, state.step)
    weighting, counts = spec.weighting, _label_counts(spec, batch)
    adversarial, factors = _reversal(knobs, state.step)
    balanced = weighting.balanced(knobs.weights, adversarial)
    memory = weighting.started(state.weighting, state.step, knobs.weighting)
    weighting_key = jax.random.fold_in(step_key, _WEIGHTING_STREAM)

    def choose(means: Array, gram: Array | None) -> Coefficients:
        view = BatchView(means, counts, gram)
        return weighting.coefficients(memory, knobs.weights, balanced, view, weighting_key, knobs.weighting)

    objective = Objective(
        spec.model, frozen, lambda part: _heard(spec, num_samples, part, corpus), functools.partial(_losses, spec),
        counts, dict(zip(TASKS, factors, strict=True)) if knobs.reversal else {},
    )  # fmt: skip
    gradient_by = objective.split_gradient if weighting.watches_gradients else objective.joint_gradient

    def gradient(part: Batch, key: Array, choose: Choose) -> tuple[Seen, Stacks]:
        # Of the tree, not of the stacks: the gradient of a slice is a stack that is zero around it.
        seen, gradients = gradient_by(trainable, part, key, choose)
        return seen, layout.pack(gradients)

    over_parts = functools.partial(_sum_over_parts, spec.accumulation_steps, batch=batch, key=step_key)
    with products.formulation(plain=spec.plain):
        if spec.accumulation_steps > 1 and weighting.depends_on_batch:
            # Every part must be seen before one can go back, so they go forward twice.
            means, gram = over_parts(lambda part, key: _what_decides(gradient(part, key, choose)[0]))
            decided = choose(means, gram)
            seen, gradients = over_parts(lambda part, key: gradient(part, key, lambda *_: decided))
        else:
            seen, gradients = over_parts(lambda part, key: gradient(part, key, choose))

    with jax.named_scope("optimizer"):
        updates, opt_state = gradient_transform(spec.optimizer).update(gradients, state.opt_state, state.stacks)
        heads = schedule(state.step, knobs.rates, spec.schedule)
        encoder = schedule(state.step, knobs.rates, spec.schedule, knobs.rates.encoder_start)
        stacks = optax.apply_updates(state.stacks, layout.scaled(updates, knobs.rates, encoder, heads))
        norm = global_norm(gradients)
    after = None
    if weighting.looks_back:
        moved = layout.unpack(stacks)
        with products.formulation(plain=spec.plain):
            # With the same dropout, so that what changed is the step's doing.
            after = over_parts(lambda part, key: objective.values(moved, part, key)[0])
    view = BatchView(seen.means, counts, seen.gram)
    remembered = weighting.updated(memory, balanced, view, state.step, knobs.weighting, after)
    follows_knobs = spec.method is WeightingMethod.FIXED and knobs.reversal is None
    metrics = StepMetrics(
        losses=seen.sums,
        loss=seen.loss,
        weights=None if follows_knobs else choose(seen.means, seen.gram).encoder * factors,
        gradient_norm=norm,
        learning_rate=encoder * knobs.rates.encoder,
        finite=jnp.isfinite(seen.loss) & jnp.isfinite(norm),
    )
    state = dataclasses.replace(state, step=state.step + 1, stacks=stacks, opt_state=opt_state, weighting=remembered)
    return state, metrics


def eval_step(spec: StepSpec, num_samples: int, params: Any, batch: Batch, corpus: Corpus) -> Evaluation:
    """Probabilities and losses of one batch, without dropout."""
    with products.formulation(plain=spec.plain):
        heard = _heard(spec, num_samples, batch, corpus)
        output: Any = spec.model.apply({"params": params}, **heard, lengths=batch.lengths, train=False)
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
        pooled=output.pooled,
    )


def hear_step(
    spec: StepSpec, num_samples: int, params: Any, batch: Batch, corpus: Corpus, key: Array
) -> Float[Array, "B D"]:
    """What heads read of one batch before they learn, with frequencies warped at random (by ``key``) and no dropout."""
    with products.formulation(plain=spec.plain):
        heard = _heard(spec, num_samples, batch, corpus)
        streams = {"frequency_warp": key}
        output: Any = spec.model.apply({"params": params}, **heard, lengths=batch.lengths, train=False, rngs=streams)
    return output.pooled


def frozen_step(
    spec: StepSpec, encoder: Any, audio: Int16[Array, "B S"], lengths: Int[Array, " B"]
) -> tuple[Array, ...]:
    """The frames of a batch that ``spec.frozen`` keeps: [B, T, C] each.

    Args:
        spec: static.
        encoder: parameters of the encoder.
        audio, lengths: samples, as in :class:`~jax_mtlser.data.batches.Batch`.
    """
    with products.formulation(plain=spec.plain):
        heard = waveform(audio, lengths, normalize=spec.normalize_waveform)
        return frozen_frames(spec.model, spec.frozen, encoder, heard, lengths)


def _heard(spec: StepSpec, num_samples: int, batch: Batch, corpus: Corpus) -> dict[str, Any]:
    """What the model hears of a batch: samples, or what the frozen part of the encoder made of them."""
    if spec.frozen is not FrozenPart.NOTHING:
        assert batch.offsets is not None
        count, lengths = spec.model.arch.num_frames(num_samples), spec.model.arch.num_frames(batch.lengths)
        return {"audio": None, "frozen": [gather(frames, batch.offsets, lengths, count) for frames in corpus]}
    audio = batch.audio
    if audio is None:
        assert batch.offsets is not None
        audio = gather(corpus, batch.offsets, batch.lengths, num_samples)
    return {"audio": waveform(audio, batch.lengths, normalize=spec.normalize_waveform)}


def _losses(spec: StepSpec, output: MultitaskOutput, batch: Batch) -> LossSums:
    return task_losses(output, batch, normalization=spec.ctc_normalization, blank=spec.blank)


def _label_counts(spec: StepSpec, batch: Batch) -> Array:
    """float32 [4] rows that each task's loss will count, from the labels alone."""
    frames = jnp.maximum(spec.model.arch.num_frames(batch.lengths), 0)
    spelled = (batch.transcript_lengths > 0) & ctc_feasible(frames, batch.transcript, batch.transcript_lengths)
    known = [labels >= 0 for labels in (batch.emotion, batch.gender, batch.speaker)]
    return jnp.stack([jnp.sum(rows).astype(jnp.float32) for rows in (*known, spelled)])


def _reversal(knobs: Knobs, step: Array) -> tuple[Array, Array]:
    """Which heads are adversarial, and the factor of every task's gradient: [4] each."""
    if knobs.reversal is None:
        return jnp.zeros(len(TASKS), bool), jnp.ones(len(TASKS))
    progress = jnp.minimum(step / jnp.maximum(knobs.rates.total_steps, 1.0), 1.0)
    adversarial = knobs.reversal.adversarial
    return adversarial, jnp.where(adversarial, reversal_factor(progress, knobs.reversal.strength), 1.0)


def _what_decides(seen: Seen) -> tuple[Array, Array | None]:
    return seen.means, seen.gram


def _sum_over_parts(parts: int, function: Callable[[Batch, Array], Any], *, batch: Batch, key: Array) -> Any:
    """Sum of ``function(part, key)`` over the parts of a batch, one after the other."""
    if parts == 1:
        return function(batch, key)
    # Part j takes rows j, j + parts, ...: rows stay on their device when the batch is sharded.
    split_batch = jax.tree.map(lambda x: x.reshape(-1, parts, *x.shape[1:]).swapaxes(0, 1), batch)

    def add(total: Any, part: tuple[Batch, Array]) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, function(*part)), None

    keys = jax.random.split(key, parts)
    shapes = jax.eval_shape(function, jax.tree.map(lambda x: x[0], split_batch), key)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    total, _ = jax.lax.scan(add, zeros, (split_batch, keys))
    return total
