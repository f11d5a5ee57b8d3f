"""Which utterances are trained on, validated on and tested on: pure functions of the manifest and a seed.

Folds are drawn with PCG64 from sorted labels and row indices alone, so that the same manifest and seed give
the same folds on every machine. Test parts are drawn before validation parts: another validation fraction
leaves them as they are. Validation parts are cut from training by the rule that made the test parts.
"""

from jax_mtlser.evaluation.protocols.draw import draw_folds, fold_notes
from jax_mtlser.evaluation.protocols.fixed import fold_of_parts, part_named
from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError
from jax_mtlser.evaluation.protocols.grouped import grouped_folds
from jax_mtlser.evaluation.protocols.lists import read_fold_lists
from jax_mtlser.evaluation.protocols.record import folds_from_record, folds_record
from jax_mtlser.evaluation.protocols.stratified import stratified_folds

__all__ = [
    "Fold",
    "ProtocolError",
    "draw_folds",
    "fold_notes",
    "fold_of_parts",
    "folds_from_record",
    "folds_record",
    "grouped_folds",
    "part_named",
    "read_fold_lists",
    "stratified_folds",
]
