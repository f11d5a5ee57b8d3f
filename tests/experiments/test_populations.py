"""Members trained together come out as they do alone: through the real runner, whatever happens on the way."""

import dataclasses
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import saved_parameters, tiny_config, write_corpus

from jax_mtlser.config import Variant
from jax_mtlser.data import batch_plan
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments.runner import evaluate_run, train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training import loop
from jax_mtlser.training.interruption import Interrupted
from jax_mtlser.training.progress import Display

ROOT = Path(__file__).parents[2]
# Of both folds of both variants, three: two folds, two weightings, two learning rates, two seeds.
CHOSEN = ["low_r0_f0", "low_r0_f1", "high_r0_f0"]
EPOCHS = 3
TOLERANCE = 5e-6


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"), 31)


def settings(corpus: Path, population: int = 3, *, high: float = 3e-3):
    """Of 31 utterances one fold trains on 12 and the other on 13, a batch more: members meet steps without a batch of theirs."""
    config = tiny_config(corpus, epochs=EPOCHS)
    config.batching = dataclasses.replace(config.batching, num_buckets=2)
    config.training.population = population
    config.variants = (
        Variant(name="low", overrides={"weights.alpha": 0.0, "optimizer.learning_rate": 1e-3}),
        Variant(
            name="high",
            overrides={"weights.beta": 0.1, "optimizer.learning_rate": high, "optimizer.clip_norm": None},
        ),
    )
    config.optimizer.clip_norm = None  # compiled in
    return config


def train(config, workdir: Path, members: str = ",".join(CHOSEN)) -> tuple[int, str]:
    display = Display(Console(file=io.StringIO(), width=200))
    failed = train_run(config, workdir, display, members=members)
    return failed, display.console.file.getvalue()


@pytest.fixture(scope="module")
def alone(corpus, tmp_path_factory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("alone") / "run")
    failed, shown = train(settings(corpus, 1), run.path)
    assert failed == 0
    assert "together" not in shown
    return run


@pytest.fixture(scope="module")
def together(corpus, tmp_path_factory) -> RunFolder:
    run = RunFolder(tmp_path_factory.mktemp("together") / "run")
    failed, shown = train(settings(corpus), run.path)
    assert failed == 0
    assert f"training together: {', '.join(CHOSEN)}" in shown
    return run


def log_of(run: RunFolder, name: str) -> list[dict]:
    lines = list(read_json_lines(run.member(name).metrics))
    for line in lines:
        line.pop("audio_seconds_per_second", None)
    return lines


def assert_close(run: RunFolder, other: RunFolder, names=CHOSEN) -> None:
    """Same steps with the same losses, same decisions, same parameters, within the tolerance."""
    for name in names:
        pairs = zip(log_of(run, name), log_of(other, name), strict=True)
        for line, expected in pairs:
            assert line.keys() == expected.keys()
            for key, value in expected.items():
                exact = value is None or isinstance(value, str)
                assert line[key] == (value if exact else pytest.approx(value, rel=1e-4, abs=1e-5)), (line, key)
        found, expected = (read_predictions(r.member(name).predictions) for r in (run, other))
        assert [row.id for row in found] == [row.id for row in expected]
        shares = [np.array([row.emotion_probabilities for row in rows]) for rows in (found, expected)]
        np.testing.assert_allclose(*shares, atol=TOLERANCE)
        parameters = [saved_parameters(r.path, name) for r in (run, other)]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=TOLERANCE), *parameters)


def assert_same_bits(run: RunFolder, other: RunFolder, names=CHOSEN) -> None:
    for name in names:
        assert log_of(run, name) == log_of(other, name)
        assert run.member(name).predictions.read_text() == other.member(name).predictions.read_text()
        parameters = [jax.tree.leaves(saved_parameters(r.path, name)) for r in (run, other)]
        pairs = list(zip(*parameters, strict=True))
        assert len(pairs) > 20
        assert all(np.array_equal(a, b) for a, b in pairs)
        assert not run.member(name).checkpoints.exists()


def test_three_members_together_are_what_they_are_alone(alone, together):
    assert_close(together, alone)
    steps = [len([x for x in log_of(together, name) if x["kind"] == "train"]) for name in CHOSEN]
    assert len(set(steps)) > 1, "no member has ever missed a turn: the test does not show what it should"
    assert evaluate_run(together.path, Display(Console(file=io.StringIO()))) == []
    assert list(together.claims.iterdir()) == []


def interrupt_after(monkeypatch, turns: int) -> None:
    """SIGTERM to this process in its ``turns``-th step."""
    taken = 0
    original = loop._Training._look

    def look(self, state, index, trainee, clock):
        nonlocal taken
        taken += 1
        if taken == turns:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(self, state, index, trainee, clock)

    monkeypatch.setattr(loop._Training, "_look", look)


# Members' steps, of three members with three or four steps in an epoch: within an epoch, and where one has ended it.
@pytest.mark.parametrize(
    "after", [5, pytest.param(9, marks=pytest.mark.slow), pytest.param(10, marks=pytest.mark.slow)]
)
def test_an_interrupted_population_saves_all_its_members_and_goes_on_to_the_same_bits(
    corpus, together, tmp_path, monkeypatch, after
):
    run = RunFolder(tmp_path / "run")
    with monkeypatch.context() as patched:
        interrupt_after(patched, after)
        with pytest.raises(Interrupted, match="SIGTERM after step"):
            train(settings(corpus), run.path)
    assert list(run.claims.iterdir()) == []
    assert all(list(run.member(name).checkpoints.iterdir()) for name in CHOSEN)
    with monkeypatch.context() as patched:
        planned = batch_plan._in_buckets
        patched.setattr(batch_plan, "_in_buckets", lambda rows, *rest, **options: planned(rows[::-1], *rest, **options))
        failed, shown = train(settings(corpus), run.path)
    assert failed == len(CHOSEN)
    assert "went through other batches than are planned now" in " ".join(shown.split())
    failed, shown = train(settings(corpus), run.path)
    assert failed == 0
    assert f"training together: {', '.join(CHOSEN)}" in shown
    assert all(f"{name}: going on after step" in shown for name in CHOSEN)
    assert_same_bits(run, together)


def test_a_member_that_fails_leaves_the_population_and_the_others_end_as_with_it(corpus, together, tmp_path):
    run = RunFolder(tmp_path / "run")
    failed, shown = train(settings(corpus, high=1e38), run.path)
    assert failed == 1
    assert "high_r0_f0 failed: high_r0_f0: loss or gradient is not finite at step" in shown
    assert "not finite" in read_json(run.member("high_r0_f0").failure)["error"]
    assert not run.member("high_r0_f0").result.exists()
    assert_same_bits(run, together, CHOSEN[:2])


@pytest.mark.slow
def test_members_that_stand_at_different_epochs_are_finished_in_smaller_groups(corpus, alone, tmp_path, monkeypatch):
    run = RunFolder(tmp_path / "run")
    # Two epochs of one member; the others have not begun.
    with monkeypatch.context() as patched:
        interrupt_after(patched, 8)
        with pytest.raises(Interrupted):
            train(settings(corpus, 1), run.path)
    steps = max(int(path.name) for path in run.member(CHOSEN[0]).checkpoints.iterdir())
    assert steps == 8
    failed, shown = train(settings(corpus), run.path)
    assert failed == 0
    assert f"training together: {', '.join(CHOSEN[1:])}" in shown
    assert_close(run, alone)


def test_the_size_of_a_population_follows_from_memory(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("jax_mtlser.experiments.populations.device_memory", lambda: 2**33)
    config = settings(corpus, 0)
    config.training.epochs = 1
    failed, shown = train(config, tmp_path / "run")
    assert failed == 0
    assert "members that fit into 8.0 GiB: 3" in shown
    assert f"training together: {', '.join(CHOSEN)}" in shown


@pytest.mark.slow
@pytest.mark.parametrize(("member_devices", "data_devices"), [(4, 1), (2, 2)])
def test_a_population_over_four_devices_is_what_its_members_are_alone(
    corpus, alone, tmp_path, member_devices, data_devices
):
    """In a process of its own, with four devices; three members leave a place unused."""
    run = RunFolder(tmp_path / "run")
    script = (
        "import sys; sys.path.insert(0, 'tests/experiments'); from pathlib import Path; import test_populations as t\n"
        f"config = t.settings(Path({str(corpus)!r}), 4); config.training.member_devices = {member_devices}\n"
        f"config.training.data_devices = {data_devices}\n"
        f"failed, shown = t.train(config, Path({str(run.path)!r})); print(shown); sys.exit(failed)"
    )
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"training together: {', '.join(CHOSEN)}" in done.stdout
    assert_close(run, alone)
