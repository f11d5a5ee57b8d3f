"""Judged pieces of a recording become its answers."""

from jax_mtlser.inference.hearing import Heard, Windows
from jax_mtlser.inference.recognition import Piece, Scores, Smoother, mean_scores

__all__ = ["Assembly"]


class Assembly:
    """Puts the judged pieces of a recording together: smoothed windows, or the mean of its parts."""

    def __init__(self, windows: Windows | None) -> None:
        """Begin the first recording; None: one answer each."""
        self._windows = windows
        self._begin()

    def _begin(self) -> None:
        self._smoother = Smoother(self._windows.smooth) if self._windows else None
        self._parts: list[tuple[Piece | None, Scores | str]] = []
        self._cut = False

    def add(self, heard: Heard, said: Scores | str) -> list[tuple[Piece | None, Scores | str, int]]:
        """Take the next piece; returns what is complete, with the number of pieces in it."""
        if self._smoother is None or heard.piece is None:
            self._parts.append((heard.piece, said))
            self._cut = heard.fatal
            return []
        return [(piece, smoothed, 1) for piece, smoothed in self._smoother.add(heard.piece, said)]

    def end(self) -> list[tuple[Piece | None, Scores | str, int]]:
        """The rest of the recording; the next one begins."""
        complete: list[tuple[Piece | None, Scores | str, int]] = []
        if self._smoother is not None:
            complete += [(piece, smoothed, 1) for piece, smoothed in self._smoother.end()]
        if self._parts:
            complete.append(self._mean_of_parts())
        self._begin()
        return complete

    def _mean_of_parts(self) -> tuple[Piece | None, Scores | str, int]:
        if self._cut:
            return *self._parts[-1], 1
        pieces = [piece for piece, _ in self._parts if piece is not None]
        whole = Piece(start=pieces[0].start, end=pieces[-1].end)
        judged = [(said, piece.seconds) for piece, (_, said) in zip(pieces, self._parts, strict=True)
                  if isinstance(said, Scores)]  # fmt: skip
        if not judged:
            return whole, self._parts[0][1], 1
        return whole, mean_scores(*zip(*judged, strict=True)), len(self._parts)
