"""What a trained member says about each utterance, and the table it is kept in.

``predictions.csv`` has the columns ``id, member, repeat, fold, part``; then, for emotion and gender, the
reference, the prediction and one probability per class (``p_happy``, ``p_gender_female``); then ``speaker,
speaker_known, speaker_predicted``; then ``text, text_predicted``; then the manifest's group columns. A task
without a head has no ``*_predicted`` and no probability columns. So an empty cell in ``text_predicted`` is
an utterance in which the model heard no word, and an empty cell in a reference column is a missing label.
"""

import csv
import dataclasses
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from jax_mtlser.run_folder import write_text

__all__ = ["Part", "Prediction", "PredictionsError", "read_predictions", "write_predictions"]

Part = Literal["validation", "test"]

_FIXED = ("id", "member", "repeat", "fold", "part")
_TASKS = ("emotion", "gender", "speaker", "text")
_OWN = {*_FIXED, *_TASKS, *(f"{task}_predicted" for task in _TASKS), "speaker_known"}
_PROBABILITY = {"emotion": "p_", "gender": "p_gender_"}
# Put before the name of a group column that would otherwise look like one of ours (a corpus' own "fold").
_ESCAPE = "corpus_"


class PredictionsError(ValueError):
    """A table of predictions that cannot be written or read; the message names the row and the column."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One utterance as judged by one member.

    Attributes:
        id: utterance.
        member: name of the member, unique in the run.
        repeat, fold: what the member was trained on.
        part: of the fold.
        emotion, gender, speaker: reference label; None where the corpus does not say.
        emotion_predicted, gender_predicted, speaker_predicted: most probable class; None without a head.
        emotion_probabilities, gender_probabilities: by class, in the order of the member's class list;
            empty without a head.
        speaker_known: whether ``speaker`` is one of the classes of the speaker head.
        text: reference after the normalisation of CTC targets; None where it is missing or masked.
        text_predicted: decoded transcript, possibly empty; None without an ASR head.
        groups: the manifest's further columns, by name.
    """

    id: str
    member: str
    repeat: int
    fold: int
    part: Part
    emotion: str | None = None
    emotion_predicted: str | None = None
    emotion_probabilities: tuple[float, ...] = ()
    gender: str | None = None
    gender_predicted: str | None = None
    gender_probabilities: tuple[float, ...] = ()
    speaker: str | None = None
    speaker_known: bool = True
    speaker_predicted: str | None = None
    text: str | None = None
    text_predicted: str | None = None
    groups: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def speaker_reference(self) -> str | None:
        """The speaker, where the head could have named them; None for a speaker unseen in training."""
        return self.speaker if self.speaker_known else None


@dataclasses.dataclass(frozen=True)
class _Layout:
    """Which columns a table has.

    Attributes:
        heads: ``emotion, gender, speaker, text``: those with a predicted column.
        classes: of emotion and gender, in the order of the probabilities.
        groups: names of the group columns.
    """

    heads: frozenset[str]
    classes: Mapping[str, tuple[str, ...]]
    groups: tuple[str, ...]

    def header(self) -> list[str]:
        columns = list(_FIXED)
        for task in _TASKS:
            columns.append(task)
            if task == "speaker":
                columns.append("speaker_known")
            if task in self.heads:
                columns.append(f"{task}_predicted")
                columns += [f"{_PROBABILITY[task]}{name}" for name in self.classes.get(task, ())]
        return columns + [_escaped(name) for name in self.groups]

    def row(self, prediction: Prediction) -> Iterator[str | int | float]:
        p = prediction
        yield from (p.id, p.member, p.repeat, p.fold, p.part)
        for task in _TASKS:
            yield getattr(p, task) or ""
            if task == "speaker":
                yield int(p.speaker_known)
            if task in self.heads:
                yield getattr(p, f"{task}_predicted")
                # The csv module writes floats with repr, which reads back to the same number.
                yield from map(float, getattr(p, f"{task}_probabilities", ()))
        yield from (p.groups.get(name, "") for name in self.groups)

    def prediction(self, cells: Sequence[str]) -> Prediction:
        rest = iter(cells)
        values: dict[str, Any] = {"id": next(rest), "member": next(rest)}
        values |= {"repeat": int(next(rest)), "fold": int(next(rest)), "part": _part(next(rest))}
        for task in _TASKS:
            values[task] = next(rest) or None
            if task == "speaker":
                values["speaker_known"] = bool(int(next(rest)))
            if task in self.heads:
                values[f"{task}_predicted"] = next(rest)
                if task in self.classes:
                    values[f"{task}_probabilities"] = tuple(float(next(rest)) for _ in self.classes[task])
        values["groups"] = {name: cell for name, cell in zip(self.groups, rest, strict=True) if cell}
        return Prediction(**values)


def write_predictions(path: Path, predictions: Sequence[Prediction], classes: Mapping[str, Sequence[str]]) -> None:
    """Write one member's predictions; :func:`read_predictions` gives back equal ones.

    Args:
        path: the CSV file, replaced whole.
        predictions: rows; all with the same heads.
        classes: names of the classes under ``emotion`` and ``gender``, in the order of the probabilities
            (other keys are not used, so a member's label lists can be passed as they are).

    Raises:
        PredictionsError: when rows differ in their heads, or a row has more or fewer probabilities than
            there are classes.
    """
    layout = _layout_of(predictions, classes)
    for prediction in predictions:
        _check(prediction, layout)
    buffer = io.StringIO(newline="")
    # Every string in quotes: the minimal style leaves a lone carriage return bare, which ends a row.
    writer = csv.writer(buffer, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writerow(layout.header())
    writer.writerows(layout.row(prediction) for prediction in predictions)
    write_text(path, buffer.getvalue())


def read_predictions(path: Path) -> list[Prediction]:
    """Read a table written by :func:`write_predictions`.

    Raises:
        PredictionsError: when the file has other columns, or a cell that is not of its column's kind.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = csv.reader(file)
        header = next(rows, [])
        layout = _layout_of_header(header, path)
        predictions = []
        for cells in rows:
            try:
                if len(cells) != len(header):
                    raise ValueError(f"{len(cells)} cells under {len(header)} columns")
                predictions.append(layout.prediction(cells))
            except ValueError as error:
                raise PredictionsError(f"{path}, line {rows.line_num}: {error}") from None
    return predictions


def _layout_of(predictions: Sequence[Prediction], classes: Mapping[str, Sequence[str]]) -> _Layout:
    first = predictions[:1]
    return _Layout(
        heads=frozenset(t for t in _TASKS if any(getattr(p, f"{t}_predicted") is not None for p in first)),
        classes={task: tuple(classes.get(task, ())) for task in _PROBABILITY},
        groups=tuple(dict.fromkeys(name for p in predictions for name in p.groups)),
    )


def _check(prediction: Prediction, layout: _Layout) -> None:
    for task in _TASKS:
        if (getattr(prediction, f"{task}_predicted") is not None) != (task in layout.heads):
            raise PredictionsError(
                f"{prediction.id}: {task}_predicted is {getattr(prediction, f'{task}_predicted')!r}, unlike "
                "in the first row; a table holds the predictions of one set of heads"
            )
    for task in _PROBABILITY:
        given, wanted = len(getattr(prediction, f"{task}_probabilities")), len(layout.classes[task])
        if given != (wanted if task in layout.heads else 0):
            raise PredictionsError(f"{prediction.id}: {given} {task} probabilities for {wanted} classes")


def _layout_of_header(header: Sequence[str], path: Path) -> _Layout:
    """Follow the header from left to right: class names may look like anything, so only places are sure."""
    heads: set[str] = set()
    classes: dict[str, tuple[str, ...]] = {}
    at = len(_FIXED)
    for task in _TASKS:
        at += 2 if task == "speaker" else 1
        if header[at : at + 1] == [f"{task}_predicted"]:
            heads.add(task)
            at += 1
        if prefix := _PROBABILITY.get(task):
            start = at
            while at < len(header) and header[at].startswith(prefix):
                at += 1
            classes[task] = tuple(name.removeprefix(prefix) for name in header[start:at])
    layout = _Layout(frozenset(heads), classes, tuple(map(_unescaped, header[at:])))
    if layout.header() != list(header):
        raise PredictionsError(
            f"{path} is not a table of predictions; its columns are {', '.join(header) or 'missing'}"
        )
    return layout


def _part(cell: str) -> str:
    if cell not in get_args(Part):
        raise ValueError(f"part is {cell!r}; it must be one of {', '.join(get_args(Part))}")
    return cell


def _escaped(name: str) -> str:
    """Rename a group column that would be mistaken for one of ours; reversible for any name."""
    plain = name
    while plain.startswith(_ESCAPE):
        plain = plain.removeprefix(_ESCAPE)
    return f"{_ESCAPE}{name}" if plain in _OWN or plain.startswith("p_") else name


def _unescaped(column: str) -> str:
    name = column.removeprefix(_ESCAPE)
    return name if _escaped(name) == column else column
