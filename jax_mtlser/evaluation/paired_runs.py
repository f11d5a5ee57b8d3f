"""Finished runs side by side: the same test utterance, judged by each of them.

Two runs can be compared fold by fold where the same folds test the same utterances. Where folds differ (another
protocol, another seed) but each repeat as a whole tests the same utterances, these can still be paired one by one.
Anything else is no paired comparison and is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_mtlser.evaluation.predictions import Prediction
from jax_mtlser.evaluation.results import read_finished
from jax_mtlser.run_folder import RunFolder, read_json

__all__ = ["ComparisonError", "FoldKey", "Paired", "System", "load_systems", "pair"]

FoldKey = tuple[int, int]  # repeat, fold


class ComparisonError(ValueError):
    """Runs that cannot be compared; the message says what differs and what can be done."""


@dataclasses.dataclass(frozen=True, eq=False)
class System:
    """One side of a comparison: the finished members of a run, or of one of its variants.

    Attributes:
        name: short, unique among the compared.
        path: run folder.
        fold_hash: of ``folds.json``.
        results: ``result.json`` by fold.
        tested: test predictions that have an emotion, by fold and utterance.
    """

    name: str
    path: Path
    fold_hash: str
    results: Mapping[FoldKey, Mapping[str, Any]]
    tested: Mapping[FoldKey, Mapping[str, Prediction]]

    def by_repeat(self) -> dict[int, dict[str, Prediction]]:
        """Test predictions by repeat and utterance, whatever the fold.

        Raises:
            ComparisonError: a repeat tests an utterance twice.
        """
        found: dict[int, dict[str, Prediction]] = {}
        for (repeat, _), rows in self.tested.items():
            repeated = found.setdefault(repeat, {})
            if twice := repeated.keys() & rows.keys():
                raise ComparisonError(
                    f"{self.name} tests {_some(twice)} in more than one fold of repeat {repeat}, so it can only be "
                    "compared with runs on the same folds"
                )
            repeated |= rows
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Paired:
    """What all systems were tested on.

    Attributes:
        systems: N of them.
        rows: predictions of the first one, by repeat and utterance.
        predicted: emotion by system, in the order of ``rows``.
        folds: the folds that the systems share; empty where they were paired by utterance only.
        notes: what was left out, and what else differs.
    """

    systems: tuple[System, ...]
    rows: tuple[Prediction, ...]
    predicted: tuple[tuple[str, ...], ...]
    folds: tuple[FoldKey, ...]
    notes: tuple[str, ...]

    @property
    def reference(self) -> list[str]:
        """True emotions."""
        return [row.emotion or "" for row in self.rows]

    @property
    def repeats(self) -> list[int]:
        """Numbers of the repeats, sorted."""
        return sorted({row.repeat for row in self.rows})

    def test_train_ratio(self) -> float:
        """Mean over folds of tested utterances over those that training could use, validation included."""
        counts = [system.results[fold]["counts"] for system in self.systems for fold in self.folds]
        return sum(c["test"] / (c["train"] + c["validation"]) for c in counts) / len(counts)


# --- Reading ---------------------------------------------------------------------------------------------


def load_systems(arguments: Sequence[str]) -> list[System]:
    """Read run folders.

    Args:
        arguments: ``RUN``, which stands for each of its variants where it has some, or ``RUN:VARIANT``.

    Raises:
        ComparisonError: not a run folder, no such variant, nothing finished, no emotion head.
        ResultsError, PredictionsError: a damaged member.
    """
    found: list[tuple[Path, str, System]] = []
    for argument in arguments:
        path, variant = Path(argument), None
        if not path.exists() and ":" in argument:
            folder, _, variant = argument.rpartition(":")
            path = Path(folder)
        found += [(path, name, system) for name, system in _systems_of(path, variant).items()]
    # The folder's own name is enough, unless two are called the same.
    short = [path.resolve().name for path, _, _ in found]
    lasts = {name: {path.resolve() for path, _, _ in found if path.resolve().name == name} for name in short}
    named = []
    for path, variant, system in found:
        name = path.resolve().name
        name = name if len(lasts[name]) == 1 else str(path)
        named.append(dataclasses.replace(system, name=f"{name}:{variant}" if variant else name))
    if again := {system.name for system in named if sum(other.name == system.name for other in named) > 1}:
        raise ComparisonError(f"{', '.join(sorted(again))} is named twice; a comparison needs different runs")
    return named


def _systems_of(path: Path, wanted: str | None) -> dict[str, System]:
    """The systems in a run folder by variant; "" where the run has no variants."""
    run = RunFolder(path)
    if not run.config.is_file() or not run.folds.is_file():
        raise ComparisonError(
            f"{path} is no run folder (it has no {run.config.name}); name the --workdir of a training"
        )
    members = [read_finished(folder) for folder in run.members() if folder.result.is_file()]
    if not members:
        raise ComparisonError(f"{path} has no finished member; let train.py finish first")
    order = [variant["name"] for variant in read_json(run.config).get("variants") or ()]
    present = {result.get("variant") or "" for result, _ in members}
    variants = sorted(present, key=lambda name: (order.index(name) if name in order else len(order), name))
    if wanted is not None:
        if wanted not in present:
            raise ComparisonError(
                f"{path} has no finished variant {wanted!r}; it has {', '.join(filter(None, variants)) or 'no variants'}"
            )
        variants = [wanted]
    fold_hash = read_json(run.folds)["hash"]
    systems = {}
    for variant in variants:
        own = [(result, rows) for result, rows in members if (result.get("variant") or "") == variant]
        name = f"{path}:{variant}" if variant else str(path)
        keys = [(result["repeat"], result["fold"]) for result, _ in own]
        if len(set(keys)) < len(keys):
            raise ComparisonError(f"{name} has two members of the same fold and repeat; one run holds one of each")
        judged = {key: _tested_emotions(rows) for key, (_, rows) in zip(keys, own, strict=True)}
        tested = {key: rows for key, rows in judged.items() if rows}
        if not tested:
            raise ComparisonError(f"{name} says nothing about the emotion of any labelled test utterance")
        results = {key: result for key, (result, _) in zip(keys, own, strict=True)}
        systems[variant] = System(name, path, fold_hash, results, tested)
    return systems


def _tested_emotions(rows: Sequence[Prediction]) -> dict[str, Prediction]:
    return {
        row.id: row
        for row in rows
        if row.part == "test" and row.emotion is not None and row.emotion_predicted is not None
    }


# --- Pairing ---------------------------------------------------------------------------------------------


def pair(systems: Sequence[System], *, common_only: bool = False) -> Paired:
    """Find what all systems were tested on.

    Args:
        systems: two or more.
        common_only: where the tested utterances differ, compare on those that all have.

    Raises:
        ComparisonError: the systems were not tested on the same utterances, or these have other labels.
    """
    shared = sorted(set.intersection(*(set(system.tested) for system in systems)))
    same_folds = bool(shared) and all(len({frozenset(system.tested[key]) for system in systems}) == 1 for key in shared)
    if same_folds:
        notes = _unshared_folds(systems, shared)
        if len({system.fold_hash for system in systems}) > 1:
            notes.append("Test parts are the same, but training and validation parts were cut differently.")
        chosen = [[dict(system.tested[key]) for key in shared] for system in systems]
    else:
        shared = []
        chosen, notes = _by_utterance(systems, common_only)
    parts = [[(row.repeat, name, row) for rows in own for name, row in rows.items()] for own in chosen]
    ordered = [sorted(part, key=lambda entry: (entry[0], entry[1], entry[2].fold)) for part in parts]
    _require_same_labels(systems, [[row for _, _, row in part] for part in ordered])
    return Paired(
        systems=tuple(systems),
        rows=tuple(row for _, _, row in ordered[0]),
        predicted=tuple(tuple(row.emotion_predicted or "" for _, _, row in part) for part in ordered),
        folds=tuple(shared),
        notes=tuple(notes + _other_differences(systems)),
    )


def _unshared_folds(systems: Sequence[System], shared: Sequence[FoldKey]) -> list[str]:
    notes = []
    for system in systems:
        if left := sorted(set(system.tested) - set(shared)):
            names = ", ".join(f"r{repeat}_f{fold}" for repeat, fold in left)
            notes.append(f"{names} of {system.name} left out: the others have not finished them.")
    return notes


def _by_utterance(systems: Sequence[System], common_only: bool) -> tuple[list[list[dict[str, Prediction]]], list[str]]:
    """Predictions by system and repeat, on the same utterances."""
    repeated = [system.by_repeat() for system in systems]
    shared = sorted(set.intersection(*(set(found) for found in repeated)))
    if not shared:
        numbers = "; ".join(f"{s.name} {sorted(found)}" for s, found in zip(systems, repeated, strict=True))
        raise ComparisonError(f"the runs have no repeat in common ({numbers}); finish the same repeats of each")
    notes = [
        "The runs have other folds, so their predictions are paired by utterance: trained on other utterances, too."
    ]
    if any(len(found) > len(shared) for found in repeated):
        notes.append(f"Compared on repeat {', '.join(map(str, shared))}, which all runs have.")
    chosen: list[list[dict[str, Prediction]]] = [[] for _ in systems]
    left = [0] * len(systems)
    for repeat in shared:
        common = set.intersection(*(set(found[repeat]) for found in repeated))
        for place, found in enumerate(repeated):
            extra = found[repeat].keys() - common
            if extra and not common_only:
                raise _different_utterances(systems, repeated, repeat)
            left[place] += len(extra)
            chosen[place].append({name: row for name, row in found[repeat].items() if name in common})
    if not any(chosen[0]):
        raise ComparisonError(
            "the runs have no tested utterance in common; are they of the same corpus, with the same folds finished?"
        )
    if any(left):
        counts = ", ".join(f"{count:,} of {system.name}" for count, system in zip(left, systems, strict=True))
        notes.append(f"Predictions left out because not all runs tested the utterance: {counts}.")
    return chosen, notes


def _different_utterances(
    systems: Sequence[System], repeated: Sequence[Mapping[int, Mapping[str, Prediction]]], repeat: int
) -> ComparisonError:
    first = set(repeated[0][repeat])
    other, second = next(
        (system, names)
        for system, found in zip(systems[1:], repeated[1:], strict=True)
        if (names := set(found[repeat])) != first
    )
    sides = [
        f"{name} has {len(extra):,} more ({_some(extra)})"
        for name, extra in ((systems[0].name, first - second), (other.name, second - first))
        if extra
    ]
    return ComparisonError(
        f"{systems[0].name} and {other.name} were not tested on the same utterances of repeat {repeat}: of "
        f"{len(first):,} and {len(second):,} they share {len(first & second):,}; {'; '.join(sides)}. Their scores "
        "cannot be paired. Finish the same folds of each, or compare on the shared utterances with --common."
    )


def _require_same_labels(systems: Sequence[System], parts: Sequence[Sequence[Prediction]]) -> None:
    for system, rows in zip(systems[1:], parts[1:], strict=True):
        differing = [(a, b) for a, b in zip(parts[0], rows, strict=True) if a.emotion != b.emotion]
        if differing:
            a, b = differing[0]
            raise ComparisonError(
                f"{len(differing):,} utterances have other labels in {system.name} than in {systems[0].name} (such as "
                f"{a.id}: {b.emotion}, not {a.emotion}); the runs are not of the same corpus or label map"
            )


def _other_differences(systems: Sequence[System]) -> list[str]:
    """How the tested epoch was chosen, where that is not the same for all."""
    chosen = {s.name: ", ".join(sorted({str(r.get("selection")) for r in s.results.values()})) for s in systems}
    if len(set(chosen.values())) == 1:
        return []
    return [f"The tested epoch was chosen differently: {'; '.join(f'{name} {how}' for name, how in chosen.items())}."]


def _some(names: set[str]) -> str:
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
