"""A tiny trained run under degradations, and on a corpus that it was not trained on: both commands end to end."""

import csv
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
from rich.console import Console
from tiny import tiny_config, write_corpus

from jax_mtlser import cli
from jax_mtlser.config import CorpusConfig, CorpusKind
from jax_mtlser.data.conditions import parse_conditions
from jax_mtlser.data.degrader import Degrader
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments.cross_corpus import judge_other_corpus
from jax_mtlser.experiments.robustness import measure_robustness
from jax_mtlser.experiments.runner import train_run
from jax_mtlser.run_folder import RunFolder, read_json, write_json
from jax_mtlser.training.progress import Display


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=100))


def shown(screen: Display) -> str:
    return screen.console.file.getvalue()


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunFolder:
    corpus = write_corpus(tmp_path_factory.mktemp("tones"))
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    assert train_run(tiny_config(corpus, epochs=1), run.path, display()) == 0
    return run


def robustness(run: RunFolder, *words: str, **options) -> tuple[dict, str]:
    screen = display()
    return measure_robustness(run.path, parse_conditions(words), screen, **options), shown(screen)


# --- Robustness ---


def test_clean_reproduces_the_stored_results_exactly(run, tmp_path):
    results, text = robustness(run, output=tmp_path)
    assert results["conditions"][0]["pooled"] == read_json(run.results)["pooled"]
    assert results["differs_from_training"] == []
    assert "differs" not in text
    for name in ("r0_f0", "r0_f1"):
        stored = [row for row in read_predictions(run.member(name).predictions) if row.part == "test"]
        assert read_predictions(tmp_path / "clean" / f"{name}.csv") == stored


def test_a_clean_side_that_is_not_what_was_stored_is_told(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    result = read_json(copy.member("r0_f0").result)
    write_json(copy.member("r0_f0").result, result | {"metrics": result["metrics"] | {"wa": 0.123}})
    results, text = robustness(copy)
    assert len(results["differs_from_training"]) == 1
    assert "clean differs from what the run stored: r0_f0: wa stored 0.123" in text


def test_conditions_are_judged_on_their_own_audio_and_reused(run, tmp_path, monkeypatch):
    results, text = robustness(run, "white:-20", "gain:0", output=tmp_path)
    clean, noisy, same = results["conditions"]
    # 20 dB of noise more than speech: the model hears something else; a gain of 0 dB changes nothing at all.
    shares = lambda folder: [row.emotion_probabilities for row in read_predictions(tmp_path / folder / "r0_f0.csv")]
    assert np.abs(np.subtract(shares("white_-20"), shares("clean"))).max() > 1e-3
    assert shares("gain_0") == shares("clean")
    assert same["pooled"] == clean["pooled"]
    assert same["difference"]["ua"] == {"value": 0, "low": None, "high": None}  # three speakers
    assert set(noisy["pooled"]) == set(clean["pooled"])
    assert "2 members judged" in text

    degraded = []
    corpus = Degrader.corpus
    monkeypatch.setattr(
        Degrader,
        "corpus",
        lambda self, rows, condition, **k: degraded.append(condition.name) or corpus(self, rows, condition, **k),
    )
    again, text = robustness(run, "white:-20", "gain:0", "telephone", output=tmp_path)
    assert degraded == ["telephone"]
    assert "white noise, -20 dB: judged before" in text
    assert again["conditions"][:3] == results["conditions"]

    degraded.clear()
    robustness(run, "white:-20", "gain:0", seed=1, output=tmp_path)
    assert degraded == ["white:-20"]  # the only one of them that draws anything


def test_what_was_interrupted_is_judged_again(run, tmp_path):
    robustness(run, "clip:6", output=tmp_path)
    (tmp_path / "clip_6" / "finished.json").unlink()
    (tmp_path / "clip_6" / "r0_f1.csv").write_text("cut sh")
    results, text = robustness(run, "clip:6", output=tmp_path)
    assert "clipping, 6 dB: 2 members judged" in text
    assert "clean: judged before" in text
    assert (
        len(read_predictions(tmp_path / "clip_6" / "r0_f1.csv"))
        + len(read_predictions(tmp_path / "clip_6" / "r0_f0.csv"))
        == 30
    )
    assert len(results["conditions"]) == 2


def test_a_member_trained_anew_is_judged_anew(run, tmp_path):
    copy = RunFolder(tmp_path / "run")
    shutil.copytree(run.path, copy.path)
    robustness(copy)
    result = read_json(copy.member("r0_f1").result)
    write_json(copy.member("r0_f1").result, result | {"seconds": {"compile": 1.0, "train": 2.0}})
    assert "clean: 2 members judged" in robustness(copy)[1]


def test_the_robustness_command_writes_table_and_figure(run, tmp_path, capsys):
    noise = tmp_path / "noise"
    noise.mkdir()
    soundfile.write(noise / "n.wav", np.random.default_rng(0).uniform(-0.5, 0.5, 16_000), 16_000)
    flags = ["--condition", "noise:0,20", "--condition", "babble:10", "--condition", "mp3:16", "--noise", str(noise)]
    out = tmp_path / "out"
    assert cli.main(["jax-mtlser", "robustness", "--workdir", str(run.path), *flags, "-o", str(out)]) == 0
    text = capsys.readouterr().out
    assert re.search(r"own noise, 0 dB +\d+\.\d\d", text)
    with (out / "table.csv").open() as file:
        assert [row["condition"] for row in csv.DictReader(file)] == [
            "clean",
            "noise:0",
            "noise:20",
            "babble:10",
            "mp3:16",
        ]
    assert "own noise" in (out / "ua_over_snr.svg").read_text()
    assert read_json(out / "results.json")["snr"].startswith("mean power of the speech over its active frames")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--condition", "wite:10"], "error: there is no condition 'wite'; did you mean white?"),
        (["--condition", "white:99"], "error: white:99 is out of range; use -30 to 60 dB"),
        (
            ["--condition", "noise:10"],
            "error: the condition noise needs recordings; name their folder with --noise DIR",
        ),
        (["--condition", "white:10", "--rooms", "."], "error: --rooms is given, but no condition uses it"),
        (["--seed", "-1"], "error: --seed is -1"),
    ],
)
def test_a_bad_condition_is_answered_before_the_corpus_is_read(run, flags, message, capsys, monkeypatch):
    monkeypatch.setattr("jax_mtlser.experiments.finished_run.read_manifest", lambda *a, **k: pytest.fail("too late"))
    assert cli.main(["jax-mtlser", "robustness", "--workdir", str(run.path), *flags]) in (1, 2)
    assert message in capsys.readouterr().err


def test_no_run_is_answered_shortly(tmp_path, capsys):
    for command in (["robustness"], ["cross-corpus", "--corpus", "x", "--kind", "table"]):
        assert cli.main(["jax-mtlser", *command, "--workdir", str(tmp_path)]) == 1
        assert "is no run folder" in capsys.readouterr().err


# --- Cross-corpus ---


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Path:
    """24 tones: 'fury' and 'sad', one 'joy', one without a label, one broken."""
    folder = write_corpus(tmp_path_factory.mktemp("others") / "meadow", 24)
    table = folder / "manifest.csv"
    lines = table.read_text().replace(",angry,", ",fury,").splitlines()
    lines[1] = lines[1].replace(",fury,", ",joy,")
    lines[2] = lines[2].replace(",fury,", ",,")
    (folder / "wav" / "tone02.wav").write_bytes(b"no audio")
    table.write_text("\n".join(lines) + "\n")
    return folder


def test_a_run_is_judged_on_another_corpus(run, other, tmp_path, capsys):
    command = ["jax-mtlser", "cross-corpus", "--workdir", str(run.path), "--corpus", str(other), "--map", "fury=angry"]
    assert cli.main([*command, "-o", str(tmp_path)]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "Per cent of 21 utterances of meadow: angry 9, sad 12." in text
    assert "Renamed: fury to angry." in text
    assert "Left out: 1 joy (no such class), 1 without emotion, 1 whose audio cannot be used" in text
    results = read_json(tmp_path / "results.json")
    assert results["left_out"] == {"unknown_classes": {"joy": 1}, "unlabelled": 1, "audio": 1}
    assert results["classes"]["map"] == {"fury": "angry", "sad": "sad"}
    assert results["own_corpus"] == read_json(run.results)["pooled"]
    assert list(results["members"]) == ["r0_f0", "r0_f1"]
    for name in ("r0_f0", "r0_f1", "ensemble"):
        rows = read_predictions(tmp_path / f"{name}.csv")
        assert len(rows) == 21
        assert {(row.groups["original_emotion"], row.emotion) for row in rows} == {("fury", "angry"), ("sad", "sad")}
        # Both corpora have a speaker S0; they are two people.
        assert not any(row.speaker_known for row in rows)
        hits = sum(row.emotion == row.emotion_predicted for row in rows) / 21
        scores = results["ensemble"] if name == "ensemble" else results["members"][name]
        # The model has no third class, so both choices are one.
        assert scores["free_wa"] == pytest.approx(hits)
        assert scores["restricted_wa"] == pytest.approx(hits)
    members = [read_predictions(tmp_path / f"{name}.csv") for name in ("r0_f0", "r0_f1")]
    together = read_predictions(tmp_path / "ensemble.csv")
    mean = np.mean([[row.emotion_probabilities for row in rows] for rows in members], axis=0)
    assert np.allclose([row.emotion_probabilities for row in together], mean)
    assert np.sum(results["confusion"]["matrix"]) == 21
    assert (tmp_path / "confusion.png").exists()
    assert "no audio" not in (tmp_path / "skipped.csv").read_text()
    assert "tone02" in (tmp_path / "skipped.csv").read_text()


def test_a_model_gives_a_recording_the_same_answer_in_another_corpus(run, tmp_path):
    """Judged through another manifest, other batches and other shapes, the run's own recordings get the stored answers."""
    folder = tmp_path / "copied"
    shutil.copytree(Path(read_json(run.config)["corpus"]["path"]), folder)
    screen = display()
    corpus = CorpusConfig(kind=CorpusKind.TABLE, path=str(folder))
    judge_other_corpus(run.path, corpus, screen, renamed={}, output=tmp_path / "out")
    stored = {row.id: row for row in read_predictions(run.member("r0_f0").predictions)}
    found = {row.id: row for row in read_predictions(tmp_path / "out" / "r0_f0.csv")}
    assert len(found) == 30
    for name, row in stored.items():
        assert np.allclose(found[name].emotion_probabilities, row.emotion_probabilities, atol=1e-5)
        assert found[name].text_predicted == row.text_predicted


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--map", "fury"], "error: --map fury: write LABEL=CLASS"),
        (["--map", "fury=angry", "--map", "fury=sad"], "error: --map gives fury two classes, angry and sad"),
        ([], "error: corpus and model share 1 emotions, and a comparison needs two: the corpus has fury, joy, sad"),
        (["--map", "fury=agry"], "did you mean angry?"),
    ],
)
def test_a_bad_map_is_answered_with_the_names(run, other, flags, message, capsys):
    assert cli.main(["jax-mtlser", "cross-corpus", "--workdir", str(run.path), "--corpus", str(other), *flags]) in (
        1,
        2,
    )
    assert message in capsys.readouterr().err


def test_no_corpus_and_the_own_corpus_are_refused(run, tmp_path, capsys):
    command = ["jax-mtlser", "cross-corpus", "--workdir", str(run.path), "--corpus"]
    assert cli.main([*command, str(tmp_path / "nowhere")]) == 1
    assert re.search("error: there is no .*nowhere", capsys.readouterr().err)
    assert cli.main([*command, read_json(run.config)["corpus"]["path"]]) == 1
    assert "30 of 30 recordings of" in capsys.readouterr().err
