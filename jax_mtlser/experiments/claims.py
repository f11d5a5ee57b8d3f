"""Which process trains which member, agreed upon through files in a folder that all of them can see.

A claim is a file ``NAME.G`` in the run's ``claims`` folder, created with ``O_EXCL``: of all processes that try, on
any machine, one succeeds (NFS 3 and later included). Its modification time is the holder's heartbeat. A claim whose
holder is gone is never deleted and made anew, which two processes could do to each other; the next generation
``NAME.G+1`` is created instead, again by exactly one, and only the highest generation counts.

A holder is gone when its process has ended, which processes on the same machine see at once, or when its heartbeat
is older than ``stale_after``. Both times of that comparison come from the file server: clocks need not agree. A
holder that was merely stopped for as long learns that its claim was taken over before it writes anything else.
"""

import contextlib
import dataclasses
import json
import os
import re
import socket
import tempfile
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Self

__all__ = ["Claim", "ClaimLost", "Claims"]

_BEATS = 8  # heartbeats within ``stale_after``


class ClaimLost(RuntimeError):
    """Another process has taken a member over; the message says why that can happen."""


class Claim:
    """The right to work on something, kept alive by a thread until the context ends."""

    def __init__(self, folder: Path, name: str, generation: int, interval: float) -> None:
        """Begin the heartbeat of a file that this process has just created."""
        self._folder, self._name, self._generation, self._interval = folder, name, generation, interval
        self._path = _path(folder, name, generation)
        self._verified = time.time()
        self._lost = self._ended = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"claim {name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def require(self) -> None:
        """Return while the claim is ours; cheap enough for every step.

        Raises:
            ClaimLost: another process has it now.
        """
        # The thread may not have run since: a laptop that slept, a stopped process.
        if not self._lost and time.time() - self._verified > 2 * self._interval:
            self._verify()
        if self._lost:
            raise ClaimLost(
                f"{self._name}: another process has taken over, because this one gave no sign of life for too long; what "
                "it trained is left to the other"
            )

    def release(self) -> None:
        """Give the claim back."""
        if self._ended:
            return
        self._ended = True
        self._end.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._end.wait(self._interval) and not self._lost:
            self._verify()

    def _verify(self) -> None:
        try:
            os.utime(self._path)
            newest = max(_generations(self._folder).get(self._name, ()), default=-1)
            self._lost = newest != self._generation
            self._verified = time.time()
        except FileNotFoundError:
            self._lost = True  # a successor removed it
        except OSError:
            pass  # a file server that does not answer: the next beat tries again


@dataclasses.dataclass(frozen=True)
class _Holder:
    """Who made a claim file.

    Attributes:
        machine: what is equal for processes that see each other's ids.
        host: its name, for people.
        pid: process id.
        started: when the process began, in the kernel's ticks; tells apart processes that had the same id.
    """

    machine: str
    host: str
    pid: int
    started: str

    @classmethod
    def this(cls) -> Self:
        return cls(_machine(), socket.gethostname(), os.getpid(), _process_start(os.getpid()) or "")

    def has_ended(self) -> bool:
        """True only where that can be known: on the same machine."""
        if self.machine != _machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except OSError:
            return False  # of another user
        return (_process_start(self.pid) or "") != self.started


class Claims:
    """The claims of one run folder.

    Attributes:
        folder: of the claim files.
        stale_after: seconds without a heartbeat after which a claim is free.
    """

    def __init__(self, folder: Path, *, stale_after: float) -> None:
        self.folder, self.stale_after = folder, stale_after

    def acquire(self, name: str) -> Claim | None:
        """Claim a name; None while somebody else holds it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        known = _generations(self.folder).get(name, [])
        if known and self._is_alive(_path(self.folder, name, max(known))):
            return None
        own = max(known, default=-1) + 1
        path = _path(self.folder, name, own)
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            return None  # another process was faster
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dataclasses.asdict(_Holder.this()), file)
            file.flush()
            os.fsync(file.fileno())
        # What we had listed may have been old: a later generation has come, gone stale or been removed since.
        generations = _generations(self.folder).get(name, [])
        if max(generations, default=own) > own:
            path.unlink(missing_ok=True)
            return None
        for older in generations:
            if older < own:
                _path(self.folder, name, older).unlink(missing_ok=True)
        return Claim(self.folder, name, own, self.stale_after / _BEATS)

    def wait_for(self, name: str) -> Claim:
        """Claim a name as soon as nobody else holds it."""
        while (claim := self.acquire(name)) is None:
            time.sleep(self.poll)
        return claim

    @property
    def poll(self) -> float:
        """Seconds between two looks at what others hold."""
        return min(max(self.stale_after / 20, 0.05), 10.0)

    def holder(self, name: str) -> str | None:
        """Who holds a name, in words; None when nobody does."""
        generations = _generations(self.folder).get(name, [])
        path = _path(self.folder, name, max(generations, default=0))
        if not generations or not self._is_alive(path):
            return None
        holder = _read_holder(path)
        return f"process {holder.pid} on {holder.host}" if holder else "a process that has just begun"

    def held(self) -> dict[str, str]:
        """Every name that somebody holds, with the holder."""
        return {name: holder for name in sorted(_generations(self.folder)) if (holder := self.holder(name))}

    def now(self) -> float:
        """The time on the file server: comparable with modification times in the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix=".clock-") as file:
            return os.fstat(file.fileno()).st_mtime

    def _is_alive(self, path: Path) -> bool:
        try:
            # Opened, because an NFS client then asks the server instead of its cache.
            with path.open("rb") as file:
                beat = os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return False
        holder = _read_holder(path)
        if holder is not None and holder.has_ended():
            return False
        return self.now() - beat <= self.stale_after


def _generations(folder: Path) -> dict[str, list[int]]:
    """Generations of each claimed name."""
    found: dict[str, list[int]] = {}
    with contextlib.suppress(FileNotFoundError):
        for entry in os.listdir(folder):
            if match := re.fullmatch(r"([^.].*)\.(\d+)", entry):
                found.setdefault(match[1], []).append(int(match[2]))
    return found


def _path(folder: Path, name: str, generation: int) -> Path:
    return folder / f"{name}.{generation}"


def _read_holder(path: Path) -> _Holder | None:
    """None for a file that is gone, or whose maker died, or is about to write it."""
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return _Holder(**values)
    except (OSError, ValueError, TypeError):
        return None


def _machine() -> str:
    """Equal for processes that can see each other: same boot of the same machine, same set of process ids."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return f"{socket.gethostname()} {uuid.getnode()}"


def _process_start(pid: int) -> str | None:
    """When a process began; None for one that has ended, waiting for its parent or not. "" where nobody knows."""
    if not Path("/proc/self/stat").exists():
        return ""
    try:
        # The name, in brackets, may hold anything; after it come the state (field 3) and the start (field 22).
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]
