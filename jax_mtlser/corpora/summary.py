"""What a manifest holds, as a few lines of text: classes, hours, speakers, groups, recordings."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import soundfile

from jax_mtlser.corpora.manifest import Manifest

__all__ = ["Measured", "measure", "summary_lines"]

# Values of a column that are listed with their counts; more are only counted.
_MOST_VALUES = 8


@dataclasses.dataclass(frozen=True)
class Measured:
    """What the recordings' headers say; no samples are read.

    Attributes:
        seconds: of each row; None where the recording is missing or its header cannot be read.
        formats: number of files with each sampling rate (Hz) and number of channels.
        missing: recordings that are not there.
        unreadable: recordings whose header cannot be read.
    """

    seconds: tuple[float | None, ...]
    formats: Counter[tuple[int, int]]
    missing: tuple[Path, ...]
    unreadable: tuple[Path, ...]

    def hours(self, rows: Sequence[int] | range | None = None) -> float:
        """Hours of some rows, or of all."""
        return sum(self.seconds[row] or 0.0 for row in (range(len(self.seconds)) if rows is None else rows)) / 3600


def measure(manifest: Manifest, progress: Callable[[int, int], None] | None = None) -> Measured:
    """Read the header of each recording once.

    Args:
        manifest: the rows.
        progress: called with (rows done, rows in all) now and then.
    """
    files: dict[Path, float | None] = {}
    formats: Counter[tuple[int, int]] = Counter()
    missing: list[Path] = []
    unreadable: list[Path] = []
    seconds: list[float | None] = []
    for row, utterance in enumerate(manifest.utterances):
        if utterance.path not in files:
            files[utterance.path] = None
            try:
                info = soundfile.info(str(utterance.path))
                files[utterance.path] = info.frames / info.samplerate
                formats[info.samplerate, info.channels] += 1
            except (soundfile.LibsndfileError, OSError, TypeError):
                (unreadable if utterance.path.is_file() else missing).append(utterance.path)
        length = files[utterance.path]
        seconds.append(
            None if length is None else (length if utterance.end is None else utterance.end) - utterance.start
        )
        if progress is not None and (row % 100 == 99 or row == len(manifest) - 1):
            progress(row + 1, len(manifest))
    return Measured(tuple(seconds), formats, tuple(missing), tuple(unreadable))


def summary_lines(manifest: Manifest, measured: Measured) -> list[str]:
    """The summary: a table of the emotions, then one line each for speakers, texts, columns and recordings."""
    lines = [f"{manifest.name}: {len(manifest):,} utterances, {measured.hours():.2f} h"]
    lines += [f"  {line}" for line in _emotion_table(manifest, measured)]
    lines += [
        f"  {line}" for line in (_speakers(manifest), _texts(manifest), *_columns(manifest), *_recordings(measured))
    ]
    return lines


def _emotion_table(manifest: Manifest, measured: Measured) -> list[str]:
    emotions = manifest.column("emotion")
    names = [*manifest.counts("emotion"), *([None] if None in emotions else [])]
    rows = {name or "(none)": [row for row, emotion in enumerate(emotions) if emotion == name] for name in names}
    width = max(10, *(len(name) for name in rows))
    lines = [f"{'emotion':<{width}}  utterances  share     hours  mean s"]
    for name, members in rows.items():
        known = [second for row in members if (second := measured.seconds[row]) is not None]
        mean = f"{sum(known) / len(known):6.2f}" if known else f"{'-':>6}"
        share = len(members) / len(manifest)
        lines.append(f"{name:<{width}}  {len(members):10,}  {share:4.0%}  {measured.hours(members):8.3f}  {mean}")
    return lines


def _speakers(manifest: Manifest) -> str:
    genders: dict[str, set[str]] = {}
    for utterance in manifest.utterances:
        if utterance.speaker is not None:
            genders.setdefault(utterance.speaker, set()).add(utterance.gender or "unknown")
    by_gender = Counter("/".join(sorted(found - {"unknown"} or found)) for found in genders.values())
    without = manifest.column("speaker").count(None)
    text = f"speakers: {len(genders)}"
    if genders:
        text += f" ({', '.join(f'{count} {gender}' for gender, count in sorted(by_gender.items()))})"
    return text + (f", {without:,} utterances without" if without else "")


def _texts(manifest: Manifest) -> str:
    texts = [text for text in manifest.column("text") if text]
    return f"transcripts: {len(texts):,} of {len(manifest):,}, {len(set(texts)):,} different"


def _columns(manifest: Manifest) -> list[str]:
    lines = []
    for name in manifest.columns():
        if name in ("emotion", "gender", "speaker"):
            continue
        counts = manifest.counts(name)
        without = len(manifest) - sum(counts.values())
        lines.append(f"{name}: {_values(counts)}" + (f"; {without:,} without" if without else ""))
    return lines


def _values(counts: dict[str, int]) -> str:
    if len(counts) <= _MOST_VALUES:
        return ", ".join(f"{value} {count:,}" for value, count in counts.items())
    try:
        numbers = sorted(map(float, counts))
    except ValueError:
        return f"{len(counts):,} values, such as {next(iter(counts))}"
    return f"{len(counts):,} values from {numbers[0]:g} to {numbers[-1]:g}"


def _recordings(measured: Measured) -> list[str]:
    kinds = [
        f"{count:,} x {rate / 1000:g} kHz {'mono' if channels == 1 else f'{channels} channels'}"
        for (rate, channels), count in measured.formats.most_common()
    ]
    lines = [f"recordings: {', '.join(kinds) or 'none'}"]
    for name, paths in (("missing", measured.missing), ("unreadable", measured.unreadable)):
        if paths:
            lines.append(f"{name}: {len(paths):,} recordings, such as {paths[0]}")
    return lines
