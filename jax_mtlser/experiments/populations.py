"""Which members train together in one program, and their training.

Members share a program when everything that is compiled in is the same for them: architecture, heads, batches,
optimizer, weighting method. Folds, seeds, task weights, learning rates and pre-trained weights may differ.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import jax

from jax_mtlser.data.batch_plan import plan_epoch
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.members import Member
from jax_mtlser.experiments.sharing import Taken
from jax_mtlser.experiments.trained_member import infeasible_transcripts, store_member
from jax_mtlser.run_folder import RunFolder
from jax_mtlser.training import processes
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.loop import train
from jax_mtlser.training.memory import device_memory, fitting_population
from jax_mtlser.training.sharding import CompiledSteps
from jax_mtlser.training.trainee import Trained, Trainee

__all__ = ["Populations"]


class Populations:
    """The populations of an experiment.

    Attributes:
        experiments: by variant.
        run: where members lie.
        members: how many there are; no population is larger.
    """

    def __init__(self, experiments: Mapping[str, Experiment], run: RunFolder, members: int) -> None:
        self.experiments, self.run, self.members = experiments, run, members
        self._steps: dict[str, CompiledSteps] = {}
        self._sizes: list[tuple[CompiledSteps, int]] = []

    def joins(self, group: Sequence[Member], member: Member) -> bool:
        """Whether a member is to be trained together with a group.

        Members that were trained before go on together only where they are at most one epoch apart: those that are
        ahead wait for the others.
        """
        first = group[0]
        one, other = self._of(first), self._of(member)
        if one.kept and one.encoder.weights != other.encoder.weights:
            return False  # they hear different frames
        training = self._of(first).config.training
        wanted = training.population
        if (wanted and len(group) >= wanted) or self._of(member).config.training != training:
            return False
        if self._steps_of(member) is not self._steps_of(first) or len(group) >= self._size(first):
            return False
        epochs = [self._epochs_done(one) for one in (*group, member)]
        return max(epochs) - min(epochs) <= 1

    def train(self, group: Sequence[Taken]) -> None:
        """Train members that :meth:`joins` has put together, and write what they leave."""
        first = self._of(group[0].member)
        display, taken_of = first.display, {taken.member.name: taken for taken in group}
        trainees: list[Trainee] = []
        for taken in group:
            try:
                trainees.append(processes.on_all(functools.partial(self._trainee, taken)))
            except processes.ProcessesError:
                raise
            except Exception as error:
                taken.drop(error)
        if not trainees:
            return
        judge, places = trainees[0].judge, self._places(first, len(trainees))
        if len(trainees) > 1:
            display.line(f"training together: {', '.join(trainee.name for trainee in trainees)}")
        trains = first.config.training.epochs > 0
        seconds = first.compile(judge.steps, names=("train", "eval") if trains and places == 1 else ("eval",))
        steps = first.steps_of(judge.steps.spec.model.sizes, judge.steps.spec.blank, places)
        if trains and places > 1:
            seconds += first.compile(steps, names=("train",))

        def finished(trainee: Trainee, trained: Trained) -> None:
            member = taken_of[trainee.name].member
            store_member(self._of(member), member, trainee, trained, seconds / len(trainees))

        train(
            trainees,
            steps,
            finished=finished,
            dropped=lambda trainee, error: taken_of[trainee.name].drop(error),
        )

    def _trainee(self, taken: Taken) -> Trainee:
        member, experiment = taken.member, self._of(taken.member)
        taken.folder.path.mkdir(parents=True, exist_ok=True)
        judge = experiment.judge_of(member, experiment.maps_of(member), experiment.vocabulary_of(member))
        if infeasible := infeasible_transcripts(experiment, judge, member):
            experiment.display.line(
                f"{member.name}: {infeasible} training transcripts are too long for their audio; CTC leaves them out"
            )
        key = judge.steps.put(jax.random.key(member.seed))
        return Trainee(
            judge,
            member.parts.train,
            member.parts.validation,
            member.parts.test,
            config=experiment.config.training,
            seed=member.seed,
            initial_state=lambda: experiment.initial_state(member, judge, experiment.resident_corpus(judge.steps)),
            like=dataclasses.replace(judge.steps.state_shapes(), key=key),
            knobs=experiment.knobs_of(member, judge.steps),
            corpus=experiment.resident_corpus(judge.steps),
            folder=taken.folder,
            display=experiment.display,
            still_ours=taken.still_ours,
        )

    def _of(self, member: Member) -> Experiment:
        return self.experiments[member.variant]

    def _steps_of(self, member: Member) -> CompiledSteps:
        """The programs for a member alone: the same object for all that can share one."""
        if member.name not in self._steps:
            experiment = self._of(member)
            vocabulary = experiment.vocabulary_of(member)
            sizes = experiment.head_sizes(experiment.maps_of(member), vocabulary)
            self._steps[member.name] = experiment.steps_of(sizes, vocabulary.blank if vocabulary else 0)
        return self._steps[member.name]

    def _places(self, experiment: Experiment, members: int) -> int:
        """Places of the program that trains so many: each device of the mesh's ``member`` axis has as many."""
        devices = experiment.mesh.shape["member"]
        return 1 if members == 1 else -(-members // devices) * devices

    def _epochs_done(self, member: Member) -> int:
        step = TrainingCheckpoints.latest_step(self.run.member(member.name).checkpoints)
        if not step:
            return 0
        return step // len(plan_epoch(member.parts.train, self._of(member).buckets, seed=0, epoch=0))

    def _size(self, member: Member) -> int:
        """How many members a member's population has at most."""
        experiment, steps = self._of(member), self._steps_of(member)
        if wanted := experiment.config.training.population:
            return wanted
        for known, size in self._sizes:
            if known is steps:
                return size
        spec = steps.spec
        size = fitting_population(
            lambda members: experiment.steps_of(spec.model.sizes, spec.blank, members),
            experiment.any_knobs(),
            at_most=self.members,
            member_devices=experiment.mesh.shape["member"],
            memory=device_memory(),
        )
        self._sizes.append((steps, size))
        experiment.display.line(f"members that fit into {device_memory() / 2**30:.1f} GiB: {size}")
        return size
