"""Names of emotions: one spelling for all corpora, what each corpus calls them, and which are told apart.

The tables are all there is to it: what a corpus' label means here is read off them, and a model that was trained
on one corpus can be judged on another because both speak of ``angry``, not of ``W``, ``ang`` and ``anger``.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from jax_mtlser.config import ClassSet, CorpusConfig, CorpusKind
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.manifest import Manifest, keep_emotions

__all__ = ["CANONICAL", "CORPUS_LABELS", "UNDECIDED", "canonical", "relabelled", "select_classes"]

CANONICAL = (
    "angry", "bored", "calm", "contempt", "disgust", "excited", "fear", "frustrated", "happy", "neutral", "other",
    "sad", "surprise",
)  # fmt: skip

# The annotators did not agree on one emotion: no class, but an utterance of the release.
UNDECIDED = "undecided"

# The labels in each corpus' files and names.
CORPUS_LABELS: Mapping[CorpusKind, Mapping[str, str]] = MappingProxyType(
    {
        CorpusKind.IEMOCAP: {
            "ang": "angry", "dis": "disgust", "exc": "excited", "fea": "fear", "fru": "frustrated", "hap": "happy",
            "neu": "neutral", "oth": "other", "sad": "sad", "sur": "surprise", "xxx": UNDECIDED,
        },
        # Wut, Langeweile, Ekel, Angst, Freude, Trauer, neutral
        CorpusKind.EMO_DB: {
            "W": "angry", "L": "bored", "E": "disgust", "A": "fear", "F": "happy", "T": "sad", "N": "neutral",
        },
        CorpusKind.RAVDESS: {
            "01": "neutral", "02": "calm", "03": "happy", "04": "sad", "05": "angry", "06": "fear", "07": "disgust",
            "08": "surprise",
        },
        CorpusKind.CREMA_D: {
            "ANG": "angry", "DIS": "disgust", "FEA": "fear", "HAP": "happy", "NEU": "neutral", "SAD": "sad",
        },
        # ps: pleasant surprise
        CorpusKind.TESS: {
            "angry": "angry", "disgust": "disgust", "fear": "fear", "happy": "happy", "neutral": "neutral",
            "ps": "surprise", "sad": "sad",
        },
        CorpusKind.SAVEE: {
            "a": "angry", "d": "disgust", "f": "fear", "h": "happy", "n": "neutral", "sa": "sad", "su": "surprise",
        },
        CorpusKind.ESD: {
            "Angry": "angry", "Happy": "happy", "Neutral": "neutral", "Sad": "sad", "Surprise": "surprise",
        },
        CorpusKind.SHEMO: {
            "A": "angry", "F": "fear", "H": "happy", "N": "neutral", "S": "sad", "W": "surprise",
        },
        CorpusKind.NEMO: {
            "anger": "angry", "fear": "fear", "happiness": "happy", "neutral": "neutral", "sadness": "sad",
            "surprised": "surprise",
        },
        CorpusKind.MELD: {
            "anger": "angry", "disgust": "disgust", "fear": "fear", "joy": "happy", "neutral": "neutral",
            "sadness": "sad", "surprise": "surprise",
        },
        CorpusKind.MSP_IMPROV: {
            "A": "angry", "H": "happy", "N": "neutral", "O": "other", "S": "sad", "X": UNDECIDED,
        },
        CorpusKind.MSP_PODCAST: {
            "A": "angry", "C": "contempt", "D": "disgust", "F": "fear", "H": "happy", "N": "neutral", "O": "other",
            "S": "sad", "U": "surprise", "X": UNDECIDED,
        },
    }
)  # fmt: skip

# Other spellings, in lower case; those of the tables above that are words are among them.
_SPELLINGS: Mapping[str, str] = MappingProxyType(
    {
        **{name: name for name in CANONICAL},
        "ang": "angry", "anger": "angry",
        "bor": "bored", "boredom": "bored",
        "calmness": "calm",
        "dis": "disgust", "disgusted": "disgust",
        "exc": "excited", "excitement": "excited", "excite": "excited",
        "fea": "fear", "fearful": "fear", "anxiety": "fear",
        "fru": "frustrated", "frustration": "frustrated",
        "hap": "happy", "happiness": "happy", "joy": "happy", "joyful": "happy",
        "neu": "neutral", "neutral state": "neutral", "neutrality": "neutral",
        "oth": "other",
        "sadness": "sad",
        "sur": "surprise", "surprised": "surprise", "pleasant surprise": "surprise",
        "xxx": UNDECIDED,
    }
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Classes:
    """Emotions that are told apart.

    Attributes:
        names: the classes, in canonical spelling; empty: all that occur.
        merged: canonical emotions that count as another one.
    """

    names: tuple[str, ...] = ()
    merged: Mapping[str, str] = dataclasses.field(default_factory=dict)


_EXCITED_IS_HAPPY = {"excited": "happy"}
_CLASSES = {
    ClassSet.FOUR: _Classes(("angry", "happy", "neutral", "sad"), _EXCITED_IS_HAPPY),
    ClassSet.FIVE: _Classes(("angry", "frustrated", "happy", "neutral", "sad"), _EXCITED_IS_HAPPY),
    ClassSet.SIX: _Classes(("angry", "excited", "frustrated", "happy", "neutral", "sad")),
    ClassSet.BASIC: _Classes(
        ("angry", "disgust", "fear", "happy", "neutral", "sad", "surprise"), _EXCITED_IS_HAPPY
    ),
    ClassSet.NINE: _Classes(
        ("angry", "disgust", "excited", "fear", "frustrated", "happy", "neutral", "sad", "surprise")
    ),
    ClassSet.ALL: _Classes(),
}  # fmt: skip
# What results are reported on; corpora that are not listed: all their classes.
_USUAL = {
    CorpusKind.IEMOCAP: _CLASSES[ClassSet.FOUR],
    CorpusKind.MSP_IMPROV: _Classes(("angry", "happy", "neutral", "sad")),
    CorpusKind.MSP_PODCAST: _Classes(
        ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    ),
}  # fmt: skip


def canonical(label: str) -> str:
    """The common spelling of an emotion; a label that is not known stays as it is."""
    return _SPELLINGS.get(label.strip().lower().replace("_", " "), label)


def select_classes(manifest: Manifest, config: CorpusConfig) -> Manifest:
    """The rows of the wanted classes, under the classes' names.

    Emotions are renamed (``config.relabel``), brought to the common spelling (official corpora have it; tables keep
    their own words as long as ``config.classes`` is USUAL), merged as the class set says, and rows of other classes
    are left out. An emotion that ``config.emotions`` names is not merged into another. Rows without an emotion stay:
    they still teach the other tasks.

    Raises:
        ManifestError: a renamed or wanted emotion that does not occur, or one outside the class set; nothing left.
    """
    manifest = relabelled(manifest, config.relabel)
    usual = config.classes is ClassSet.USUAL
    classes = _USUAL.get(config.kind, _Classes()) if usual else _CLASSES[config.classes]
    own_words = usual and config.kind in (CorpusKind.TABLE, CorpusKind.DEMO)
    merged = {name: into for name, into in classes.merged.items() if name not in config.emotions}
    manifest = manifest.with_emotions(lambda label: merged.get(name := label if own_words else canonical(label), name))
    if config.classes is ClassSet.ALL:
        manifest = manifest.with_emotions(lambda label: None if label == UNDECIDED else label)
    # Named emotions say themselves what is wanted; the usual classes are only what is wanted otherwise.
    if config.emotions and not usual and classes.names and not set(config.emotions) <= set(classes.names):
        outside = ", ".join(sorted(set(config.emotions) - set(classes.names)))
        raise ManifestError(
            f"--config.corpus.classes={config.classes.value} has no class {outside}; it has {', '.join(classes.names)}. "
            "Set --config.corpus.emotions to some of these, or use --config.corpus.classes=all"
        )
    present = manifest.counts("emotion")
    wanted = config.emotions or tuple(name for name in classes.names or present if name in present)
    if UNDECIDED in present and not config.emotions:
        wanted = tuple(name for name in wanted if name != UNDECIDED)
    if not wanted and present:
        raise ManifestError(
            f"{manifest.name} has no utterance of the classes {', '.join(classes.names)}; it has "
            f"{', '.join(f'{name} ({count})' for name, count in present.items())}. Give them these names with "
            "corpus.relabel in the configuration file, or use --config.corpus.classes=all"
        )
    return keep_emotions(manifest, wanted)


def relabelled(manifest: Manifest, relabel: Mapping[str, str]) -> Manifest:
    """A manifest some of whose emotions have another name.

    Raises:
        ManifestError: an emotion to be renamed does not occur.
    """
    present = manifest.counts("emotion")
    if absent := [label for label in relabel if label not in present]:
        raise ManifestError(
            f"corpus.relabel renames {', '.join(absent)}, but {manifest.name} has {', '.join(present) or 'no emotions'}"
        )
    return manifest.with_emotions(lambda label: relabel.get(label, label)) if relabel else manifest
