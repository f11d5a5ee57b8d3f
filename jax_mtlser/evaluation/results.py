"""``results.json``: what the finished members of a run amount to."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jax_mtlser.config import ProtocolConfig, from_dict, to_dict
from jax_mtlser.evaluation.calibration import MemberCalibration, calibrate_member
from jax_mtlser.evaluation.certainty import calibration_record, fold_interval, interval_record
from jax_mtlser.evaluation.group_scores import GroupSums, group_columns, merged_groups, score_groups, summarised_groups
from jax_mtlser.evaluation.leakage_report import gather_leakage, verdict
from jax_mtlser.evaluation.metrics import SUMMARY_KEYS, TaskMetrics, mean_and_std, score
from jax_mtlser.evaluation.predictions import Prediction, read_predictions
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json

__all__ = ["ResultsError", "gather_results", "protocol_summary", "read_finished"]


_COPIED = ("name", "repeat", "fold", "seed", "epochs", "selected_epoch", "counts", "parameters", "seconds",
           "audio_seconds_per_second")  # fmt: skip


class ResultsError(ValueError):
    """Members that cannot be put together; the message names them."""


@dataclasses.dataclass(frozen=True)
class _Member:
    """A finished member: its ``result.json``, its test predictions and the sums over them, also by group."""

    result: Mapping[str, Any]
    tested: Sequence[Prediction]
    test: TaskMetrics
    groups: GroupSums
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
        - ``optimistic``: whether a member's epoch was chosen on its test part;
        - ``groups``: by column (session, speaker, ...) a list of ``value``, ``count``, ``wa`` and ``ua``;
        - ``leakage``: of the members' folds, see :meth:`~jax_mtlser.evaluation.leakage.Leakage.summary`, with
          ``verdict``, what it means for the pooled WA; None where it was not measured;
        - ``protocol``, ``versions``;
        - ``missing``: expected members that are not finished.

        Where the run has variants, ``variants`` is a list in their order: each has ``name``, ``overrides`` (value by
        setting), and ``pooled``, ``confusion``, ``folds`` and ``repeats`` of its own; there are none of the whole.

    Raises:
        ResultsError: when two members are the same fold of the same repeat and variant, or a finished member has
            no predictions.
    """
    config, folds = read_json(run.config), read_json(run.folds)
    protocol = protocol_summary(config, folds)
    columns = group_columns(protocol)
    members = [_read_member(folder, columns) for folder in run.members() if folder.result.is_file()]
    members.sort(key=lambda member: (member.result["repeat"], member.result["fold"]))
    _require_distinct(members)
    finished = {member.result["name"] for member in members}
    if variants := config.get("variants"):
        own = {name: [m for m in members if m.result["variant"] == name] for name in (v["name"] for v in variants)}
        scores: dict[str, Any] = {"variants": [{**v, **_scores(run, own[v["name"]], folds)} for v in variants]}
    else:
        scores = _scores(run, members, folds)
    return {
        **scores,
        "optimistic": any(member.result["selection"] == "best_test" for member in members),
        "protocol": protocol,
        "versions": _versions(members),
        "missing": [name for name in expected or () if name not in finished],
    }


def _scores(run: RunFolder, members: Sequence[_Member], folds: Mapping[str, Any]) -> dict[str, Any]:
    """What the members of one variant amount to."""
    pooled = _pooled(members)
    leakage = gather_leakage(run, [(member.result["repeat"], member.result["fold"]) for member in members])
    return {
        "pooled": pooled.summary(),
        "confusion": pooled.emotion
        and {"labels": list(pooled.emotion.labels), "matrix": pooled.emotion.matrix.tolist()},
        "intervals": interval_record([row for member in members for row in member.tested]),
        "calibration": calibration_record({member.result["name"]: member.calibration for member in members}),
        "folds": [member.entry() for member in members],
        "repeats": _repeats(members, folds),
        "groups": summarised_groups(merged_groups(member.groups for member in members)),
        "leakage": leakage and {**leakage, "verdict": verdict(leakage, pooled.summary()["wa"])},
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


def _read_member(folder: MemberFolder, columns: Sequence[str]) -> _Member:
    result, predictions = read_finished(folder)
    tested = [row for row in predictions if row.part == "test"]
    calibration = calibrate_member(predictions, result["labels"]["emotion"])
    return _Member(result, tested, score(tested, result["labels"]), score_groups(tested, columns), calibration)


def _require_distinct(members: Sequence[_Member]) -> None:
    counts = Counter((m.result.get("variant"), m.result["repeat"], m.result["fold"]) for m in members)
    for (_, repeat, fold), count in counts.items():
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


def protocol_summary(config: Mapping[str, Any], folds: Mapping[str, Any]) -> dict[str, Any]:
    """The protocol as ``results.json`` keeps it, from the dicts of ``config.json`` and ``folds.json``."""
    protocol = to_dict(from_dict(ProtocolConfig, config["protocol"]))
    # The number in config.json may be 0, "one fold per group"; folds.json knows how many that are.
    drawn = max((len(entry["folds"]) for entry in folds["repeats"]), default=protocol["folds"])
    return {
        **{name: value for name, value in protocol.items() if not name.startswith("only_")},
        "folds": drawn,
        "selection": config["training"]["selection"],
        "fold_hash": folds["hash"],
        "notes": folds.get("notes", []),
    }


def _versions(members: Sequence[_Member]) -> dict[str, str]:
    """One value for each package; all of them, where members ran on different installations."""
    seen: dict[str, set[str]] = {}
    for member in members:
        for name, version in member.result.get("versions", {}).items():
            seen.setdefault(name, set()).add(str(version))
    return {name: ", ".join(sorted(versions)) for name, versions in seen.items()}
