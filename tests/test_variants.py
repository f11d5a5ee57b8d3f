"""Variants of a configuration: grids, what may vary, and errors that name the field."""

import pytest

from jax_mtlser.architecture import EncoderFamily
from jax_mtlser.config import (
    Config,
    ConfigError,
    CorpusConfig,
    CorpusKind,
    Freeze,
    Variant,
    from_dict,
    grid,
    to_dict,
    validate,
)
from jax_mtlser.run_folder import read_json, write_json


def demo(*variants: Variant) -> Config:
    return Config(name="test", corpus=CorpusConfig(kind=CorpusKind.DEMO), variants=variants)


def test_a_grid_names_each_crossing():
    variants = grid({"weights.alpha": (0.0, 0.4), "weights.gamma": (0.1, 1)})
    assert [v.name for v in variants] == ["alpha0_gamma0.1", "alpha0_gamma1", "alpha0.4_gamma0.1", "alpha0.4_gamma1"]
    assert variants[2].overrides == {"weights.alpha": 0.4, "weights.gamma": 0.1}


def test_a_variant_changes_its_fields_and_nothing_else():
    variant = Variant(
        name="a",
        overrides={
            "model.encoder.freeze": Freeze.FEATURE_ENCODER,
            "model.encoder.architecture.family": "wavlm",
            "model.encoder.architecture.conv_dim": [8, 8],
            "optimizer.head_learning_rate": 1e-3,
            "training.epochs": 3,
        },
    )
    config = demo(variant)
    own = config.under(variant)
    assert own.model.encoder.freeze is Freeze.FEATURE_ENCODER
    assert own.model.encoder.architecture.family is EncoderFamily.WAVLM
    assert own.model.encoder.architecture.conv_dim == (8, 8)
    assert own.optimizer.head_learning_rate == 1e-3
    assert (own.training.epochs, config.training.epochs) == (3, 100)
    assert own.variants == ()
    expected = demo()
    assert config.under(None) == expected


def test_variants_survive_json(tmp_path):
    config = demo(
        Variant(name="a", overrides={"model.encoder.freeze": Freeze.ENCODER, "optimizer.clip_norm": None}),
        Variant(name="b", overrides={"model.encoder.architecture.conv_stride": (5, 4)}),
    )
    write_json(tmp_path / "config.json", to_dict(config))
    assert from_dict(Config, read_json(tmp_path / "config.json")) == config
    assert config.copy() == config
    assert config.copy().variants[0] is not config.variants[0]


@pytest.mark.parametrize(
    ("variant", "message"),
    [
        (Variant(name="a", overrides={"weights.alfa": 1.0}), r"\(a\): weights.alfa: there is no setting 'alfa'; .*alpha"),
        (Variant(name="a", overrides={"weights.alpha.x": 1.0}), "there is no setting 'x'"),
        (Variant(name="a", overrides={"model.encoder": 1.0}), "model.encoder is a group of settings; name one of"),
        (Variant(name="a", overrides={"corpus.path": "x"}), "corpus.path cannot vary within an experiment; what can is"),
        (Variant(name="a", overrides={"protocol.folds": 3}), "protocol.folds cannot vary"),
        (Variant(name="a", overrides={"training.seed": 3}), "training.seed cannot vary: .* use --config.protocol.repeats"),
        (Variant(name="a", overrides={"weights.alpha": "much"}), "weights.alpha is 'much'; it must be a number"),
        (Variant(name="a", overrides={"training.epochs": 1.5}), "training.epochs is 1.5; it must be a whole number"),
        (Variant(name="a", overrides={"training.epochs": True}), "training.epochs is True; it must be a whole number"),
        (Variant(name="a", overrides={"training.plain": 1}), "training.plain is 1; it must be True or False"),
        (Variant(name="a", overrides={"model.encoder.freeze": "half"}), "is 'half'; it must be one of nothing, feature"),
        (Variant(name="a", overrides={"optimizer.clip_norm": "no"}), "it must be a number or None"),
        (Variant(name="a/b", overrides={}), r"variants\[0\].name is 'a/b'; it begins folder names"),
        (Variant(name="", overrides={}), "name is ''"),
        (Variant(name="a", overrides={"weights.alpha": -1.0}), r"variants\[0\] \(a\): weights.alpha is -1.0; it must be 0"),
    ],
)  # fmt: skip
def test_a_variant_that_cannot_be_trained_is_named_with_its_field(variant, message):
    with pytest.raises(ConfigError, match=message):
        validate(demo(variant))


def test_two_variants_of_one_name_are_refused_and_other_types_too():
    with pytest.raises(ConfigError, match="'a' is given twice"):
        validate(demo(Variant(name="a", overrides={}), Variant(name="a", overrides={"weights.alpha": 0.1})))
    config = demo()
    config.variants = ("alpha0",)  # type: ignore[assignment]
    with pytest.raises(ConfigError, match=r"variants\[0\] is 'alpha0'; use Variant"):
        validate(config)


def test_problems_of_the_whole_are_told_once():
    config = demo(*grid({"weights.alpha": (0.0, 1.0)}))
    config.training.epochs = 0
    with pytest.raises(ConfigError) as error:
        validate(config)
    assert str(error.value).count("training.epochs is 0") == 1
