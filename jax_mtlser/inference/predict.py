"""Recordings in, a table or annotations out: what ``jax-mtlser predict`` does."""

import dataclasses
import itertools
import operator
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jax_mtlser.inference.annotations import text_grids, write_rttm, write_text_grid
from jax_mtlser.inference.hearing import Windows
from jax_mtlser.inference.journal import Journal
from jax_mtlser.inference.recognition import Asked
from jax_mtlser.inference.recognizer import Answer, Checkpoint, Recognizer
from jax_mtlser.inference.requests import Found
from jax_mtlser.inference.rows import Columns, Row
from jax_mtlser.inference.tables import FormatError, OutputFormat, require, write_csv, write_table
from jax_mtlser.runtime import versions
from jax_mtlser.training.progress import Display

__all__ = ["Prediction", "predict", "print_csv"]

_ERRORS_SHOWN = 10


@dataclasses.dataclass
class Prediction:
    """What is asked of which recordings, and what came of it.

    Attributes:
        recognizer: the models.
        found: the recordings.
        asked: beside emotion and gender.
        windows: of a timeline; None for one answer per recording.
        answered: recordings with at least one answer.
        errors, num_errors: of the others, and of windows: the first few, and how many.

    Raises:
        ModelError, WindowsError: the models cannot tell what is asked.
    """

    recognizer: Recognizer
    found: Found
    asked: Asked
    windows: Windows | None

    def __post_init__(self) -> None:
        self.recognizer.require(self.asked, self.windows)
        self.answered: set[int] = set()
        self.errors: list[str] = []
        self.num_errors = 0

    @property
    def columns(self) -> Columns:
        """Of the output."""
        return Columns.of(self.recognizer, self.asked, timeline=self.windows is not None, inputs=self.found.columns)

    def settings(self) -> dict[str, Any]:
        """All that the rows depend on, for a journal."""
        return {
            "model": self.recognizer.fingerprint,
            "settings": self.recognizer.settings,
            "asked": dataclasses.asdict(self.asked),
            "windows": dataclasses.asdict(self.windows) if self.windows else None,
            "recordings": f"{len(self.found.requests)} ({self.found.digest})",
            "versions": {name: versions()[name] for name in ("jax_mtlser", "jaxlib", "device")},
        }

    def events(self, done: int = 0) -> Iterator[tuple[int, Row] | Checkpoint]:
        """Rows with the number of their recording, and checkpoints, from recording ``done`` on."""
        columns, requests = self.columns, self.found.requests
        segments = (request.segment for request in requests[done:])
        for event in self.recognizer.stream(segments, self.asked, self.windows):
            if isinstance(event, Answer):
                number = done + event.recording
                yield number, columns.row(requests[number], event)
            else:
                yield Checkpoint(done + event.recordings)

    def counted(self, rows: Iterable[tuple[int, Row]]) -> Iterator[tuple[int, Row]]:
        """The same rows; what came of them is noted."""
        for number, row in rows:
            if row["error"] is None:
                self.answered.add(number)
            else:
                self.num_errors += 1
                if len(self.errors) < _ERRORS_SHOWN:
                    self.errors.append(f"{row['file']}: {row['error']}")
            yield number, row


def predict(task: Prediction, output: Path, form: OutputFormat, display: Display) -> None:
    """Judge all recordings and write the output; a call that was interrupted goes on.

    Args:
        task: what to do; its counts are filled in.
        output: a file, replaced whole when everything is done; for several TextGrids a folder.
        form: of the output.
        display: where progress goes.

    Raises:
        FormatError: the format's library is missing, or one TextGrid was named for several recordings.
        JournalError: the output's journal belongs to something else.
    """
    require(form)
    single = output.suffix.lower() == ".textgrid"
    total = len(task.found.requests)
    if form is OutputFormat.TEXTGRID and single and total > 1:
        raise FormatError(f"a TextGrid holds one recording, and there are {total}; use -o FOLDER --format textgrid")
    journal = Journal(output, task.settings())
    finished = False
    try:
        if journal.done:
            display.line(f"going on after {journal.done} of {total} recordings: {journal.path}")
        if journal.done < total:
            _fill(journal, task, display)
        rows = task.counted(journal.rows())
        if form is OutputFormat.RTTM:
            write_rttm(output, _by_recording(rows))
        elif form is OutputFormat.TEXTGRID:
            names = iter([output]) if single else text_grids([request.file for request in task.found.requests], output)
            for recording, path in zip(_by_recording(rows), names, strict=True):
                write_text_grid(path, list(recording))
        else:
            write_table(form, output, task.columns, (row for _, row in rows))
        finished = True
    finally:
        journal.close(remove=finished)


def print_csv(task: Prediction) -> None:
    """Judge all recordings and write CSV to the standard output, as the rows come."""
    rows = task.counted(event for event in task.events() if not isinstance(event, Checkpoint))
    write_csv(sys.stdout, task.columns, (row for _, row in rows))


def _fill(journal: Journal, task: Prediction, display: Display) -> None:
    total = len(task.found.requests)
    with display.steps("recordings", journal.done, total) as show:
        for event in task.events(journal.done):
            if isinstance(event, Checkpoint):
                journal.commit(event.recordings)
                show(event.recordings, "")
            else:
                number, row = event
                journal.add(number, row)
                show(number, f"{row['file']} at {row['end']} s" if task.windows else "")


def _by_recording(rows: Iterable[tuple[int, Row]]) -> Iterator[Iterator[Row]]:
    for _, group in itertools.groupby(rows, operator.itemgetter(0)):
        yield (row for _, row in group)
