"""Every benchmark runs, and what it writes adds up; no time is judged."""

import importlib
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from transformers.trainer_pt_utils import get_length_grouped_indices

FOLDER = Path(__file__).parents[2] / "benchmarks"
TINY = ["--encoder", "tiny", "--precision", "float32"]


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module; benchmarks are scripts that import their neighbours."""
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("workload")


@pytest.fixture
def run(workload, monkeypatch, tmp_path):
    """Runs a benchmark's ``main`` with arguments; returns its JSON and its table."""
    monkeypatch.setattr("jax_mtlser.runtime.tune_allocator", lambda: True)  # it would change the test process

    def call(name: str, *arguments: str) -> tuple[dict[str, Any], str]:
        importlib.import_module(name).main([*arguments, "--output", str(tmp_path)])
        (written,) = tmp_path.glob(f"{name}*.json")  # some add the preset
        return json.loads(written.read_text()), written.with_suffix(".md").read_text()

    return call


@pytest.fixture
def few(workload, tmp_path) -> str:
    """A file with the lengths of 30 utterances between 0.6 and 3 s."""
    path = tmp_path / "few.npz"
    np.savez(path, samples=np.linspace(10_000, 48_000, 30).astype(np.int32))
    return str(path)


def test_lengths_without_a_file_are_iemocaps_in_mean_and_deviation(workload):
    seconds = workload.lengths() / 16_000
    assert len(seconds) == 5_531
    assert seconds.mean() == pytest.approx(workload.MEAN_SECONDS, rel=0.03)
    assert seconds.std() == pytest.approx(workload.DEVIATION_SECONDS, rel=0.05)
    assert seconds.max() <= workload.LONGEST_SECONDS
    np.testing.assert_array_equal(workload.lengths(), workload.lengths())


def test_synthetic_utterances_have_labels_and_transcripts_that_fit(workload):
    lengths = workload.thinned(workload.lengths(), 50)
    assert len(lengths) == 50
    assert lengths.max() == workload.lengths().max()
    audio, targets = workload.synthetic_audio(lengths), workload.targets(lengths)
    np.testing.assert_array_equal(audio.lengths, lengths)
    for values, classes in ((targets.emotion, 4), (targets.gender, 2), (targets.speaker, 10)):
        assert values.min() >= 0
        assert values.max() < classes
    arch = workload.base_architecture()
    assert np.all(2 * targets.transcript_lengths <= np.maximum(arch.num_frames(lengths), 2))
    written = np.arange(targets.transcript.shape[1]) < targets.transcript_lengths[:, None]
    assert np.array_equal(targets.transcript > 0, written)
    assert targets.transcript.max() <= workload.SYMBOLS
    rate = targets.transcript_lengths.sum() / (lengths.sum() / 16_000)
    assert rate == pytest.approx(workload.SYMBOLS_PER_SECOND, rel=0.1)


def test_one_bucket_is_that_bucket(workload):
    buckets = workload.fixed_buckets((3.0, 1.0), workload.tiny_architecture(), batch_size=2)
    assert [bound / 16_000 for bound in buckets.bounds] == [1.0, 3.0]
    alone = workload.one_bucket(buckets, 1)
    assert (alone.bounds, alone.batch_sizes, alone.transcript_widths) == (
        (48_000,),
        (2,),
        buckets.transcript_widths[1:],
    )


def test_grouping_by_length_is_the_trainers(workload):
    lengths = np.random.default_rng(0).integers(1_000, 90_000, 530)
    for batch_size in (2, 8, 200):
        order = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(3)).numpy()
        theirs = get_length_grouped_indices(lengths.tolist(), batch_size, generator=torch.Generator().manual_seed(3))
        assert workload.length_grouped(lengths, batch_size, order).tolist() == theirs


def test_padding(run):
    result, table = run("padding", "--buckets", "1", "2", "4", "8", "--batch-sizes", "2", "32", "--draws", "2")
    ours = [row["ours"]["samples"] for row in result["buckets"]]
    assert ours == sorted(ours, reverse=True)
    for row in result["buckets"]:
        assert 1 <= row["ours"]["samples"] <= row["ours"]["flops"]
        assert row["ours"]["samples"] <= row["ours_with_filled_rows"]["samples"] <= row["ours_in_test_folds"]["samples"]
        assert row["ours"]["samples"] <= min(row["geometric"]["samples"], row["quantile"]["samples"])
        assert len(row["bounds_seconds"]) == row["buckets"]
    assert result["buckets"][0]["ours"]["samples"] == pytest.approx(result["all_to_longest"]["samples"], rel=0.01)
    small, large = result["longest_of_batch"]
    for row in (small, large):
        assert 1 <= row["group_by_length"]["samples"] <= row["random"]["samples"]
        assert row["random"]["samples"] <= result["all_to_longest"]["samples"]
    assert small["random"]["samples"] < large["random"]["samples"]
    assert f"{ours[-1]:.3f}" in table
    assert f"takes {result['default_buckets']}:" in table


def test_padding_on_given_lengths_names_no_path(run, few, tmp_path):
    result, table = run("padding", "--lengths", few, "--buckets", "30", "--batch-sizes", "1", "--draws", "1")
    assert (result["corpus"], result["utterances"]) == ("few", 30)
    assert str(tmp_path) not in json.dumps(result) + table
    # As many buckets as utterances, or batches of one: only the rounding to whole frames is left.
    assert result["buckets"][0]["ours"]["samples"] < 1.01
    assert result["longest_of_batch"][0]["random"] == {"samples": 1, "flops": 1}


def test_input_pipeline(run, few):
    result, table = run("input_pipeline", "--lengths", few, "--batches", "2")
    assert result["utterances"] == 30
    assert result["timed_batches"] == 2
    assert len(result["per_batch"]) == 7
    for side, times in result["per_batch"].items():
        assert 0 < times["min_ms"] <= times["median_ms"] <= times["max_ms"], side
        assert result["epoch_seconds"][side] > 0
        assert side in table
    assert set(result["prefetched_epoch_seconds"]) < set(result["per_batch"])


def test_both_input_pipelines_give_the_same_waveforms(workload):
    pipeline = importlib.import_module("input_pipeline")
    lengths = np.array([9_000, 16_000, 12_345])
    audio, targets = workload.synthetic_audio(lengths), workload.targets(lengths)
    buckets = workload.buckets_for(lengths, targets, workload.base_architecture(), num_buckets=1)
    source = pipeline.BatchSource(audio, targets, buckets, on_device=True)
    (planned,) = pipeline.plan_epoch(range(3), buckets, seed=0, epoch=0)
    ours = np.asarray(pipeline.InStep(source).side(planned)())[:3, :16_000]
    theirs = pipeline.Theirs(audio)
    for side in (theirs.from_arrays, theirs.from_lists, theirs.from_prepared):
        np.testing.assert_allclose(ours, side(planned).numpy(), atol=2e-5)


def test_memory(run):
    result, table = run("memory", *TINY, "--seconds", "0.5", "--batch-size", "2", "--variants", "plain")
    (row,) = result["megabytes"]
    assert row["variant"] == "plain"
    assert min(row[kind] for kind in ("temporary", "arguments", "output", "alias")) > 0
    assert row["alias"] <= row["output"]
    total = row["arguments"] + row["output"] - row["alias"] + row["temporary"]
    assert row["total"] == pytest.approx(total, abs=0.3)
    assert "| plain | 0.5 s |" in table


@pytest.mark.slow
def test_memory_of_every_variant(run):
    result, _ = run("memory", *TINY, "--seconds", "0.5", "2", "--batch-size", "2")
    rows = {(row["variant"], row["bound_seconds"]): row for row in result["megabytes"]}
    assert len(rows) == 2 * 6
    for (variant, seconds), row in rows.items():
        if seconds == 2:
            assert row["total"] > rows[variant, 0.5]["total"]
    # Frozen parameters have no moments.
    assert rows["LoRA, rank 8", 2]["arguments"] < rows["plain", 2]["arguments"]
    assert rows["bfloat16 moments", 2]["arguments"] < rows["plain", 2]["arguments"]
    assert rows["frozen feature encoder", 2]["temporary"] < rows["plain", 2]["temporary"]


def test_population(run):
    result, table = run(
        "population", *TINY, "--seconds", "0.5", "--batch-size", "2", "--members", "2", "--repeats", "1"
    )
    (row,) = result["populations"]
    assert row["members"] == 2
    assert all(0 < row[side]["min_ms"] <= row[side]["median_ms"] for side in ("alone", "together"))
    assert row["speedup"] == pytest.approx(row["alone"]["median_ms"] / row["together"]["median_ms"], abs=1e-3)
    assert row["megabytes"]["together"] > row["megabytes"]["alone"] > 0
    # Folds of one size differ by a batch or two in a bucket, so that hardly any turn is missed.
    assert 1 <= result["turns_per_step"]["2"] < 1.05
    assert "| 0.5 s | 2 |" in table


def test_protocol(run, few):
    settings = ("--num-buckets", "1", "--utterances", "12", "--repeats", "2", "--slice-steps", "3")
    result, table = run("protocol", *TINY, "--lengths", few, *settings)
    (bucket,) = result["buckets"]
    # 27 of 30 utterances are trained on in batches of 8, and 3 evaluated in one.
    assert bucket["train_steps_per_epoch"] == 4
    assert bucket["evaluation_steps_per_epoch"] == 1
    assert bucket["share_of_training"] == 1
    assert result["steps"] == 10 * 100 * 4
    hours = result["hours"]
    assert hours["training"] == pytest.approx(1_000 * 4 * bucket["train"]["median_ms"] / 3.6e6, abs=1e-3)
    assert hours["total"] == pytest.approx(hours["training"] + hours["evaluation"], abs=2e-3)
    assert result["slice"]["steps"] == 3
    assert result["slice"]["steps_of_buckets"] == [3]
    assert result["slice"]["measured_seconds"] > 0
    assert f"**{hours['total']} h**" in table


@pytest.mark.slow
def test_compile_time(run):
    before = jax.config.values["jax_compilation_cache_dir"]
    result, table = run("compile_time", *TINY, "--seconds", "0.5", "1", "--batch-size", "2")
    assert jax.config.values["jax_compilation_cache_dir"] == before
    assert result["programs"] == len(result["seconds"]) == 2 * 2
    assert result["cache_megabytes"] > 0
    assert result["read_from_cache"] == 4
    for row in result["seconds"]:
        assert all(row[how] > 0 for how in ("alone", "cold", "cached"))
    assert set(result["total_seconds"]) == {"alone", "cold", "cached"}
    assert "| train | 0.5 s |" in table


@pytest.mark.slow
def test_training_against_pytorch(run, few):
    result, table = run("train_step", "--preset", "smoke", "--encoder", "small", "--lengths", few)
    assert result["settings"]["tuned_precision"] in {"float32", "bfloat16"}
    ours = result["epoch"][f"ours {result['settings']['tuned_precision']}"]
    for name, level in (("paper", "L0"), ("tuned", "L1"), ("best", "L2")):
        side = result["epoch"][level]
        assert side["padded_over_true_samples"] >= 1
        speedup = ours["utterances_per_second"] / side["utterances_per_second"]
        assert result[f"speedup_vs_{name}_reference"] == pytest.approx(speedup, rel=1e-2)
    for name, side in result["step_without_padding"]["sides"].items():
        measured = {"forward"} if name.endswith("weights") else {"step"} if "compiled" in name else {"step", "forward"}
        assert set(side) == measured, name
        assert all(0 < times["min_ms"] <= times["median_ms"] for times in side.values())
    assert "| L1 |" in table


@pytest.mark.parametrize(("count", "expected"), [(16, [0, 1, 2, 3]), (4, [0, 1, 2, 3]), (2, [1, 3]), (1, [2])])
def test_what_is_measured_is_spread_over_all_batches(workload, count, expected):
    assert importlib.import_module("sides").evenly([3, 1, 0, 2], lambda batch: batch, count) == expected


@pytest.mark.parametrize("share", ["0/5", "6/5", "2", "a/b", "1/0"])
def test_a_share_of_the_programs_that_does_not_exist_is_refused(workload, capsys, share):
    with pytest.raises(SystemExit):
        importlib.import_module("train_step").main(["--preset", "smoke", "--compile-only", share])
    assert f"{share!r} is not I/N with I from 1 to N" in capsys.readouterr().err


@pytest.mark.slow
def test_inference_against_pytorch(run, few):
    result, table = run("inference", "--preset", "smoke", "--encoder", "small", "--lengths", few)
    for row in result["latency"]:
        assert row["gflop"] > 0
        assert all(side["median_ms"] > 0 for side in row["sides"].values())
    for side in result["throughput"].values():
        assert side["utterances_per_second"] == pytest.approx(16 / (side["median_ms"] / 1e3), rel=0.02)
    assert "| PyTorch eager float32 |" in table
