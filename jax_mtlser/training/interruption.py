"""SIGTERM and SIGINT become a request that the loop answers between two steps, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

__all__ = ["Interrupted", "StopRequest"]


class Interrupted(Exception):
    """Training stopped on request, its state saved.

    Attributes:
        signal: that asked for it.
    """

    def __init__(self, number: signal.Signals, step: int) -> None:
        super().__init__(f"{number.name} after step {step}; the state is saved, the same command goes on from here")
        self.signal = number


class StopRequest:
    """Context in which the first SIGTERM or SIGINT is noted, and a second one acts as usual.

    Attributes:
        signal: the one received; None so far.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        # Only the main thread may set handlers; elsewhere whoever embeds the training decides.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = signal.Signals(number)
        signal.signal(number, self._previous[self.signal])
