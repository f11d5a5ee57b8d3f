"""Real processes that divide each batch: the same training as one process's, stopped, resumed and failed together."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import get_config, saved_parameters, write_corpus

from jax_mtlser.commands.train import train_command
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[2]
LOST, KEPT = "learning_rate1e+38_r0_f0", "learning_rate0.001_r0_f0"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return probe.getsockname()[1]


def start(corpus: Path, workdir: Path, *flags: str) -> list[subprocess.Popen]:
    """Two processes of one device each."""
    address = f"localhost:{free_port()}"
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=1",
    }
    return [
        subprocess.Popen(
            [
                sys.executable, "train.py", "--config", "tests/experiments/tiny.py:hosts", "--workdir", str(workdir),
                f"--config.corpus.path={corpus}", "--distributed", f"--coordinator={address}", "--processes=2",
                f"--process={process}", *flags,
            ],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for process in (0, 1)
    ]  # fmt: skip


def finish(both: list[subprocess.Popen], status: int) -> list[tuple[str, str]]:
    outputs = [process.communicate(timeout=300) for process in both]
    assert [process.returncode for process in both] == [status, status], outputs
    assert "Traceback" not in str(outputs)
    return outputs


def own_words(output: str) -> list[str]:
    """Without the line that gloo, the CPU's way from process to process, prints on connecting."""
    return [line for line in output.splitlines() if not line.startswith("[Gloo]")]


def wait_for_step(both: list[subprocess.Popen], run: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if sum(1 for _ in read_json_lines(run.member(KEPT).metrics)) >= step:
            return
        assert [process.poll() for process in both] == [None, None], [process.communicate() for process in both]
        time.sleep(0.002)
    raise AssertionError(f"step {step} was not reached")


@pytest.mark.slow
def test_two_processes_fail_stop_and_resume_together_and_train_what_one_does(tmp_path):
    alone, run = RunFolder(tmp_path / "alone"), RunFolder(tmp_path / "run")
    corpus = write_corpus(tmp_path, gender=None, speaker=None, text=None)  # one head: less to compile
    config = get_config("hosts")
    config.corpus.path = str(corpus)
    assert train_run(config, alone.path, Display(Console(file=io.StringIO()))) == 1
    # Stopped by a signal to the process that leads nothing.
    both = start(corpus, run.path)
    wait_for_step(both, run, 5)
    both[1].send_signal(signal.SIGTERM)
    (shown, errors), (silence, told) = finish(both, 128 + signal.SIGTERM)
    stopped = re.search(r"stopped by SIGTERM after step (\d+)", errors)
    assert stopped
    assert stopped[0] in told
    assert own_words(silence) == []
    assert f"{LOST} failed: {LOST}: loss or gradient is not finite at step" in shown
    assert read_json(run.member(LOST).failure)["error"] == read_json(alone.member(LOST).failure)["error"]
    # The same command goes on; the other process has the same to say about the failure, and says nothing.
    (shown, _), (silence, _) = finish(start(corpus, run.path), 1)
    assert f"{KEPT}: going on after step {stopped[1]}" in shown
    assert own_words(silence) == []
    assert list(run.claims.iterdir()) == []
    # Only the order of sums differs: gradients are added over processes instead of devices.
    pairs = zip(*(jax.tree.leaves(saved_parameters(r.path, KEPT)) for r in (run, alone)), strict=True)
    assert all(np.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in pairs)
    logs = [list(read_json_lines(r.member(KEPT).metrics)) for r in (run, alone)]
    assert [(line["kind"], line["step"]) for line in logs[0]] == [(line["kind"], line["step"]) for line in logs[1]]
    results = [read_json(r.member(KEPT).result) for r in (run, alone)]
    for name in ("metrics", "counts", "selected_epoch", "labels", "parameters"):
        assert results[0][name] == results[1][name]
    assert read_json(run.results)["variants"][1]["pooled"] == read_json(alone.results)["variants"][1]["pooled"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--processes=2"], "are for --distributed, which is missing"),
        (["--distributed", "--processes=2"], "--coordinator, --processes and --process go together"),
        (["--distributed", "--coordinator=a:1", "--processes=2", "--process=2"], "--process is 2; with --processes=2"),
        (["--distributed", "--processes=0"], "processes"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(flags, message, capsys):
    assert train_command(["train.py", "--config", "tests/experiments/tiny.py", "--workdir", "unused", *flags]) == 2
    assert message in capsys.readouterr().err
