"""Trains the members of an experiment, skips finished ones, and gathers what they found.

Any number of processes, on one machine or on several that see the same folder, may run the same command: each takes
members that no other has taken (experiments/claims.py), and the last to finish gathers. Processes that train each
member together (training/processes.py) count as one: the first of them does all that is not computed on the devices.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from jax_mtlser import runtime
from jax_mtlser.config import Config, ConfigError, from_dict, to_dict, validate
from jax_mtlser.corpora.manifest import write_manifest
from jax_mtlser.data.duplicates import first_copies
from jax_mtlser.data.packed import write_skipped
from jax_mtlser.evaluation.experiment_report import print_experiment, write_experiment_report
from jax_mtlser.evaluation.leakage import LeakageMeter, leakage_record
from jax_mtlser.evaluation.predictions import Prediction, read_predictions, write_predictions
from jax_mtlser.evaluation.protocols import Fold, draw_folds, fold_notes, folds_record
from jax_mtlser.evaluation.report import SMOKE, print_results, write_report
from jax_mtlser.evaluation.results import gather_results
from jax_mtlser.experiments.claims import Claims
from jax_mtlser.experiments.experiment import Experiment, compute_dtype, experiments_by_variant
from jax_mtlser.experiments.finished_run import FinishedRun, LoadedMember, RunError
from jax_mtlser.experiments.members import Member, choose, members_of, settings_of
from jax_mtlser.experiments.populations import Populations
from jax_mtlser.experiments.sharing import train_together
from jax_mtlser.experiments.trained_member import calibration_record, predict_parts, summary_of_test
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json, write_json
from jax_mtlser.training import processes
from jax_mtlser.training.progress import Display

__all__ = ["STALE_AFTER", "RunError", "differences_to_stored", "evaluate_run", "train_run"]

# Seconds. Far above what a busy file server delays, far below what a training takes.
STALE_AFTER = 600.0
# Claims beside those of members, whose names end in a number.
_SET_UP, _GATHER = "set-up", "results"
# Settings that say how a run goes, not what comes out; they may differ when a run goes on. How many members share a
# program changes the order of sums, as another accelerator does.
_FREE_SETTINGS = (
    "protocol.only_folds",
    "protocol.only_repeats",
    "training.log_every_steps",
    "training.checkpoint_every_steps",
    "training.checkpoint_every_epochs",
    "training.tensorboard",
    "training.population",
    "training.member_devices",
    "audio.cache_dir",
)


def train_run(
    config: Config, workdir: Path, display: Display, *, members: str = "1/1", stale_after: float = STALE_AFTER
) -> int:
    """Train what the configuration asks for and is not finished yet, then gather and report.

    Args:
        config: the run.
        workdir: run folder; made when missing.
        display: where progress goes.
        members: the part of the experiment that this process works on, see :func:`~members.choose`.
        stale_after: seconds without a sign of life after which a member is taken over from a process on another
            machine; the same for all processes. Ended processes of this machine are noticed at once.

    Returns:
        Number of members that failed.

    Raises:
        ConfigError, ManifestError, CheckpointError, ProtocolError, RunError: before anything is trained.
        FailedElsewhere: one of these in another of the processes that train together.
        ProcessesError: these processes are no longer together; the same call by all of them goes on.
        Interrupted: on SIGTERM or SIGINT; the same call goes on.
    """
    validate(config)
    if not (math.isfinite(stale_after) and stale_after > 0):
        raise ConfigError(f"--stale_after is {stale_after}; it must be a number of seconds greater than 0")
    if workdir.exists() and not workdir.is_dir():
        raise RunError(f"{workdir} is a file; name a folder, new or of the same training, with --workdir")
    run = RunFolder(workdir)
    _require_same_settings(run, config)
    display.line(f"run folder: {workdir}")
    settings = settings_of(config)
    _require_alone_for_populations(settings)
    base = processes.on_all(lambda: Experiment.load(next(iter(settings.values())), display))
    drawn = draw_folds(base.manifest, config.protocol, base.transcripts)
    everyone = members_of(config.protocol, config.training.seed, drawn, [v.name for v in config.variants])
    chosen = choose(everyone, members)
    experiments = processes.on_all(lambda: experiments_by_variant(base, settings, chosen))
    if not processes.alone():
        processes.require_same(_common(config, base, drawn, chosen, experiments))

    claims = Claims(run.claims, stale_after=stale_after)

    def set_up() -> None:
        with claims.wait_for(_SET_UP):
            _set_up(run, config, base, drawn)

    processes.on_first(set_up)
    processes.require_shared(run.path)
    if len(chosen) < len(everyone):
        display.line(f"{len(chosen)} of {len(everyone)} members: {members}")

    populations = Populations(experiments, run, len(chosen))
    failures = train_together(run, chosen, populations.train, claims=claims, display=display, joins=populations.joins)

    def gather() -> None:
        # Who gathers now may have looked before our last member was finished: we gather after it.
        if held := {name: holder for name, holder in claims.held().items() if name != _GATHER}:
            others = ", ".join(f"{name} ({holder})" for name, holder in held.items())
            display.line(f"others are still at work and gather the results when they end: {others}")
        else:
            with claims.wait_for(_GATHER):
                _gather(run, config, everyone, display)

    processes.on_first(gather)
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
    opened = FinishedRun.open(workdir, display)
    run, config = opened.run, opened.config
    differences: list[str] = []
    for member in opened.members:
        differences += _evaluate_member(opened.experiments[member.variant], member, run.member(member.name))
    stored = _pooled(read_json(run.results)) if run.results.exists() else None
    wanted = members_of(
        config.protocol, config.training.seed, opened.drawn, [variant.name for variant in config.variants]
    )
    results = _pooled(_gather(run, config, wanted, display))
    if stored is not None:
        differences += [
            f"{f'{name} ' if name else ''}pooled: stored {stored.get(name)}, now {now}"
            for name, now in results.items()
            if stored.get(name) != now
        ]
    return differences


def _require_alone_for_populations(settings: Mapping[str, Config]) -> None:
    """Refuse what several processes do not train."""
    if processes.alone():
        return
    for config in settings.values():
        for name in ("population", "member_devices"):
            if (value := getattr(config.training, name)) != 1:
                raise ConfigError(
                    f"training.{name} is {value}; processes that train together divide the batches of one member: use "
                    f"--config.training.{name}=1, or start processes without --distributed, which divide the members"
                )


def _common(
    config: Config,
    base: Experiment,
    drawn: Sequence[Sequence[Fold]],
    chosen: Sequence[Member],
    experiments: Mapping[str, Experiment],
) -> dict[str, Any]:
    """What has to be the same in processes that train together: it decides which programs run, and on what."""
    common = {name: value for name, value in _flat(_by_name(config)).items() if name != "audio.cache_dir"}
    common |= {name: value for name, value in runtime.versions().items() if name != "platform"}
    common["utterances"] = len(base.manifest)
    common["hash of the lengths"] = hashlib.sha256(base.audio.offsets.tobytes()).hexdigest()
    common["hash of the folds"] = folds_record(base.manifest, drawn)["hash"]
    common["members"] = [member.name for member in chosen]
    for name, experiment in experiments.items():
        dtype = jnp.dtype(compute_dtype(experiment.config.training.precision)).name
        found = {"computing in": dtype, "corpus on the devices": experiment.on_device, "frames": bool(experiment.kept)}
        common |= {f"{name} {what}".strip(): value for what, value in found.items()}
    return common


def _pooled(results: Mapping[str, Any]) -> dict[str, Any]:
    """The pooled scores in ``results.json`` by variant."""
    if "variants" in results:
        return {entry["name"]: entry["pooled"] for entry in results["variants"]}
    return {"": results["pooled"]}


def _set_up(run: RunFolder, config: Config, experiment: Experiment, drawn: Sequence[Sequence[Fold]]) -> None:
    """Write what the run folder says about the whole run, unless it is another one's."""
    _require_same_settings(run, config)
    notes = fold_notes(experiment.manifest, config.protocol, drawn)
    for note in notes:
        experiment.display.line(note)
    record = folds_record(experiment.manifest, drawn, notes)
    if run.folds.exists() and read_json(run.folds)["hash"] != record["hash"]:
        raise RunError(
            f"{run.folds} holds other folds than this corpus and configuration give: the corpus has changed since. "
            "Use another --workdir, or restore the corpus."
        )
    write_json(run.config, to_dict(config))
    write_manifest(experiment.manifest, run.corpus)
    write_skipped(experiment.skipped, run.skipped)
    write_json(run.folds, record)
    copies = first_copies(experiment.audio)
    meter = LeakageMeter(experiment.manifest, config.protocol, experiment.transcripts, copies)
    write_json(run.leakage, leakage_record(meter, drawn))


def _require_same_settings(run: RunFolder, config: Config) -> None:
    """Refuse to mix two configurations in one folder."""
    if not run.config.exists():
        return
    # Read as a Config, so that settings which are newer than the folder have their defaults.
    stored, wanted = (_flat(_by_name(c)) for c in (from_dict(Config, read_json(run.config)), config))
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


def _by_name(config: Config) -> dict[str, Any]:
    """The configuration as a dict in which variants have names, not numbers."""
    return {**to_dict(config), "variants": {variant.name: to_dict(variant) for variant in config.variants}}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _evaluate_member(experiment: Experiment, member: Member, folder: MemberFolder) -> list[str]:
    """Judge a finished member again; returns the differences to its stored result."""
    loaded = LoadedMember.load(experiment, member, folder)
    predictions = predict_parts(loaded.judge, member, loaded.params, loaded.corpus)
    differences = differences_to_stored(folder, predictions)
    write_predictions(folder.predictions, predictions, loaded.judge.maps.to_dict())
    maps = loaded.judge.maps
    recomputed = {"metrics": summary_of_test(predictions), "calibration": calibration_record(predictions, maps)}
    write_json(folder.result, {**read_json(folder.result), **recomputed})
    return differences


def differences_to_stored(folder: MemberFolder, predictions: list[Prediction]) -> list[str]:
    """What a member says now, its test part included, and did not say when it was trained."""
    name, stored = folder.path.name, read_json(folder.result)["metrics"]
    differences = [
        f"{name}: {key} stored {stored[key]}, now {value}"
        for key, value in summary_of_test(predictions).items()
        if stored[key] != value
    ]
    before = {p.id: p for p in read_predictions(folder.predictions)} if folder.predictions.exists() else {}
    changed = sum(1 for p in predictions if p.id in before and _decisions(p) != _decisions(before[p.id]))
    if changed:
        differences.append(f"{name}: {changed} of {len(predictions)} predictions changed")
    return differences


def _decisions(p: Prediction) -> tuple[str | None, ...]:
    return p.emotion_predicted, p.gender_predicted, p.speaker_predicted, p.text_predicted


def _gather(run: RunFolder, config: Config, members: list[Member], display: Display) -> dict[str, Any]:
    results = gather_results(run, [member.name for member in members])
    write_json(run.results, results)
    (print_experiment if config.variants else print_results)(results, display.console)
    if config.smoke:
        display.line(SMOKE)
    display.line(f"results: {run.results}")
    display.line(f"report:  {(write_experiment_report if config.variants else write_report)(run)}")
    return results
