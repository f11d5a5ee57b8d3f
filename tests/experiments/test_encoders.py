"""Runs on pre-trained encoders: what is loaded, what stays frozen, what is refused, what is not reported."""

import contextlib
import functools
import io
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from rich.console import Console
from tiny import saved_parameters, tiny_config, write_corpus

from jax_mtlser import cli
from jax_mtlser.architecture import WhisperArchitecture
from jax_mtlser.config import Config, ConfigError, Freeze, HeadInput, HeadStart, Residency, Selection, WeightingMethod
from jax_mtlser.corpora.manifest import read_manifest
from jax_mtlser.evaluation.predictions import read_predictions
from jax_mtlser.experiments import experiment
from jax_mtlser.experiments.runner import evaluate_run, train_run
from jax_mtlser.models.layer_norm import standardised
from jax_mtlser.models.pretrained import encoder_parameters, export_encoder
from jax_mtlser.models.speech_encoder import speech_encoder
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.run_folder import RunFolder, read_json, read_json_lines
from jax_mtlser.training.checkpoint import load_model_description
from jax_mtlser.training.progress import Display
from jax_mtlser.training.regression import fit_heads, logistic_regression

ARCH = WhisperArchitecture(
    hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, num_mel_bins=8,
    max_source_positions=60,
)  # fmt: skip


def display() -> Display:
    return Display(Console(file=io.StringIO(), width=120))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("tones"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    module = speech_encoder(ARCH, EncoderOptions())
    audio, lengths = jnp.zeros((1, 3200)), jnp.array([3200])
    params = jax.jit(lambda key: module.init(key, audio, lengths, train=False)["params"])(jax.random.key(3))
    folder = tmp_path_factory.mktemp("whisper")
    export_encoder(folder, params, ARCH, normalize_waveform=False)
    return folder


def _config(corpus: Path, checkpoint: Path) -> Config:
    config = tiny_config(corpus, epochs=1)
    config.model.encoder.checkpoint = str(checkpoint)
    config.audio.max_seconds = 1.0
    config.protocol.only_folds = (0,)
    return config


@pytest.mark.slow
def test_adapters_on_a_frozen_whisper_train_judge_the_same_again_and_are_exported(corpus, checkpoint, tmp_path, capsys):
    config = _config(corpus, checkpoint)
    encoder = config.model.encoder
    encoder.freeze, encoder.lora_rank, encoder.remat, encoder.scan_layers = Freeze.ENCODER, 2, True, True
    config.model.head_input = HeadInput.WEIGHTED_SUM
    config.optimizer.layer_decay = 0.5
    run = RunFolder(tmp_path / "run")
    assert train_run(config, run.path, display()) == 0
    pooled = read_json(run.results)["pooled"]
    assert all(value is not None for value in pooled.values())
    model = run.member("r0_f0").model
    description = load_model_description(model)
    assert description["architecture"]["family"] == "whisper"
    assert description["normalize_waveform"] is False
    assert description["head_input"] == "weighted_sum"
    assert description["lora"] == {"rank": 2, "alpha": 16.0}
    assert evaluate_run(run.path, display()) == []

    exported = tmp_path / "exported"
    command = ["jax-mtlser", "export", f"--workdir={run.path}", f"--to={exported}"]
    assert cli.main(command) == 0
    assert "whisper encoder, 2 layers" in capsys.readouterr().out
    tensors, _ = encoder_parameters(exported / "model.safetensors", ARCH)
    original, _ = encoder_parameters(checkpoint / "model.safetensors", ARCH)
    params = saved_parameters(run.path)["encoder"]
    for (path, merged), before in zip(
        jax.tree_util.tree_leaves_with_path(tensors), jax.tree.leaves(original), strict=True
    ):
        place = functools.reduce(lambda node, entry: node[entry.key], path[:-1], params)
        if path[-1].key == "kernel" and "lora_up" in place:
            before = before + 8.0 * place["lora_down"] @ place["lora_up"]
            assert place["lora_up"].any()
        np.testing.assert_allclose(merged, before, atol=1e-6)
    assert cli.main(command) == 2
    assert "is not empty" in capsys.readouterr().err
    assert cli.main([*command[:2], f"--workdir={tmp_path}/none", f"--to={tmp_path}/other"]) == 1
    assert "has no finished member" in capsys.readouterr().err
    assert cli.main([*command[:3], "--member=r9_f9", f"--to={tmp_path}/other"]) == 1
    assert "no finished member 'r9_f9'; there are r0_f0" in capsys.readouterr().err


def test_what_is_frozen_keeps_the_checkpoint_s_weights(corpus, checkpoint, tmp_path):
    config = _config(corpus, checkpoint)
    config.model.encoder.freeze, config.model.encoder.freeze_layers = Freeze.LAYERS, 1
    run = RunFolder(tmp_path / "run")
    assert train_run(config, run.path, display()) == 0
    loaded, _ = encoder_parameters(checkpoint / "model.safetensors", ARCH)
    saved = saved_parameters(run.path)["encoder"]
    for part in (("positions",), ("feature_encoder",), ("transformer", "layer_0")):
        one, other = loaded, saved
        for name in part:
            one, other = one[name], other[name]
        jax.tree.map(np.testing.assert_array_equal, one, other)
    assert not np.array_equal(
        loaded["transformer"]["layer_1"]["feed_forward"]["output"]["kernel"],
        saved["transformer"]["layer_1"]["feed_forward"]["output"]["kernel"],
    )


@pytest.mark.parametrize("head_input", [HeadInput.LAST, pytest.param(HeadInput.WEIGHTED_SUM, marks=pytest.mark.slow)])
def test_a_frozen_encoder_is_heard_once_and_the_run_is_the_same(corpus, checkpoint, tmp_path, monkeypatch, head_input):
    computed = []
    original = experiment.frozen_corpus
    monkeypatch.setattr(experiment, "frozen_corpus", lambda *args: computed.append(1) or original(*args))
    found = {}
    for kept in (True, False):
        config = _config(corpus, checkpoint)
        config.model.encoder.freeze, config.model.head_input = Freeze.ENCODER, head_input
        config.protocol.only_folds = ()
        config.batching.keep_frozen = kept
        run = RunFolder(tmp_path / str(kept))
        assert train_run(config, run.path, display()) == 0
        rows = read_predictions(run.member("r0_f1").predictions)
        found[kept] = {row.id: row for row in rows}
    assert computed == [1]  # once for both folds, and not at all where it was not wanted
    assert found[True].keys() == found[False].keys()
    for name, row in found[True].items():
        np.testing.assert_allclose(
            row.emotion_probabilities, found[False][name].emotion_probabilities, atol=1e-5, err_msg=name
        )
    # Judged again from the saved models, on samples.
    before = read_json(run.results)["pooled"]
    evaluate_run(RunFolder(tmp_path / "True").path, display())
    assert read_json(RunFolder(tmp_path / "True").results)["pooled"]["wa"] == before["wa"]


def test_frames_are_kept_only_where_they_fit_and_come_from_a_checkpoint(corpus, checkpoint, monkeypatch):
    def kept(**changes):
        config = _config(corpus, checkpoint)
        config.model.encoder.freeze = Freeze.ENCODER
        for name, value in changes.items():
            setattr(config.batching if name == "residency" else config.model.encoder, name, value)
        return experiment.Experiment.load(config, display()).kept

    assert kept() is not None
    assert kept(residency=Residency.HOST) is None
    assert kept(freeze=Freeze.NOTHING) is None
    assert kept(frequency_warp=0.1) is None
    assert kept(checkpoint="") is None
    monkeypatch.setattr("jax_mtlser.experiments.kept_frames.fits_on_device", lambda entries, each: False)
    assert kept() is None


@pytest.mark.parametrize("head_input", [pytest.param(HeadInput.LAST, marks=pytest.mark.slow), HeadInput.WEIGHTED_SUM])
def test_without_epochs_a_run_is_a_regression_on_what_the_checkpoint_hears(corpus, checkpoint, tmp_path, head_input):
    config = _config(corpus, checkpoint)
    config.model.head_start, config.model.head_input, config.training.epochs = HeadStart.REGRESSION, head_input, 0
    config.protocol.only_folds, config.protocol.validation_fraction = (), 0.0
    config.training.selection, config.training.population = Selection.LAST, 2
    run, text = RunFolder(tmp_path / "run"), io.StringIO()
    assert train_run(config, run.path, Display(Console(file=text, width=200))) == 0, text.getvalue()
    assert text.getvalue().count("heads start at a regression") == 2
    assert evaluate_run(run.path, display()) == []
    assert (run.path / "report" / "index.html").exists()

    loaded, _ = encoder_parameters(checkpoint / "model.safetensors", ARCH)
    manifest = read_manifest(corpus)
    module = speech_encoder(ARCH, EncoderOptions())

    @jax.jit
    def encoded(audio, length):
        output = module.apply({"params": loaded}, audio[None], length[None], train=False, output_hidden_states=True)
        layers = [output.frames[0]]
        if head_input is HeadInput.WEIGHTED_SUM:
            layers = [standardised(layer[0]) for layer in (*output.hidden_states[:-1], output.frames)]
        return layers, output.lengths[0]

    def pooled_frames(path: Path) -> np.ndarray:
        samples = soundfile.read(path, dtype="float32")[0]
        layers, frames = encoded(np.pad(samples, (0, 16_000 - len(samples))), np.int32(len(samples)))
        return np.mean([np.mean(layer[:frames], axis=0) for layer in layers], axis=0)

    x = {utterance.id: pooled_frames(utterance.path) for utterance in manifest.utterances}
    for fold in (0, 1):
        member = run.member(f"r0_f{fold}")
        params = saved_parameters(run.path, member.path.name)
        jax.tree.map(np.testing.assert_array_equal, params["encoder"], loaded)
        tested = {prediction.id: prediction for prediction in read_predictions(member.predictions)}
        train = [utterance for utterance in manifest.utterances if utterance.id not in tested]
        classes = load_model_description(member.model)["labels"]["emotion"]
        labels = np.array([classes.index(utterance.emotion) for utterance in train])
        kernel, bias = logistic_regression(np.stack([x[u.id] for u in train]), labels, len(classes), c=0.1)
        for name, prediction in tested.items():
            logits = x[name] @ kernel + bias
            expected = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(prediction.emotion_probabilities, expected, atol=2e-3)


def test_a_regression_for_an_encoder_that_warps_frequencies_hears_warped_copies(
    corpus, checkpoint, tmp_path, monkeypatch
):
    fitted, counted = [], {}

    @contextlib.contextmanager
    def counting(self, title):
        yield lambda done, total: counted.update({title: (done, total)})

    monkeypatch.setattr(Display, "counting", counting)

    def fit(pooled, *arguments, **keywords):
        fitted.append(pooled)
        return fit_heads(pooled, *arguments, **keywords)

    monkeypatch.setattr("jax_mtlser.experiments.initial_weights.fit_heads", fit)
    config = _config(corpus, checkpoint)
    config.model.head_start, config.model.encoder.frequency_warp = HeadStart.REGRESSION, 0.2
    config.model.encoder.freeze, config.training.epochs, config.training.selection = Freeze.ENCODER, 0, Selection.LAST
    config.protocol.only_folds, config.protocol.validation_fraction = (), 0.0
    run = RunFolder(tmp_path / "run")
    assert train_run(config, run.path, display()) == 0
    assert evaluate_run(run.path, display()) == []
    assert counted["hearing"] == (30, 30)
    assert counted["compiling"] == (1, 1)
    assert counted["hearing, warped (4 of 4)"] == (30, 30)
    assert counted["r0_f1: test"] == (15, 15)
    first, second = fitted
    assert first is second, "all folds hear the same copies"
    assert len(first) == 5
    for one, other in itertools.combinations(first, 2):
        moved = np.abs(one - other).max(axis=1)
        assert 0 < np.median(moved) < np.std(one), "another voice, not another corpus"


@pytest.mark.parametrize(
    "changes",
    [
        {"model.encoder.freeze": Freeze.NOTHING},
        pytest.param({"model.encoder.freeze": Freeze.ENCODER}, marks=pytest.mark.slow),
        pytest.param({"weights.method": WeightingMethod.GRADNORM}, marks=pytest.mark.slow),
    ],
    ids=lambda changes: "-".join(str(value) for value in changes.values()),
)
def test_training_hears_warped_frequencies_whatever_learns(corpus, checkpoint, tmp_path, changes):
    losses = {}
    without = [None] if changes.get("model.encoder.freeze") is Freeze.NOTHING else []  # equal for one is equal for all
    for warp in (*without, 0.0, 0.2):
        config = _config(corpus, checkpoint)
        config.model.encoder.frequency_warp, config.training.log_every_steps = warp, 1
        for name, value in changes.items():
            group, _, field = name.rpartition(".")
            setattr(functools.reduce(getattr, group.split("."), config), field, value)
        run = RunFolder(tmp_path / str(warp))
        assert train_run(config, run.path, display()) == 0
        lines = read_json_lines(run.member("r0_f0").metrics)
        losses[warp] = [line["loss"] for line in lines if line["kind"] == "train"]
    assert all(losses[warp] == losses[0.0] for warp in without)
    assert losses[0.2][0] != losses[0.0][0]


def test_training_goes_on_from_the_regression(corpus, checkpoint, tmp_path):
    losses = {}
    for start in HeadStart:
        config = _config(corpus, checkpoint)
        config.model.head_start, config.training.log_every_steps = start, 1
        config.optimizer.learning_rate = 1e-9
        run = RunFolder(tmp_path / start.value)
        assert train_run(config, run.path, display()) == 0
        lines = read_json_lines(run.member("r0_f0").metrics)
        losses[start] = [line["loss_speaker"] for line in lines if line["kind"] == "train"]
    assert max(losses[HeadStart.REGRESSION]) < min(losses[HeadStart.RANDOM])


def test_a_regression_on_one_class_is_refused(checkpoint, tmp_path):
    corpus = write_corpus(tmp_path, emotion=None, gender=None, speaker=None)
    config = _config(corpus, checkpoint)
    config.model.head_start = HeadStart.REGRESSION
    text = io.StringIO()
    assert train_run(config, tmp_path / "run", Display(Console(file=text, width=300))) != 0
    assert "no task with a weight has labels of two classes in the training part" in text.getvalue()


def test_no_epochs_and_random_heads_are_refused(corpus, checkpoint, tmp_path):
    config = _config(corpus, checkpoint)
    config.training.epochs = 0
    with pytest.raises(ConfigError, match=r"training.epochs is 0; .*--config.model.head_start=regression"):
        train_run(config, tmp_path / "run", display())


def test_more_audio_than_the_encoder_takes_is_refused_before_decoding(corpus, checkpoint, tmp_path):
    config = _config(corpus, checkpoint)
    config.audio.max_seconds = 35.0
    with pytest.raises(ConfigError, match=r"audio.max_seconds is 35.0; this whisper encoder takes at most 1.2 s") as e:
        train_run(config, tmp_path / "run", display())
    assert "--config.audio.max_seconds=1.2" in str(e.value)


def test_a_task_without_weight_is_not_reported(corpus, tmp_path):
    """Its head is never trained, so that its guesses would pass for results."""
    config = tiny_config(corpus, epochs=1)
    config.weights.alpha = config.weights.gamma = 0.0
    config.protocol.only_folds = (0,)
    run = RunFolder(tmp_path / "run")
    assert train_run(config, run.path, display()) == 0
    pooled = read_json(run.results)["pooled"]
    assert pooled["gender_accuracy"] is None
    assert pooled["wer"] is None
    assert pooled["wa"] is not None
    assert pooled["speaker_accuracy"] is not None
    predictions = list(read_predictions(run.member("r0_f0").predictions))
    assert all(p.gender_predicted is None and p.text_predicted is None for p in predictions)
    assert evaluate_run(run.path, display()) == []
