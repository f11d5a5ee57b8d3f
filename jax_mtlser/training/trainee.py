"""One member in training: what it learns from, where it stands, what it writes. The steps are taken in loop.py.

The order on (re)start: 1. describe the state, 2. restore the latest checkpoint or initialise, 3. cut the metric
log back to the restored step, 4. continue the epoch's batch plan behind the batches already taken.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jax_mtlser.config import Selection, TrainingConfig
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, PlanError, PlannedBatch, digest, plan_epoch
from jax_mtlser.evaluation.metrics import score
from jax_mtlser.evaluation.predictions import Part
from jax_mtlser.run_folder import MemberFolder
from jax_mtlser.training import processes
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.metric_log import MetricLog, Reported, means, train_line
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display, describe
from jax_mtlser.training.step import Knobs, StepMetrics, TrainState

__all__ = ["NonFiniteLossError", "Progress", "Trained", "Trainee"]


class NonFiniteLossError(RuntimeError):
    """A loss or gradient that is not a finite number; the message names step and utterances, or epoch and part."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training leaves.

    Attributes:
        params: of the selected epoch.
        selected_epoch: counted from 1.
        seconds: spent in steps since the process started; of steps taken together, an equal share.
        audio_rate: seconds of audio trained on per second.
    """

    params: Any
    selected_epoch: int
    seconds: float
    audio_rate: float


@dataclasses.dataclass
class Progress:
    """Where a training stands; saved with each checkpoint.

    Attributes:
        step: optimizer steps taken.
        best: highest validation score so far.
        best_step, best_epoch: where it was reached.
        plan: digest of the first epoch's batches.
    """

    step: int = 0
    best: float = -math.inf
    best_step: int = 0
    best_epoch: int = 0
    plan: str = ""

    def saved(self) -> dict[str, Any]:
        """As JSON has it."""
        values = dataclasses.asdict(self)
        return {name: value for name, value in values.items() if value != -math.inf}  # JSON has no infinity


@dataclasses.dataclass
class Trainee:
    """One member in training.

    Attributes:
        judge: evaluation, and batches, of this member.
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
        still_ours: called by the first process, before each step (where it is the only one) and before anything is
            written; what it raises ends this member's training.
        progress: where it stands, after :meth:`begin`.
    """

    judge: Judge
    train_rows: Sequence[int]
    validation_rows: Sequence[int]
    test_rows: Sequence[int]
    config: TrainingConfig
    seed: int
    initial_state: Callable[[], TrainState]
    like: TrainState
    knobs: Knobs
    corpus: Any
    folder: MemberFolder
    display: Display
    still_ours: Callable[[], None] = lambda: None

    def __post_init__(self) -> None:
        self.progress = Progress()
        self._checkpoints: TrainingCheckpoints | None = None
        self._log: MetricLog | None = None
        self._pending: list[tuple[int, PlannedBatch, Reported, int]] = []
        self._seconds = self._audio_seconds = self._epoch_audio = 0.0
        self._saved_step = 0

    @property
    def name(self) -> str:
        """Of the member."""
        return self.judge.member

    @functools.cached_property
    def _first_epoch(self) -> list[PlannedBatch]:
        return plan_epoch(self.train_rows, self.judge.source.buckets, seed=self.seed, epoch=0)

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch."""
        return len(self._first_epoch)

    @property
    def total_steps(self) -> int:
        """Steps in the whole training."""
        return self.per_epoch * self.config.epochs

    @property
    def ends_epoch(self) -> bool:
        """Whether the step that was taken last is its epoch's last."""
        return self.progress.step % self.per_epoch == 0

    @property
    def _judged(self) -> Mapping[Part, Sequence[int]]:
        judged: dict[Part, Sequence[int]] = {"validation": self.validation_rows}
        if self.config.selection is Selection.BEST_TEST:
            judged["test"] = self.test_rows
        return judged

    def begin(self) -> TrainState:
        """The state to go on from: the latest that was saved, or the initial one.

        Raises:
            PlanError: the one that was saved has been through other batches.
        """
        plan = digest(self._first_epoch)
        self._checkpoints = TrainingCheckpoints(self.folder.checkpoints)
        saved = self._checkpoints.latest_progress()
        if saved is not None:
            self.progress = Progress(**saved)
            if self.progress.plan != plan:
                devices = self.judge.steps.mesh.shape["data"]
                raise PlanError(
                    f"{self.name}: the training saved in {self.folder.checkpoints} went through other batches than are planned "
                    f"now. With batching.batch_seconds their sizes follow from the number of devices (now {devices}): let as "
                    "many finish it as began it. Otherwise another version of jax_mtlser planned them: let that one finish it. "
                    "Or delete that folder to begin again."
                )
            state = self._checkpoints.restore(self.progress.step, self.like)
            self.display.line(f"{self.name}: going on after step {self.progress.step}")
        else:
            state, self.progress.plan = self.initial_state(), plan
        self._saved_step = self.progress.step
        processes.on_first(self._open_log)
        return state

    def _open_log(self) -> None:
        self._log = MetricLog(self.folder, after_step=self.progress.step, tensorboard=self.config.tensorboard)

    def close(self) -> None:
        """Wait until everything is on disk, then let go of the folder."""
        log, checkpoints, self._log, self._checkpoints = self._log, self._checkpoints, None, None
        try:
            if log is not None:
                log.close()
        finally:
            if checkpoints is not None:
                checkpoints.close()

    def took(self, planned: PlannedBatch, reported: Reported, index: int) -> None:
        """Note a step, in which this member's batch was ``planned`` and its place ``index``."""
        self.progress.step += 1
        self._pending.append((self.progress.step, planned, reported, index))

    def log_due(self) -> bool:
        """Whether the step that was taken last ends a line of the metric log."""
        return self.progress.step % self.config.log_every_steps == 0 or self.ends_epoch

    def checkpoint_due(self) -> bool:
        """Whether the step that was taken last is to be saved, within its epoch."""
        return self.progress.step % self.config.checkpoint_every_steps == 0 and not self.ends_epoch

    def log_steps(self, seconds: float) -> str | None:
        """Fetch the metrics of the steps since the last call, check them, log their mean.

        Args:
            seconds: spent in this epoch's steps so far.

        Returns:
            Losses and speed in one line; None when no step was taken since.

        Raises:
            NonFiniteLossError: for the first such step.
        """
        if not self._pending:
            return None
        Reported.fetch([reported for _, _, reported, _ in self._pending])
        fetched = [reported.of(index) for _, _, reported, index in self._pending]
        for (step, planned, _, _), metrics in zip(self._pending, fetched, strict=True):
            if not metrics.finite:
                raise NonFiniteLossError(self._non_finite_message(step, planned, metrics))
        lengths = self.judge.source.audio.lengths
        for _, planned, _, _ in self._pending:
            self._epoch_audio += float(lengths[planned.rows[planned.rows != FILL]].sum()) / SAMPLE_RATE
        step = self._pending[-1][0]
        line, losses = train_line(fetched)
        rate = self._epoch_audio / seconds
        head = {"kind": "train", "step": step, "epoch": step / self.per_epoch}
        self._write({**head, **line, "audio_seconds_per_second": rate})
        self._pending.clear()
        return describe(losses, rate)

    def save(self, state: TrainState) -> None:
        """Start saving the state after the step that was taken last, whose metrics were looked at."""
        assert not self._pending
        assert self._checkpoints is not None
        processes.on_first(self.still_ours)
        self._checkpoints.save(state, self.progress.saved())
        self._saved_step = self.progress.step

    @property
    def saved(self) -> bool:
        """Whether nothing was trained since the last checkpoint."""
        return self._saved_step == self.progress.step

    def wait(self) -> None:
        """Return when everything that was handed to :meth:`save` is on disk."""
        assert self._checkpoints is not None
        self._checkpoints.wait()

    def finish_epoch(self, state: TrainState, seconds: float) -> None:
        """Validate, note the best, save where the configuration asks for it.

        Args:
            state: after the epoch's last step.
            seconds: spent in this epoch's steps.
        """
        self._seconds += seconds
        self._audio_seconds += self._epoch_audio
        self._epoch_audio = 0.0
        progress, epoch = self.progress, self.progress.step // self.per_epoch
        line = f"{self.name} epoch {epoch}/{self.config.epochs}"
        deciding = "test" if self.config.selection is Selection.BEST_TEST else "validation"
        for part, rows in self._judged.items():
            if not len(rows):
                continue
            found = self.judge(state.params, self.corpus, rows, part)
            assert found.losses is not None
            losses, summary = means(found.losses), score(found.predictions).summary()
            head = {"kind": part, "epoch": epoch, "step": progress.step}
            self._write({**head, **{f"loss_{task}": value for task, value in losses.items()}, **summary})
            # A corpus without emotion labels still has an epoch to choose: by the sum of its losses.
            value = processes.from_first(summary["ua"] if summary["ua"] is not None else -sum(losses.values()))
            if not all(map(math.isfinite, losses.values())):
                told = ", ".join(f"{task} {loss:g}" for task, loss in losses.items())
                kept = f"; the checkpoint of step {self._saved_step} is kept" if self._saved_step else ""
                raise NonFiniteLossError(
                    f"{self.name}: the {part} part's loss is not finite after epoch {epoch} (losses: {told}); lower "
                    f"--config.optimizer.learning_rate{kept}"
                )
            if part == deciding and value > progress.best:
                progress.best, progress.best_step, progress.best_epoch = value, progress.step, epoch
            shown = " ".join(f"{name} {value:.3f}" for name, value in summary.items() if value is not None)
            line += f" | {part} {shown}"
        self.display.line(f"{line} | {self._rate:.0f} s audio/s")
        if epoch % self.config.checkpoint_every_epochs == 0:
            self.save(state)

    def selected(self, state: TrainState) -> Trained:
        """The parameters to test, after the last step."""
        progress, epoch = self.progress, self.config.epochs
        if self.config.selection is not Selection.LAST and progress.best_step != progress.step:
            assert self._checkpoints is not None
            self._checkpoints.wait()
            params = self._checkpoints.restore_params(progress.best_step, state)
            epoch = progress.best_epoch
        else:
            params = state.params
        return Trained(params, epoch, self._seconds, self._rate)

    @property
    def _rate(self) -> float:
        return self._audio_seconds / self._seconds if self._seconds else 0.0

    def _write(self, line: dict[str, Any]) -> None:
        def write() -> None:
            assert self._log is not None
            self.still_ours()
            self._log.write(line)

        processes.on_first(write)

    def _non_finite_message(self, step: int, planned: PlannedBatch, metrics: StepMetrics) -> str:
        ids = [self.judge.manifest.utterances[row].id for row in planned.rows if row != FILL]
        losses = ", ".join(f"{task} {value:g}" for task, value in means(metrics.losses).items())
        return (
            f"{self.name}: loss or gradient is not finite at step {step} (losses: {losses}; gradient norm "
            f"{float(metrics.gradient_norm):g}). Utterances: {', '.join(ids)}. The last good checkpoint is kept; "
            "lower --config.optimizer.learning_rate, or look at these recordings."
        )
