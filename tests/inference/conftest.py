"""One tiny run for all tests of inference."""

import io
import shutil
import sys
from pathlib import Path

import pytest
from rich.console import Console

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from tiny import tiny_config, write_corpus

from jax_mtlser.config import AudioConfig, Precision
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.inference.recognizer import Recognizer
from jax_mtlser.run_folder import RunFolder, read_json, write_json
from jax_mtlser.training.progress import Display

MAX_SECONDS = 1.5


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory) -> Path:
    """Two members, trained and evaluated in float32 on recordings of at most 1.5 s."""
    config = tiny_config(corpus, epochs=1)
    config.training.precision = Precision.FLOAT32
    config.audio = AudioConfig(max_seconds=MAX_SECONDS)
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train_run(config, folder, Display(Console(file=io.StringIO()))) == 0
    return folder


@pytest.fixture(scope="session")
def recognizer(run) -> Recognizer:
    return Recognizer.load(run, "r0_f0")


@pytest.fixture
def calibrated_run(run, tmp_path) -> Path:
    """The same run with temperatures."""
    copy = RunFolder(Path(shutil.copytree(run, tmp_path / "calibrated")))
    for name, temperature in (("r0_f0", 0.25), ("r0_f1", 2.0)):
        result = copy.member(name).result
        write_json(result, read_json(result) | {"calibration": {"temperature": temperature}})
    return copy.path
