"""IEMOCAP, the official full release (five dyadic sessions, ten actors; Busso et al., 2008).

Labels come from ``dialog/EmoEvaluation/*.txt``, transcripts from ``dialog/transcriptions/*.txt`` and audio
from the single turns under ``sentences/wav``, all below ``Session1`` to ``Session5``.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from jax_mtlser.config import CorpusKind
from jax_mtlser.corpora.errors import ManifestError
from jax_mtlser.corpora.label_maps import CANONICAL, CORPUS_LABELS, canonical
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.corpora.tables import read_text

__all__ = ["find_iemocap", "read_iemocap"]

_LABELS = CORPUS_LABELS[CorpusKind.IEMOCAP]
_SESSIONS = tuple(f"Session{number}" for number in range(1, 6))

_EVALUATION = re.compile(
    r"\[\d+\.\d+ - \d+\.\d+\]\t(?P<turn>\S+)\t(?P<emotion>\w+)\t"
    r"\[(?P<valence>[\d.]+), (?P<activation>[\d.]+), (?P<dominance>[\d.]+)\]"
)
# C-E: what an annotator chose, several separated by semicolons; C-F and C-M are the actors' own judgements.
_VOTE = re.compile(r"C-E\d+:\t(?P<emotions>[^\t]*)")
_TRANSCRIPT = re.compile(r"(?P<turn>Ses\S+) \[\d+\.\d+-\d+\.\d+\]: (?P<text>.*)")
# Some scenarios were recorded in several takes, which a letter tells apart. The letter in front of the
# dialogue's name says who wore the motion capture markers, the one in the last part who speaks.
_TURN = re.compile(
    r"(?P<dialogue>(?P<prefix>Ses(?P<session>\d\d)[FM])_(?P<scenario>impro\d\d|script\d\d_\d)[a-z]?)"
    r"_(?P<speaker>[FM])\d+"
)


def read_iemocap(root: Path, *, votes: bool = False) -> Manifest:
    """Read the release's labels and transcripts.

    Args:
        root: the folder ``IEMOCAP_full_release``, or the folder that holds it.
        votes: also read how many annotators chose each emotion; one who chose several counts for each in parts.

    Returns:
        The manifest "iemocap" of all labelled turns, also those without agreement, by session, dialogue and the
        order of the label files. Its group columns are ``session`` (``Session1``), ``dialogue``, ``scenario``
        (without the letter of the take), ``improvised`` (``yes`` or ``no``), ``file_prefix`` (``Ses01F``: session
        and who wore the markers, not who speaks), ``language`` and the annotators' means of ``valence``,
        ``activation`` and ``dominance`` (1 to 5).

    Raises:
        ManifestError: no release at ``root``; a label or a name of a turn that the release does not have; a turn
            that is listed twice.
    """
    release = find_iemocap(root)
    if release is None:
        raise ManifestError(
            f"no Session1..5/dialog/EmoEvaluation of IEMOCAP in {root} or {root / 'IEMOCAP_full_release'}; "
            "name the folder IEMOCAP_full_release with --config.corpus.path=PATH"
        )
    sessions = [name for name in _SESSIONS if _evaluation_folder(release, name).is_dir()]
    manifest = Manifest("iemocap", tuple(u for name in sessions for u in _read_session(release / name, votes)))
    _require_unique(manifest)
    return manifest


def find_iemocap(root: Path) -> Path | None:
    """The folder of the sessions: ``root`` or ``IEMOCAP_full_release`` in it; None: neither."""
    for candidate in (root, root / "IEMOCAP_full_release"):
        if any(_evaluation_folder(candidate, session).is_dir() for session in _SESSIONS):
            return candidate
    return None


def _evaluation_folder(release: Path, session: str) -> Path:
    return release / session / "dialog" / "EmoEvaluation"


def _read_session(folder: Path, votes: bool) -> Iterator[Utterance]:
    for evaluation in sorted((folder / "dialog" / "EmoEvaluation").iterdir()):
        # "._" files are attributes that macOS left in the archive; the folders hold single annotators' files.
        if evaluation.name.startswith(".") or evaluation.suffix.lower() != ".txt" or not evaluation.is_file():
            continue
        texts = _transcripts(folder / "dialog" / "transcriptions" / evaluation.name)
        lines = _lines(evaluation)
        turns = [(number, found) for number, line in enumerate(lines) if (found := _EVALUATION.match(line))]
        ends = [number for number, _ in turns[1:]] + [len(lines)]
        for (number, label), end in zip(turns, ends, strict=True):
            # XX turns are noises of the other speaker, without recording.
            if "XX" not in label["turn"]:
                chosen = _votes(lines[number + 1 : end], evaluation) if votes else {}
                yield _utterance(label, texts, folder, evaluation, chosen)


def _utterance(
    label: re.Match[str], texts: dict[str, str], folder: Path, evaluation: Path, votes: dict[str, str]
) -> Utterance:
    turn = _TURN.fullmatch(label["turn"])
    if turn is None:
        raise ManifestError(
            f"{evaluation}: turn {label['turn']!r} is not named like Ses01F_impro01_F000; "
            "use the label files of the official release"
        )
    if label["emotion"] not in _LABELS:
        raise ManifestError(
            f"{evaluation}: {turn[0]} has the label {label['emotion']!r}; the release has {', '.join(_LABELS)}"
        )
    return Utterance(
        id=turn[0],
        path=folder / "sentences" / "wav" / turn["dialogue"] / f"{turn[0]}.wav",
        emotion=_LABELS[label["emotion"]],
        gender="female" if turn["speaker"] == "F" else "male",
        speaker=turn["session"] + turn["speaker"],
        text=texts.get(turn[0]) or None,
        groups={
            "session": folder.name,
            "dialogue": turn["dialogue"],
            "scenario": turn["scenario"],
            "improvised": "yes" if turn["scenario"].startswith("impro") else "no",
            "file_prefix": turn["prefix"],
            "language": "en",
            **{name: label[name] for name in ("valence", "activation", "dominance")},
            **votes,
        },
    )


def _votes(lines: list[str], evaluation: Path) -> dict[str, str]:
    counts: defaultdict[str, float] = defaultdict(float)
    for line in lines:
        if (vote := _VOTE.match(line)) is None:
            continue
        chosen = [name for word in vote["emotions"].split(";") if (name := canonical(word.strip()))]
        if unknown := set(chosen) - set(CANONICAL):
            raise ManifestError(
                f"{evaluation}: an annotator chose {', '.join(unknown)}: {line!r}; known are {CANONICAL}"
            )
        for name in chosen:
            counts[name] += 1 / len(chosen)
    return {f"votes_{name}": f"{count:g}" for name, count in sorted(counts.items())}


def _transcripts(path: Path) -> dict[str, str]:
    """Text by turn; empty when the file is absent."""
    if not path.is_file():
        return {}
    matches = (_TRANSCRIPT.match(line) for line in _lines(path))
    # Lines that start with a bare "F:" or "M:" carry no times and belong to no turn.
    return {m["turn"]: m["text"].strip() for m in matches if m is not None and "XX" not in m["turn"]}


def _lines(path: Path) -> list[str]:
    # A few files have bytes of Windows' code page, and some were saved with CRLF.
    return [line.rstrip("\r") for line in read_text(path, fallback="cp1252").split("\n")]


def _require_unique(manifest: Manifest) -> None:
    seen: set[str] = set()
    for utterance in manifest.utterances:
        if utterance.id in seen:
            raise ManifestError(
                f"{utterance.id} is labelled twice in {utterance.groups['session']}/dialog/EmoEvaluation; "
                "remove the copied file"
            )
        seen.add(utterance.id)
