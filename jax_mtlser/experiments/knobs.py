"""From a configuration to the numbers that a compiled step takes: changing those compiles nothing."""

import dataclasses
from typing import Any

import numpy as np

from jax_mtlser.config import Config, HeadMode, OptimizerConfig, TaskWeights, WeightingMethod
from jax_mtlser.training.optimizer import Rates
from jax_mtlser.training.step import Knobs, Reversal
from jax_mtlser.training.weighting import LEARNING_RATES, WeightingKnobs

__all__ = ["compiled_in", "knobs"]


def knobs(config: Config, steps_per_epoch: int, total_steps: int) -> Knobs:
    """The knobs of a training, on the host."""
    weights = config.weights
    return Knobs(
        weights=np.array([1.0, weights.alpha, weights.beta, weights.gamma], np.float32),  # type: ignore[arg-type]
        rates=_rates(config.optimizer, total_steps),
        weighting=_weighting_knobs(weights, steps_per_epoch),
        reversal=_reversal(weights),
    )


def compiled_in(optimizer: OptimizerConfig) -> OptimizerConfig:
    """Without the settings that reach the step as knobs: to change those compiles nothing."""
    return dataclasses.replace(
        optimizer,
        learning_rate=0.0,
        head_learning_rate=None,
        layer_decay=1.0,
        warmup_fraction=0.0,
        heads_first_fraction=0.0,
    )


def _number(value: float) -> Any:
    return np.float32(value)


def _rates(optimizer: OptimizerConfig, total_steps: int) -> Rates:
    return Rates(
        encoder=_number(optimizer.learning_rate),
        heads=_number(optimizer.head_learning_rate or optimizer.learning_rate),
        layer_decay=_number(optimizer.layer_decay),
        warmup_steps=_number(round(optimizer.warmup_fraction * total_steps)),
        total_steps=_number(total_steps),
        encoder_start=_number(round(optimizer.heads_first_fraction * total_steps)),
    )


def _weighting_knobs(weights: TaskWeights, steps_per_epoch: int) -> WeightingKnobs | None:
    if weights.method is WeightingMethod.FIXED:
        return None
    rate = LEARNING_RATES.get(weights.method, 0.0) if weights.learning_rate is None else weights.learning_rate
    return WeightingKnobs(
        steps_per_epoch=np.int32(steps_per_epoch),  # type: ignore[arg-type]
        learning_rate=_number(rate),
        gradnorm_alpha=_number(weights.gradnorm_alpha),
        temperature=_number(weights.temperature),
        cagrad_c=_number(weights.cagrad_c),
        famo_decay=_number(weights.famo_decay),
    )


def _reversal(weights: TaskWeights) -> Reversal | None:
    modes = (HeadMode.AUXILIARY, weights.gender_mode, weights.speaker_mode, HeadMode.AUXILIARY)
    adversarial = np.array([mode is HeadMode.ADVERSARIAL for mode in modes])
    if not adversarial.any():
        return None
    return Reversal(adversarial=adversarial, strength=_number(weights.reversal_strength))  # type: ignore[arg-type]
