"""What a run shows while it works: progress bars on a terminal, plain lines in a log file."""

import contextlib
from collections.abc import Callable, Iterator, Mapping

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
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

    def line(self, text: str) -> None:
        """Print one line, above a running bar."""
        self.console.print(text, markup=False, soft_wrap=True)

    @contextlib.contextmanager
    def counting(self, title: str) -> Iterator[Callable[[int, int], None]]:
        """A bar for ``(done, total)`` calls."""
        with self._bar() as bar:
            task = bar.add_task(title, total=None, note="")
            yield lambda done, total: bar.update(task, completed=done, total=total)

    @contextlib.contextmanager
    def steps(self, title: str, done: int, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar for ``(step, note)`` calls; its remaining time counts from ``done``."""
        with self._bar() as bar:
            task = bar.add_task(title, total=total, completed=done, note="")
            yield lambda step, note: bar.update(task, completed=step, note=note)

    def _bar(self) -> Progress:
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
