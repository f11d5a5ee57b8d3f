"""A run whose members are trained: found in its folder, loaded, and ready to be judged."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import jax

from jax_mtlser.config import Config, from_dict
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.data.labels import LabelMaps
from jax_mtlser.data.vocabulary import Vocabulary
from jax_mtlser.evaluation.predictions import Part, Prediction
from jax_mtlser.evaluation.protocols import Fold, folds_from_record
from jax_mtlser.experiments.experiment import Experiment, experiments_by_variant
from jax_mtlser.experiments.members import Member, members_of, settings_of
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model, load_model_description
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display

__all__ = [
    "FinishedRun",
    "LoadedMember",
    "RunError",
    "finished_members",
    "for_evaluation",
    "one_variant",
    "read_run_config",
]


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


def read_run_config(run: RunFolder) -> Config:
    """The configuration that a run was trained with.

    Raises:
        RunError: no run in the folder.
    """
    if not run.config.exists():
        raise RunError(f"{run.path} is no run folder (it has no {run.config.name}); name the --workdir of a training")
    return from_dict(Config, read_json(run.config))


def finished_members(run: RunFolder) -> list[MemberFolder]:
    """The members that are trained, by name.

    Raises:
        RunError: there is none.
    """
    finished = [folder for folder in run.members() if folder.result.exists()]
    if not finished:
        raise RunError(f"{run.path} has no finished member; let train.py finish first")
    return finished


def one_variant(run: RunFolder, config: Config, variant: str | None) -> tuple[Config, list[MemberFolder]]:
    """The settings of one variant of a run, and its finished members; of a run without variants, the run's.

    Raises:
        RunError: the run has variants and none, or another, is named; or the variant has no finished member.
    """
    settings, folders = settings_of(config), finished_members(run)
    if not config.variants and variant:
        raise RunError(f"{run.path} has no variants; leave --variant {variant} out")
    if not config.variants:
        return config, folders
    if variant not in settings:
        raise RunError(f"{run.path} has variants; choose one with --variant: {', '.join(settings)}")
    own = [folder for folder in folders if read_json(folder.result)["variant"] == variant]
    if not own:
        raise RunError(f"{run.path} has no finished member of variant {variant}; let train.py finish first")
    return settings[variant], own


def for_evaluation(config: Config) -> Config:
    """A member's settings for judging.

    Without the devices that shared a population's members, where this machine has fewer. And on samples: what is judged
    once need not be kept, and the checkpoint that a frozen part came from may be gone.
    """
    training = config.training
    if training.member_devices * max(training.data_devices, 1) > jax.device_count():
        training = dataclasses.replace(training, member_devices=1)
    batching = dataclasses.replace(config.batching, keep_frozen=False)
    return dataclasses.replace(config, training=training, batching=batching)


@dataclasses.dataclass(frozen=True)
class LoadedMember:
    """A finished member's parameters, and a judge that speaks its labels.

    Attributes:
        judge: of an experiment's utterances.
        params: on the devices.
        corpus: what the judge's batches are cut from.
    """

    judge: Judge
    params: Any
    corpus: Any

    @classmethod
    def load(cls, experiment: Experiment, member: Member, folder: MemberFolder) -> Self:
        """Read a member's model and compile its evaluation, where that has not been done."""
        description = load_model_description(folder.model)
        maps = LabelMaps.from_dict(description["labels"])
        vocabulary = Vocabulary.from_dict(description["vocabulary"]) if description["vocabulary"] else None
        judge = experiment.judge_of(member, maps, vocabulary)
        experiment.compile(judge.steps, names=("eval",))
        params = load_model(folder.model, judge.steps.params_shapes())
        return cls(judge, params, experiment.resident_corpus(judge.steps))

    def predict(self, rows: tuple[int, ...], part: Part) -> list[Prediction]:
        """What the member says about rows of the experiment's manifest."""
        return self.judge(self.params, self.corpus, rows, part).predictions


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run with its own corpus.

    Attributes:
        run: its folder.
        config: it was trained with.
        experiments: corpus, encoder, devices, by variant; the corpus is the same for all.
        drawn: the folds of each repeat.
        members: those that are trained, by repeat, variant and fold.
    """

    run: RunFolder
    config: Config
    experiments: dict[str, Experiment]
    drawn: list[list[Fold]]
    members: list[Member]

    @classmethod
    def open(cls, workdir: Path, display: Display, *, only: Sequence[MemberFolder] | None = None) -> Self:
        """Load the corpus and the encoders of a run.

        Args:
            workdir: run folder.
            display: where progress goes.
            only: members to open; None for all that are finished.

        Raises:
            RunError: no run, or no finished member, in the folder.
        """
        run = RunFolder(workdir)
        config = read_run_config(run)
        names = {folder.path.name for folder in only or finished_members(run)}
        settings = {name: for_evaluation(of_variant) for name, of_variant in settings_of(config).items()}
        base = Experiment.load(next(iter(settings.values())), display, read_manifest(run.corpus, name=None))
        drawn = folds_from_record(base.manifest, read_json(run.folds))
        everyone = dataclasses.replace(config.protocol, only_folds=(), only_repeats=())
        variants = [variant.name for variant in config.variants]
        members = members_of(everyone, config.training.seed, drawn, variants)
        finished = [member for member in members if member.name in names]
        return cls(run, config, experiments_by_variant(base, settings, finished), drawn, finished)

    def folder(self, member: Member) -> MemberFolder:
        """Where a member lies."""
        return self.run.member(member.name)
