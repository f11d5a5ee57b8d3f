"""A corpus decoded once into one flat int16 file, memory-mapped ever after.

A cache entry is a folder named by what went into it: the bytes of every audio file, the segments, the
limits and the format. File names play no part, so a corpus that was moved or renamed is found again, and a
single changed byte makes a new entry. Entries are written beside their final place and renamed: a crash, or
two processes at once, never leave half of one. Folders named ``partial-*`` are what a killed process left.
"""

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
from jaxtyping import Int16, Int64

from jax_mtlser import runtime
from jax_mtlser.config import AudioConfig
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.data.audio import SAMPLE_RATE, AudioError, decode, usable
from jax_mtlser.run_folder import write_text

__all__ = ["PackedAudio", "Skipped", "pack", "write_skipped"]

_FORMAT = 1  # raise it when the same bytes would be packed differently
_SAMPLES, _OFFSETS, _ROWS = "samples.int16", "offsets.npy", "rows.json"

_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclasses.dataclass(frozen=True, eq=False)
class PackedAudio:
    """Utterances one after another at 16 kHz, in the order of their manifest.

    Attributes:
        samples: int16 ``[total]``, memory-mapped read-only; full scale is 32768.
        offsets: int64 ``[N + 1]``; utterance ``i`` is ``samples[offsets[i]:offsets[i + 1]]``.
    """

    samples: Int16[np.ndarray, " total"]
    offsets: Int64[np.ndarray, " N+1"]

    @property
    def lengths(self) -> Int64[np.ndarray, " N"]:
        """Samples of each utterance."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> Int16[np.ndarray, " S"]:
        index = range(len(self))[index]
        return self.samples[self.offsets[index] : self.offsets[index + 1]]


@dataclasses.dataclass(frozen=True)
class Skipped:
    """An utterance that was left out.

    Attributes:
        id: of the utterance.
        path: of its audio file.
        reason: what was wrong with it, with the value and the limit.
    """

    id: str
    path: Path
    reason: str


def pack(
    manifest: Manifest, config: AudioConfig, *, progress: Callable[[int, int], None] | None = None
) -> tuple[Manifest, PackedAudio, tuple[Skipped, ...]]:
    """Decode a corpus into the cache, or find it there.

    Args:
        manifest: the utterances; several may be segments of one file.
        config: limits and place of the cache.
        progress: called with (utterances decoded, all utterances) after each one; never called when the
            corpus is found in the cache.

    Returns:
        The utterances that can be used, their audio in the same order, and those that were left out.

    Raises:
        AudioError: when no utterance can be used, or the cache cannot be written.
    """
    if not len(manifest):
        raise AudioError(f"{manifest.name} has no utterances")
    root = _cache_root(config)
    with ThreadPoolExecutor(runtime.available_cores()) as pool:
        entry = root / _content_key(manifest, config, pool)
        if (packed := _load(entry, manifest)) is None:
            _write_entry(entry, manifest, config, pool, progress)
            packed = _load(entry, manifest)
    if packed is None:
        raise AudioError(_cannot_write(root, "an entry that was just written cannot be read back"))
    return packed


def write_skipped(skipped: Iterable[Skipped], path: Path) -> None:
    """Write the left-out utterances as CSV with the columns ``id, path, reason``."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["id", "path", "reason"])
    writer.writerows([item.id, item.path, item.reason] for item in skipped)
    write_text(path, buffer.getvalue())


def _cache_root(config: AudioConfig) -> Path:
    if config.cache_dir:
        return Path(config.cache_dir).expanduser()
    return runtime.cache_root() / "audio"


def _cannot_write(root: Path, why: str) -> str:
    return f"cannot keep decoded audio in {root}: {why}; choose another folder with --config.audio.cache_dir=DIR"


# --- What an entry is named by ---------------------------------------------------------------------------


def _content_key(manifest: Manifest, config: AudioConfig, pool: ThreadPoolExecutor) -> str:
    """Hash of everything that decides which samples an entry holds."""
    files = list(dict.fromkeys(utterance.path for utterance in manifest.utterances))
    digests = dict(zip(files, _in_order(pool, _file_digest, files), strict=True))
    content = {
        "format": _FORMAT,
        "sample_rate": SAMPLE_RATE,
        "limits": [float(config.min_seconds), float(config.max_seconds), float(config.silence_dbfs)],
        "rows": [
            [digests[u.path], float(u.start), None if u.end is None else float(u.end)] for u in manifest.utterances
        ],
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:32]


def _file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, or why it cannot be read: a file that appears later makes a new entry."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        return f"unreadable: {error}" if isinstance(error, ValueError) else f"unreadable: {error.strerror}"


def _in_order(pool: ThreadPoolExecutor, function: Callable[[_T], _R], items: Iterable[_T]) -> Iterator[_R]:
    """``map`` over a pool that holds only a few results at a time, however slow the consumer."""
    items = iter(items)
    waiting: collections.deque[Future[_R]] = collections.deque()
    try:
        for item in itertools.islice(items, 4 * runtime.available_cores()):
            waiting.append(pool.submit(function, item))
        while waiting:
            result = waiting.popleft().result()
            for item in itertools.islice(items, 1):
                waiting.append(pool.submit(function, item))
            yield result
    finally:
        for future in waiting:
            future.cancel()


# --- Writing an entry ------------------------------------------------------------------------------------


def _write_entry(
    entry: Path,
    manifest: Manifest,
    config: AudioConfig,
    pool: ThreadPoolExecutor,
    progress: Callable[[int, int], None] | None,
) -> None:
    root = entry.parent
    temporary: Path | None = None
    try:
        root.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix="partial-", dir=root))
        _decode_all(temporary, manifest, config, pool, progress)
        # mkdtemp makes folders private; a cache on a shared disk follows the umask like any other output.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o777 & ~umask)
        _publish(temporary, entry, manifest)
    except OSError as error:
        raise AudioError(_cannot_write(root, error.strerror or str(error))) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def _decode_all(
    folder: Path,
    manifest: Manifest,
    config: AudioConfig,
    pool: ThreadPoolExecutor,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Decode every utterance and write samples, offsets and the rows' fates."""
    offsets, kept = [0], []
    skipped: list[tuple[int, str]] = []
    with (folder / _SAMPLES).open("wb") as file:
        decoded = _in_order(pool, lambda utterance: _usable_samples(utterance, config), manifest.utterances)
        for row, samples in enumerate(decoded):
            if isinstance(samples, str):
                skipped.append((row, samples))
            else:
                file.write(samples.tobytes())
                kept.append(row)
                offsets.append(offsets[-1] + len(samples))
            if progress is not None:
                progress(row + 1, len(manifest))
        _flush(file)
    if not kept:
        raise AudioError(_nothing_left(manifest, [reason for _, reason in skipped]))
    with (folder / _OFFSETS).open("wb") as file:
        np.save(file, np.asarray(offsets, np.int64))
        _flush(file)
    with (folder / _ROWS).open("wb") as file:
        file.write(json.dumps({"kept": kept, "skipped": skipped}).encode())
        _flush(file)


def _flush(file: IO[bytes]) -> None:
    # Data must reach the disk before the rename does, or a power cut could leave a complete name on holes.
    file.flush()
    os.fsync(file.fileno())


def _usable_samples(utterance: Utterance, config: AudioConfig) -> Int16[np.ndarray, " S"] | str:
    """An utterance's samples, or the reason why it is left out."""
    try:
        return usable(decode(utterance.path, utterance.start, utterance.end, max_seconds=config.max_seconds), config)
    except AudioError as error:
        return str(error)


def _nothing_left(manifest: Manifest, reasons: list[str]) -> str:
    kinds = collections.Counter(reason.partition(":")[0] for reason in reasons)
    examples = {reason.partition(":")[0]: reason for reason in reversed(reasons)}
    commonest = "; ".join(f"{count} x {examples[kind]}" for kind, count in kinds.most_common(3))
    return (
        f"none of the {len(manifest)} utterances of {manifest.name} can be used ({commonest}); "
        f"the first file is {manifest.utterances[0].path}"
    )


def _publish(temporary: Path, entry: Path, manifest: Manifest) -> None:
    try:
        temporary.rename(entry)
    except OSError:
        if _load(entry, manifest) is not None:
            return  # another process was faster; same name, same content
        if not entry.exists():
            raise
        shutil.rmtree(entry)  # damaged from outside: replace it
        temporary.rename(entry)


# --- Reading an entry ------------------------------------------------------------------------------------


def _load(entry: Path, manifest: Manifest) -> tuple[Manifest, PackedAudio, tuple[Skipped, ...]] | None:
    """Map an entry into memory; None where there is none, or where it is not whole."""
    try:
        rows: dict[str, Any] = json.loads((entry / _ROWS).read_text(encoding="utf-8"))
        offsets = np.load(entry / _OFFSETS, allow_pickle=False)
        samples = np.memmap(entry / _SAMPLES, dtype="<i2", mode="r")
        whole = len(samples) == offsets[-1] and len(rows["kept"]) + 1 == len(offsets)
    except (OSError, ValueError, LookupError):
        return None
    if not whole:
        return None
    skipped = ((manifest.utterances[row], reason) for row, reason in rows["skipped"])
    return (
        manifest.subset(rows["kept"]),
        PackedAudio(samples, offsets),
        tuple(Skipped(utterance.id, utterance.path, reason) for utterance, reason in skipped),
    )
