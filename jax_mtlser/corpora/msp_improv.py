"""MSP-IMPROV (six dyads of actors; Busso et al., 2017).

Labels are in ``Evalution.txt`` (so spelled in the release; ``Evaluation.txt`` in copies), recordings are named like
``MSP-IMPROV-S01A-F01-S-FM01.wav``: scenario and its emotion, speaker, kind of recording, turn.
"""

import re
from collections import Counter
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.audio_files import audio_files, index_by_stem, unique_utterances
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CORPUS_LABELS, canonical
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_text

__all__ = ["find_msp_improv", "read_msp_improv"]

_LABELS = CORPUS_LABELS[CorpusKind.MSP_IMPROV]
_TABLES = ("Evalution.txt", "Evaluation.txt")
_RECORDINGS = {"P": "natural", "R": "target read", "S": "target improvised", "T": "other improvised"}
_NUMBER = r"(\d+(?:\.\d+)?|NaN)"
# A blank stands before some semicolons.
_LINE = re.compile(
    rf"UTD-IMPROV-(?P<name>[A-Z0-9-]+)\.avi\s*;\s*(?P<emotion>[A-Z])\s*;\s*A:{_NUMBER}\s*;\s*V:{_NUMBER}\s*;"
    rf"\s*D:{_NUMBER}\s*;(?:\s*N:{_NUMBER}\s*;)?\s*"
)
_VOTE = re.compile(r"(?P<rater>[A-Za-z0-9_-]+)\s*;\s*(?P<emotion>Angry|Happy|Neutral|Other|Sad)\s*;.*")
_NAME = re.compile(
    r"(?P<scenario>(?P<sentence>S\d\d)(?P<intended>[AHNS]))-(?P<speaker>(?P<gender>[FM])0(?P<session>[1-6]))"
    r"-(?P<recording>[PRST])-(?P<turn>[FM]{2}\d\d\d?)"
)


def read_msp_improv(root: Path, *, votes: bool = False) -> Manifest:
    """Read the labels and find the recordings.

    Args:
        root: folder with the table and, at any depth, the recordings.
        votes: also read how many annotators chose each emotion.

    Returns:
        The manifest "msp_improv" of all labelled turns, also those without agreement, in the order of the table,
        with ids such as ``MSP-IMPROV-S01A-F01-S-FM01``. The speaker is the third part of the name after
        ``MSP-IMPROV``, as in published work. Group columns are ``session`` (``1`` to ``6``), ``dialogue``,
        ``scenario``, ``sentence_id``, ``intended`` (the scenario's emotion), ``recording`` (natural, target read,
        target improvised, other improvised), ``improvised`` (``no`` for what was read), ``turn``, ``language``
        and the means of ``activation``, ``valence``, ``dominance`` and ``naturalness`` (1 to 5).

    Raises:
        ManifestError: no table, no labelled turn, a name or label that the release does not have, a recording twice.
    """
    table = find_msp_improv(root)
    if table is None:
        raise ManifestError(
            f"there is no {' or '.join(_TABLES)} of MSP-IMPROV in {root}; name the release with --config.corpus.path=PATH"
        )
    recordings = index_by_stem((path for path in audio_files(root) if _is_turn(path)), "msp_improv")
    found: list[tuple[re.Match[str], dict[str, str]]] = []
    for line in read_text(table, fallback="cp1252").splitlines():
        if (label := _LINE.fullmatch(line.strip())) is not None:
            found.append((label, {}))
        elif found and (vote := _VOTE.fullmatch(line.strip())) is not None:
            found[-1][1][vote["rater"]] = vote["emotion"]  # some lines are there twice
    if not found:
        raise ManifestError(f"{table} has no line like 'UTD-IMPROV-S01A-F01-S-FM01.avi; A; A:2.6; V:...'")
    return unique_utterances(
        "msp_improv",
        [_utterance(label, Counter(map(canonical, raters.values())) if votes else {}, recordings, table)
         for label, raters in found],
    )  # fmt: skip


def find_msp_improv(root: Path) -> Path | None:
    """The table of labels; None where there is none."""
    return next((root / name for name in _TABLES if (root / name).is_file()), None)


def _is_turn(path: Path) -> bool:
    return _NAME.fullmatch(path.stem.removeprefix("MSP-IMPROV-")) is not None


def _utterance(label: re.Match[str], votes: dict[str, int], recordings: dict[str, Path], table: Path) -> Utterance:
    name = _NAME.fullmatch(label["name"])
    if name is None or label["emotion"] not in _LABELS:
        raise ManifestError(
            f"{table}: {label[0]!r}; turns are named like UTD-IMPROV-S01A-F01-S-FM01 and labels are {', '.join(_LABELS)}"
        )
    stem = f"MSP-IMPROV-{name[0]}"
    # In the table's order; "NaN" where nobody judged it.
    means = dict(zip(("activation", "valence", "dominance", "naturalness"), label.groups()[2:], strict=True))
    session = f"session{name['session']}"
    place = table.parent / "Audio" / session / name["scenario"] / name["recording"] / f"{stem}.wav"
    return Utterance(
        id=stem,
        path=recordings.get(stem, place),
        emotion=_LABELS[label["emotion"]],
        gender="female" if name["gender"] == "F" else "male",
        speaker=name["speaker"],
        groups={
            "session": name["session"],
            "dialogue": f"{name['scenario']}-{name['speaker']}",
            "scenario": name["scenario"],
            "sentence_id": name["sentence"],
            "intended": _LABELS[name["intended"]],
            "recording": _RECORDINGS[name["recording"]],
            "improvised": "no" if name["recording"] == "R" else "yes",
            "turn": name["turn"],
            "language": "en",
            **{mean: value for mean, value in means.items() if value not in (None, "NaN")},
            **{f"votes_{emotion}": str(count) for emotion, count in sorted(votes.items())},
        },
    )
