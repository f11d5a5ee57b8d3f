"""The tutorial is executed in an empty folder and shows what its text says; its two trainings behind the slow marker."""

import contextlib
import dataclasses
import io
import re
from pathlib import Path
from typing import Any

import pytest

from jax_mtlser.commands.train import parse_train_flags
from jax_mtlser.config import EncoderConfig, validate
from jax_mtlser.models.pretrained import encoder_parameters, open_encoder
from jax_mtlser.run_folder import RunFolder, read_json

ROOT = Path(__file__).parents[1]
PROGRAM = (ROOT / "docs" / "tutorial.py").read_text()
CHANCE = 1 / 4
CLEARLY = 0.1  # above chance; the models that it trains reach 46 to 48 %


@dataclasses.dataclass(frozen=True)
class Tutorial:
    """What it leaves behind: its folder, its variables, and all that it printed."""

    folder: Path
    values: dict[str, Any]
    shown: str


def execute(place: Path, program: str) -> Tutorial:
    """Run the tutorial, or its beginning, in a folder."""
    pytest.importorskip("espeakng_loader")
    (place / "configs").symlink_to(ROOT / "configs")
    values: dict[str, Any] = {}
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(shown):
        patch.chdir(place)
        patch.setattr("jax_mtlser.runtime.tune_allocator", lambda: True)  # it would change the test process
        exec(compile(program, "tutorial.py", "exec"), values)
    return Tutorial(place / values["here"], values, shown.getvalue())


@pytest.fixture(scope="module")
def tutorial(tmp_path_factory) -> Tutorial:
    return execute(tmp_path_factory.mktemp("tutorial"), PROGRAM)


def speakers_in_training(shown: str) -> list[str]:
    """The cell of each leakage table, in per cent."""
    return re.findall(r"^ +speaker +([\d.]+) ", shown, re.MULTILINE)


def test_what_comes_before_the_training(tmp_path):
    beginning, heading, _ = PROGRAM.partition("# ## 5. Training")
    assert heading
    begun = execute(tmp_path, beginning)
    # Random folds know every speaker, held-out sessions none.
    assert speakers_in_training(begun.shown) == ["100.0", "0.0"]
    assert "speakers: 10 (5 female, 5 male)" in begun.shown
    config, _ = parse_train_flags(["train.py", *begun.values["settings"].split()])
    validate(config)


@pytest.mark.slow
def test_both_models_know_emotions_of_speakers_that_they_have_not_heard(tutorial):
    assert speakers_in_training(tutorial.shown) == ["100.0", "0.0", "0.0", "0.0"]  # the last two beside the scores
    for name in ("three_tasks", "emotion_only"):
        run = RunFolder(tutorial.folder / name)
        pooled = read_json(run.results)["pooled"]
        assert pooled["ua"] >= CHANCE + CLEARLY
        assert pooled["speaker_accuracy"] is None
        assert pooled["wer"] is None
        assert (run.report / "index.html").is_file()
    assert tutorial.values["results"]["pooled"]["gender_accuracy"] >= 0.6


@pytest.mark.slow
def test_the_comparison_pairs_the_two_runs(tutorial):
    rows = tutorial.values["comparison"]
    assert {row["metric"] for row in rows} == {"wa", "ua", "macro_f1"}
    assert "80 test predictions of 80 utterances" in tutorial.shown
    assert "2 speakers are few to resample" in tutorial.shown


@pytest.mark.slow
def test_new_recordings_are_recognised_better_than_by_chance(tutorial):
    rows = tutorial.values["predictions"]
    assert len(rows) == 40
    assert not any(row["error"] for row in rows)
    assert len(tutorial.values["right"]) >= (CHANCE + CLEARLY) * len(rows)
    answer = tutorial.values["answer"]
    assert answer.emotion == rows[0]["emotion"]
    assert sum(answer.probabilities.values()) == pytest.approx(1)


@pytest.mark.slow
def test_the_export_can_be_started_from(tutorial):
    found = open_encoder(EncoderConfig(checkpoint=str(tutorial.folder / "encoder")))
    assert found.arch.hidden_size == tutorial.values["exported"].hidden_size == 64
    _, dropped = encoder_parameters(found.weights, found.arch)
    assert dropped == []
