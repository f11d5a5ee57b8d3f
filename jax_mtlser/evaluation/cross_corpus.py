"""A model's emotions against another corpus' labels: which classes both have, and the scores over those."""

import csv
import dataclasses
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from jax_mtlser.evaluation import figures
from jax_mtlser.evaluation.metrics import ConfusionSums, mean_and_std, score
from jax_mtlser.evaluation.predictions import Prediction
from jax_mtlser.evaluation.robustness import percent
from jax_mtlser.run_folder import write_json, write_text

__all__ = [
    "CrossCorpusError",
    "LabelMatch",
    "ensemble",
    "match_labels",
    "print_cross_corpus",
    "shared_scores",
    "summarise_members",
    "write_cross_corpus",
]

SCORES = ("free_wa", "free_ua", "free_f1", "restricted_wa", "restricted_ua", "restricted_f1", "gender_accuracy", "wer")


class CrossCorpusError(ValueError):
    """Corpus and model that cannot be compared; the message names the classes of both and the fix."""


@dataclasses.dataclass(frozen=True)
class LabelMatch:
    """How a corpus' labels meet a model's classes.

    Attributes:
        classes: of the model, in the order of its outputs.
        mapping: the model's class of each of the corpus' labels that has one.
        unknown: utterances of each label that the model has no class for.
    """

    classes: tuple[str, ...]
    mapping: Mapping[str, str]
    unknown: Mapping[str, int]

    @property
    def shared(self) -> tuple[str, ...]:
        """The model's classes that occur in the corpus."""
        return tuple(name for name in self.classes if name in self.mapping.values())

    @property
    def absent(self) -> tuple[str, ...]:
        """The model's classes that the corpus does not have."""
        return tuple(name for name in self.classes if name not in self.mapping.values())


def match_labels(counts: Mapping[str, int], classes: Sequence[str], renamed: Mapping[str, str]) -> LabelMatch:
    """Find each label's class: the one it was renamed to, else the one of the same name.

    Args:
        counts: utterances of each of the corpus' labels.
        classes: of the model.
        renamed: labels of the corpus to classes of the model.

    Raises:
        CrossCorpusError: a name on either side of ``renamed`` that does not exist, or fewer than two shared classes.
    """
    both = f"the corpus has {', '.join(counts) or 'no emotion labels'}; the model has {', '.join(classes)}"
    for label, name in renamed.items():
        for wanted, there, whose in ((label, counts, "corpus"), (name, classes, "model")):
            if wanted not in there:
                near = difflib.get_close_matches(wanted, there, 1)
                hint = f"did you mean {near[0]}? " if near else ""
                raise CrossCorpusError(f"--map {label}={name}: the {whose} has no emotion {wanted!r}; {hint}{both}")
    mapping = {label: renamed.get(label, label) for label in counts if renamed.get(label, label) in classes}
    match = LabelMatch(tuple(classes), mapping, {label: n for label, n in counts.items() if label not in mapping})
    if len(match.shared) < 2:
        raise CrossCorpusError(
            f"corpus and model share {len(match.shared)} emotions, and a comparison needs two: {both}. "
            "Say which labels mean a class of the model, such as --map joy=happy"
        )
    return match


def shared_scores(
    predictions: Sequence[Prediction], match: LabelMatch, shared: Sequence[str]
) -> dict[str, float | None]:
    """Scores over utterances whose reference is a shared class.

    Args:
        predictions: of one member, or of an ensemble.
        match: the model's classes.
        shared: those that occur in the references.

    Returns:
        Fractions: ``free_*`` where the model chose among all of its classes, so that one outside the shared ones is an
        error; ``restricted_*`` where it chooses the most probable of the shared ones. F1 is the mean over the shared
        classes. Gender accuracy and word error rate are over the same utterances; None where there is no such head or
        label.
    """
    places = [match.classes.index(name) for name in shared]
    reference = [row.emotion or "" for row in predictions]
    free = [row.emotion_predicted or "" for row in predictions]
    shares = np.array([[row.emotion_probabilities[place] for place in places] for row in predictions])
    restricted = [shared[best] for best in shares.argmax(axis=1)]
    others = score(predictions)
    return {
        **_scores("free", reference, free, shared),
        **_scores("restricted", reference, restricted, shared),
        "gender_accuracy": others.gender.accuracy if others.gender else None,
        "wer": others.words.wer if others.words else None,
    }


def _scores(
    choice: str, reference: Sequence[str], predicted: Sequence[str], shared: Sequence[str]
) -> dict[str, float | None]:
    sums = ConfusionSums.from_labels(reference, predicted, shared)
    hits = sums.matrix.diagonal()[: len(shared)]
    judged = (sums.matrix.sum(axis=0) + sums.matrix.sum(axis=1))[: len(shared)]
    return {
        f"{choice}_wa": sums.accuracy,
        f"{choice}_ua": sums.unweighted_accuracy,
        f"{choice}_f1": float(np.mean(2 * hits / judged)),
    }


def ensemble(
    members: Sequence[Sequence[Prediction]], emotions: Sequence[str], genders: Sequence[str]
) -> list[Prediction]:
    """One prediction per utterance from the mean of the members' probabilities.

    Args:
        members: predictions of each member, the same utterances in the same order.
        emotions, genders: classes of all members, in the order of their probabilities; genders are left out where
            members differ in them (empty).

    Returns:
        Emotion and gender; transcripts and speakers cannot be averaged and are left out.
    """
    found = []
    for rows in zip(*members, strict=True):
        emotion = np.mean([row.emotion_probabilities for row in rows], axis=0)
        judged = dataclasses.replace(
            rows[0],
            member="ensemble",
            emotion_predicted=emotions[int(emotion.argmax())],
            emotion_probabilities=tuple(map(float, emotion)),
            gender_predicted=None,
            gender_probabilities=(),
            speaker_predicted=None,
            text_predicted=None,
        )
        if genders and all(row.gender_probabilities for row in rows):
            gender = np.mean([row.gender_probabilities for row in rows], axis=0)
            judged = dataclasses.replace(
                judged,
                gender_predicted=genders[int(gender.argmax())],
                gender_probabilities=tuple(map(float, gender)),
            )
        found.append(judged)
    return found


def summarise_members(scores: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    """``members`` as given, and the ``mean`` and sample ``std`` of each score over those that have it."""
    moments = {key: mean_and_std(v for each in scores.values() if (v := each[key]) is not None) for key in SCORES}
    return {
        "members": scores,
        "mean": {key: mean for key, (mean, _) in moments.items()},
        "std": {key: std for key, (_, std) in moments.items()},
    }


def print_cross_corpus(results: Mapping[str, Any], console: Console) -> None:
    """Print the table of a cross-corpus test, in per cent, and what was left out of it."""
    classes, left_out = results["classes"], results["left_out"]
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
    table.add_column("", no_wrap=True)
    for choice in ("free", "restricted"):
        for name in ("WA", "UA", "F1"):
            table.add_column(f"{choice[:5]}\n{name}", justify="right", no_wrap=True)
    table.add_column("Gender", justify="right", no_wrap=True)
    table.add_column("WER", justify="right", no_wrap=True)
    for name, scores in results["members"].items():
        table.add_row(Text(name), *(percent(scores[key]) for key in SCORES))
    table.add_section()
    if len(results["members"]) > 1:
        table.add_row("mean", *(percent(results["mean"][key]) for key in SCORES), style="bold")
        table.add_row("± std", *(percent(results["std"][key]) for key in SCORES), style="bold")
        table.add_row("ensemble", *(percent(results["ensemble"][key]) for key in SCORES), style="bold")
        table.add_section()
    if own := results["own_corpus"]:
        numbers = (
            [own[key] for key in ("wa", "ua", "macro_f1")]
            + [None] * 3
            + [own[key] for key in ("gender_accuracy", "wer")]
        )
        table.add_row(Text(f"own: {results['trained_on']}"), *map(percent, numbers))
    console.print(table)

    def line(text: str) -> None:
        console.print(text, markup=False, highlight=False)

    counted = ", ".join(f"{name} {n}" for name, n in results["counts"].items())
    line(f"Per cent of {results['utterances']} utterances of {results['corpus']}: {counted}.")
    line(
        "free: the model chose among all its classes. restr: among the shared ones; "
        f"chance UA {percent(results['chance_ua'])}, the largest class WA {percent(results['majority_wa'])}."
    )
    if renamed := {label: name for label, name in classes["map"].items() if label != name}:
        line("Renamed: " + ", ".join(f"{label} to {name}" for label, name in renamed.items()) + ".")
    if classes["absent"]:
        line(f"Classes of the model that {results['corpus']} does not have: {', '.join(classes['absent'])}.")
    reasons = [f"{n} {name} (no such class)" for name, n in left_out["unknown_classes"].items()]
    reasons += [f"{left_out['unlabelled']} without emotion"] if left_out["unlabelled"] else []
    reasons += [f"{left_out['audio']} whose audio cannot be used (skipped.csv)"] if left_out["audio"] else []
    if reasons:
        line(f"Left out: {', '.join(reasons)}.")


def write_cross_corpus(results: Mapping[str, Any], folder: Path) -> list[Path]:
    """Write ``results.json``, ``table.csv`` and the ensemble's confusion matrix as SVG and PNG.

    Returns:
        The files.
    """
    write_json(folder / "results.json", results)
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["member", *SCORES])
    rows = {**results["members"], "mean": results["mean"], "std": results["std"], "ensemble": results["ensemble"]}
    writer.writerows([name, *(scores[key] for key in SCORES)] for name, scores in rows.items())
    write_text(folder / "table.csv", buffer.getvalue())
    confusion = results["confusion"]
    figure = figures.confusion_matrix(ConfusionSums(tuple(confusion["labels"]), np.array(confusion["matrix"])))
    assert figure is not None
    figures.save(figure, folder / "confusion")
    return [folder / name for name in ("results.json", "table.csv", "confusion.svg", "confusion.png")]
