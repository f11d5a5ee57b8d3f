"""Processes that tell each other things, fail together, and say clearly why they cannot."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from jax_mtlser.config import ConfigError
from jax_mtlser.training.processes import joined

ROOT = Path(__file__).parents[2]

# Run by each of two processes; what differs between them is by its number.
TALK = """
import sys
from pathlib import Path
from jax_mtlser.training import processes
from jax_mtlser.training.sharding import make_mesh

address, number, shared, own = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])
processes._SHOWN = 0.1

def raised(function, *args):
    try:
        return function(*args)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def fail(): raise ValueError("no")
def fail_in(process): return lambda: fail() if number == process else "well"

with processes.joined(address, 2, number):
    assert not processes.alone() and processes.is_first() == (number == 0)
    print(processes.from_first([number, None]))
    print(processes.on_all(lambda: number))
    print(raised(processes.on_first, fail))
    print(raised(processes.on_all, fail_in(1)))
    print(raised(processes.require_same, {"epochs": 7, "seed": number}))
    print(raised(processes.require_shared, shared), raised(processes.require_shared, own))
    vote = processes.StopVote(make_mesh())
    # Process 1 is asked to stop in the second step, and all know it in the third, or at once where they wait.
    print([vote(asked * number, wait=False) for asked in (0, 15, 15)], vote(15 * number, wait=True))
    print(raised(processes.confirm, KeyError("all")))
    print(raised(processes.confirm, KeyError("one")) if number else raised(processes.on_all, lambda: 0))
    if number == 0:
        sys.exit("enough")
    print(raised(processes.from_first, 0))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def test_two_processes_agree(tmp_path):
    address = f"localhost:{free_port()}"
    flags = os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1"
    both = []
    for number in (0, 1):
        (own := tmp_path / f"own{number}").mkdir()
        command = [sys.executable, "-c", TALK, address, str(number), str(tmp_path), str(own)]
        environment = {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        both.append(subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **pipes))
    outputs = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [1, 0], outputs
    first, second = ([line for line in o.splitlines() if not line.startswith("[Gloo]")] for o, _ in outputs)
    host = socket.gethostname()
    apart = ["ProcessesError: the processes cannot go on together"]
    same = ["ConfigError: processes that train together need the same settings, corpus and versions:"]
    same.append("  - seed: 0 in process 0, 1 in process 1")
    assert first == [
        "[0, None]", "0", "ValueError: no", "FailedElsewhere: process 1: ValueError: no", *same,
        f"None ConfigError: process 1 does not see {tmp_path}/own0; --workdir must be a folder that all processes share",
        "[0, 0, 15] 15", "None", *apart, f"process 1 ({host}): KeyError: 'one'",
    ]  # fmt: skip
    assert second == [
        "[0, None]", "1", "FailedElsewhere: process 0: ValueError: no", "ValueError: no", *same,
        f"None ConfigError: process 1 does not see {tmp_path}/own1; --workdir must be a folder that all processes share",
        "[0, 0, 15] 15", "None", *apart, f"process 0 ({host}): goes on",
        *apart, f"process 0 ({host}): has ended: SystemExit: enough",
    ]  # fmt: skip


def test_a_process_that_nobody_joins_says_so_and_ends():
    code = (
        "from jax_mtlser.training.processes import joined\n"
        f"with joined('localhost:{free_port()}', 2, 0, timeout=1.0): pass"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 2
    assert ended.stderr.startswith("error: the 2 processes have not come together within 1 s; start all of them")
    assert len(ended.stderr.splitlines()) == 1


def test_a_coordinator_that_cannot_be_reached_or_used_is_named():
    port = free_port()
    with pytest.raises(ConfigError, match=f"localhost:{port} cannot be reached.*process 0 must run there"):
        joined(f"localhost:{port}", 2, 1, timeout=0.1).__enter__()
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(ConfigError, match=f"process 0 cannot listen on port {port}"):
            joined(f"localhost:{port}", 2, 0).__enter__()
    for coordinator in ("localhost", "localhost:", ":7000", "localhost:70000"):
        with pytest.raises(ConfigError, match="it is HOST:PORT of process 0"):
            joined(coordinator, 2, 1).__enter__()
