"""Weighting methods and adversarial heads from a configuration to a report; the whole demo under ``slow``."""

import dataclasses
import importlib.util
import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from tiny import tiny_config, write_corpus

from jax_mtlser.config import Config, HeadMode, WeightingMethod
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.progress import Display

DEMO = Path(__file__).parents[2] / "configs" / "demo.py"
MEMBER = "r0_f0"


def run(config: Config, folder: Path) -> RunFolder:
    config.protocol = dataclasses.replace(config.protocol, only_folds=(0,))
    assert train_run(config, folder, Display(Console(file=io.StringIO()))) == 0
    return RunFolder(folder)


def training_lines(folder: RunFolder) -> list[dict]:
    return [line for line in read_json_lines(folder.member(MEMBER).metrics) if line["kind"] == "train"]


def test_a_methods_weights_are_logged_and_drawn(tmp_path):
    config = tiny_config(write_corpus(tmp_path / "corpus"), epochs=3)
    config.weights.method, config.weights.speaker_mode = WeightingMethod.DWA, HeadMode.ADVERSARIAL
    config.weights.reversal_strength = 0.5
    finished = run(config, tmp_path / "run")
    lines = training_lines(finished)
    balanced = np.array([[line[f"weight_{task}"] for task in ("emotion", "gender", "asr")] for line in lines])
    steps = len(lines) // 3
    np.testing.assert_allclose(balanced[: 2 * steps], 1.0, rtol=1e-6)
    np.testing.assert_allclose(balanced[2 * steps :].sum(1), 3.0, rtol=1e-5)
    assert np.ptp(balanced[2 * steps]) > 1e-3, "the third epoch weighs by the first two"
    reversed_ = np.array([line["weight_speaker"] for line in lines])
    assert reversed_[0] == 0
    assert (np.diff(reversed_) < 0).all(), "beta times a strength that rises"
    assert reversed_[-1] > -0.6 * 0.5
    assert "on its way into the encoder" in (finished.report / "index.html").read_text()


def test_fixed_weights_are_not_logged_since_the_configuration_has_them(tmp_path):
    finished = run(tiny_config(write_corpus(tmp_path / "corpus"), epochs=1), tmp_path / "run")
    assert not any(name.startswith("weight_") for line in training_lines(finished) for name in line)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(WeightingMethod))
def test_every_method_trains_the_demo_to_above_chance_on_all_tasks(method, tmp_path):
    pytest.importorskip("espeakng_loader", reason="the demo corpus is not installed: the demo cannot be trained")
    spec = importlib.util.spec_from_file_location("demo", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.weights.method = method
    finished = run(config, tmp_path / "run")
    pooled = read_json(finished.results)["pooled"]
    rows = [row for row in read_predictions(finished.member(MEMBER).predictions) if row.part == "test"]

    def guessing(task: str) -> float:
        return max(Counter(getattr(row, task) for row in rows).values()) / len(rows)

    assert pooled["wa"] > guessing("emotion") + 0.15
    assert pooled["gender_accuracy"] > guessing("gender") + 0.15
    assert pooled["speaker_accuracy"] > guessing("speaker") + 0.15
    assert pooled["wer"] < 0.95, "1.0 is what an empty transcript gets"
