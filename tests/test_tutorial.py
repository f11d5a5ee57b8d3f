"""The tutorial is executed as a whole, in an empty folder, and shows what its text says."""

import contextlib
import dataclasses
import io
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from jax_mtlser.config import EncoderConfig
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.run_folder import RunFolder, read_json

pytestmark = pytest.mark.slow  # two trainings

ROOT = Path(__file__).parents[1]
CHANCE = 1 / 4
CLEARLY = 0.1  # above chance; the models that it trains reach 46 to 48 %


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """What it leaves behind: its folder, its variables, and all that it printed."""

    folder: Path
    values: dict[str, Any]
    shown: str


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> Tutorial:
    pytest.importorskip("espeakng_loader")
    place = tmp_path_factory.mktemp("tutorial")
    (place / "configs").symlink_to(ROOT / "configs")
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.chdir(place)
        patch.setattr("jax_mtlser.runtime.tune_allocator", lambda: True)  # it would change the test process
        values = runpy.run_path(str(ROOT / "docs" / "tutorial.py"))
    return Tutorial(place / values["here"], values, shown.getvalue())


def test_random_folds_know_every_speaker_and_held_out_sessions_none(tutorial):
    shares = re.findall(r"^ +speaker +([\d.]+) ", tutorial.shown, re.MULTILINE)
    # Before training: random, by session; then behind each of the two trainings.
    assert shares == ["100.0", "0.0", "0.0", "0.0"]


def test_both_models_know_emotions_of_speakers_that_they_have_not_heard(tutorial):
    for name in ("three_tasks", "emotion_only"):
        run = RunFolder(tutorial.folder / name)
        pooled = read_json(run.results)["pooled"]
        assert pooled["ua"] >= CHANCE + CLEARLY
        assert pooled["speaker_accuracy"] is None
        assert pooled["wer"] is None
        assert (run.report / "index.html").is_file()
    assert tutorial.values["results"]["pooled"]["gender_accuracy"] >= 0.6


def test_the_comparison_pairs_the_two_runs(tutorial):
    rows = tutorial.values["comparison"]
    assert {row["metric"] for row in rows} == {"wa", "ua", "macro_f1"}
    assert "80 test predictions of 80 utterances" in tutorial.shown
    assert "2 speakers are few to resample" in tutorial.shown


def test_new_recordings_are_recognised_better_than_by_chance(tutorial):
    rows = tutorial.values["predictions"]
    assert len(rows) == 40
    assert not any(row["error"] for row in rows)
    assert len(tutorial.values["right"]) >= (CHANCE + CLEARLY) * len(rows)
    answer = tutorial.values["answer"]
    assert answer.emotion == rows[0]["emotion"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


def test_the_export_can_be_started_from(tutorial):
    found = open_encoder(EncoderConfig(checkpoint=str(tutorial.folder / "encoder")))
    assert found.arch.hidden_size == tutorial.values["exported"].hidden_size == 64
    _, dropped = encoder_parameters(found.weights, found.arch)
    assert dropped == []
