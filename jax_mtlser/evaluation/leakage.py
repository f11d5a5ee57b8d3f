"""What training knows of the test utterances without hearing them.

For each fold: the share of test utterances whose speaker, dialogue, scenario, exact text or recording occurs in the
training part, and what guesses from labels alone score. Such a guess is the most frequent emotion among the training
utterances with the same speaker (dialogue, ...); where training has none, the most frequent emotion of all.

The nearest turns are those before and after the utterance, of the same speaker in the same dialogue, that are trained
on. The nearer one decides, between two equally near ones the dialogue's majority for the speaker.
"""

import bisect
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from jax_mtlser.config import ProtocolConfig
from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.evaluation.metrics import ConfusionSums
from jax_mtlser.evaluation.natural_order import natural_order
from jax_mtlser.evaluation.protocols import Fold

__all__ = ["CHANCE", "PAIR", "RECORDING", "TURNS", "Leakage", "LeakageMeter", "leakage_record"]

CHANCE, PAIR, TURNS, RECORDING = "most frequent class", "dialogue and speaker", "nearest turns", "recording"
_COLUMNS = ("speaker", "dialogue", "scenario")
_EXAMPLES = 5  # pairs of copies that are named


@dataclasses.dataclass(frozen=True)
class Leakage:
    """Sums over test parts; ``+`` puts folds together and ``Leakage()`` is its zero.

    Attributes:
        tested: test utterances.
        known: by property, how many test utterances have a value that training has too, of how many with a value.
        probes: by property, how the guesses from labels went.
        copies: test utterances with the training utterance that is the same recording: a few of them.
    """

    tested: int = 0
    known: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    probes: Mapping[str, ConfusionSums] = dataclasses.field(default_factory=dict)
    copies: tuple[tuple[str, str], ...] = ()

    def __add__(self, other: "Leakage") -> "Leakage":
        known, probes = dict(self.known), dict(self.probes)
        for name, (count, total) in other.known.items():
            own = known.get(name, (0, 0))
            known[name] = own[0] + count, own[1] + total
        for name, sums in other.probes.items():
            probes[name] = probes[name] + sums if name in probes else sums
        pairs = tuple(dict.fromkeys((*self.copies, *other.copies)))
        return Leakage(self.tested + other.tested, known, probes, pairs[:_EXAMPLES])

    def to_dict(self) -> dict[str, Any]:
        """For JSON: sums, not shares."""
        return {
            "tested": self.tested,
            "known": {name: list(counts) for name, counts in self.known.items()},
            "probes": {
                name: {"labels": list(sums.labels), "matrix": sums.matrix.tolist()}
                for name, sums in self.probes.items()
            },
            "copies": [list(pair) for pair in self.copies],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`."""
        return cls(
            tested=values["tested"],
            known={name: (count, total) for name, (count, total) in values["known"].items()},
            probes={
                name: ConfusionSums(tuple(sums["labels"]), np.array(sums["matrix"]))
                for name, sums in values["probes"].items()
            },
            copies=tuple((test, train) for test, train in values["copies"]),
        )

    def summary(self) -> dict[str, Any]:
        """Shares and scores: ``known`` by property, ``probes`` with ``wa`` and ``ua``, and ``copies``."""
        return {
            "tested": self.tested,
            "known": {name: count / total for name, (count, total) in self.known.items() if total},
            "probes": {
                name: {"wa": sums.accuracy, "ua": sums.unweighted_accuracy}
                for name, sums in self.probes.items()
                if sums.count
            },
            "copies": {
                "count": self.known[RECORDING][0] if RECORDING in self.known else None,
                "examples": [list(pair) for pair in self.copies],
            },
        }


class LeakageMeter:
    """Measures folds of one corpus."""

    def __init__(
        self,
        manifest: Manifest,
        protocol: ProtocolConfig,
        transcripts: Sequence[str | None],
        first_copies: Sequence[int] | None,
    ) -> None:
        """Collect what utterances may have in common.

        Args:
            manifest: the utterances.
            protocol: a column that it groups by is looked at too.
            transcripts: normalised, by row.
            first_copies: the first row with the same recording, for each row; None: recordings are not compared.
        """
        self._ids = [utterance.id for utterance in manifest.utterances]
        self._labels = manifest.column("emotion")
        grouped = protocol.group_column
        extra = () if grouped in (*_COLUMNS, "", "id", "text", "emotion") else (grouped,)
        present = [name for name in (*_COLUMNS, *extra) if name in manifest.columns()]
        self._keys: dict[str, list[Any]] = {name: list(manifest.column(name)) for name in present}
        self._turns: list[list[int]] = []
        if "dialogue" in present:
            dialogues = self._keys["dialogue"]
            if "speaker" in present:
                pairs = zip(dialogues, self._keys["speaker"], strict=True)
                self._keys[PAIR] = [pair if all(pair) else None for pair in pairs]
            self._turns = _sequences(manifest, self._keys.get(PAIR, dialogues))
        if any(transcripts):
            self._keys["text"] = [text or None for text in transcripts]
        self._copies = first_copies

    def of(self, fold: Fold) -> Leakage:
        """Measure one fold."""
        labels = self._labels
        train = [row for row in fold.train if labels[row] is not None]
        overall = Counter(labels[row] for row in train)
        tested = [row for row in fold.test if labels[row] is not None]
        reference = [labels[row] or "" for row in tested]
        guesses: dict[str, list[str | None]] = {}
        known: dict[str, tuple[int, int]] = {}
        for name, keys in self._keys.items():
            seen = {keys[row] for row in fold.train}
            valued = [row for row in fold.test if keys[row] is not None]
            known[name] = sum(keys[row] in seen for row in valued), len(valued)
            majority = _majorities(train, keys, labels, overall)
            guesses[name] = [majority.get(keys[row]) for row in tested]
        if self._turns:
            pair = self._keys.get(PAIR, self._keys["dialogue"])
            nearest = self._nearest(fold, _majorities(train, pair, labels, overall), pair)
            guesses[TURNS] = [nearest.get(row) for row in tested]
        copies = self._copied(fold)
        if self._copies is not None:
            known[RECORDING] = len(copies), len(fold.test)
        probes: dict[str, ConfusionSums] = {}
        if train and tested:
            commonest = _most_frequent(overall, overall)
            guesses = {CHANCE: [None] * len(tested), **guesses}
            probes = {
                name: ConfusionSums.from_labels(reference, [guess or commonest for guess in values])
                for name, values in guesses.items()
            }
        return Leakage(len(fold.test), known, probes, tuple(copies[:_EXAMPLES]))

    def _copied(self, fold: Fold) -> list[tuple[str, str]]:
        """Test utterances with the training utterance that is the same recording."""
        if self._copies is None:
            return []
        heard = {self._copies[row]: row for row in reversed(fold.train)}
        pairs = [(row, heard[self._copies[row]]) for row in fold.test if self._copies[row] in heard]
        return [(self._ids[test], self._ids[train]) for test, train in pairs]

    def _nearest(self, fold: Fold, majority: Mapping[Any, str], keys: Sequence[Any]) -> dict[int, str]:
        """The guess from the nearest turns, for each row that has some."""
        labels = self._labels
        trained = {row for row in fold.train if labels[row] is not None}
        guesses = {}
        for sequence in self._turns:
            heard = [place for place, row in enumerate(sequence) if row in trained]
            for place, row in enumerate(sequence):
                if not heard or row in trained:
                    continue
                behind = bisect.bisect(heard, place)
                sides = heard[max(behind - 1, 0) : behind + 1]
                nearest = min(abs(side - place) for side in sides)
                near = {labels[sequence[side]] or "" for side in sides if abs(side - place) == nearest}
                guesses[row] = near.pop() if len(near) == 1 else majority[keys[row]]
        return guesses


def leakage_record(meter: LeakageMeter, drawn: Sequence[Sequence[Fold]]) -> dict[str, Any]:
    """The leakage of every fold, ready for JSON.

    Args:
        meter: of the corpus.
        drawn: folds of each repeat.
    """
    return {
        "folds": [
            {"repeat": repeat, "fold": number, **meter.of(fold).to_dict()}
            for repeat, folds in enumerate(drawn)
            for number, fold in enumerate(folds)
        ]
    }


def _sequences(manifest: Manifest, keys: Sequence[Any]) -> list[list[int]]:
    """Rows with the same key in the order of speaking: by time in the file, then by id."""
    groups: dict[Any, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        if key is not None:
            groups[key].append(row)
    utterances = manifest.utterances
    order = lambda row: (utterances[row].start, natural_order(utterances[row].id))
    return [sorted(rows, key=order) for rows in groups.values()]


def _majorities(
    train: Iterable[int], keys: Sequence[Any], labels: Sequence[str | None], overall: Counter[str | None]
) -> dict[Any, str]:
    counts: dict[Any, Counter[str | None]] = defaultdict(Counter)
    for row in train:
        if keys[row] is not None:
            counts[keys[row]][labels[row]] += 1
    return {key: _most_frequent(counter, overall) for key, counter in counts.items()}


def _most_frequent(counter: Counter[str | None], overall: Counter[str | None]) -> str:
    """Among equally frequent labels the one that is more frequent overall, then the first by name."""
    return min(counter, key=lambda label: (-counter[label], -overall[label], label or "")) or ""
