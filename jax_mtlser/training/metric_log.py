"""What a training reports about its steps, from the devices to ``metrics.jsonl`` and TensorBoard."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np

from jax_mtlser.run_folder import MemberFolder, append_json_line, read_json_lines, write_text
from jax_mtlser.training.losses import TASKS, LossSums
from jax_mtlser.training.population import take_member
from jax_mtlser.training.step import StepMetrics

__all__ = ["MetricLog", "Reported", "means", "train_line"]


class Reported:
    """What one step reported about all its members: left on the devices until the first of them wants to know."""

    def __init__(self, metrics: StepMetrics, members: int) -> None:
        self._metrics, self._members, self._fetched = metrics, members, False

    @staticmethod
    def fetch(steps: Sequence["Reported"]) -> None:
        """Wait for steps, and move what is still on the devices to the host."""
        missing = [step for step in steps if not step._fetched]
        for step, metrics in zip(missing, jax.device_get([step._metrics for step in missing]), strict=True):
            step._metrics, step._fetched = metrics, True

    def of(self, index: int) -> StepMetrics:
        """One member's part, after :meth:`fetch`."""
        return self._metrics if self._members == 1 else take_member(self._metrics, index)


def train_line(metrics: Sequence[StepMetrics]) -> tuple[dict[str, Any], dict[str, float]]:
    """Means over some steps as entries of a log line, and the mean loss of each task."""
    sums = metrics[0].losses
    for more in metrics[1:]:
        sums = sums + more.losses
    losses = means(sums)
    line = {
        "loss": float(np.mean([step.loss for step in metrics])),
        **{f"loss_{task}": value for task, value in losses.items()},
        **_mean_weights([step.weights for step in metrics], losses),
        "learning_rate": float(metrics[-1].learning_rate),
        "grad_norm": float(np.mean([step.gradient_norm for step in metrics])),
    }
    return line, losses


def means(sums: LossSums) -> dict[str, float]:
    """Mean loss of each task that had at least one label."""
    tasks = {task: getattr(sums, task) for task in TASKS}
    return {task: float(value.total) / float(value.count) for task, value in tasks.items() if value.count > 0}


def _mean_weights(weights: Sequence[Any], tasks: Iterable[str]) -> dict[str, float]:
    """Mean weight of each of the ``tasks`` over some steps; nothing where the configuration fixes them."""
    if weights[0] is None:
        return {}
    averaged = dict(zip(TASKS, np.mean(weights, axis=0), strict=True))
    return {f"weight_{task}": float(averaged[task]) for task in tasks}


class MetricLog:
    """``metrics.jsonl`` and TensorBoard events, both cut back to the step that training goes on from."""

    def __init__(self, folder: MemberFolder, *, after_step: int, tensorboard: bool) -> None:
        kept = [line for line in read_json_lines(folder.metrics) if line["step"] <= after_step]
        write_text(folder.metrics, "")
        for line in kept:
            append_json_line(folder.metrics, line)
        self._path = folder.metrics
        self._writer: Any = None
        if tensorboard:
            from tensorboardX import SummaryWriter  # not at module level: it imports PyTorch where that is installed

            purge = after_step + 1 if after_step else None
            self._writer = SummaryWriter(str(folder.path / "tensorboard"), purge_step=purge)

    def close(self) -> None:
        """Write what TensorBoard still holds back."""
        if self._writer is not None:
            self._writer.close()

    def write(self, line: dict[str, Any]) -> None:
        """Append a line, which has ``kind``, ``step`` and ``epoch``."""
        append_json_line(self._path, {k: _json_number(v) for k, v in line.items()})
        if self._writer is not None:
            for name, value in line.items():
                if name not in ("kind", "step", "epoch") and value is not None:
                    self._writer.add_scalar(f"{line['kind']}/{name}", value, line["step"])


def _json_number(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
