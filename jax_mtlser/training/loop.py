"""The training of one member or of several at once, from their first or last saved steps to what is tested.

Members that are trained together go through the same epoch in the same program. One that has no batch for a step,
or has taken it before an interruption, keeps its state; so does one whose training has ended in an error.

With several processes (processes.py), all of them are in here, and come to each line below in the same order.
"""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from jax_mtlser.data.batch_plan import PlannedBatch, plan_together
from jax_mtlser.data.batches import Batch, prefetch
from jax_mtlser.training import processes
from jax_mtlser.training.interruption import Interrupted, StopRequest
from jax_mtlser.training.metric_log import Reported
from jax_mtlser.training.sharding import CompiledSteps
from jax_mtlser.training.step import TrainState
from jax_mtlser.training.trainee import Trained, Trainee

__all__ = ["train"]

Turn = tuple[PlannedBatch, ...]


def train(
    trainees: Sequence[Trainee],
    steps: CompiledSteps,
    *,
    finished: Callable[[Trainee, Trained], None],
    dropped: Callable[[Trainee, Exception], None],
) -> None:
    """Train members, or go on with them.

    Args:
        trainees: at most ``steps.members``, with equal ``config`` and the same resident corpus.
        steps: the program of one step; of their evaluation, it is their judge's.
        finished: called with each member whose training has come to its end; what it raises is that member's error.
        dropped: called with each member whose own work raises, such as a loss that is not finite; its last good
            checkpoint is kept, and the others go on as they would have with it.

    Raises:
        Interrupted: on SIGTERM or SIGINT to any of the processes, after all states were saved.
        ProcessesError: what ended a member's work in this process did not do so in the others, or they ended.
    """
    if len(trainees) > steps.members:
        raise ValueError(f"{len(trainees)} members do not fit into a step of {steps.members}")
    training = _Training(trainees, steps, dropped)
    try:
        training.run(finished)
    finally:
        with contextlib.ExitStack() as closing:  # all of them, whatever one raises
            for trainee in trainees:
                closing.callback(trainee.close)


class _Training:
    def __init__(
        self, trainees: Sequence[Trainee], steps: CompiledSteps, dropped: Callable[[Trainee, Exception], None]
    ) -> None:
        self.trainees, self.steps, self.dropped = list(trainees), steps, dropped
        self.gone: set[str] = set()
        self.vote = processes.StopVote(steps.mesh)

    def run(self, finished: Callable[[Trainee, Trained], None]) -> None:
        state = self._begin()
        if state is None:
            return
        first, *others = self.trainees
        title = f"{first.name} and {len(others)} more" if others else first.name
        done, total = self._steps_taken(), sum(trainee.total_steps for trainee in self.trainees)
        self.knobs = self.steps.together(self._filled([trainee.knobs for trainee in self.trainees]))
        epochs = first.config.epochs
        with StopRequest() as stop, first.display.steps(title, done, total) as self.show:
            begun = min(trainee.progress.step // trainee.per_epoch for trainee in self._active())
            for epoch in range(begun, epochs):
                if self._active():
                    state = self._epoch(state, epoch, stop)
        for index, trainee in enumerate(self.trainees):
            if trainee.name not in self.gone:
                with self._own(trainee):
                    trained = trainee.selected(self.steps.member_of(state, index))
                    trainee.close()
                    finished(trainee, trained)

    def _begin(self) -> TrainState | None:
        """The states of all, together; None when no member could begin."""
        begun: dict[str, TrainState] = {}
        for trainee in self.trainees:
            with self._own(trainee):
                begun[trainee.name] = trainee.begin()
        self.trainees = self._active()
        return self.steps.together(self._filled([begun[t.name] for t in self.trainees])) if begun else None

    def _epoch(self, state: TrainState, epoch: int, stop: StopRequest) -> TrainState:
        clock, steps = _Clock(), self.steps
        for turn, batch in prefetch(self._batch, self._left_of(epoch)):
            for trainee, planned in zip(self.trainees, turn, strict=True):
                if processes.alone() and not planned.empty and trainee.name not in self.gone:
                    with self._own(trainee):
                        trainee.still_ours()
            taking = [
                (index, trainee, planned)
                for index, (trainee, planned) in enumerate(zip(self.trainees, turn, strict=True))
                if not planned.empty and trainee.name not in self.gone
            ]
            if not taking:
                continue
            state, metrics = steps.train(turn[0].bucket, state, batch, self.knobs, self.trainees[0].corpus)
            reported = Reported(metrics, steps.members)
            for index, trainee, planned in taking:
                with self._own(trainee):
                    trainee.took(planned, reported, index)
                    self._look(state, index, trainee, clock)
            # Here the devices have been waited for anyway, and there may be no further step that learns of this vote.
            wait = self.trainees[0].ends_epoch or not self._active()
            if number := self.vote(stop.signal or 0, wait=wait):
                self._stop(state, signal.Signals(number), clock)
        return state

    def _look(self, state: TrainState, index: int, trainee: Trainee, clock: "_Clock") -> None:
        """Log, validate and save what is due after a member's step."""
        if trainee.log_due() or trainee.checkpoint_due():
            self._log(trainee, clock)
        if trainee.checkpoint_due():
            trainee.save(self.steps.member_of(state, index))
        if trainee.ends_epoch:
            seconds = self._share(clock)
            with clock.stopped():
                trainee.finish_epoch(self.steps.member_of(state, index), seconds)

    def _log(self, trainee: Trainee, clock: "_Clock") -> None:
        if (shown := trainee.log_steps(self._share(clock))) is not None:
            self.show(self._steps_taken(), shown)

    def _stop(self, state: TrainState, number: signal.Signals, clock: "_Clock") -> None:
        """Save every member where it stands, and end."""
        for index, trainee in enumerate(self.trainees):
            if trainee.name not in self.gone and not trainee.saved:
                with self._own(trainee):
                    self._log(trainee, clock)
                    trainee.save(self.steps.member_of(state, index))
        for trainee in self._active():
            with self._own(trainee):
                trainee.wait()
        raise Interrupted(number, max(trainee.progress.step for trainee in self.trainees))

    def _left_of(self, epoch: int) -> list[Turn]:
        """The turns of an epoch in which some member has a batch that it has not taken yet."""
        seeds = [trainee.seed for trainee in self.trainees]
        rows = [trainee.train_rows for trainee in self.trainees]
        plan = plan_together(rows, self.steps.buckets, seeds=seeds, epoch=epoch)
        numbers = [epoch * trainee.per_epoch for trainee in self.trainees]
        left = []
        for turn in plan:
            batches = []
            for index, (trainee, planned) in enumerate(zip(self.trainees, turn, strict=True)):
                numbers[index] += not planned.empty
                behind = numbers[index] <= trainee.progress.step or trainee.name in self.gone
                batches.append(planned.emptied() if behind else planned)
            if not all(planned.empty for planned in batches):
                left.append(tuple(batches))
        return left

    def _batch(self, turn: Turn) -> Batch:
        batches = [t.judge.source.get(planned) for t, planned in zip(self.trainees, turn, strict=True)]
        # Places in the program that nobody has: without utterances, so that nothing happens there.
        unused = self.steps.members - len(batches)
        batches += [self.trainees[0].judge.source.get(turn[0].emptied()) for _ in range(unused)]
        return self.steps.put_batches(batches)

    def _filled(self, own: Sequence[Any]) -> list[Any]:
        """One for each place in the program."""
        return [*own, *[own[0]] * (self.steps.members - len(own))]

    def _active(self) -> list[Trainee]:
        return [trainee for trainee in self.trainees if trainee.name not in self.gone]

    def _steps_taken(self) -> int:
        return sum(trainee.progress.step for trainee in self.trainees)

    def _share(self, clock: "_Clock") -> float:
        """A member's part of the seconds in this epoch's steps."""
        return clock.seconds() / len(self._active())

    @contextlib.contextmanager
    def _own(self, trainee: Trainee) -> Iterator[None]:
        """What is raised in here ends the training of this member only."""
        try:
            yield
        except (Interrupted, processes.ProcessesError):
            raise
        except Exception as error:
            processes.confirm(error)
            self.gone.add(trainee.name)
            try:
                trainee.close()
            except Exception as further:
                error.add_note(f"and on closing its checkpoints: {further}")
            self.dropped(trainee, error)


class _Clock:
    """Seconds since it was made, without those in which it was stopped."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def seconds(self) -> float:
        return time.perf_counter() - self._since

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        at = time.perf_counter()
        try:
            yield
        finally:
            self._since += time.perf_counter() - at
