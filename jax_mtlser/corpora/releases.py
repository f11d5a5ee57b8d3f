"""What the official releases hold: published counts, and what a folder on disk has instead."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import UNDECIDED
from jax_mtlser.corpora.manifest import Manifest

__all__ = ["RELEASES", "Release", "differences", "missing_recordings", "require_recordings", "require_release"]


@dataclasses.dataclass(frozen=True)
class _Counts:
    """How many utterances have each value of a column.

    Attributes:
        column: emotion, session, ...
        values: all that occur.
        among: only utterances with one of these emotions are counted; empty: all.
    """

    column: str
    values: Mapping[str, int]
    among: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Release:
    """An official release.

    Attributes:
        title: name and source of the counts.
        counts: that every complete copy has, before classes are selected.
        without_recording: ids whose recording is missing or broken in every copy.
    """

    title: str
    counts: tuple[_Counts, ...] = ()
    without_recording: frozenset[str] = frozenset()


_FOUR = ("angry", "happy", "excited", "neutral", "sad")
_SIX_BASIC = ("angry", "disgust", "fear", "happy", "sad", "surprise")

RELEASES: Mapping[CorpusKind, Release] = MappingProxyType(
    {
        CorpusKind.IEMOCAP: Release(
            title="IEMOCAP (Busso et al., 2008)",
            counts=(
                _Counts(
                    "emotion",
                    {
                        "angry": 1103, "disgust": 2, "excited": 1041, "fear": 40, "frustrated": 1849, "happy": 595,
                        "neutral": 1708, "other": 3, "sad": 1084, "surprise": 107, UNDECIDED: 2507,
                    },
                ),
                # Of the four classes with excited as happy: the 5,531 turns that the literature reports on.
                _Counts(
                    "session",
                    {"Session1": 1085, "Session2": 1023, "Session3": 1151, "Session4": 1031, "Session5": 1241},
                    _FOUR,
                ),
                _Counts(
                    "speaker",
                    {
                        "01F": 528, "01M": 557, "02F": 481, "02M": 542, "03F": 522, "03M": 629, "04F": 528, "04M": 503,
                        "05F": 590, "05M": 651,
                    },
                    _FOUR,
                ),
            ),
        ),
        CorpusKind.EMO_DB: Release(
            title="EMO-DB (Burkhardt et al., 2005)",
            counts=(
                _Counts(
                    "emotion",
                    {
                        "angry": 127, "bored": 81, "disgust": 46, "fear": 69, "happy": 71, "neutral": 79, "sad": 62,
                    },
                ),
            ),
        ),
        CorpusKind.RAVDESS: Release(
            title="RAVDESS, speech (Livingstone & Russo, 2018)",
            counts=(
                _Counts("emotion", {**dict.fromkeys(("calm", *_SIX_BASIC), 192), "neutral": 96}),
                _Counts("speaker", {f"{actor:02d}": 60 for actor in range(1, 25)}),
            ),
        ),
        CorpusKind.CREMA_D: Release(
            title="CREMA-D (Cao et al., 2014)",
            counts=(
                _Counts("emotion", {**dict.fromkeys(("angry", "disgust", "fear", "happy", "sad"), 1271), "neutral": 1087}),
            ),
        ),
        CorpusKind.TESS: Release(
            title="TESS (Pichora-Fuller & Dupuis, 2020)",
            counts=(
                _Counts("emotion", dict.fromkeys((*_SIX_BASIC, "neutral"), 400)),
                _Counts("speaker", {"OAF": 1400, "YAF": 1400}),
            ),
        ),
        CorpusKind.SAVEE: Release(
            title="SAVEE (Haq & Jackson, 2010)",
            counts=(
                _Counts("emotion", {**dict.fromkeys(_SIX_BASIC, 60), "neutral": 120}),
                _Counts("speaker", dict.fromkeys(("DC", "JE", "JK", "KL"), 120)),
            ),
        ),
        CorpusKind.ESD: Release(
            title="ESD (Zhou et al., 2022)",
            counts=(
                _Counts("emotion", dict.fromkeys(("angry", "happy", "neutral", "sad", "surprise"), 7000)),
                _Counts("speaker", {f"{speaker:04d}": 1750 for speaker in range(1, 21)}),
            ),
        ),
        CorpusKind.SHEMO: Release(
            title="ShEMO (Mohamad Nezami et al., 2019)",
            counts=(
                _Counts(
                    "emotion",
                    {"angry": 1059, "fear": 38, "happy": 201, "neutral": 1028, "sad": 449, "surprise": 225},
                ),
            ),
        ),
        CorpusKind.NEMO: Release(
            title="nEMO (Christop, 2024)",
            counts=(
                _Counts(
                    "emotion",
                    {"angry": 749, "fear": 736, "happy": 749, "neutral": 809, "sad": 769, "surprise": 669},
                ),
            ),
        ),
        CorpusKind.MELD: Release(
            title="MELD (Poria et al., 2019)",
            counts=(
                _Counts("split", {"train": 9989, "dev": 1109, "test": 2610}),
                _Counts(
                    "emotion",
                    {
                        "angry": 1607, "disgust": 361, "fear": 358, "happy": 2308, "neutral": 6436, "sad": 1002,
                        "surprise": 1636,
                    },
                ),
            ),
            # The first film is not in the archive, the second one cannot be decoded.
            without_recording=frozenset(("dev_dia110_utt7", "train_dia125_utt3")),
        ),
        CorpusKind.MSP_IMPROV: Release(
            title="MSP-IMPROV (Busso et al., 2017)",
            counts=(
                _Counts("emotion", {"angry": 792, "happy": 2644, "neutral": 3477, "other": 85, "sad": 885, UNDECIDED: 555}),
                _Counts(
                    "recording",
                    {"natural": 2785, "other improvised": 4381, "target improvised": 652, "target read": 620},
                ),
            ),
        ),
        # The corpus grows: no count holds for all of its releases.
        CorpusKind.MSP_PODCAST: Release(title="MSP-Podcast (Lotfian & Busso, 2019)"),
    }
)  # fmt: skip


def differences(manifest: Manifest, kind: CorpusKind) -> list[str]:
    """Where a manifest, before classes are selected, differs from the official release.

    Returns:
        One line per column, such as ``speaker: 01F 529 (528); together 5532 (5531)``: found and, in brackets,
        published numbers of those values that differ.
    """
    lines = []
    for expected in RELEASES[kind].counts if kind in RELEASES else ():
        rows = (i for i, u in enumerate(manifest.utterances) if not expected.among or u.emotion in expected.among)
        found = manifest.subset(rows).counts(expected.column)
        wrong = [
            f"{value} {found.get(value, 0)} ({expected.values.get(value, 0)})"
            for value in sorted(found.keys() | expected.values.keys())
            if found.get(value, 0) != expected.values.get(value, 0)
        ]
        if wrong:
            total = f"together {sum(found.values())} ({sum(expected.values.values())})"
            among = f" of {', '.join(expected.among)}" if expected.among else ""
            lines.append(f"{expected.column}{among}: {', '.join(wrong)}; {total}")
    return lines


def require_release(manifest: Manifest, kind: CorpusKind, setting: str) -> None:
    """Judge a manifest, before classes are selected.

    Args:
        manifest: all utterances of the corpus.
        kind: which release it should be.
        setting: that lets an incomplete one pass, for the message.

    Raises:
        ManifestError: counts are not those of the official release; the message says which.
    """
    if lines := differences(manifest, kind):
        listed = "".join(f"\n  {line}" for line in lines)
        raise ManifestError(
            f"{manifest.name} is not the full release of {RELEASES[kind].title}, found (expected):{listed}\n"
            f"extract the release again, or use what is there with --config.{setting}=true"
        )


def missing_recordings(manifest: Manifest, kind: CorpusKind) -> Manifest:
    """The rows whose recording is not there, except those that no copy of the release has."""
    known = RELEASES[kind].without_recording if kind in RELEASES else frozenset()
    return manifest.subset(
        row for row, u in enumerate(manifest.utterances) if u.id not in known and not u.path.is_file()
    )


def require_recordings(manifest: Manifest, kind: CorpusKind, setting: str) -> None:
    """Raise ManifestError, naming the first few, where recordings of a release are missing; see above."""
    if missing := missing_recordings(manifest, kind).utterances:
        first = "".join(f"\n  {utterance.path}" for utterance in missing[:5])
        raise ManifestError(
            f"{len(missing)} of {len(manifest)} recordings are missing, such as:{first}\n"
            f"extract the release again, or go on without them with --config.{setting}=true"
        )
