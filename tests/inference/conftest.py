"""One tiny run for all tests of inference."""

import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "experiments"))

from tiny import short_run, write_corpus

from jax_mtlser.inference.recognizer import Recognizer
from jax_mtlser.run_folder import RunFolder, read_json, write_json


@pytest.fixture(scope="session")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="session")
def run(corpus, tmp_path_factory) -> Path:
    """Two members."""
    return short_run(corpus, tmp_path_factory.mktemp("runs") / "run")


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
