"""Several corpora as one."""

import dataclasses
from collections.abc import Sequence

from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import canonical
from jax_mtlser.corpora.manifest import Manifest, Utterance

__all__ = ["join_manifests"]

# Columns whose values name people, occasions and texts of one corpus: session 1 of one is not session 1 of another.
# Others (split, improvised, language, valence, ...) mean the same everywhere, or are the user's own.
_LOCAL_COLUMNS = frozenset(("session", "dialogue", "scenario", "sentence_id", "file_prefix", "turn"))


def join_manifests(manifests: Sequence[Manifest]) -> Manifest:
    """One manifest of all rows, in the given order, with emotions in the common spelling.

    Ids, speakers and the groups of a corpus get its name and a slash in front, so that they stay different; the
    column ``corpus`` holds the name.

    Raises:
        ManifestError: two corpora of the same name.
    """
    names = [manifest.name for manifest in manifests]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ManifestError(
            f"two of the joined corpora are called {', '.join(twice)}; give one another name (name= of its CorpusPart, "
            "NAME=PATH for jax-mtlser corpus)"
        )
    rows = [_row(utterance, manifest.name) for manifest in manifests for utterance in manifest.utterances]
    return Manifest("+".join(names), tuple(rows))


def _row(utterance: Utterance, corpus: str) -> Utterance:
    groups = {
        name: f"{corpus}/{value}" if name in _LOCAL_COLUMNS and value else value
        for name, value in utterance.groups.items()
    }
    return dataclasses.replace(
        utterance,
        id=f"{corpus}/{utterance.id}",
        emotion=None if utterance.emotion is None else canonical(utterance.emotion),
        speaker=None if utterance.speaker is None else f"{corpus}/{utterance.speaker}",
        groups={**groups, "corpus": corpus},
    )
