"""A trained run tested under noise, in rooms and through codecs: its own test parts, its own members.

``<run>/robustness`` holds a folder for each condition with the members' predictions and, written last,
``finished.json``. A condition whose audio, members and versions are still the same is not judged again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_mtlser import runtime
from jax_mtlser.data.conditions import CLEAN, Condition
from jax_mtlser.data.degrader import Degrader, Sounds
from jax_mtlser.evaluation.predictions import Prediction, read_predictions, write_predictions
from jax_mtlser.evaluation.robustness import JudgedCondition, print_robustness, robustness_results, write_robustness
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.finished_run import FinishedRun, LoadedMember, one_variant, read_run_config
from jax_mtlser.experiments.runner import differences_to_stored
from jax_mtlser.run_folder import RunFolder, read_json, write_json
from jax_mtlser.training.progress import Display

__all__ = ["measure_robustness"]

_SNR = (
    "mean power of the speech over its active frames (20 ms frames within 25 dB of the strongest), against the mean "
    "power of the noise over the whole utterance"
)


def measure_robustness(
    workdir: Path,
    conditions: Sequence[Condition],
    display: Display,
    *,
    noise: Path | None = None,
    rooms: Path | None = None,
    seed: int = 0,
    variant: str | None = None,
    output: Path | None = None,
) -> dict[str, Any]:
    """Judge every finished member's test part under each condition, then write and show what that makes.

    Args:
        workdir: run folder.
        conditions: clean is always judged, whether it is named or not.
        display: where progress goes.
        noise, rooms: folders of the user's recordings, for the conditions that need them.
        seed: of noise, babble and rooms.
        variant: which one to judge, where the run has variants.
        output: where the results go; default ``<run>/robustness``.

    Returns:
        What is in ``results.json``, see :func:`robustness_results`.

    Raises:
        RunError: no run, or no finished member, in the folder.
        DegradationError: a condition that cannot be made. Both before anything is judged.
    """
    run, output = RunFolder(workdir), output or workdir / "robustness" / (variant or "")
    config, folders = one_variant(run, read_run_config(run), variant)
    sounds = Sounds.load(conditions, noise, rooms, config.audio.cache_dir)
    for problem in sounds.left_out:
        display.line(f"left out: {problem}")
    opened = FinishedRun.open(workdir, display, only=folders)
    (experiment,) = opened.experiments.values()
    degrader = Degrader(experiment.manifest, experiment.audio, sounds, seed)
    degrader.check(conditions)
    output.mkdir(parents=True, exist_ok=True)
    sides = _Sides(opened, experiment, degrader, output)
    clean, *others = [sides.judge(c) for c in (CLEAN, *(c for c in conditions if c != CLEAN))]
    differences = [
        line for name, rows in clean.members.items() for line in differences_to_stored(run.member(name), list(rows))
    ]
    results = robustness_results(clean, others) | {
        "seed": seed,
        "snr": _SNR,
        "differs_from_training": differences,
        "versions": runtime.versions(),
    }
    written = write_robustness(results, output)
    print_robustness(results, display.console)
    for line in differences:
        display.line(f"clean differs from what the run stored: {line}")
    display.line("written: " + ", ".join(map(str, written)))
    return results


@dataclasses.dataclass(frozen=True)
class _Sides:
    """Judges conditions, or finds what was judged before.

    Attributes:
        opened: the run, or a variant of it.
        experiment: its only one.
        degrader: of its corpus.
        output: folder of the results.
    """

    opened: FinishedRun
    experiment: Experiment
    degrader: Degrader
    output: Path

    def judge(self, condition: Condition) -> JudgedCondition:
        """The test predictions of every member."""
        folder = self.output / condition.name.replace(":", "_")
        marker, wanted = folder / "finished.json", self._fingerprint(condition)
        display, members = self.experiment.display, self.opened.members
        if marker.exists() and read_json(marker) == wanted:
            display.line(f"{condition.title}: judged before")
            found: Mapping[str, Sequence[Prediction]] = {
                m.name: read_predictions(folder / f"{m.name}.csv") for m in members
            }
        else:
            marker.unlink(missing_ok=True)
            found = self._judge_all(condition, folder)
            write_json(marker, wanted)
        return JudgedCondition(
            name=condition.name,
            title=condition.title,
            kind=condition.kind.value,
            value=condition.value,
            noise=condition.kind_title if condition.is_noise else None,
            members=found,
        )

    def _judge_all(self, condition: Condition, folder: Path) -> dict[str, list[Prediction]]:
        experiment, members, display = self.experiment, self.opened.members, self.experiment.display
        rows = sorted({row for member in members for row in member.parts.test})
        with display.counting(f"{condition.title}: audio") as progress:
            audio = self.degrader.corpus(rows, condition, folder=self.output, progress=progress)
        # A copy for each condition: the one before takes its samples off the devices when it goes.
        degraded = experiment.with_audio(audio)
        found = {}
        with display.steps(condition.title, 0, len(members)) as show:
            for done, member in enumerate(members, 1):
                loaded = LoadedMember.load(degraded, member, self.opened.folder(member))
                found[member.name] = loaded.predict(member.parts.test, "test")
                write_predictions(folder / f"{member.name}.csv", found[member.name], loaded.judge.maps.to_dict())
                show(done, member.name)
        display.line(f"{condition.title}: {len(members)} members judged")
        return found

    def _fingerprint(self, condition: Condition) -> dict[str, Any]:
        """What the predictions follow from; kept beside them as it is."""
        return {
            **self.degrader.fingerprint(condition),
            "folds": read_json(self.opened.run.folds)["hash"],
            "members": {member.name: self._training(member.name) for member in self.opened.members},
            "versions": runtime.versions(),
        }

    def _training(self, name: str) -> str:
        """Tells trainings of a member apart: the seconds that one took are in its result."""
        result = {
            key: value for key, value in read_json(self.opened.run.member(name).result).items() if key != "metrics"
        }
        return hashlib.sha256(json.dumps(result, sort_keys=True).encode()).hexdigest()[:16]
