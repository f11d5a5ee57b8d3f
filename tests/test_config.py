"""Configurations: every file in configs/ is valid, and bad values are named with limit and fix."""

import dataclasses
import importlib.util
from pathlib import Path

import pytest

from jax_mtlser.config import (
    Config,
    ConfigError,
    CorpusConfig,
    CorpusKind,
    Freeze,
    HeadMode,
    LearningRateSchedule,
    ProtocolKind,
    Selection,
    WeightingMethod,
    from_dict,
    to_dict,
    validate,
)
from jax_mtlser.run_folder import read_json, write_json

FILES = sorted((Path(__file__).parents[1] / "configs").glob("*.py"))


def load(path: Path) -> Config:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config()


def demo() -> Config:
    return Config(name="test", corpus=CorpusConfig(kind=CorpusKind.DEMO))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_config_file_is_valid_says_its_command_and_survives_json(path, tmp_path):
    config = load(path)
    validate(config)
    assert f"python train.py --config configs/{path.name}" in path.read_text()
    write_json(tmp_path / "config.json", to_dict(config))
    assert from_dict(Config, read_json(tmp_path / "config.json")) == config


def test_ten_fold_is_the_papers_table_1():
    config = load(FILES[0].parent / "ten_fold.py")
    assert (config.optimizer.learning_rate, config.batching.batch_size, config.training.epochs) == (1e-5, 8, 100)
    assert (config.weights.alpha, config.weights.beta, config.weights.gamma) == (0.4, 0.6, 0.1)
    assert (config.protocol.folds, config.protocol.repeats) == (10, 10)
    assert config.model.encoder.freeze is Freeze.NOTHING


def test_a_copy_shares_nothing():
    config = demo()
    other = config.copy()
    other.optimizer.learning_rate = 1.0
    other.optimizer.schedule = LearningRateSchedule.COSINE
    assert config == demo()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "a/b", r"name is 'a/b'; it names the run folder"),
        ("optimizer.learning_rate", 0.0, r"optimizer.learning_rate is 0.0; it must be greater than 0"),
        ("optimizer.beta1", 1.0, r"optimizer.beta1 is 1.0; it must lie in \[0, 1\)"),
        ("weights.gamma", -1.0, r"weights.gamma is -1.0; it must be 0 or greater"),
        ("weights.alpha", float("nan"), r"weights.alpha is nan"),
        ("weights.temperature", 0.0, r"weights.temperature is 0.0; it must be greater than 0"),
        ("weights.learning_rate", -0.1, r"weights.learning_rate is -0.1; it must be greater than 0"),
        ("weights.cagrad_c", 1.0, r"weights.cagrad_c is 1.0; it must lie in \[0, 1\)"),
        ("weights.reversal_strength", -1.0, r"weights.reversal_strength is -1.0; it must be 0 or greater"),
        ("batching.batch_size", 0, r"batching.batch_size is 0"),
        ("batching.accumulation_steps", 3, r"batch_size 8 does not divide into .*accumulation_steps 3"),
        ("batching.batch_seconds", 10.0, r"below audio.max_seconds 35.0"),
        ("audio.min_seconds", 40.0, r"audio.min_seconds 40.0 is not below audio.max_seconds 35.0"),
        ("protocol.folds", 1, r"protocol.folds is 1; use 2 or more"),
        ("protocol.kind", ProtocolKind.GROUPED, r"protocol.group_column is empty"),
        ("protocol.only_folds", (10,), r"protocol.only_folds names \[10\]; indices run from 0 to 9"),
        ("protocol.only_repeats", (1,), r"protocol.only_repeats names \[1\]; indices run from 0 to 0"),
        ("protocol.kind", ProtocolKind.FIXED, r"protocol.split_column is empty"),
        ("protocol.kind", ProtocolKind.LISTS, r"protocol.fold_lists is empty"),
        ("protocol.mate_column", "session", r"mate_column is 'session', but protocol.kind is stratified"),
        ("protocol.filter_column", "improvised", r"filter_column is 'improvised' and filter_values is \(\)"),
        ("protocol.group_pattern", "(", r"group_pattern is '\(', no regular expression"),
        ("protocol.validation_fraction", 0.0, r"training.selection=last"),
        ("corpus.kind", CorpusKind.IEMOCAP, r"corpus.path is empty"),
        ("corpus.emotions", ("angry",), r"at least two different classes"),
        ("training.population", -1, r"training.population is -1; use 1 or more, or 0 for as many"),
        ("training.member_devices", 0, r"training.member_devices is 0; it must be 1 or greater"),
        ("training.member_devices", 4, r"population 1 does not divide over training.member_devices 4; .*population=4"),
        ("training.checkpoint_every_epochs", 0, r"training.checkpoint_every_epochs is 0"),
        ("training.checkpoint_every_epochs", 2, r"every_epochs is 2, but training.selection is best_validation"),
        ("training.data_devices", 3, r"batch_size 8 does not divide over training.data_devices 3"),
        ("model.encoder.hidden_dropout", 1.5, r"model.encoder.hidden_dropout is 1.5"),
    ],
)
def test_a_bad_value_is_named_with_its_limit(field, value, message):
    config = demo()
    *groups, name = field.split(".")
    target = config
    for group in groups:
        target = getattr(target, group)
    setattr(target, name, value)
    with pytest.raises(ConfigError, match=message):
        validate(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speaker_mode": HeadMode.ADVERSARIAL, "beta": 0.0}, r"speaker_mode is adversarial, but weights.beta is 0"),
        (
            {"method": WeightingMethod.DWA, "alpha": 0.0, "beta": 0.0, "gamma": 0.0},
            r"emotion is the only task to weigh",
        ),
        (
            {"method": WeightingMethod.CAGRAD, "alpha": 0.0, "gamma": 0.0, "speaker_mode": HeadMode.ADVERSARIAL},
            r"adversarial heads keep their weight",
        ),
    ],
)
def test_weights_that_do_not_go_together_are_refused(changes, message):
    config = demo()
    config.weights = dataclasses.replace(config.weights, **changes)
    with pytest.raises(ConfigError, match=message):
        validate(config)


def test_what_needs_a_trained_encoder_is_refused_without_one():
    config = demo()
    config.model.encoder.freeze = Freeze.ENCODER
    config.weights.method, config.weights.gender_mode = WeightingMethod.NASH_MTL, HeadMode.ADVERSARIAL
    with pytest.raises(ConfigError, match=r"method is nash_mtl, but model.encoder.freeze is encoder") as error:
        validate(config)
    assert "gender_mode is adversarial, but model.encoder.freeze is encoder" in str(error.value)
    config.model.encoder.lora_rank = 4
    validate(config)


def test_all_problems_are_told_at_once():
    config = demo()
    config.optimizer.learning_rate = -1.0
    config.training.epochs = 0
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert "learning_rate" in str(error.value)
    assert "epochs" in str(error.value)


def test_the_last_epoch_may_do_without_validation():
    config = demo()
    config.protocol.validation_fraction = 0.0
    config.training.selection = Selection.LAST
    validate(config)


def test_an_encoder_that_cannot_be_built_is_refused():
    config = demo()
    config.model.encoder.checkpoint = ""
    config.model.encoder.architecture.num_attention_heads = 7
    config.model.encoder.architecture.conv_dim = (512,)
    with pytest.raises(ConfigError, match=r"num_attention_heads 7") as error:
        validate(config)
    assert "need one per layer" in str(error.value)


def test_an_unknown_field_in_a_stored_config_is_named():
    with pytest.raises(ConfigError, match="Config has no field colour"):
        from_dict(Config, {**to_dict(demo()), "colour": "red"})
