"""Several processes that train one member together: each has its devices, all run the same program.

Process 0 leads: it decides what is trained, and it alone writes, claims and prints. What the devices compute, every
process asks for, in the same order; so what ends a member's work has to end it in all of them, at the same point.

What the processes tell each other goes through the store of JAX's coordination service. Unlike
``jax.experimental.multihost_utils``, which sends arrays through the devices, it takes text of any length and lets
the others wait while process 0 works for long. With one process, every function here is a plain call.
"""

import contextlib
import itertools
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax._src import distributed  # the store has no public name; Orbax goes this way too
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_mtlser.config import ConfigError

__all__ = [
    "JOIN_TIMEOUT",
    "FailedElsewhere",
    "ProcessesError",
    "StopVote",
    "alone",
    "confirm",
    "from_first",
    "is_first",
    "joined",
    "on_all",
    "on_first",
    "require_same",
    "require_shared",
]

# Seconds. Hosts of a cluster do not start at the same time.
JOIN_TIMEOUT = 300.0
# Seconds in which the others must have failed too, for a failure to be everybody's.
_FAILED_TOO = 60.0
# Seconds in which the others must have come to their end, for this process to end properly.
_LEFT_TOO = 30
# Seconds in which a file server must show a new file to everybody.
_SHOWN = 60.0

_T = TypeVar("_T")
_turns = itertools.count()
# What a process says instead of what is expected from it.
_ENDING = ("failed", "left")


class ProcessesError(RuntimeError):
    """The processes are no longer at the same point; none of them can go on."""


class FailedElsewhere(RuntimeError):
    """What another process has raised."""


def alone() -> bool:
    """Whether this is the only process."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def is_first() -> bool:
    """Whether this process leads."""
    return alone() or jax.process_index() == 0


# --- Beginning and end -----------------------------------------------------------------------------------


@contextlib.contextmanager
def joined(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    *,
    timeout: float = JOIN_TIMEOUT,
) -> Iterator[None]:
    """Be one of the processes that train together; entered before JAX starts its backend.

    Args:
        coordinator: ``HOST:PORT`` of process 0; None, with the other two, where JAX knows the cluster (SLURM, Open MPI,
            Kubernetes, TPU pods).
        processes: how many there are.
        process: which one this is, from 0.
        timeout: seconds to wait for the others.

    Raises:
        ConfigError: a process, or a cluster, that cannot be reached; processes that disagree about how many they are.
    """
    _join(coordinator, processes, process, timeout)
    try:
        require_same({"--processes": jax.process_count() if processes is None else processes, "JAX": jax.__version__})
        yield
    except BaseException as error:
        _leave(error)
        raise
    _leave(None)


def _join(coordinator: str | None, processes: int | None, process: int | None, timeout: float) -> None:
    given = (coordinator, processes, process)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ConfigError("--coordinator, --processes and --process go together; without them JAX asks the cluster")
    if coordinator is not None and processes is not None and process is not None:
        if not 0 <= process < processes:
            raise ConfigError(f"--process is {process}; with --processes={processes} it is 0 to {processes - 1}")
        _require_coordinator(coordinator, leads=process == 0, timeout=timeout)
    # JAX would keep SIGTERM to itself from here on; ours is answered between two steps (interruption.py).
    jax.config.update("jax_enable_preemption_service", False)
    missing = (
        f"the {processes or 'other'} processes have not come together within {timeout:g} s; start all of them, with the "
        "same --coordinator and --processes, each with its own --process"
    )
    try:
        with _ended_after(timeout, missing):
            jax.distributed.initialize(
                coordinator,
                processes,
                process,
                cluster_detection_method="deactivate" if coordinator else None,
                initialization_timeout=int(timeout) + 60,  # later than ours
                shutdown_timeout_seconds=_LEFT_TOO,
            )
    except (ValueError, RuntimeError, OSError) as error:
        hint = "" if coordinator else "; where JAX does not know the cluster, use --coordinator, --processes, --process"
        raise ConfigError(f"the processes cannot be brought together: {error}{hint}") from error


def _leave(error: BaseException | None) -> None:
    """End together with the others.

    Args:
        error: what ends this process; those who still wait for it are told.
    """
    try:
        if error is not None:
            _say(next(_turns), "left", f"has ended: {_described(error)}")
        jax.distributed.shutdown()
    except jax.errors.JaxRuntimeError as unended:
        # The others have not come to an end: they hang in a sum that this process has no part in, or it in theirs, and
        # on its way out Python would wait for the devices.
        print(f"error: {_described(error or unended)}", file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def _require_coordinator(coordinator: str, *, leads: bool, timeout: float) -> None:
    """Refuse an address that JAX would die of, with a stack of its own functions instead of a message."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ConfigError(f"--coordinator is {coordinator!r}; it is HOST:PORT of process 0, such as node1:7000")
    if leads:
        try:
            with socket.socket(socket.AF_INET) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("", int(port)))
        except OSError as error:
            raise ConfigError(
                f"--coordinator={coordinator}: process 0 cannot listen on port {port} ({error.strerror}); choose another"
            ) from error
        return
    deadline = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
            return
        except OSError as error:
            if time.monotonic() > deadline or isinstance(error, socket.gaierror):
                raise ConfigError(
                    f"--coordinator={coordinator} cannot be reached ({error.strerror or error}); process 0 must run "
                    f"there and listen within {timeout:g} s"
                ) from error
        time.sleep(0.2)


@contextlib.contextmanager
def _ended_after(seconds: float, message: str) -> Iterator[None]:
    """End this process with a message when the block takes longer: JAX itself would abort with a stack."""

    def end() -> None:
        print(f"error: {message}", file=sys.stderr, flush=True)
        os._exit(2)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


# --- Words between processes -----------------------------------------------------------------------------


def on_all(function: Callable[[], _T]) -> _T:
    """Call a function in every process; where it raises in one, all raise.

    Raises:
        FailedElsewhere: it has raised in another process only.
        ProcessesError: another process is not at this point.
    """
    if alone():
        return function()
    failure: Exception | None = None
    try:
        result = function()
    except ProcessesError:
        raise
    except Exception as error:
        failure = error
    said = _exchange("done", None if failure is None else _described(failure))
    if failure is not None:
        raise failure
    for process, text in enumerate(said):
        if text is not None:
            raise FailedElsewhere(f"process {process}: {text}")
    return result


def on_first(function: Callable[[], None]) -> None:
    """Call a function in process 0, while the others wait; what it raises there, all raise.

    Raises:
        FailedElsewhere: in the others, for what it has raised.
        ProcessesError: another process is not at this point.
    """
    on_all(function if is_first() else lambda: None)


def from_first(value: _T) -> _T:
    """Process 0's value, which JSON can hold, in all processes.

    Raises:
        ProcessesError: another process is not at this point.
    """
    return value if alone() else _exchange("told", value if is_first() else None)[0]


def confirm(error: Exception) -> None:
    """To be called with what ends a member's work, before anything else is begun: return when it ends it everywhere.

    Raises:
        ProcessesError: it is this process's alone, and the others wait for it in the middle of their work.
    """
    if not alone():
        _exchange("failed", _described(error), within=_FAILED_TOO)


def require_same(values: Mapping[str, Any]) -> None:
    """Refuse processes that would run different programs.

    Args:
        values: JSON values by what they are called.

    Raises:
        ConfigError: naming what differs.
        ProcessesError: another process is not at this point.
    """
    if alone():
        return
    said = _exchange("has", dict(values))
    differing = [
        f"{name}: {said[0].get(name)} in process 0, {theirs.get(name)} in process {process}"
        for process, theirs in enumerate(said)
        for name in sorted(said[0].keys() | theirs.keys())
        if theirs.get(name) != said[0].get(name)
    ]
    if differing:
        raise ConfigError(
            "processes that train together need the same settings, corpus and versions:\n"
            + "\n".join(f"  - {line}" for line in differing)
        )


def require_shared(folder: Path) -> None:
    """Refuse a folder that is not the same for all processes; it exists in process 0.

    Raises:
        ConfigError: a process does not see what process 0 writes.
        ProcessesError: another process is not at this point.
    """
    if alone():
        return
    mark = folder / from_first(f".shared-{uuid.uuid4().hex}")
    on_first(mark.touch)
    deadline = time.monotonic() + _SHOWN  # of an NFS client that remembers the folder as it was
    while not (seen := mark.exists()) and time.monotonic() < deadline:
        time.sleep(0.2)
    blind = [process for process, sees in enumerate(_exchange("sees", seen)) if not sees]
    on_first(mark.unlink)
    if blind:
        raise ConfigError(
            f"process {', '.join(map(str, blind))} does not see {folder}; --workdir must be a folder that all processes "
            "share"
        )


def _described(error: BaseException) -> str:
    own = type(error).__module__.startswith("jax_mtlser.")
    return f"{error}" if own else f"{type(error).__name__}: {error}"


def _exchange(kind: str, value: Any, *, within: float | None = None) -> list[Any]:
    """Say something to all, and hear what each says: a point that all processes reach together.

    Args:
        kind: of the point.
        value: what JSON can hold.
        within: seconds to wait for the others; None: for as long as they live.

    Returns:
        The values in the order of the processes.
    """
    turn, count = next(_turns), jax.process_count()
    _say(turn, kind, value)
    deadline = None if within is None else time.monotonic() + within
    said = [json.loads(_heard(_key(turn, process), deadline)) for process in range(count)]
    if turn:
        # Whoever says something now has heard everything of the turn before.
        _store().key_value_delete(_key(turn - 1, jax.process_index()))
    elsewhere = [
        f"process {process} ({message['host']}): {message['value'] if message['kind'] in _ENDING else 'goes on'}"
        for process, message in enumerate(said)
        if message["kind"] != kind
    ]
    if elsewhere:
        raise ProcessesError("\n".join(["the processes cannot go on together", *elsewhere]))
    return [message["value"] for message in said]


def _store() -> Any:
    return distributed.global_state.client


def _key(turn: int, process: int) -> str:
    return f"jax_mtlser/{turn}/{process}"


def _say(turn: int, kind: str, value: Any) -> None:
    message = {"kind": kind, "value": value, "host": socket.gethostname()}
    _store().key_value_set(_key(turn, jax.process_index()), json.dumps(message))


def _heard(key: str, deadline: float | None) -> str:
    while True:
        try:
            # In short pieces: signals are answered between them only.
            return _store().blocking_key_value_get(key, 1000)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise ProcessesError(f"process 0 does not answer any more: {error}") from error
            if deadline is not None and time.monotonic() > deadline:
                raise ProcessesError("this process has failed, and the others go on without it") from error


class StopVote:
    """The highest number that any process has voted with, learnt by all in the same step.

    Through the devices, as one more sum behind each step, so that no step waits for the network of the hosts.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._devices = mesh.size
        self._split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._highest = jax.jit(jnp.max, out_shardings=NamedSharding(mesh, PartitionSpec()))
        self._before: Any = 0

    def __call__(self, own: int, *, wait: bool) -> int:
        """The outcome of the vote in the step before.

        Args:
            own: this process's vote; a vote that counts is repeated until it is answered.
            wait: the outcome of this vote instead, for which the devices must have come so far.
        """
        if alone():
            return own
        votes = np.full(self._devices, own, np.int32)
        highest = self._highest(
            jax.make_array_from_callback(votes.shape, self._split, lambda index: votes[index])  # local
        )
        decided, self._before = (highest if wait else self._before), highest
        return int(decided)
