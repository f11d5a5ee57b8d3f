"""A training that is killed, by any signal and at any moment, ends with the parameters of one that was not."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny import saved_parameters, write_corpus

from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training.checkpoint import load_model_description

ROOT = Path(__file__).parents[2]
# 12 training utterances, 4 per batch: 3 steps per epoch.
STEPS = 24


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


def start(corpus: Path, workdir: Path) -> subprocess.Popen:
    command = [
        sys.executable, "train.py", "--config", "tests/experiments/tiny.py", "--workdir", str(workdir),
        f"--config.corpus.path={corpus}", "--config.training.epochs=8", "--config.protocol.only_folds=0,",
        "--config.training.checkpoint_every_steps=2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error::DeprecationWarning:jax_mtlser"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(corpus: Path, workdir: Path) -> str:
    process = start(corpus, workdir)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def wait_for_step(process: subprocess.Popen, workdir: Path, step: int) -> None:
    """Return once the log shows that ``step`` was taken."""
    log = RunFolder(workdir).member("r0_f0").metrics
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if log.exists() and log.read_text().count('"train"') >= step:
            return
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.001)
    raise AssertionError(f"step {step} was not reached")


def outcome(workdir: Path) -> dict:
    """Everything that must not depend on interruptions."""
    member = RunFolder(workdir).member("r0_f0")
    sizes = load_model_description(member.model)["architecture"]
    lines = [json.loads(line) for line in member.metrics.read_text().splitlines()]
    for line in lines:
        line.pop("audio_seconds_per_second", None)
    result = read_json(member.result)
    return {
        "architecture": sizes,
        "log": lines,
        "predictions": member.predictions.read_text(),
        "selected": result["selected_epoch"],
        "metrics": result["metrics"],
    }


def parameters(workdir: Path) -> list[np.ndarray]:
    return jax.tree.leaves(saved_parameters(workdir))


@pytest.fixture(scope="module")
def uninterrupted(corpus, tmp_path_factory) -> Path:
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(corpus, workdir)
    return workdir


def assert_same(workdir: Path, uninterrupted: Path) -> None:
    assert outcome(workdir) == outcome(uninterrupted)
    pairs = list(zip(parameters(workdir), parameters(uninterrupted), strict=True))
    assert len(pairs) > 20
    assert all(np.array_equal(one, other) for one, other in pairs)


KILL, TERMINATE, INTERRUPT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


@pytest.mark.parametrize(
    "ends",
    [
        [KILL, TERMINATE],
        pytest.param([KILL, KILL, KILL], marks=pytest.mark.slow),
        pytest.param([TERMINATE, INTERRUPT], marks=pytest.mark.slow),
    ],
)
def test_ended_at_random_steps_a_run_resumes_to_the_same_bits(corpus, uninterrupted, tmp_path, ends):
    workdir = tmp_path / "run"
    generator = random.Random(os.environ.get("PYTEST_XDIST_TESTRUNUID", "end"))
    # Apart, so that the steps which a process takes until it ends are not those that the next one is waited for.
    chosen = [STEPS // 3 * part + generator.randrange(1, STEPS // 3 - 4) for part in range(len(ends))]
    for number, step in zip(ends, chosen, strict=True):
        process = start(corpus, workdir)
        wait_for_step(process, workdir, step)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert not RunFolder(workdir).member("r0_f0").result.exists(), f"ended after step {chosen}, too late"
        if number == KILL:
            assert process.returncode == -KILL
        else:  # a request, which saves the step that it came in
            assert process.returncode == 128 + number, output
            assert f"stopped by {number.name} after step" in output
            assert "Traceback" not in output
    output = finish(corpus, workdir)
    assert "going on after step" in output
    assert_same(workdir, uninterrupted)


def test_the_same_command_on_a_finished_run_trains_nothing(corpus, uninterrupted):
    before = outcome(uninterrupted)
    output = finish(corpus, uninterrupted)
    assert "finished before" in output
    assert "compiled" not in output
    assert outcome(uninterrupted) == before
