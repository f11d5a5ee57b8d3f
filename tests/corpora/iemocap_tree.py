"""IEMOCAP-shaped trees on disk, in miniature and in full size."""

import itertools
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import soundfile

HEADER = "% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]"
VOTES = ("C-E2:\tNeutral;\t()", "C-E3:\tFrustration; Anger;\t()", "C-E4:\tNeutral state;\t()", "C-F1:\tExcited;\t()")
# Published counts of the full release (facts about IEMOCAP, not settings of the reader).
LABELS = {
    "neu": 1708, "hap": 595, "exc": 1041, "ang": 1103, "sad": 1084,
    "fru": 1849, "sur": 107, "fea": 40, "dis": 2, "oth": 3, "xxx": 2507,
}  # fmt: skip
FOUR = ("neu", "hap", "exc", "ang", "sad")
SPEAKERS = {
    "01F": 528, "01M": 557, "02F": 481, "02M": 542, "03F": 522, "03M": 629, "04F": 528, "04M": 503, "05F": 590,
    "05M": 651,
}  # fmt: skip
DIALOGUES = (28, 30, 32, 30, 31)


def label(turn: str, emotion: str, vad: str = "2.5000, 3.0000, 3.5000") -> str:
    return f"[6.2901 - 8.2357]\t{turn}\t{emotion}\t[{vad}]"


def write_dialogue(
    release: Path,
    session: int,
    dialogue: str,
    labels: Mapping[str, str],
    transcript: bytes | None = None,
    recording: Path | None = None,
) -> None:
    """One dialogue: ``labels`` maps the turns' last parts to IEMOCAP's three-letter classes."""
    folder = release / f"Session{session}"
    evaluation = folder / "dialog" / "EmoEvaluation" / f"{dialogue}.txt"
    evaluation.parent.mkdir(parents=True, exist_ok=True)
    lines = [HEADER, ""]
    for turn, emotion in labels.items():
        # The single judgements below each turn name classes, too.
        lines += [label(f"{dialogue}_{turn}", emotion), *VOTES, "A-E3:\tval 3; act 2; dom  2;\t()", ""]
    evaluation.write_bytes("\r\n".join(lines).encode())
    wavs = folder / "sentences" / "wav" / dialogue
    wavs.mkdir(parents=True, exist_ok=True)
    for turn in labels:
        wav = wavs / f"{dialogue}_{turn}.wav"
        if recording is None:
            wav.touch()
        else:
            os.link(recording, wav)
    if transcript is not None:
        path = folder / "dialog" / "transcriptions" / f"{dialogue}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(transcript)


def write_full_release(release: Path) -> None:
    """All 10,039 turns in 151 dialogues, with the published counts of classes, sessions and speakers."""
    release.mkdir(parents=True)
    recording = release / "one.wav"
    soundfile.write(recording, np.zeros(160), 16_000)
    # Dealt out in the order of the classes: their sums and the speakers' hold together.
    four = iter([name for name in FOUR for _ in range(LABELS[name])])
    rest = [name for name in LABELS if name not in FOUR for _ in range(LABELS[name])]
    of_speaker = {speaker: list(itertools.islice(four, count)) for speaker, count in SPEAKERS.items()}
    for number, speaker in enumerate(SPEAKERS):
        of_speaker[speaker] += rest[number :: len(SPEAKERS)]
    for session, dialogues in enumerate(DIALOGUES, start=1):
        names = [_dialogue(session, number) for number in range(dialogues)]
        turns: dict[str, dict[str, str]] = {name: {} for name in names}
        for letter in "FM":
            for number, emotion in enumerate(of_speaker[f"0{session}{letter}"]):
                turns[names[number % dialogues]][f"{letter}{number // dialogues:03d}"] = emotion
        for name, labels in turns.items():
            lines = [f"{name}_{turn} [001.0000-002.0000]: Line {turn} of {name}." for turn in labels]
            write_dialogue(release, session, name, labels, "\n".join(lines).encode(), recording)


def _dialogue(session: int, number: int) -> str:
    """Both actors wore the markers; scripts have a take letter now and then."""
    prefix = f"Ses0{session}{'FM'[number % 2]}"
    scene = number // 2
    return (
        f"{prefix}_impro{scene + 1:02d}"
        if scene < 8
        else f"{prefix}_script0{scene % 3 + 1}_{scene // 3}{'b' * (scene % 2)}"
    )
