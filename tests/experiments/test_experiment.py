"""An experiment with variants in one process: what is shared, what is kept apart, what a failure leaves."""

import io
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from tiny import saved_parameters, tiny_config, write_corpus

from jax_mtlser.config import Config, ConfigError, Variant, grid
from jax_mtlser.experiments.claims import Claims
from jax_mtlser.experiments.experiment import Experiment
from jax_mtlser.experiments.runner import RunError, evaluate_run, train_run
from jax_mtlser.run_folder import RunFolder, read_json
from jax_mtlser.training import trainee
from jax_mtlser.training.progress import Display


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=200))


def shown(display: Display) -> str:
    return display.console.file.getvalue()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


def experiment_config(corpus: Path) -> Config:
    """What is traced (weights, rates) varies beside what is compiled in (the encoder's family)."""
    config = tiny_config(corpus, epochs=1)
    config.variants = (
        *grid({"weights.alpha": (0.0, 0.9)}),
        Variant(name="fast", overrides={"optimizer.learning_rate": 3e-3, "optimizer.layer_decay": 0.9}),
        Variant(name="hubert", overrides={"model.encoder.architecture.family": "hubert"}),
    )
    return config


@pytest.fixture(scope="module")
def finished(corpus, tmp_path_factory) -> tuple[RunFolder, str]:
    run = RunFolder(tmp_path_factory.mktemp("runs") / "run")
    screen = display()
    assert train_run(experiment_config(corpus), run.path, screen) == 0
    return run, shown(screen)


def test_each_variant_has_results_of_its_own(finished):
    run, output = finished
    results = read_json(run.results)
    assert [entry["name"] for entry in results["variants"]] == ["alpha0", "alpha0.9", "fast", "hubert"]
    for entry in results["variants"]:
        assert [fold["name"] for fold in entry["folds"]] == [f"{entry['name']}_r0_f{fold}" for fold in range(2)]
        assert entry["repeats"]["complete"] == [0]
        assert sum(map(sum, entry["confusion"]["matrix"])) == 30
        assert (entry["pooled"]["gender_accuracy"] is None) == (entry["name"] == "alpha0")
        assert entry["name"] in output
    assert results["variants"][0]["overrides"] == {"weights.alpha": 0.0}
    assert results["missing"] == []
    page = (run.report / "index.html").read_text()
    assert "4 variants" in page
    assert "Best of 4" in page or "All 4 settings" in page


def test_only_what_is_compiled_in_compiles_anew(finished):
    _, output = finished
    # Two programs, for training and evaluation, of each family; weights and rates are traced.
    assert output.count("compiled 2 programs") == 2
    assert output.count("compiled") == 2
    assert output.index("hubert_r0_f0 epoch") > output.rindex("compiled 2 programs") > output.index("fast_r0_f1 epoch")


def test_a_variant_is_trained_as_a_run_of_its_own_would_be(finished, corpus, tmp_path):
    run, _ = finished
    config = tiny_config(corpus, epochs=1)
    config.weights.alpha = 0.9
    config.protocol.only_folds = (1,)
    assert train_run(config, tmp_path / "alone", display()) == 0
    alone = RunFolder(tmp_path / "alone").member("r0_f1")
    member = run.member("alpha0.9_r0_f1")
    assert read_json(member.result)["metrics"] == read_json(alone.result)["metrics"]
    one, other = saved_parameters(run.path, "alpha0.9_r0_f1"), saved_parameters(tmp_path / "alone", "r0_f1")
    jax.tree.map(np.testing.assert_array_equal, one, other)
    different = saved_parameters(run.path, "alpha0_r0_f1")
    assert not np.array_equal(one["emotion_head"]["logits"]["kernel"], different["emotion_head"]["logits"]["kernel"])


def test_evaluating_again_gives_each_variant_s_numbers_again_and_tells_which_one_differs(finished):
    run, _ = finished
    stored = run.results.read_text()
    assert evaluate_run(run.path, display()) == []
    assert run.results.read_text() == stored


def test_other_variants_are_not_mixed_into_a_run_folder(finished, corpus):
    run, _ = finished
    config = experiment_config(corpus)
    config.variants = (*config.variants[1:], Variant(name="alpha0", overrides={"weights.alpha": 0.1}))
    with pytest.raises(RunError, match=r"variants.alpha0.overrides.weights.alpha: 0.0 there, 0.1 now"):
        train_run(config, run.path, display())


def test_a_part_is_trained_now_and_the_rest_later(corpus, tmp_path):
    config = tiny_config(corpus, epochs=1)
    config.variants = grid({"weights.alpha": (0.0, 0.4)})
    run, screen = RunFolder(tmp_path / "run"), display()
    assert train_run(config, run.path, screen, members="2/4") == 0
    assert "1 of 4 members: 2/4" in shown(screen)
    results = read_json(run.results)
    assert results["missing"] == ["alpha0_r0_f0", "alpha0.4_r0_f0", "alpha0.4_r0_f1"]
    assert "1 of 4 trainings" in (run.report / "index.html").read_text()
    assert train_run(config, run.path, display(), members="alpha0_*,alpha0.4_r0_f1") == 0
    assert read_json(run.results)["missing"] == ["alpha0.4_r0_f0"]
    with pytest.raises(ConfigError, match="'beta' fits no member"):
        train_run(config, run.path, display(), members="beta")


def test_results_are_gathered_by_whoever_ends_last(finished, corpus):
    run, _ = finished
    claims = Claims(run.claims, stale_after=60)
    run.results.unlink()
    with claims.acquire("fast_r0_f0"):
        screen = display()
        assert train_run(experiment_config(corpus), run.path, screen) == 0
        assert "others are still at work and gather the results when they end: fast_r0_f0 (process" in shown(screen)
    assert not run.results.exists()
    # Somebody who gathers does not know yet what has been finished since: we gather after them.
    gathering = claims.acquire("results")
    assert gathering is not None
    threading.Timer(1.0, gathering.release).start()
    assert train_run(experiment_config(corpus), run.path, display(), stale_after=2.0) == 0
    assert len(read_json(run.results)["variants"]) == 4


def test_a_variant_that_cannot_train_leaves_the_others_alone(corpus, tmp_path):
    config = tiny_config(corpus, epochs=1)
    config.protocol.only_folds = (0,)
    config.variants = (
        Variant(name="wild", overrides={"optimizer.learning_rate": 1e38}),
        Variant(name="calm", overrides={}),
    )
    run, screen = RunFolder(tmp_path / "run"), display()
    assert train_run(config, run.path, screen) == 1
    assert "wild_r0_f0 failed: wild_r0_f0: loss or gradient is not finite" in shown(screen)
    assert "is not finite" in read_json(run.member("wild_r0_f0").failure)["error"]
    results = read_json(run.results)
    assert results["missing"] == ["wild_r0_f0"]
    assert [len(entry["folds"]) for entry in results["variants"]] == [0, 1]
    assert results["variants"][0]["pooled"]["wa"] is None


def test_every_missing_encoder_is_told_before_anything_is_trained(corpus, tmp_path):
    config = tiny_config(corpus, epochs=1)
    names = (f"{tmp_path}/one", f"{tmp_path}/two")
    config.variants = (
        Variant(name="random", overrides={}),
        *(Variant(name=Path(n).name, overrides={"model.encoder.checkpoint": n}) for n in names),
    )
    with pytest.raises(ConfigError) as error:
        train_run(config, tmp_path / "run", display())
    assert all(name in str(error.value) for name in names)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("hf_compat", [False, True])
def test_leftovers_join_longer_utterances_unless_padding_counts(corpus, hf_compat):
    config = tiny_config(corpus)
    config.model.encoder.hf_compat = hf_compat
    assert Experiment.load(config, display()).buckets.joins == (not hf_compat)


def test_a_validation_loss_that_is_not_finite_fails_the_member_at_once(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(trainee, "means", lambda losses: {"gender": float("nan")})
    config, screen = tiny_config(corpus), display()
    config.protocol.only_folds = (0,)
    assert train_run(config, tmp_path, screen) == 1
    assert "the validation part's loss is not finite after epoch 1 (losses: gender nan)" in " ".join(
        shown(screen).split()
    )
