"""Trains members until none is left, whoever else works on the same run folder.

Every process goes through the same list and takes what nobody has taken. One that has nothing left to take waits for
what others still train, and takes it over if they vanish: nothing is lost as long as one process lives.
"""

import datetime
import socket
import time
import traceback
from collections.abc import Callable, Sequence

from jax_mtlser.experiments.claims import ClaimLost, Claims
from jax_mtlser.experiments.members import Member
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json, write_json
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.interruption import Interrupted
from jax_mtlser.training.progress import Display

__all__ = ["train_all"]

TrainOne = Callable[[Member, MemberFolder, Callable[[], None]], None]


def train_all(
    run: RunFolder, members: Sequence[Member], train_one: TrainOne, *, claims: Claims, display: Display
) -> dict[str, str]:
    """Train every member that is not finished.

    A member whose training raises is reported, what it raised is stored in its folder, and the others go on. It is
    not tried again by processes that were already at work then; the next start tries again.

    Args:
        run: the folder.
        members: in the order in which they are taken.
        train_one: trains a member, or goes on with it, and writes its result last; calls its third argument whenever
            it is about to write something, and lets pass what that raises.
        claims: of the folder.
        display: where progress goes.

    Returns:
        What was raised, by the member's name.

    Raises:
        Interrupted: on SIGTERM or SIGINT; all claims are given back.
    """
    began = claims.now()
    failures: dict[str, str] = {}
    pending, told = list(members), ""
    finished = "finished before"
    while pending:
        busy: list[Member] = []
        for member in pending:
            folder = run.member(member.name)
            if _settled(folder, began, failures, finished, display):
                continue
            claim = claims.acquire(member.name)
            if claim is None:
                busy.append(member)
                continue
            with claim:
                # Somebody may have finished it between our look and our claim.
                if _settled(folder, began, failures, finished, display):
                    continue
                try:
                    _train(member, folder, train_one, claim.require, failures, display)
                except ClaimLost as error:
                    display.line(str(error))
                    busy.append(member)
        pending, finished = busy, "finished by another process"
        if pending:
            holders = [f"{member.name} ({claims.holder(member.name) or 'free'})" for member in pending]
            if told != (told := f"waiting for {', '.join(holders)}"):
                display.line(told)
            time.sleep(claims.poll)
    return failures


def _settled(folder: MemberFolder, began: float, failures: dict[str, str], finished: str, display: Display) -> bool:
    """Whether nothing is left to do for a member: it has a result, or has failed since this process began."""
    name = folder.path.name
    if folder.result.exists():
        # Left behind by a process that died, or was overtaken, between two of its last writes.
        TrainingCheckpoints.remove(folder.checkpoints)
        display.line(f"{name}: {finished}")
        return True
    try:
        failed = folder.failure.stat().st_mtime > began
    except FileNotFoundError:
        failed = False
    if failed:
        failures[name] = read_json(folder.failure)["error"]
        display.line(f"{name}: failed in another process")
    return failed


def _train(
    member: Member,
    folder: MemberFolder,
    train_one: TrainOne,
    still_ours: Callable[[], None],
    failures: dict[str, str],
    display: Display,
) -> None:
    folder.failure.unlink(missing_ok=True)
    try:
        train_one(member, folder, still_ours)
    except (Interrupted, ClaimLost):
        raise
    except Exception as error:
        # Only text is kept: the traceback's frames would keep a whole state on the accelerator.
        message = str(error) if type(error).__module__.startswith("jax_mtlser.") else f"{type(error).__name__}: {error}"
        failures[member.name] = message
        display.line(f"{member.name} failed: {message}")
        entry = {
            "member": member.name,
            "error": message,
            "traceback": "".join(traceback.format_exception(error)),
            "host": socket.gethostname(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        try:
            write_json(folder.failure, entry)
        except OSError as unwritten:  # a full disk, for instance, must not stop the others
            display.line(f"{folder.failure} cannot be written: {unwritten}")
