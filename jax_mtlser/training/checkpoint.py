"""Checkpoints of a training and the model that comes out of it: the only place that imports Orbax.

A checkpoint has three items: ``params`` (so that nobody needs the optimizer to evaluate), ``optimizer`` (its state,
the step and what the weighting method remembers) and ``progress`` (JSON). Parameters are kept as the step holds
them, in stacks. Orbax writes in the background and renames a finished checkpoint into place, so one that was cut
short is never seen. Of several processes that train together, all save and restore, in a folder that they share: each
writes a part, and Orbax makes them wait for each other.
"""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from jax_mtlser.training import processes
from jax_mtlser.training.step import TrainState

__all__ = ["TrainingCheckpoints", "load_model", "load_model_description", "save_model"]


@dataclasses.dataclass(kw_only=True)
class _LatestAndBest(checkpoint_managers.PreservationPolicy):
    """Keeps the latest checkpoint and the best one.

    Orbax's own policy for the best ranks by metrics that it does not read back when a folder is opened again,
    so a resumed training would lose its best epoch.
    """

    best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        latest = max((info.step for info in checkpoints), default=None)
        return [info.step in (latest, self.best_step) for info in checkpoints]


class TrainingCheckpoints:
    """The resumable states of one training: the latest, and the best one."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; it is made when the first checkpoint is saved."""
        self._kept = _LatestAndBest()
        self._manager = ocp.CheckpointManager(
            folder.resolve(),
            options=ocp.CheckpointManagerOptions(preservation_policy=self._kept, cleanup_tmp_directories=True),
            item_names=("params", "optimizer", "progress"),
        )

    def save(self, state: TrainState, progress: dict[str, Any]) -> None:
        """Start saving; returns as soon as the arrays are copied off the devices.

        Args:
            state: after ``progress["step"]`` steps.
            progress: JSON values; whatever the loop needs to go on. ``best_step`` names the checkpoint that is
                kept beside the latest.
        """
        self._kept.best_step = progress.get("best_step")
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(_parameters(state)),
            optimizer=ocp.args.StandardSave(_optimizer(state)),
            progress=ocp.args.JsonSave(progress),
        )
        self._manager.save(progress["step"], args=items)

    def latest_progress(self) -> dict[str, Any] | None:
        """What was saved with the latest state; None when nothing was saved yet."""
        step = processes.from_first(self._manager.latest_step())  # another host may see the folder as it was
        if step is None:
            return None
        return self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())).progress

    def restore(self, step: int, like: TrainState) -> TrainState:
        """The state as saved at a step.

        Args:
            step: of :meth:`latest_progress`.
            like: a state with the shapes, types and shardings to restore; its random key is kept, because keys
                follow from the seed.
        """
        items = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(_abstract(_parameters(like))),
                optimizer=ocp.args.StandardRestore(_abstract(_optimizer(like))),
            ),
        )
        return dataclasses.replace(
            like,
            step=items.optimizer["step"],
            opt_state=items.optimizer["opt_state"],
            weighting=items.optimizer.get("weighting", like.weighting),
            **items.params,
        )

    def restore_params(self, step: int, like: TrainState) -> Any:
        """The model's parameters as saved at a step."""
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(_parameters(like))))
        return dataclasses.replace(like, **self._manager.restore(step, args=args).params).params

    def wait(self) -> None:
        """Return when everything that was handed to :meth:`save` is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the folder."""
        self._manager.close()

    @staticmethod
    def latest_step(folder: Path) -> int | None:
        """The step of the latest checkpoint in a folder that another process may be writing to; None without one."""
        # Orbax would tidy up on opening it. Steps appear under their number once they are complete.
        steps = [int(path.name) for path in folder.glob("*") if path.name.isdecimal()]
        return max(steps, default=None)

    @staticmethod
    def remove(folder: Path) -> None:
        """Delete the resumable states of a finished training."""
        shutil.rmtree(folder, ignore_errors=True)


def save_model(folder: Path, params: Any, description: dict[str, Any]) -> None:
    """Write a finished model: its parameters and a JSON description. What was in the folder is replaced."""
    temporary = folder.with_name(f".{folder.name}.new")
    processes.on_first(lambda: shutil.rmtree(temporary, ignore_errors=True))
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        items = ocp.args.Composite(params=ocp.args.StandardSave(params), description=ocp.args.JsonSave(description))
        checkpointer.save(temporary.resolve(), args=items)

    def replace() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)

    processes.on_first(replace)


def load_model_description(folder: Path) -> dict[str, Any]:
    """The JSON description of a finished model."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(description=ocp.args.JsonRestore())
        return checkpointer.restore(folder.resolve(), args=args).description


def load_model(folder: Path, like: Any) -> Any:
    """The parameters of a finished model.

    Args:
        folder: as given to :func:`save_model`.
        like: parameters, or their shapes, types and shardings.
    """
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        args = ocp.args.Composite(params=ocp.args.StandardRestore(_abstract(like)))
        return checkpointer.restore(folder.resolve(), args=args).params


def _parameters(state: TrainState) -> dict[str, Any]:
    return {"stacks": state.stacks, "frozen": state.frozen}


def _optimizer(state: TrainState) -> dict[str, Any]:
    saved = {"step": state.step, "opt_state": state.opt_state}
    # Orbax does not save a tree without arrays, and most methods remember nothing.
    return {**saved, "weighting": state.weighting} if jax.tree.leaves(state.weighting) else saved


def _abstract(tree: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
