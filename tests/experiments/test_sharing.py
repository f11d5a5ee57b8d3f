"""Working off members: failures are kept apart, interruptions are not failures, others' work is not done again."""

import io
import json
import os
import signal
import threading
import time

import pytest
from rich.console import Console

from jax_mtlser.config import ProtocolConfig
from jax_mtlser.evaluation.protocols import Fold
from jax_mtlser.experiments.claims import ClaimLost, Claims
from jax_mtlser.experiments.members import members_of
from jax_mtlser.experiments.sharing import train_all
from jax_mtlser.run_folder import RunFolder, read_json, write_json
from jax_mtlser.training.interruption import Interrupted
from jax_mtlser.training.progress import Display

MEMBERS = members_of(ProtocolConfig(), 0, [[Fold((0,), (), (1,))] * 4])


class Work:
    """Finishes members, except those that are told to raise."""

    def __init__(self, **raises: Exception) -> None:
        self.raises, self.done = raises, []

    def __call__(self, member, folder, still_ours) -> None:
        if member.name in self.raises:
            raise self.raises[member.name]
        still_ours()
        self.done.append(member.name)
        write_json(folder.result, {"name": member.name})


@pytest.fixture
def run(tmp_path):
    return RunFolder(tmp_path)


def work_off(run, work, *, stale_after=60.0):
    display = Display(Console(file=io.StringIO(), width=200))

    def alone(group) -> None:
        (taken,) = group
        work(taken.member, taken.folder, taken.still_ours)

    failures = train_all(run, MEMBERS, alone, claims=Claims(run.claims, stale_after=stale_after), display=display)
    return failures, display.console.file.getvalue()


def test_a_failing_member_is_reported_and_stored_and_the_others_go_on(run):
    work = Work(r0_f1=ZeroDivisionError("nothing to divide"))
    failures, output = work_off(run, work)
    assert failures == {"r0_f1": "ZeroDivisionError: nothing to divide"}
    assert work.done == ["r0_f0", "r0_f2", "r0_f3"]
    assert "r0_f1 failed: ZeroDivisionError: nothing to divide" in output
    stored = read_json(run.member("r0_f1").failure)
    assert stored["error"] == failures["r0_f1"]
    assert "in __call__" in stored["traceback"]
    # The next start tries again, and nothing else.
    again = Work()
    failures, output = work_off(run, again)
    assert failures == {}
    assert again.done == ["r0_f1"]
    assert output.count("finished before") == 3
    assert not run.member("r0_f1").failure.exists()
    assert list(run.claims.iterdir()) == []


def test_an_interruption_is_no_failure_and_gives_the_claim_back(run):
    work = Work(r0_f1=Interrupted(signal.SIGTERM, 7))
    with pytest.raises(Interrupted):
        work_off(run, work)
    assert not run.member("r0_f1").failure.exists()
    assert list(run.claims.iterdir()) == []


def test_what_another_process_fails_at_is_not_tried_again_while_this_one_runs(run):
    class Meanwhile(Work):
        def __call__(self, member, folder, still_ours) -> None:
            super().__call__(member, folder, still_ours)
            write_json(run.member("r0_f2").failure, {"error": "out of memory"})

    work = Meanwhile()
    failures, output = work_off(run, work)
    assert failures == {"r0_f2": "out of memory"}
    assert "r0_f2" not in work.done
    assert "r0_f2: failed in another process" in output


def test_members_of_others_are_waited_for_and_taken_over_when_they_vanish(run):
    run.claims.mkdir()
    holder = json.dumps({"machine": "elsewhere", "host": "far", "pid": 7, "started": "1"})
    for name in ("r0_f0", "r0_f1"):
        (run.claims / f"{name}.0").write_text(holder)
    end = threading.Event()

    def other_machine() -> None:
        """Finishes r0_f0, and dies with r0_f1."""
        for _ in range(25):
            os.utime(run.claims / "r0_f0.0")
            time.sleep(0.1)
        write_json(run.member("r0_f0").result, {"name": "r0_f0"})
        (run.claims / "r0_f0.0").unlink()
        end.set()

    thread = threading.Thread(target=other_machine)
    thread.start()
    work = Work()
    failures, output = work_off(run, work, stale_after=2.0)
    thread.join()
    assert end.is_set()
    assert failures == {}
    assert work.done == ["r0_f2", "r0_f3", "r0_f1"]
    assert "waiting for r0_f0 (process 7 on far), r0_f1 (process 7 on far)" in output
    assert "r0_f0: finished by another process" in output


def test_a_member_that_was_taken_over_is_left_to_the_other(run):
    class Overtaken(Work):
        def __call__(self, member, folder, still_ours) -> None:
            if member.name == "r0_f0" and not self.done:
                # The other finishes it while this one believes to hold it.
                write_json(folder.result, {"name": member.name})
                raise ClaimLost("r0_f0: another process has taken over")
            super().__call__(member, folder, still_ours)

    work = Overtaken()
    failures, output = work_off(run, work, stale_after=2.0)
    assert failures == {}
    assert work.done == ["r0_f1", "r0_f2", "r0_f3"]
    assert "r0_f0: finished by another process" in output
    assert not run.member("r0_f0").failure.exists()


def work_off_in_groups(run, train, size=3):
    display = Display(Console(file=io.StringIO(), width=200))
    claims = Claims(run.claims, stale_after=2.0)
    joins = lambda group, member: len(group) < size
    return train_all(run, MEMBERS, train, claims=claims, display=display, joins=joins), display.console.file.getvalue()


def test_a_member_dropped_from_its_group_leaves_the_others_in_it(run):
    groups = []

    def train(group) -> None:
        groups.append([taken.member.name for taken in group])
        for taken in group:
            taken.still_ours()
            if taken.member.name == "r0_f1":
                taken.drop(ZeroDivisionError("nothing to divide"))
                assert Claims(run.claims, stale_after=2.0).holder("r0_f1") is None
            elif taken.member.name == "r0_f2" and len(groups) == 1:
                taken.drop(ClaimLost("r0_f2: another process has taken over"))
            else:
                write_json(taken.folder.result, {"name": taken.member.name})

    failures, output = work_off_in_groups(run, train)
    # What was lost to another process is looked at again once nothing else is left.
    assert groups == [["r0_f0", "r0_f1", "r0_f2"], ["r0_f3"], ["r0_f2"]]
    assert failures == {"r0_f1": "ZeroDivisionError: nothing to divide"}
    assert "r0_f1 failed: ZeroDivisionError: nothing to divide" in output
    assert read_json(run.member("r0_f1").failure)["error"] == failures["r0_f1"]
    assert list(run.claims.iterdir()) == []


def test_what_a_group_raises_is_the_failure_of_all_that_it_has_not_finished(run):
    def train(group) -> None:
        write_json(group[0].folder.result, {"name": group[0].member.name})
        raise MemoryError("too many members")

    failures, _ = work_off_in_groups(run, train)
    assert failures == dict.fromkeys(("r0_f1", "r0_f2"), "MemoryError: too many members")


def test_members_that_others_hold_do_not_join(run):
    groups = []

    def train(group) -> None:
        groups.append([taken.member.name for taken in group])
        if len(groups) == 1:
            theirs.release()
        for taken in group:
            write_json(taken.folder.result, {"name": taken.member.name})

    theirs = Claims(run.claims, stale_after=60.0).acquire("r0_f1")
    assert theirs is not None
    failures, _ = work_off_in_groups(run, train)
    assert failures == {}
    assert groups == [["r0_f0", "r0_f2", "r0_f3"], ["r0_f1"]]
