"""Trains the members of an experiment one after the other, skips finished ones, and gathers what they found."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from jax_mtlser import runtime
from jax_mtlser.config import Config, from_dict, to_dict, validate
from jax_mtlser.corpora.manifest import read_manifest, write_manifest
from jax_mtlser.data.labels import LabelMaps
from jax_mtlser.data.packed import write_skipped
from jax_mtlser.data.vocabulary import Vocabulary, min_frames
from jax_mtlser.evaluation.calibration import calibrate_member
from jax_mtlser.evaluation.metrics import score
from jax_mtlser.evaluation.predictions import Prediction, read_predictions, write_predictions
from jax_mtlser.evaluation.protocols import draw_folds, folds_from_record, folds_record
from jax_mtlser.evaluation.report import print_results, write_report
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.members import Member, members_of
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json, write_json
from jax_mtlser.training.checkpoint import TrainingCheckpoints, load_model, load_model_description, save_model
from jax_mtlser.training.loop import NonFiniteLossError, train
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display

__all__ = ["RunError", "evaluate_run", "train_run"]

_MODEL_FORMAT = 1
# Settings that say how a run goes, not what comes out; they may differ when a run goes on.
_FREE_SETTINGS = (
    "protocol.only_folds",
    "protocol.only_repeats",
    "training.log_every_steps",
    "training.checkpoint_every_steps",
    "training.tensorboard",
    "audio.cache_dir",
)


class RunError(RuntimeError):
    """A run folder that cannot be used as asked; the message says why and what to do."""


def train_run(config: Config, workdir: Path, display: Display) -> int:
    """Train what the configuration asks for and is not finished yet, then gather and report.

    Args:
        config: the run.
        workdir: run folder; made when missing.
        display: where progress goes.

    Returns:
        Number of members that failed.

    Raises:
        ConfigError, ManifestError, CheckpointError, ProtocolError, RunError: before anything is trained.
        Interrupted: on SIGTERM or SIGINT; the same call goes on.
    """
    validate(config)
    run = RunFolder(workdir)
    _claim(run, config)
    display.line(f"run folder: {workdir}")
    experiment = Experiment.load(config, display)
    drawn = draw_folds(experiment.manifest, config.protocol)
    members = members_of(config.protocol, config.training.seed, drawn)
    record = folds_record(experiment.manifest, drawn)
    if run.folds.exists() and read_json(run.folds)["hash"] != record["hash"]:
        raise RunError(
            f"{run.folds} holds other folds than this corpus and configuration give: the corpus has changed since. "
            "Use another --workdir, or restore the corpus."
        )
    write_json(run.config, to_dict(config))
    write_manifest(experiment.manifest, run.corpus)
    write_skipped(experiment.skipped, run.skipped)
    write_json(run.folds, record)

    failures: dict[str, str] = {}
    for member in members:
        folder = run.member(member.name)
        if folder.result.exists():
            display.line(f"{member.name}: finished before")
            continue
        try:
            _train_member(experiment, member, folder)
        except NonFiniteLossError as error:
            failures[member.name] = str(error)
            display.line(str(error))
    _gather(run, members, display)
    for name, message in failures.items():
        display.line(f"{name} failed: {message}")
    return len(failures)


def evaluate_run(workdir: Path, display: Display) -> list[str]:
    """Judge every finished member's test and validation parts again, from its saved parameters.

    Predictions, results and report are written anew.

    Returns:
        What differs from the stored results; empty when all numbers are the same.

    Raises:
        RunError: no run, or no finished member, in the folder.
    """
    run = RunFolder(workdir)
    if not run.config.exists():
        raise RunError(f"{workdir} is no run folder (it has no {run.config.name}); name the --workdir of a training")
    config = from_dict(Config, read_json(run.config))
    experiment = Experiment.load(config, display, read_manifest(run.corpus, name=None))
    drawn = folds_from_record(experiment.manifest, read_json(run.folds))
    everyone = dataclasses.replace(config.protocol, only_folds=(), only_repeats=())
    members = members_of(everyone, config.training.seed, drawn)
    finished = [member for member in members if run.member(member.name).result.exists()]
    if not finished:
        raise RunError(f"{workdir} has no finished member; let train.py finish first")
    differences: list[str] = []
    for member in finished:
        differences += _evaluate_member(experiment, member, run.member(member.name))
    stored = read_json(run.results)["pooled"] if run.results.exists() else None
    results = _gather(run, members_of(config.protocol, config.training.seed, drawn), display)
    if stored is not None and stored != results["pooled"]:
        differences.append(f"pooled: stored {stored}, now {results['pooled']}")
    return differences


def _claim(run: RunFolder, config: Config) -> None:
    """Refuse to mix two configurations in one folder."""
    if not run.config.exists():
        return
    stored, wanted = _flat(read_json(run.config)), _flat(to_dict(config))
    differing = [
        f"{name}: {stored.get(name)!r} there, {wanted.get(name)!r} now"
        for name in sorted(stored.keys() | wanted.keys())
        if stored.get(name) != wanted.get(name) and name not in _FREE_SETTINGS
    ]
    if differing:
        raise RunError(
            f"{run.path} holds a run with other settings; use another --workdir, or the same settings:\n"
            + "\n".join(f"  - {line}" for line in differing)
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _train_member(experiment: Experiment, member: Member, folder: MemberFolder) -> None:
    config, display = experiment.config, experiment.display
    folder.path.mkdir(parents=True, exist_ok=True)
    maps, vocabulary = experiment.maps_of(member), experiment.vocabulary_of(member)
    judge = experiment.judge_of(member, maps, vocabulary)
    compile_seconds = experiment.compile(judge.steps)
    corpus = experiment.resident_corpus(judge.steps)
    infeasible = _infeasible(experiment, member, vocabulary)
    if infeasible:
        display.line(
            f"{member.name}: {infeasible} training transcripts are too long for their audio; CTC leaves them out"
        )
    key = judge.steps.put(jax.random.key(member.seed))
    trained = train(
        judge,
        member.parts.train,
        member.parts.validation,
        config=config.training,
        seed=member.seed,
        initial_state=lambda: experiment.initial_state(member, judge.steps),
        like=dataclasses.replace(judge.steps.state_shapes(), key=key),
        knobs=experiment.knobs_of(member, judge.steps),
        corpus=corpus,
        folder=folder,
        display=display,
    )
    sizes = judge.steps.spec.model.sizes
    save_model(
        folder.model,
        trained.params,
        {
            "format": _MODEL_FORMAT,
            "architecture": to_dict(experiment.encoder.arch),
            "heads": dataclasses.asdict(sizes),
            "labels": maps.to_dict(),
            "vocabulary": vocabulary.to_dict() if vocabulary else None,
            "language": config.model.vocabulary.language,
            "normalize_waveform": experiment.encoder.normalize_waveform,
            "hf_compat": config.model.encoder.hf_compat,
            "head_input": config.model.head_input.value,
            "lora": {"rank": config.model.encoder.lora_rank, "alpha": config.model.encoder.lora_alpha},
            "encoder": config.model.encoder.checkpoint,
            "corpus": experiment.manifest.name,
            "versions": runtime.versions(),
        },
    )
    predictions = _predict(judge, member, trained.params, corpus)
    write_predictions(folder.predictions, predictions, maps.to_dict())
    parameters = sum(leaf.size for leaf in jax.tree.leaves(trained.params))
    result = {
        "name": member.name,
        "repeat": member.repeat,
        "fold": member.fold,
        "seed": member.seed,
        "epochs": config.training.epochs,
        "selected_epoch": trained.selected_epoch,
        "selection": config.training.selection.value,
        "counts": {
            "train": len(member.parts.train),
            "validation": len(member.parts.validation),
            "test": len(member.parts.test),
            "skipped_ctc": infeasible,
        },
        "labels": maps.to_dict(),
        "parameters": parameters,
        "seconds": {"compile": round(compile_seconds, 2), "train": round(trained.seconds, 2)},
        "audio_seconds_per_second": round(trained.audio_rate, 2),
        "metrics": _test_summary(predictions),
        "calibration": _calibration(predictions, maps),
        "versions": runtime.versions(),
    }
    write_json(folder.result, result)
    TrainingCheckpoints.remove(folder.checkpoints)


def _evaluate_member(experiment: Experiment, member: Member, folder: MemberFolder) -> list[str]:
    """Judge a finished member again; returns the differences to its stored result."""
    description = load_model_description(folder.model)
    maps = LabelMaps.from_dict(description["labels"])
    vocabulary = Vocabulary.from_dict(description["vocabulary"]) if description["vocabulary"] else None
    judge = experiment.judge_of(member, maps, vocabulary)
    experiment.compile(judge.steps, names=("eval",))
    params = load_model(folder.model, judge.steps.state_shapes().params)
    predictions = _predict(judge, member, params, experiment.resident_corpus(judge.steps))
    result = read_json(folder.result)
    summary = _test_summary(predictions)
    differences = [
        f"{member.name}: {name} stored {result['metrics'][name]}, now {value}"
        for name, value in summary.items()
        if result["metrics"][name] != value
    ]
    before = {p.id: p for p in read_predictions(folder.predictions)} if folder.predictions.exists() else {}
    changed = sum(1 for p in predictions if p.id in before and _decisions(p) != _decisions(before[p.id]))
    if changed:
        differences.append(f"{member.name}: {changed} of {len(predictions)} predictions changed")
    write_predictions(folder.predictions, predictions, maps.to_dict())
    write_json(folder.result, {**result, "metrics": summary, "calibration": _calibration(predictions, maps)})
    return differences


def _decisions(p: Prediction) -> tuple[str | None, ...]:
    return p.emotion_predicted, p.gender_predicted, p.speaker_predicted, p.text_predicted


def _predict(judge: Judge, member: Member, params: Any, corpus: Any) -> list[Prediction]:
    validation = judge(params, corpus, member.parts.validation, "validation").predictions
    return validation + judge(params, corpus, member.parts.test, "test").predictions


def _test_summary(predictions: list[Prediction]) -> dict[str, float | None]:
    return score([p for p in predictions if p.part == "test"]).summary()


def _calibration(predictions: list[Prediction], maps: LabelMaps) -> dict[str, Any] | None:
    calibration = calibrate_member(predictions, maps.emotion)
    return calibration.record() if calibration else None


def _infeasible(experiment: Experiment, member: Member, vocabulary: Vocabulary | None) -> int:
    """Training transcripts that their frames cannot spell."""
    if vocabulary is None:
        return 0
    count, lengths = 0, experiment.audio.lengths
    for row in member.parts.train:
        text = experiment.transcripts[row]
        frames = experiment.encoder.arch.num_frames(int(lengths[row]))
        if text and min_frames(vocabulary.encode(text)) > frames:
            count += 1
    return count


def _gather(run: RunFolder, members: list[Member], display: Display) -> dict[str, Any]:
    results = gather_results(run, [member.name for member in members])
    write_json(run.results, results)
    print_results(results, display.console)
    display.line(f"results: {run.results}")
    display.line(f"report:  {write_report(run)}")
    return results
