"""IEMOCAP, the official full release (five dyadic sessions, ten actors; Busso et al., 2008).

Labels come from ``dialog/EmoEvaluation/*.txt``, transcripts from ``dialog/transcriptions/*.txt`` and audio
from the single turns under ``sentences/wav``, all below ``Session1`` to ``Session5``.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from jax_mtlser.corpora.manifest import Manifest, ManifestError, Utterance

__all__ = ["read_iemocap"]

_FOUR_CLASSES = ("angry", "happy", "neutral", "sad")
# "xxx", no agreement between the annotators, is no class.
_EMOTIONS = {
    "ang": "angry",
    "dis": "disgusted",
    "exc": "excited",
    "fea": "fearful",
    "fru": "frustrated",
    "hap": "happy",
    "neu": "neutral",
    "oth": "other",
    "sad": "sad",
    "sur": "surprised",
}
# Turns of the full release with "excited" counted as happy: 5,531, the set that the literature reports on.
_FOUR_CLASS_COUNTS = {"angry": 1103, "happy": 1636, "neutral": 1708, "sad": 1084}
_SESSIONS = tuple(f"Session{number}" for number in range(1, 6))

_EVALUATION = re.compile(
    r"\[\d+\.\d+ - \d+\.\d+\]\t(?P<turn>\S+)\t(?P<emotion>\w+)\t"
    r"\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]"
)
_TRANSCRIPT = re.compile(r"(?P<turn>Ses\S+) \[\d+\.\d+-\d+\.\d+\]: (?P<text>.*)")
# Some scenarios were recorded in several takes, which a letter tells apart. The letter in front of the
# dialogue's name says who wore the motion capture markers, the one in the last part who speaks.
_TURN = re.compile(
    r"(?P<dialogue>Ses(?P<session>\d\d)[FM]_(?P<scenario>impro\d\d|script\d\d_\d)[a-z]?)_(?P<speaker>[FM])\d+"
)


def read_iemocap(root: Path, *, emotions: Sequence[str] = ()) -> Manifest:
    """Read the release's labels and transcripts.

    Args:
        root: the folder ``IEMOCAP_full_release``, or the folder that holds it.
        emotions: classes to keep: angry, disgusted, excited, fearful, frustrated, happy, neutral, other, sad,
            surprised. "excited" is part of "happy" unless it is named itself. Empty: angry, happy,
            neutral and sad.

    Returns:
        The manifest "iemocap", by session, dialogue and the order of the label files, with group columns
        ``session`` (``Session1``), ``dialogue``, ``scenario``, ``improvised`` (``yes`` or ``no``) and
        the annotators' means of ``valence``, ``activation`` and ``dominance`` (1 to 5).

    Raises:
        ManifestError: no release at ``root``; an unknown class; a turn that is listed twice; a missing
            recording; with all five sessions and the usual four classes, other numbers of utterances than
            the full release has.
    """
    wanted = tuple(emotions) or _FOUR_CLASSES
    if unknown := sorted(set(wanted) - set(_EMOTIONS.values())):
        raise ManifestError(
            f"IEMOCAP has no emotion {', '.join(unknown)}; it has {', '.join(sorted(_EMOTIONS.values()))}"
        )
    release = _find_release(root)
    sessions = [name for name in _SESSIONS if _evaluation_folder(release, name).is_dir()]
    utterances = [utterance for session in sessions for utterance in _read_session(release / session, wanted)]
    manifest = Manifest("iemocap", tuple(utterances))
    if not utterances:
        raise ManifestError(f"no turn labelled {' or '.join(wanted)} in {release} ({', '.join(sessions)})")
    _require_unique(manifest)
    if sessions == list(_SESSIONS) and set(wanted) == set(_FOUR_CLASSES):
        _require_full_release(manifest, release)
    _require_recordings(manifest)
    return manifest


def _find_release(root: Path) -> Path:
    candidates = (root, root / "IEMOCAP_full_release")
    for candidate in candidates:
        if any(_evaluation_folder(candidate, session).is_dir() for session in _SESSIONS):
            return candidate
    raise ManifestError(
        f"no Session1..5/dialog/EmoEvaluation of IEMOCAP in {' or '.join(map(str, candidates))}; "
        "name the folder IEMOCAP_full_release with --config.corpus.path=PATH"
    )


def _evaluation_folder(release: Path, session: str) -> Path:
    return release / session / "dialog" / "EmoEvaluation"


def _read_session(folder: Path, wanted: Sequence[str]) -> Iterator[Utterance]:
    for evaluation in sorted((folder / "dialog" / "EmoEvaluation").glob("*.txt")):
        # "._" files are attributes that macOS left in the archive.
        if evaluation.name.startswith(".") or not evaluation.is_file():
            continue
        texts = _transcripts(folder / "dialog" / "transcriptions" / evaluation.name)
        for line in _lines(evaluation):
            # Between the turns stand the single annotators' judgements.
            if (label := _EVALUATION.match(line)) is None:
                continue
            emotion = _emotion(label["emotion"], wanted)
            if emotion in wanted:
                yield _utterance(label, emotion, texts, folder, evaluation)


def _emotion(label: str, wanted: Sequence[str]) -> str | None:
    emotion = _EMOTIONS.get(label)
    return "happy" if emotion == "excited" and "excited" not in wanted else emotion


def _utterance(
    label: re.Match[str], emotion: str | None, texts: dict[str, str], folder: Path, evaluation: Path
) -> Utterance:
    turn = _TURN.fullmatch(label["turn"])
    if turn is None:
        raise ManifestError(
            f"{evaluation}: turn {label['turn']!r} is not named like Ses01F_impro01_F000; "
            "use the label files of the official release"
        )
    return Utterance(
        id=turn[0],
        path=folder / "sentences" / "wav" / turn["dialogue"] / f"{turn[0]}.wav",
        emotion=emotion,
        gender="female" if turn["speaker"] == "F" else "male",
        speaker=turn["session"] + turn["speaker"],
        text=texts.get(turn[0]) or None,
        groups={
            "session": folder.name,
            "dialogue": turn["dialogue"],
            "scenario": turn["scenario"],
            "improvised": "yes" if turn["scenario"].startswith("impro") else "no",
            **{name: label[name] for name in ("valence", "activation", "dominance")},
        },
    )


def _transcripts(path: Path) -> dict[str, str]:
    """Text by turn; empty when the file is absent."""
    if not path.is_file():
        return {}
    matches = (_TRANSCRIPT.match(line) for line in _lines(path))
    # XX turns are noises of the other speaker, without recording and label. Lines that start with a bare
    # "F:" or "M:" carry no times and belong to no turn.
    return {m["turn"]: m["text"].strip() for m in matches if m is not None and "XX" not in m["turn"]}


def _lines(path: Path) -> list[str]:
    # A few files have bytes that are not UTF-8, and some were saved with CRLF.
    text = path.read_bytes().decode("utf-8", errors="replace")
    return [line.rstrip("\r") for line in text.split("\n")]


def _require_unique(manifest: Manifest) -> None:
    seen: set[str] = set()
    for utterance in manifest.utterances:
        if utterance.id in seen:
            raise ManifestError(
                f"{utterance.id} is labelled twice in {utterance.groups['session']}/dialog/EmoEvaluation; "
                "remove the copied file"
            )
        seen.add(utterance.id)


def _require_full_release(manifest: Manifest, release: Path) -> None:
    counts = manifest.counts("emotion")
    if counts != _FOUR_CLASS_COUNTS:
        table = ", ".join(f"{name} {counts.get(name, 0)}/{expected}" for name, expected in _FOUR_CLASS_COUNTS.items())
        raise ManifestError(
            f"{release} does not hold the full release, utterances found/expected: {table}, "
            f"total {len(manifest)}/{sum(_FOUR_CLASS_COUNTS.values())}; extract the release again"
        )


def _require_recordings(manifest: Manifest) -> None:
    missing = [utterance.path for utterance in manifest.utterances if not utterance.path.is_file()]
    if missing:
        first = "".join(f"\n  {path}" for path in missing[:5])
        raise ManifestError(
            f"{len(missing)} of {len(manifest)} recordings are missing, such as:{first}\n"
            "extract sentences/wav of each session again"
        )
