"""Answers as rows of a table, in audformat's habit: ``file, start, end``, then what is said of that segment."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jax_mtlser.inference.recognition import Asked, Recognition
from jax_mtlser.inference.recognizer import Answer, Recognizer
from jax_mtlser.inference.requests import Request

__all__ = ["Cell", "Columns", "Row"]

Cell = str | float | int | None
Row = dict[str, Cell]

# In front of an input column that has the name of one of ours.
_INPUT = "input_"
# Probabilities to a millionth, times to a microsecond: finer than any difference between two ways of computing them.
_DECIMALS = 6


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of an output.

    Attributes:
        types: ``str``, ``float`` or ``int``, by name, in order.
        kept: what each further column of the input is called here.
    """

    types: Mapping[str, type]
    kept: Mapping[str, str]

    @classmethod
    def of(cls, recognizer: Recognizer, asked: Asked, *, timeline: bool, inputs: Sequence[str]) -> "Columns":
        """The columns that follow from the model and what is asked."""
        types: dict[str, type] = {"file": str, "start": float, "end": float}
        if recognizer.emotions:
            types |= {"emotion": str, "confidence": float}
            types |= {f"p_{name}": float for name in recognizer.emotions}
        if recognizer.genders:
            types |= {"gender": str} | {f"p_gender_{name}": float for name in recognizer.genders}
        if asked.speaker:
            types |= {"speaker": str, "speaker_confidence": float}
        if asked.transcript:
            types |= {"transcript": str}
        if not timeline:
            types |= {"parts": int}
        types |= {"error": str}
        kept: dict[str, str] = {}
        for name in inputs:
            ours = name
            while ours in types:
                ours = f"{_INPUT}{ours}"
            kept[name] = ours
            types |= {ours: str}
        return cls(types, kept)

    def row(self, request: Request, answer: Answer) -> Row:
        """One answer."""
        row: Row = dict.fromkeys(self.types)
        row |= {"file": request.file, "start": request.start or None, "end": request.end}
        if answer.piece is not None:
            row |= {"start": _rounded(answer.piece.start), "end": _rounded(answer.piece.end)}
        said = answer.recognition
        values = {"error": said} if isinstance(said, str) else _values(said)
        row |= {name: value for name, value in values.items() if name in self.types}
        return row | {self.kept[name]: cell for name, cell in request.cells.items()}


def _values(said: Recognition) -> Mapping[str, Any]:
    return {
        "emotion": said.emotion,
        "confidence": _rounded(said.confidence),
        **{f"p_{name}": _rounded(share) for name, share in said.probabilities.items()},
        "gender": said.gender,
        **{f"p_gender_{name}": _rounded(share) for name, share in said.gender_probabilities.items()},
        "speaker": said.speaker,
        "speaker_confidence": _rounded(said.speaker_confidence),
        "transcript": said.transcript,
        "parts": said.parts,
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, _DECIMALS)
