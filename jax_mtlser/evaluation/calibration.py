"""How far a model's probabilities can be believed, and the temperature that mends them.

A temperature T divides the logits before the softmax. Log-probabilities differ from logits by one constant per
utterance, which the softmax takes out again, so the probabilities in ``predictions.csv`` are all that is needed.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, special

from jax_mtlser.evaluation.predictions import Prediction

__all__ = ["BINS", "MemberCalibration", "Temperature", "Trust", "calibrate_member", "fit_temperature", "trust_of"]

BINS = 15
# Beyond these a temperature says that there was nothing to fit it by.
_LOWEST, _HIGHEST = 0.05, 20.0
# A temperature from fewer is mostly noise, and makes probabilities worse as often as better.
_FEWEST = 50
# Softmax in float32 rounds small probabilities to 0; the logarithm takes them for the smallest normal number.
_SMALLEST = float(np.finfo(np.float32).tiny)


@dataclasses.dataclass(frozen=True, eq=False)
class Trust:
    """What calibration is judged by, one entry per utterance; parts of several members can be added.

    Attributes:
        confidence: probability of the predicted class.
        correct: 1 where it is the reference.
        surprise: minus the logarithm of the reference's probability.
        brier: sum over classes of the squared distance to the reference (0 to 2; Brier 1950).
    """

    confidence: Float[np.ndarray, " N"]
    correct: Float[np.ndarray, " N"]
    surprise: Float[np.ndarray, " N"]
    brier: Float[np.ndarray, " N"]

    def __add__(self, other: "Trust") -> "Trust":
        pairs = ((getattr(self, f.name), getattr(other, f.name)) for f in dataclasses.fields(self))
        return Trust(*(np.concatenate(pair) for pair in pairs))

    @property
    def expected_calibration_error(self) -> float:
        """Mean distance of accuracy and confidence over :data:`BINS` equal bins, weighted by their utterances.

        Naeini et al. 2015; Guo et al. 2017. A bin holds confidences above its lower bound up to its upper bound.
        """
        bins = np.clip(np.ceil(self.confidence * BINS).astype(int) - 1, 0, BINS - 1)
        gaps = np.bincount(bins, self.correct - self.confidence, BINS)
        return float(np.abs(gaps).sum() / len(bins))

    def summary(self) -> dict[str, float | int | None]:
        """``count, ece, brier, nll`` (in nats); None without utterances."""
        count = len(self.correct)
        return {
            "count": count,
            "ece": self.expected_calibration_error if count else None,
            "brier": float(self.brier.mean()) if count else None,
            "nll": float(self.surprise.mean()) if count else None,
        }


@dataclasses.dataclass(frozen=True)
class Temperature:
    """A fitted temperature.

    Attributes:
        value: above 1: the model was too sure; None where none could be fitted.
        reason: why there is none.
    """

    value: float | None
    reason: str | None = None


@dataclasses.dataclass(frozen=True, eq=False)
class MemberCalibration:
    """A member's temperature of emotion, and its probabilities before and after.

    Attributes:
        temperature: fitted on the validation part.
        validation: before.
        test: before.
        test_after: with the temperature, or as they are where there is none.
    """

    temperature: Temperature
    validation: Trust
    test: Trust
    test_after: Trust

    def record(self) -> dict[str, Any]:
        """For ``result.json``; inference reads ``temperature``."""
        return {
            "temperature": self.temperature.value,
            "reason": self.temperature.reason,
            "validation": self.validation.summary(),
            "test": self.test.summary(),
            "test_after": self.test_after.summary() if self.temperature.value else None,
        }


def trust_of(
    log_probabilities: Float[np.ndarray, "N C"], reference: Int[np.ndarray, " N"], temperature: float = 1.0
) -> Trust:
    """What calibration is judged by, with logits divided by a temperature.

    Args:
        log_probabilities: or logits.
        reference: class numbers.
        temperature: 1 leaves probabilities as they are.
    """
    logs = special.log_softmax(log_probabilities / temperature, axis=1)
    shares = np.exp(logs)
    rows = np.arange(len(reference))
    truth = np.zeros_like(shares)
    truth[rows, reference] = 1
    return Trust(
        confidence=shares.max(axis=1),
        correct=(shares.argmax(axis=1) == reference).astype(float),
        surprise=-logs[rows, reference],
        brier=((shares - truth) ** 2).sum(axis=1),
    )


def fit_temperature(log_probabilities: Float[np.ndarray, "N C"], reference: Int[np.ndarray, " N"]) -> Temperature:
    """The temperature with the smallest negative log-likelihood (Guo et al. 2017).

    In 1 / T the likelihood is convex, so its one minimum lies where the slope is 0. There is none where every
    utterance is right (the surer the better) or where being wrong has no pattern (the less sure the better), and none
    is given from fewer than 50 utterances.

    Args:
        log_probabilities: or logits, of a part that was not trained on.
        reference: class numbers.
    """
    if len(reference) < _FEWEST:
        count = len(reference) or "no"
        return Temperature(None, f"{count} labelled utterances in the validation part, fewer than {_FEWEST}")
    rows = np.arange(len(reference))

    def slope(inverse: float) -> float:
        shares = special.softmax(inverse * log_probabilities, axis=1)
        return float(((shares * log_probabilities).sum(axis=1) - log_probabilities[rows, reference]).mean())

    if slope(1 / _HIGHEST) >= 0:
        return Temperature(None, "on the validation part the probabilities tell no more than chance")
    if slope(1 / _LOWEST) <= 0:
        return Temperature(None, "the model is right on the whole validation part, or nearly so: no error to fit it by")
    return Temperature(1 / float(optimize.brentq(slope, 1 / _HIGHEST, 1 / _LOWEST, xtol=1e-12)))


def calibrate_member(rows: Iterable[Prediction], classes: Sequence[str]) -> MemberCalibration | None:
    """Fit a member's temperature on its validation predictions and apply it to its test predictions.

    Utterances without an emotion, or with one that is no class of the model, are left out.

    Args:
        rows: a member's predictions.
        classes: emotions in the order of the probabilities.

    Returns:
        None without an emotion head.
    """
    judged = [row for row in rows if row.emotion_predicted is not None]
    if not judged:
        return None
    place = {name: number for number, name in enumerate(classes)}

    def part(name: str) -> tuple[np.ndarray, np.ndarray]:
        own = [row for row in judged if row.part == name and row.emotion in place]
        shares = np.array([row.emotion_probabilities for row in own], float).reshape(len(own), len(classes))
        return np.log(np.maximum(shares, _SMALLEST)), np.array([place[row.emotion or ""] for row in own], int)

    validation, test = part("validation"), part("test")
    temperature = fit_temperature(*validation)
    before = trust_of(*test)
    after = trust_of(*test, temperature.value) if temperature.value else before
    return MemberCalibration(temperature, trust_of(*validation), before, after)
