"""Logistic regression on the encoder's means: the heads' start, and without training a probe."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Int
from scipy import optimize, special

from jax_mtlser.data.labels import MISSING, Targets
from jax_mtlser.models.multitask import UTTERANCE_TASKS

__all__ = ["fit_heads", "logistic_regression"]

_ITERATIONS = 500


def logistic_regression(
    x: Float[np.ndarray, "N D"], labels: Int[np.ndarray, " N"], classes: int, *, c: float
) -> tuple[Float32[np.ndarray, "D C"], Float32[np.ndarray, " C"]]:
    """Multinomial logistic regression with an L2 penalty, fitted on standardised ``x``.

    The objective is scikit-learn's: the sum of the cross-entropies, plus half the squared kernel divided by ``c``; the
    bias is not penalised. Dimensions that do not vary are left out.

    Args:
        x: finite.
        labels: all below ``classes``.
        classes: of the result; one that no label names gets a low bias.
        c: inverse strength of the penalty.

    Returns:
        Kernel and bias, for ``x`` as it is: the standardisation is part of them.
    """
    x = x.astype(np.float64)
    mean, deviation = x.mean(0), x.std(0)
    varies = deviation > 1e-7 * np.maximum(1.0, np.abs(mean))
    scale = np.where(varies, 1.0 / np.where(varies, deviation, 1.0), 0.0)
    z, count = (x - mean) * scale, len(x)
    wanted = np.eye(classes)[labels]

    def objective(flat: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = flat[:-classes].reshape(-1, classes), flat[-classes:]
        log_shares = special.log_softmax(z @ kernel + bias, axis=1)
        excess = np.exp(log_shares) - wanted
        loss = -np.sum(wanted * log_shares) + 0.5 * np.sum(kernel**2) / c
        gradient = np.concatenate([(z.T @ excess + kernel / c).ravel(), excess.sum(0)])
        return loss / count, gradient / count  # per utterance, so that the tolerance does not depend on their number

    start = np.zeros((z.shape[1] + 1) * classes)
    options = {"maxiter": _ITERATIONS, "gtol": 1e-6, "ftol": 1e-12}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x
    kernel = found[:-classes].reshape(-1, classes) * scale[:, None]
    return kernel.astype(np.float32), (found[-classes:] - mean @ kernel).astype(np.float32)


def fit_heads(
    pooled: Sequence[Float32[np.ndarray, "N D"]],
    targets: Targets,
    rows: Sequence[int],
    sizes: Mapping[str, int],
    *,
    c: float,
) -> dict[str, tuple[dict[str, Any], float]]:
    """Kernel and bias of each task's head, fitted on some utterances.

    Args:
        pooled: of every utterance of the corpus, as it is and in any number of altered copies.
        targets: their labels.
        rows: to fit on; those without a label are left out.
        sizes: classes by task.
        c: inverse strength of the penalty against the utterances, however many copies there are.

    Returns:
        By task, the parameters and the accuracy on the labels they were fitted on, of the utterances as they are;
        without those that less than two classes have labels for.
    """
    found, chosen = {}, np.asarray(rows)
    for task in UTTERANCE_TASKS:
        labels = getattr(targets, task)[chosen]
        known = labels != MISSING
        if task not in sizes or len(np.unique(labels[known])) < 2:
            continue
        copies = [x[chosen[known]] for x in pooled]
        every_label = np.tile(labels[known], len(copies))
        kernel, bias = logistic_regression(np.concatenate(copies), every_label, sizes[task], c=c / len(copies))
        right = np.argmax(copies[0] @ kernel + bias, axis=1) == labels[known]
        found[task] = ({"kernel": kernel, "bias": bias}, float(right.mean()))
    return found
