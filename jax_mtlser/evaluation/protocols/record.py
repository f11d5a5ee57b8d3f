"""Folds as utterance ids in ``folds.json``, with a hash that tells when they were changed."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.evaluation.protocols.folds import Fold, ProtocolError

__all__ = ["folds_from_record", "folds_record"]


def folds_record(manifest: Manifest, drawn: Sequence[Sequence[Fold]], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Folds as utterance ids, ready for JSON, with a hash over all of them.

    Args:
        manifest: the rows that the folds index.
        drawn: the folds of each repeat.
        notes: sentences for the reader, from :func:`fold_notes`; no part of the hash.
    """
    names = [utterance.id for utterance in manifest.utterances]

    def ids(rows: Sequence[int]) -> list[str]:
        return [names[row] for row in rows]

    repeats = [
        {
            "repeat": repeat,
            "seed": folds[0].seed if folds else None,
            "folds": [
                {"train": ids(fold.train), "validation": ids(fold.validation), "test": ids(fold.test)} for fold in folds
            ],
        }
        for repeat, folds in enumerate(drawn)
    ]
    return {"hash": _hash(repeats), "notes": list(notes), "repeats": repeats}


def folds_from_record(manifest: Manifest, record: Mapping[str, Any]) -> list[list[Fold]]:
    """The inverse of :func:`folds_record`; rows that the record does not name are in no fold.

    Raises:
        ProtocolError: when the record was changed, or names utterances that the manifest does not have.
    """
    try:
        found = _hash(record["repeats"])
        matches = found == record["hash"]
    except (KeyError, TypeError) as error:
        raise ProtocolError(f"not a record of folds ({type(error).__name__}: {error}); draw the folds anew") from None
    if not matches:
        raise ProtocolError(
            f"the recorded folds were changed: they hash to {found[:12]}, the record says {str(record['hash'])[:12]}; "
            "restore the file or start a new --workdir"
        )
    row_of = {utterance.id: row for row, utterance in enumerate(manifest.utterances)}
    named = {name for repeat in record["repeats"] for fold in repeat["folds"] for part in _PARTS for name in fold[part]}
    if gone := sorted(named - row_of.keys()):
        raise ProtocolError(
            f"{len(gone)} of {len(named)} utterances of the recorded folds are not in {manifest.name} any more "
            f"({', '.join(gone[:3])}{', ...' if len(gone) > 3 else ''}); restore them or start a new --workdir"
        )

    def rows(names: Sequence[str]) -> tuple[int, ...]:
        return tuple(sorted(row_of[name] for name in names))

    return [
        [
            Fold(rows(fold["train"]), rows(fold["validation"]), rows(fold["test"]), repeat["seed"])
            for fold in repeat["folds"]
        ]
        for repeat in record["repeats"]
    ]


_PARTS = ("train", "validation", "test")


def _hash(repeats: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 over the canonical JSON of the ids."""
    ids = [[{part: fold[part] for part in _PARTS} for fold in repeat["folds"]] for repeat in repeats]
    return hashlib.sha256(json.dumps(ids, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
