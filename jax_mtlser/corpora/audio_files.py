"""Recordings below a folder, and corpora whose labels are in the recordings' names."""

import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["audio_files", "index_by_stem", "read_named_files", "unique_utterances"]

_SUFFIXES = frozenset((".wav", ".flac", ".mp3", ".ogg", ".opus", ".aif", ".aiff", ".au", ".sph"))


def audio_files(root: Path, *, suffixes: Iterable[str] = _SUFFIXES) -> Iterator[Path]:
    """All recordings below a folder, sorted by folder and name.

    Links are followed, each folder once, so that a link to a folder above ends. Hidden files and folders are left
    out, among them the ``._`` files that macOS adds to archives.

    Args:
        root: the folder.
        suffixes: in lower case; names are compared without regard to case.
    """
    wanted = frozenset(suffixes)
    seen: set[tuple[int, int]] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        for name in sorted(files):
            if not name.startswith(".") and os.path.splitext(name)[1].lower() in wanted:
                yield Path(folder, name)


def index_by_stem(files: Iterable[Path], title: str) -> dict[str, Path]:
    """Recordings by their names without suffix.

    Raises:
        ManifestError: two recordings have the same name.
    """
    index: dict[str, Path] = {}
    for path in files:
        _once(index, path.stem, path, title)
    return index


def read_named_files(
    root: Path, name: str, pattern: re.Pattern[str], utterance: Callable[[Path, re.Match[str]], Utterance], example: str
) -> Manifest:
    """A corpus of one recording per utterance whose name carries the labels.

    Args:
        root: folder with the recordings, at any depth.
        name: of the corpus.
        pattern: matches the whole name of a recording without its suffix; others are left out.
        utterance: makes the row.
        example: of a name, for the message.

    Raises:
        ManifestError: no such folder, no such recording, or the same one twice.
    """
    if not root.is_dir():
        raise ManifestError(f"there is no folder {root}; name {name}'s with --config.corpus.path=PATH")
    rows = [utterance(path, found) for path in audio_files(root) if (found := pattern.fullmatch(path.stem))]
    if not rows:
        raise ManifestError(
            f"no recording below {root} is named like {example}, as {name}'s are; name the folder that holds them "
            "with --config.corpus.path=PATH"
        )
    return unique_utterances(name, rows)


def unique_utterances(name: str, utterances: Iterable[Utterance]) -> Manifest:
    """A manifest of utterances with different ids; a link to a recording that is there already adds nothing.

    Raises:
        ManifestError: two recordings under one id.
    """
    seen: dict[str, Path] = {}
    return Manifest(name, tuple(u for u in utterances if _once(seen, u.id, u.path, name)))


def _once(seen: dict[str, Path], key: str, path: Path, title: str) -> bool:
    """Whether ``key`` is new; it may come again for the same recording only."""
    first = seen.setdefault(key, path)
    if first is path:
        return True
    if first.resolve() == path.resolve() and first != path:
        return False
    raise ManifestError(
        f"{title} has {key} twice:\n  {first}\n  {path}\n"
        "remove the copy, or name the folder of one of them with --config.corpus.path=PATH"
    )
