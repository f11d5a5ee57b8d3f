"""Real processes on one run folder: members are divided, none is lost or done twice, whatever happens to a process."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from tiny import get_config, write_corpus

from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[2]
MEMBERS = ["alpha0_r0_f0", "alpha0_r0_f1", "alpha0.4_r0_f0", "alpha0.4_r0_f1"]
EPOCHS = 4


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


def start(corpus: Path, workdir: Path, *flags: str) -> subprocess.Popen:
    command = [
        sys.executable, "train.py", "--config", "tests/experiments/tiny.py:variants", "--workdir", str(workdir),
        f"--config.corpus.path={corpus}", *flags,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_until_at_work(run: RunFolder, *processes: subprocess.Popen) -> tuple[subprocess.Popen, str]:
    """The first process that has taken a step or two in a member, and that member."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        for name in MEMBERS:
            claims = list(run.claims.glob(f"{name}.[0-9]*"))
            lines = list(read_json_lines(run.member(name).metrics))
            at_work = [process for process in processes if any(held_by(process, path) for path in claims)]
            if at_work and len(lines) >= 2 and not run.member(name).result.exists():
                return at_work[0], name
        time.sleep(0.002)
    raise AssertionError("no member was begun")


def wait_until_engaged(process: subprocess.Popen, run: RunFolder, *, but: str) -> None:
    """Until a process has claimed a member, or all but one are finished already."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        assert process.poll() is None, process.communicate()[0]
        claims = [path for name in MEMBERS for path in run.claims.glob(f"{name}.[0-9]*")]
        if any(held_by(process, path) for path in claims):
            return
        if all(run.member(name).result.exists() for name in MEMBERS if name != but):
            return
        time.sleep(0.002)
    raise AssertionError("nothing was claimed")


def held_by(process: subprocess.Popen, claim: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return f'"pid": {process.pid},' in claim.read_text()
    return False


def untimed(results: dict) -> dict:
    """Everything in ``results.json`` but how long it took."""
    for variant in results["variants"]:
        for fold in variant["folds"]:
            assert fold.pop("seconds")
            assert fold.pop("audio_seconds_per_second") is not None
    return results


def epochs_shown(output: str) -> list[str]:
    return re.findall(r"^(\S+ epoch \d+)/", output, re.MULTILINE)


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory) -> RunFolder:
    config = get_config("variants")
    config.corpus.path = str(corpus)
    run = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    assert train_run(config, run.path, Display(Console(file=io.StringIO()))) == 0
    return run


def assert_same(run: RunFolder, uninterrupted: RunFolder) -> None:
    assert untimed(read_json(run.results)) == untimed(read_json(uninterrupted.results))
    for name in MEMBERS:
        one, other = run.member(name), uninterrupted.member(name)
        assert one.predictions.read_text() == other.predictions.read_text()
        steps = [line["step"] for line in read_json_lines(one.metrics) if line["kind"] == "train"]
        assert steps == list(range(1, len(steps) + 1))
        assert len(steps) == len([x for x in read_json_lines(other.metrics) if x["kind"] == "train"])
        assert not one.checkpoints.exists()
    assert list(run.claims.iterdir()) == []


@pytest.mark.slow
def test_a_killed_experiment_goes_on_without_training_finished_members_again(corpus, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    process = start(corpus, run.path)
    while not run.member(MEMBERS[0]).result.exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.002)
    wait_until_at_work(run, process)
    process.kill()
    before, _ = process.communicate()
    finished = [name for name in MEMBERS if run.member(name).result.exists()]
    stamps = {name: run.member(name).result.stat().st_mtime_ns for name in finished}
    assert 0 < len(finished) < len(MEMBERS)
    after = finish(start(corpus, run.path))
    for name in finished:
        assert f"{name}: finished before" in after
        assert run.member(name).result.stat().st_mtime_ns == stamps[name]
    # Each epoch of each member was completed once: the half-done member went on, it did not begin anew.
    assert sorted(set(epochs_shown(before) + epochs_shown(after))) == sorted(
        f"{name} epoch {epoch + 1}" for name in MEMBERS for epoch in range(EPOCHS)
    )
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_two_processes_divide_the_members_and_the_survivor_of_a_kill_takes_over(corpus, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    # Another machine would be believed for as long as this; the dead process of this one is noticed at once.
    both = [start(corpus, run.path, "--stale_after=900") for _ in range(2)]
    killed, victim = wait_until_at_work(run, *both)
    # Held where it is until the other has members too; left to run, either might do all of them.
    killed.send_signal(signal.SIGSTOP)
    (survivor,) = (process for process in both if process is not killed)
    wait_until_engaged(survivor, run, but=victim)
    killed.kill()
    lost, _ = killed.communicate()
    survived = finish(survivor)
    assert f"{victim} epoch {EPOCHS}/{EPOCHS}" in survived or f"{victim}: finished" in survived
    shown = epochs_shown(lost) + epochs_shown(survived)
    assert set(shown) == {f"{name} epoch {epoch + 1}" for name in MEMBERS for epoch in range(EPOCHS)}
    by_process = [{line.split()[0] for line in epochs_shown(output)} for output in (lost, survived)]
    assert by_process[0] & by_process[1] <= {victim}
    assert_same(run, uninterrupted)


@pytest.mark.slow
def test_a_process_that_sleeps_too_long_is_overtaken_and_learns_it(corpus, uninterrupted, tmp_path):
    run = RunFolder(tmp_path / "run")
    sleeper = start(corpus, run.path, "--stale_after=4")
    _, victim = wait_until_at_work(run, sleeper)
    sleeper.send_signal(signal.SIGSTOP)
    try:
        survived = finish(start(corpus, run.path, "--stale_after=4"))
    finally:
        sleeper.send_signal(signal.SIGCONT)
    assert f"{victim} epoch {EPOCHS}/{EPOCHS}" in survived
    slept = finish(sleeper)
    assert f"{victim}: another process has taken over" in slept
    assert f"{victim}: finished by another process" in slept
    assert f"{victim} epoch {EPOCHS}/{EPOCHS}" not in slept
    assert_same(run, uninterrupted)
