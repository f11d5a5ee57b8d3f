"""The whole model with all its heads, laid out as a member's folder: what reads members reads it."""

import dataclasses
import shutil
from pathlib import Path

import jax
import numpy as np

from jax_mtlser.inference.exports.formats import Judge, Weights
from jax_mtlser.inference.exports.quantisation import rounded
from jax_mtlser.inference.exports.ser_path import SerPath
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.run_folder import MemberFolder
from jax_mtlser.training.checkpoint import save_model

__all__ = ["read_orbax", "write_orbax"]


def write_orbax(folder: Path, trained: TrainedModel, member: MemberFolder, weights: Weights) -> None:
    """Write ``model`` and, for the temperature and the scores, ``result.json``.

    Parameters in bfloat16 are read back into float32 ones.
    """
    params = trained.params
    if weights is Weights.BFLOAT16:
        params = jax.tree.map(lambda leaf: jax.numpy.asarray(rounded(np.asarray(leaf))), params)
    copy = MemberFolder(folder)
    save_model(copy.model, params, trained.description)
    if member.result.is_file():
        shutil.copyfile(member.result, copy.result)


def read_orbax(folder: Path, trained: TrainedModel) -> Judge:
    """The export's emotion path, read as any member.

    Raises:
        ModelError: a folder that cannot be read.
    """
    read = TrainedModel.read(MemberFolder(folder).model)
    return SerPath.of(dataclasses.replace(read, name=trained.name)).judge()
