"""What a run shows while it works: progress bars on a terminal, plain lines in a log file."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Display", "describe"]


class Display:
    """Where progress goes.

    Attributes:
        console: terminal or log.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)
        self._shown: Progress | None = None

    def line(self, text: str) -> None:
        """Print one line, above running bars."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for ``(done, total)`` calls."""
        with self._bar(title, total=None) as (progress, task):
            yield lambda done, total: progress.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def steps(self, title: str, done: int, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar for ``(step, note)`` calls; its remaining time counts from ``done``."""
        with self._bar(title, total=total, completed=done) as (progress, task):
            yield lambda step, note: progress.update(task, completed=step, note=note)

    @contextlib.contextmanager
    def _bar(self, title: str, **numbers: int | None) -> Iterator[tuple[Progress, TaskID]]:
        """A bar under those that are running: a terminal has one place for all."""
        if self._shown is None:
            self._shown = self._progress()
            self._shown.start()
        progress = self._shown
        task = progress.add_task(title, note="", **numbers)  # type: ignore[arg-type]
        try:
            yield progress, task
        finally:
            progress.remove_task(task)
            if not progress.tasks:
                progress.stop()
                self._shown = None

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.console.is_terminal,
        )


def describe(losses: Mapping[str, float], audio_rate: float) -> str:
    """One short line of losses and speed."""
    shown = " ".join(f"{name} {value:.3f}" for name, value in losses.items())
    return f"{shown} | {audio_rate:.0f} s audio/s"
