"""The training of one member, from its first or last saved step to the parameters that are tested.

The order on (re)start: 1. describe the state, 2. restore the latest checkpoint or initialise, 3. cut the metric
log back to the restored step, 4. continue the epoch's batch plan behind the batches already taken.
"""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from jax_mtlser.config import Selection, TrainingConfig
from jax_mtlser.data.batch_plan import FILL, PlannedBatch, plan_epoch
from jax_mtlser.data.batches import prefetch
from jax_mtlser.evaluation.metrics import score
from jax_mtlser.evaluation.predictions import Part
from jax_mtlser.run_folder import MemberFolder, append_json_line, read_json_lines, write_text
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.interruption import Interrupted, StopRequest
from jax_mtlser.training.losses import TASKS, LossSums
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display, describe
from jax_mtlser.training.step import Knobs, StepMetrics, TrainState

__all__ = ["NonFiniteLossError", "Trained", "train"]

_SAMPLE_RATE = 16_000


class NonFiniteLossError(RuntimeError):
    """A loss or gradient that is not a finite number; the message names step and utterances."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        params: of the selected epoch.
        selected_epoch: counted from 1.
        seconds: spent in steps since the process started.
        audio_rate: seconds of audio trained on per second.
    """

    params: Any
    selected_epoch: int
    seconds: float
    audio_rate: float


def train(
    judge: Judge,
    train_rows: Sequence[int],
    validation_rows: Sequence[int],
    test_rows: Sequence[int],
    *,
    config: TrainingConfig,
    seed: int,
    initial_state: Callable[[], TrainState],
    like: TrainState,
    knobs: Knobs,
    corpus: Any,
    folder: MemberFolder,
    display: Display,
    still_ours: Callable[[], None] = lambda: None,
) -> Trained:
    """Train one member, or go on with it.

    Args:
        judge: evaluation, compiled programs and batches of this member.
        train_rows, validation_rows: rows of the manifest.
        test_rows: looked at with ``Selection.BEST_TEST`` only.
        config: epochs, selection, logging.
        seed: of the batch order.
        initial_state: makes the state before the first step; called only when nothing was saved.
        like: shapes, types and shardings of the state.
        knobs: on the devices.
        corpus: resident corpus on the devices, or one unused sample.
        folder: where metrics and checkpoints go.
        display: where progress goes.
        still_ours: called before each step and each checkpoint; what it raises ends the training.

    Raises:
        NonFiniteLossError: the last good checkpoint is kept.
        Interrupted: on SIGTERM or SIGINT, after the state was saved.
    """
    checkpoints = TrainingCheckpoints(folder.checkpoints)
    try:
        restored = checkpoints.restore_latest(like)
        if restored is not None:
            state, progress = restored.state, _Progress(**restored.progress)
            display.line(f"{judge.member}: going on after step {progress.step}")
        else:
            state, progress = initial_state(), _Progress()
        run = _Run(judge, config, seed, knobs, corpus, folder, display, checkpoints, progress, still_ours)
        judged: dict[Part, Sequence[int]] = {"validation": validation_rows}
        if config.selection is Selection.BEST_TEST:
            judged["test"] = test_rows
        return run.train(state, train_rows, judged)
    finally:
        checkpoints.close()


@dataclasses.dataclass
class _Progress:
    """Where a training stands; saved with each checkpoint.

    Attributes:
        step: optimizer steps taken.
        best: highest validation score so far.
        best_step, best_epoch: where it was reached.
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    best_epoch: int = 0

    def saved(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value != -math.inf}  # JSON has no infinity


@dataclasses.dataclass
class _Run:
    judge: Judge
    config: TrainingConfig
    seed: int
    knobs: Knobs
    corpus: Any
    folder: MemberFolder
    display: Display
    checkpoints: TrainingCheckpoints
    progress: _Progress
    still_ours: Callable[[], None]

    def __post_init__(self) -> None:
        self.log = _MetricLog(self.folder, after_step=self.progress.step, tensorboard=self.config.tensorboard)
        self.pending: list[tuple[int, PlannedBatch, StepMetrics]] = []
        self.seconds = self.audio_seconds = 0.0

    def train(self, state: TrainState, train_rows: Sequence[int], judged: Mapping[Part, Sequence[int]]) -> Trained:
        buckets, epochs = self.judge.source.buckets, self.config.epochs
        per_epoch = len(plan_epoch(train_rows, buckets, seed=self.seed, epoch=0))
        progress, title = self.progress, self.judge.member
        with (
            StopRequest() as stop,
            self.display.steps(title, progress.step, per_epoch * epochs) as show,
            self.log,
        ):
            for epoch in range(progress.step // per_epoch, epochs):
                plan = plan_epoch(train_rows, buckets, seed=self.seed, epoch=epoch)
                state = self._epoch(state, plan[progress.step - epoch * per_epoch :], per_epoch, stop, show)
                self._finish_epoch(state, epoch + 1, judged)
                if stop.signal:
                    raise Interrupted(stop.signal, progress.step)
        return self._selected(state)

    def _epoch(
        self,
        state: TrainState,
        plan: Sequence[PlannedBatch],
        per_epoch: int,
        stop: StopRequest,
        show: Callable,
    ) -> TrainState:
        steps, progress = self.judge.steps, self.progress
        started, self.epoch_audio = time.perf_counter(), 0.0
        for planned, batch in prefetch(lambda p: steps.put_batch(self.judge.source.get(p)), plan):
            self.still_ours()
            state, metrics = steps.train(planned.bucket, state, batch, self.knobs, self.corpus)
            progress.step += 1
            self.pending.append((progress.step, planned, metrics))
            last = progress.step % per_epoch == 0
            if progress.step % self.config.log_every_steps == 0 or last:
                self._drain(per_epoch, started, show)
            if not last and (stop.signal or progress.step % self.config.checkpoint_every_steps == 0):
                self._drain(per_epoch, started, show)
                self.still_ours()
                self.checkpoints.save(state, progress.saved())
            if stop.signal and not last:
                self.checkpoints.wait()
                raise Interrupted(stop.signal, progress.step)
        self.seconds += time.perf_counter() - started
        self.audio_seconds += self.epoch_audio
        return state

    def _drain(self, per_epoch: int, started: float, show: Callable[[int, str], None]) -> None:
        """Fetch the metrics of the steps since the last call, check them, log their mean."""
        if not self.pending:
            return
        fetched = jax.device_get([metrics for _, _, metrics in self.pending])
        for (step, planned, _), metrics in zip(self.pending, fetched, strict=True):
            if not metrics.finite:
                raise NonFiniteLossError(self._non_finite_message(step, planned, metrics))
        lengths = self.judge.source.audio.lengths
        for _, planned, _ in self.pending:
            self.epoch_audio += float(lengths[planned.rows[planned.rows != FILL]].sum()) / _SAMPLE_RATE
        sums = fetched[0].losses
        for metrics in fetched[1:]:
            sums = sums + metrics.losses
        step = self.pending[-1][0]
        losses = _means(sums)
        rate = self.epoch_audio / (time.perf_counter() - started)
        self.log.write(
            {
                "kind": "train",
                "step": step,
                "epoch": step / per_epoch,
                "loss": float(np.mean([metrics.loss for metrics in fetched])),
                **{f"loss_{task}": value for task, value in losses.items()},
                **_mean_weights([metrics.weights for metrics in fetched], losses),
                "learning_rate": float(fetched[-1].learning_rate),
                "grad_norm": float(np.mean([metrics.gradient_norm for metrics in fetched])),
                "audio_seconds_per_second": rate,
            }
        )
        show(step, describe(losses, rate))
        self.pending.clear()

    def _finish_epoch(self, state: TrainState, epoch: int, judged: Mapping[Part, Sequence[int]]) -> None:
        """Validate, note the best, save."""
        progress = self.progress
        line = f"{self.judge.member} epoch {epoch}/{self.config.epochs}"
        deciding = "test" if self.config.selection is Selection.BEST_TEST else "validation"
        for part, rows in judged.items():
            if not len(rows):
                continue
            found = self.judge(state.params, self.corpus, rows, part)
            assert found.losses is not None
            losses, summary = _means(found.losses), score(found.predictions).summary()
            self.log.write(
                {
                    "kind": part,
                    "epoch": epoch,
                    "step": progress.step,
                    **{f"loss_{task}": value for task, value in losses.items()},
                    **summary,
                }
            )
            # A corpus without emotion labels still has an epoch to choose: by the sum of its losses.
            value = summary["ua"] if summary["ua"] is not None else -sum(losses.values())
            if part == deciding and value > progress.best:
                progress.best, progress.best_step, progress.best_epoch = value, progress.step, epoch
            shown = " ".join(f"{name} {value:.3f}" for name, value in summary.items() if value is not None)
            line += f" | {part} {shown}"
        rate = self.audio_seconds / self.seconds if self.seconds else 0.0
        self.display.line(f"{line} | {rate:.0f} s audio/s")
        self.still_ours()
        self.checkpoints.save(state, progress.saved())

    def _selected(self, state: TrainState) -> Trained:
        epoch = self.config.epochs
        if self.config.selection is not Selection.LAST and self.progress.best_step != self.progress.step:
            self.checkpoints.wait()
            params = self.checkpoints.restore_params(self.progress.best_step, state)
            epoch = self.progress.best_epoch
        else:
            params = state.params
        rate = self.audio_seconds / self.seconds if self.seconds else 0.0
        return Trained(params, epoch, self.seconds, rate)

    def _non_finite_message(self, step: int, planned: PlannedBatch, metrics: StepMetrics) -> str:
        ids = [self.judge.manifest.utterances[row].id for row in planned.rows if row != FILL]
        losses = ", ".join(f"{task} {value:g}" for task, value in _means(metrics.losses).items())
        return (
            f"{self.judge.member}: loss or gradient is not finite at step {step} (losses: {losses}; gradient norm "
            f"{float(metrics.gradient_norm):g}). Utterances: {', '.join(ids)}. The last good checkpoint is kept; "
            "lower --config.optimizer.learning_rate, or look at these recordings."
        )


def _means(sums: LossSums) -> dict[str, float]:
    """Mean loss of each task that had at least one label."""
    tasks = {task: getattr(sums, task) for task in TASKS}
    return {task: float(value.total) / float(value.count) for task, value in tasks.items() if value.count > 0}


def _mean_weights(weights: Sequence[Any], tasks: Iterable[str]) -> dict[str, float]:
    """Mean weight of each of the ``tasks`` over some steps; nothing where the configuration fixes them."""
    if weights[0] is None:
        return {}
    means = dict(zip(TASKS, np.mean(weights, axis=0), strict=True))
    return {f"weight_{task}": float(means[task]) for task in tasks}


class _MetricLog:
    """``metrics.jsonl`` and TensorBoard events, both cut back to the step that training goes on from."""

    def __init__(self, folder: MemberFolder, *, after_step: int, tensorboard: bool) -> None:
        kept = [line for line in read_json_lines(folder.metrics) if line["step"] <= after_step]
        write_text(folder.metrics, "")
        for line in kept:
            append_json_line(folder.metrics, line)
        self._path = folder.metrics
        self._writer = None
        if tensorboard:
            purge = after_step + 1 if after_step else None
            self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=purge)

    def __enter__(self) -> "_MetricLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, line: dict[str, Any]) -> None:
        append_json_line(self._path, {k: _json_number(v) for k, v in line.items()})
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("kind", "step", "epoch") and value is not None:
                    self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
