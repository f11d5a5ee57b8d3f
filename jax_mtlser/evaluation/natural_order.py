"""Names in the order in which people count."""

import re

__all__ = ["natural_order"]


def natural_order(name: str) -> list[tuple[int, int, str]]:
    """Sort key that puts ``fold 10`` behind ``fold 9``."""
    pieces = re.split(r"(\d+)", name)
    return [(0, int(piece), piece) if piece.isdecimal() else (1, 0, piece) for piece in pieces]
