"""Trains members until none is left, whoever else works on the same run folder.

Every process goes through the same list and takes what nobody has taken, one member or as many as can be trained
together. One that has nothing left to take waits for what others still train, and takes it over if they vanish:
nothing is lost as long as one process lives.

Processes that train a member together (training/processes.py) are one such process: the first of them takes members,
the others train what it has taken.
"""

import contextlib
import datetime
import socket
import time
import traceback
from collections.abc import Callable, Sequence

from jax_mtlser.experiments.claims import Claim, ClaimLost, Claims
from jax_mtlser.experiments.members import Member
from jax_mtlser.run_folder import MemberFolder, RunFolder, read_json, write_json
from jax_mtlser.training import processes
from jax_mtlser.training.checkpoint import TrainingCheckpoints
from jax_mtlser.training.interruption import Interrupted
from jax_mtlser.training.progress import Display

__all__ = ["Taken", "train_all", "train_together"]

TrainGroup = Callable[[Sequence["Taken"]], None]
Joins = Callable[[Sequence[Member], Member], bool]


class Taken:
    """A member that this process, or the first of those that train together, has claimed.

    Attributes:
        member, folder: of it.
        ended: its training has ended in an error.
    """

    def __init__(
        self, member: Member, folder: MemberFolder, claim: Claim | None, give_up: Callable[[Member, Exception], None]
    ) -> None:
        self.member, self.folder, self._claim, self._give_up = member, folder, claim, give_up
        self.ended = False

    def still_ours(self) -> None:
        """To be called before anything is written.

        Raises:
            ClaimLost: another process has the member now.
        """
        if self._claim:
            self._claim.require()

    def drop(self, error: Exception) -> None:
        """Report what has ended this member's training, and give it back. Others of its group go on."""
        self.ended = True
        self._give_up(self.member, error)
        self.release()

    def release(self) -> None:
        """Give the member back."""
        if self._claim:
            self._claim.release()


def train_all(
    run: RunFolder,
    members: Sequence[Member],
    train: TrainGroup,
    *,
    claims: Claims,
    display: Display,
    joins: Joins = lambda group, member: False,
) -> dict[str, str]:
    """Train every member that is not finished.

    A member whose training raises is reported, what it raised is stored in its folder, and the others go on. It is
    not tried again by processes that were already at work then; the next start tries again.

    Args:
        run: the folder.
        members: in the order in which they are taken.
        train: trains a group of members, or goes on with them, and writes each one's result last. It calls a
            member's ``still_ours`` whenever it is about to write something of it, and ``drop`` with what ends one
            member's training; what it raises ends the training of all that were not dropped.
        claims: of the folder.
        display: where progress goes.
        joins: whether a member is to be trained together with a group; asked again once it is claimed.

    Returns:
        What was raised, by the member's name.

    Raises:
        Interrupted: on SIGTERM or SIGINT; all claims are given back.
    """
    return _Shift(run, train, claims, display, joins).work_off(members)


def train_together(
    run: RunFolder,
    members: Sequence[Member],
    train: TrainGroup,
    *,
    claims: Claims,
    display: Display,
    joins: Joins = lambda group, member: False,
) -> dict[str, str]:
    """:func:`train_all`, by all the processes that train each member together; with one process, the same.

    Raises:
        Interrupted: on SIGTERM or SIGINT to any of them.
        ProcessesError: they are no longer together.
    """

    def agreed(group: Sequence[Taken]) -> None:
        try:
            train(group)
        except (Interrupted, processes.ProcessesError):
            raise
        except Exception as error:
            processes.confirm(error)
            raise

    def told(group: Sequence[Taken]) -> None:
        processes.from_first([taken.member.name for taken in group])
        agreed(group)

    if processes.is_first():
        failures = train_all(run, members, told, claims=claims, display=display, joins=joins)
        processes.from_first([])
        return processes.from_first(failures)
    by_name = {member.name: member for member in members}
    own: list[str] = []  # is not asked for
    while names := processes.from_first(own):
        try:
            agreed([Taken(by_name[name], run.member(name), None, lambda member, error: None) for name in names])
        except (Interrupted, processes.ProcessesError):
            raise
        except Exception:
            pass  # the first process reports it
    return processes.from_first({})


class _Shift:
    """One process at work.

    Attributes:
        failures: what was raised, by the member's name.
        busy: members that another process holds.
    """

    def __init__(self, run: RunFolder, train: TrainGroup, claims: Claims, display: Display, joins: Joins) -> None:
        self.run, self.train, self.claims, self.display, self.joins = run, train, claims, display, joins
        self.began = claims.now()
        self.failures: dict[str, str] = {}
        self.busy: list[Member] = []
        self.finished = "finished before"

    def work_off(self, members: Sequence[Member]) -> dict[str, str]:
        pending, told = list(members), ""
        while pending:
            self.busy = []
            while pending:
                if taken := self._take(pending.pop(0)):
                    with contextlib.ExitStack() as held:
                        held.callback(taken.release)
                        self._train([taken, *self._partners(taken, pending, held)])
            pending, self.finished = self.busy, "finished by another process"
            if pending:
                holders = [f"{member.name} ({self.claims.holder(member.name) or 'free'})" for member in pending]
                if told != (told := f"waiting for {', '.join(holders)}"):
                    self.display.line(told)
                time.sleep(self.claims.poll)
        return self.failures

    def _take(self, member: Member) -> Taken | None:
        """Claim a member; None when nothing is left to do for it, or another process holds it."""
        folder = self.run.member(member.name)
        if self._settled(folder):
            return None
        claim = self.claims.acquire(member.name)
        if claim is None:
            self.busy.append(member)
            return None
        with contextlib.ExitStack() as otherwise:
            otherwise.callback(claim.release)
            # Somebody may have finished it between our look and our claim.
            if self._settled(folder):
                return None
            otherwise.pop_all()
        return Taken(member, folder, claim, self._give_up)

    def _partners(self, first: Taken, pending: list[Member], held: contextlib.ExitStack) -> list[Taken]:
        """Claim what is to be trained together with a member, and remove it from what is pending."""
        group, partners = [first.member], []
        for member in list(pending):
            if not self.joins(group, member):
                continue
            pending.remove(member)
            if further := self._take(member):
                held.callback(further.release)
                # Another process may have trained it further between our look and our claim.
                if self.joins(group, member):
                    group.append(member)
                    partners.append(further)
                else:
                    further.release()
                    pending.append(member)
        return partners

    def _settled(self, folder: MemberFolder) -> bool:
        """Whether nothing is left to do for a member: it has a result, or has failed since this process began."""
        name = folder.path.name
        if folder.result.exists():
            # Left behind by a process that died, or was overtaken, between two of its last writes.
            TrainingCheckpoints.remove(folder.checkpoints)
            self.display.line(f"{name}: {self.finished}")
            return True
        try:
            failed = folder.failure.stat().st_mtime > self.began
        except FileNotFoundError:
            failed = False
        if failed:
            self.failures[name] = read_json(folder.failure)["error"]
            self.display.line(f"{name}: failed in another process")
        return failed

    def _train(self, group: Sequence[Taken]) -> None:
        for taken in group:
            taken.folder.failure.unlink(missing_ok=True)
        try:
            self.train(group)
        except (Interrupted, processes.ProcessesError):
            raise
        except Exception as error:
            for taken in group:
                finished = taken.folder.result.exists() and not isinstance(error, ClaimLost)
                if not taken.ended and not finished:
                    taken.drop(error)

    def _give_up(self, member: Member, error: Exception) -> None:
        if isinstance(error, ClaimLost):
            self.display.line(str(error))
            self.busy.append(member)
            return
        # Only text is kept: the traceback's frames would keep a whole state on the accelerator.
        message = str(error) if type(error).__module__.startswith("jax_mtlser.") else f"{type(error).__name__}: {error}"
        self.failures[member.name] = message
        self.display.line(f"{member.name} failed: {message}")
        entry = {
            "member": member.name,
            "error": message,
            "traceback": "".join(traceback.format_exception(error)),
            "host": socket.gethostname(),
            "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        failure = self.run.member(member.name).failure
        try:
            write_json(failure, entry)
        except OSError as unwritten:  # a full disk, for instance, must not stop the others
            self.display.line(f"{failure} cannot be written: {unwritten}")
