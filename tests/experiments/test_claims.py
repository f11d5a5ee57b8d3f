"""Claims: of many processes one works on each thing, also when some of them die."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jax_mtlser.experiments.claims import ClaimLost, Claims

ROOT = Path(__file__).parents[2]
NAMES = [f"n{number}.5_r0_f0" for number in range(30)]
# Works off every name; to do one twice, or one while another process does it, is an error.
WORKER = """
import sys
from pathlib import Path
from jax_mtlser.experiments.claims import Claims
folder, names = Path(sys.argv[1]), sys.argv[2:]
claims = Claims(folder / "claims", stale_after=60)
print("ready", flush=True)
sys.stdin.readline()
while left := [name for name in names if not (folder / f"{name}.done").exists()]:
    for name in left:
        claim = claims.acquire(name)
        if claim is None:
            continue
        with claim:
            if (folder / f"{name}.done").exists():
                continue
            claim.require()
            (folder / f"{name}.busy").touch(exist_ok=False)
            (folder / f"{name}.done").touch(exist_ok=False)
            (folder / f"{name}.busy").unlink()
"""


def worker(folder: Path, *names: str) -> subprocess.Popen:
    command = [sys.executable, "-c", WORKER, str(folder), *names]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n", process.communicate()[1]
    return process


def plant(folder: Path, name: str, generation: int, *, age: float, machine: str = "elsewhere") -> None:
    """A claim of another machine whose last sign of life is so many seconds old."""
    path = folder / f"{name}.{generation}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"machine": machine, "host": "far", "pid": 7, "started": "1"}))
    os.utime(path, (time.time() - age,) * 2)


def test_processes_that_race_for_stale_claims_do_each_thing_once(tmp_path):
    for number, name in enumerate(NAMES):
        if number % 3:
            plant(tmp_path / "claims", name, number % 3, age=1000)
    processes = [worker(tmp_path, *NAMES) for _ in range(3)]
    for process in processes:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        _, error = process.communicate(timeout=120)
        assert process.returncode == 0, error
    assert sorted(path.stem for path in tmp_path.glob("*.done")) == sorted(NAMES)
    assert list((tmp_path / "claims").iterdir()) == []


def test_a_claim_is_held_by_one_and_free_again_when_released(tmp_path):
    claims = Claims(tmp_path, stale_after=60)
    claim = claims.acquire("a")
    assert claim is not None
    assert claims.acquire("a") is None
    assert f"process {os.getpid()}" in claims.held()["a"]
    other = claims.acquire("b")
    assert other is not None
    claim.release()
    other.release()
    claim.release()
    assert claims.held() == {}
    again = claims.acquire("a")
    assert again is not None
    again.release()


def test_a_killed_process_of_this_machine_is_noticed_at_once(tmp_path):
    script = (
        "import sys, time, pathlib; from jax_mtlser.experiments.claims import Claims\n"
        "claim = Claims(pathlib.Path(sys.argv[1]), stale_after=9999).acquire('a'); print(claim, flush=True)\n"
        "time.sleep(600)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert "Claim" in process.stdout.readline()
    claims = Claims(tmp_path, stale_after=9999)
    assert claims.acquire("a") is None
    process.kill()
    deadline = time.monotonic() + 20
    # Not waited for: its parent, this process, has not asked for its status yet, so it still has an id.
    while (claim := claims.acquire("a")) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    claim.release()
    process.communicate()


def test_another_machine_is_given_its_time(tmp_path):
    claims = Claims(tmp_path, stale_after=50)
    plant(tmp_path, "quiet", 4, age=100)
    plant(tmp_path, "alive", 0, age=10)
    assert claims.acquire("alive") is None
    assert claims.held() == {"alive": "process 7 on far"}
    claim = claims.acquire("quiet")
    assert claim is not None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alive.0", "quiet.5"]
    claim.release()


def test_a_heartbeat_keeps_a_claim_longer_than_it_would_last(tmp_path):
    claims = Claims(tmp_path, stale_after=1.0)
    with claims.acquire("a") as claim:  # type: ignore[union-attr]
        beginning = (tmp_path / "a.0").stat().st_mtime
        while (tmp_path / "a.0").stat().st_mtime < beginning + 1.5:
            assert claims.acquire("a") is None
            time.sleep(0.02)
        claim.require()


def test_a_holder_whose_claim_was_taken_over_learns_it(tmp_path):
    claim = Claims(tmp_path, stale_after=0.8).acquire("a")
    assert claim is not None
    # The successor has less patience than a heartbeat takes.
    while (successor := Claims(tmp_path, stale_after=0.02).acquire("a")) is None:
        time.sleep(0.01)

    def work() -> None:
        for _ in range(500):
            claim.require()
            time.sleep(0.01)

    with pytest.raises(ClaimLost, match="a: another process has taken over"):
        work()
    claim.release()
    successor.require()
    assert [path.name for path in tmp_path.iterdir()] == ["a.1"]
    successor.release()


def test_a_claim_file_without_content_counts_by_its_age(tmp_path):
    (tmp_path / "a.0").touch()
    assert Claims(tmp_path, stale_after=50).acquire("a") is None
    os.utime(tmp_path / "a.0", (time.time() - 100,) * 2)
    claim = Claims(tmp_path, stale_after=50).acquire("a")
    assert claim is not None
    claim.release()
