"""``results.json``: what the finished members of a run amount to."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jax_mtlser.evaluation.calibration import MemberCalibration, calibrate_member
from jax_mtlser.evaluation.certainty import calibration_record, fold_interval, interval_record
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS, TaskMetrics, mean_and_std, score
from jax_mtlser.evaluation.predictions import Prediction, read_predictions
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json

__all__ = ["ResultsError", "gather_results", "read_finished"]


_COPIED = ("name", "repeat", "fold", "seed", "epochs", "selected_epoch", "counts", "parameters", "seconds",
           "audio_seconds_per_second")  # fmt: skip


class ResultsError(ValueError):
    """Members that cannot be put together; the message names them."""


@dataclasses.dataclass(frozen=True)
class _Member:
    """A finished member: its ``result.json``, its test predictions and the sums over them."""

    result: Mapping[str, Any]
    tested: Sequence[Prediction]
    test: TaskMetrics
    calibration: MemberCalibration | None

    def entry(self) -> dict[str, Any]:
        return {key: self.result.get(key) for key in _COPIED} | {
            "metrics": self.test.summary(),
            "wa_interval": fold_interval(self.test.emotion),
            "calibration": self.calibration.record() if self.calibration else None,
        }


def gather_results(run: RunFolder, expected: Sequence[str] | None = None) -> dict[str, Any]:
    """Put every finished member together.

    All scores are counted anew from the members' ``predictions.csv``.

    Args:
        run: folder with ``config.json``, ``folds.json`` and members.
        expected: names of the members that were to be trained; those not finished are listed.

    Returns:
        A JSON-ready dict:

        - ``pooled``: summary over all test predictions of all members (an utterance counts once for each
          repeat);
        - ``confusion``: ``labels`` and ``matrix`` (rows: reference) of emotion, pooled likewise; None
          without predictions;
        - ``intervals``: of pooled WA, UA and macro F1, see :func:`~jax_mtlser.evaluation.certainty.interval_record`;
        - ``calibration``: see :func:`~jax_mtlser.evaluation.certainty.calibration_record`;
        - ``folds``: one entry per member, with ``metrics``, ``wa_interval`` (Wilson, 95 %) and ``calibration``, see
          :meth:`~jax_mtlser.evaluation.calibration.MemberCalibration.record`;
        - ``repeats``: ``complete`` and ``incomplete`` list repeat numbers; ``values`` has a summary for each
          complete one, pooled over its folds; ``mean`` and ``std`` are over ``values``;
        - ``protocol``, ``versions``;
        - ``missing``: expected members that are not finished.

    Raises:
        ResultsError: when two members are the same fold of the same repeat, or a finished member has no
            predictions.
    """
    members = [_read_member(folder) for folder in run.members() if folder.result.is_file()]
    members.sort(key=lambda member: (member.result["repeat"], member.result["fold"]))
    _require_distinct(members)
    folds = read_json(run.folds)
    pooled = _pooled(members)
    finished = {member.result["name"] for member in members}
    return {
        "pooled": pooled.summary(),
        "confusion": pooled.emotion
        and {"labels": list(pooled.emotion.labels), "matrix": pooled.emotion.matrix.tolist()},
        "intervals": interval_record([row for member in members for row in member.tested]),
        "calibration": calibration_record({member.result["name"]: member.calibration for member in members}),
        "folds": [member.entry() for member in members],
        "repeats": _repeats(members, folds),
        "protocol": _protocol(read_json(run.config), folds),
        "versions": _versions(members),
        "missing": [name for name in expected or () if name not in finished],
    }


def read_finished(folder: MemberFolder) -> tuple[dict[str, Any], list[Prediction]]:
    """The ``result.json`` and the predictions of a finished member.

    Raises:
        ResultsError: it has no predictions.
    """
    result = read_json(folder.result)
    if not folder.predictions.is_file():
        raise ResultsError(
            f"{folder.path} is finished but has no {folder.predictions.name}; delete it to train it again"
        )
    return result, read_predictions(folder.predictions)


def _read_member(folder: MemberFolder) -> _Member:
    result, predictions = read_finished(folder)
    tested = [row for row in predictions if row.part == "test"]
    calibration = calibrate_member(predictions, result["labels"]["emotion"])
    return _Member(result, tested, score(tested, result["labels"]), calibration)


def _require_distinct(members: Sequence[_Member]) -> None:
    counts = Counter((member.result["repeat"], member.result["fold"]) for member in members)
    for (repeat, fold), count in counts.items():
        if count > 1:
            raise ResultsError(f"{count} members are fold {fold} of repeat {repeat}; one run folder holds one of each")


def _pooled(members: Sequence[_Member]) -> TaskMetrics:
    return sum((member.test for member in members), start=TaskMetrics())


def _repeats(members: Sequence[_Member], folds: Mapping[str, Any]) -> dict[str, Any]:
    complete, incomplete, values = [], [], []
    for entry in folds["repeats"]:
        own = [member for member in members if member.result["repeat"] == entry["repeat"]]
        if {member.result["fold"] for member in own} == set(range(len(entry["folds"]))):
            complete.append(entry["repeat"])
            values.append(_pooled(own).summary())
        else:
            incomplete.append(entry["repeat"])
    moments = {key: mean_and_std(v for value in values if (v := value[key]) is not None) for key in SUMMARY_KEYS}
    return {
        "complete": complete,
        "incomplete": incomplete,
        "values": values,
        "mean": {key: mean for key, (mean, _) in moments.items()},
        "std": {key: std for key, (_, std) in moments.items()},
    }


def _protocol(config: Mapping[str, Any], folds: Mapping[str, Any]) -> dict[str, Any]:
    protocol = config["protocol"]
    # The number in config.json may be 0, "one fold per group"; folds.json knows how many that are.
    drawn = max((len(entry["folds"]) for entry in folds["repeats"]), default=protocol["folds"])
    return {
        "kind": protocol["kind"],
        "folds": drawn,
        "repeats": protocol["repeats"],
        "seed": protocol["seed"],
        "group_column": protocol["group_column"],
        "validation_fraction": protocol["validation_fraction"],
        "selection": config["training"]["selection"],
        "fold_hash": folds["hash"],
    }


def _versions(members: Sequence[_Member]) -> dict[str, str]:
    """One value for each package; all of them, where members ran on different installations."""
    seen: dict[str, set[str]] = {}
    for member in members:
        for name, version in member.result.get("versions", {}).items():
            seen.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in seen.items()}
