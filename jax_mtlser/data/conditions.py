"""Conditions under which a trained model is tested, as they are named, written and limited.

A condition is written ``KIND`` or ``KIND:VALUE``, as ``white:10`` (white noise at an SNR of 10 dB).
"""

import dataclasses
import difflib
import enum
from collections.abc import Sequence

from jax_mtlser.data.degradations import MP3_KBPS, OPUS_KBPS, DegradationError

__all__ = [
    "BABBLE_VOICES",
    "CLEAN",
    "DEFAULT_CONDITIONS",
    "Condition",
    "ConditionKind",
    "describe_kinds",
    "parse_conditions",
]

BABBLE_VOICES = 6  # too many to follow one, too few to become noise


class ConditionKind(enum.Enum):
    """What happens to the recordings."""

    CLEAN = "clean"
    WHITE = "white"
    PINK = "pink"
    BABBLE = "babble"
    NOISE = "noise"
    REVERB = "reverb"
    ROOM = "room"
    TELEPHONE = "telephone"
    MP3 = "mp3"
    OPUS = "opus"
    GAIN = "gain"
    CLIP = "clip"


@dataclasses.dataclass(frozen=True)
class _Meaning:
    """What a kind does, and its value: unit, limits and an example. Without a unit there is no value."""

    title: str
    about: str
    unit: str = ""
    low: float = 0
    high: float = 0
    example: float = 0


def _snr(title: str, about: str = "") -> _Meaning:
    return _Meaning(title, f"SNR{about}", "dB", -30, 60, 10)


_MEANINGS = {
    ConditionKind.CLEAN: _Meaning("clean", "as recorded; always judged, the others are compared with it"),
    ConditionKind.WHITE: _snr("white noise"),
    ConditionKind.PINK: _snr("pink noise"),
    ConditionKind.BABBLE: _snr("babble", f", {BABBLE_VOICES} utterances of the corpus by others"),
    ConditionKind.NOISE: _snr("own noise", ", recordings of --noise DIR"),
    ConditionKind.REVERB: _Meaning("reverb", "T60 of a simulated room", "s", 0.05, 10, 0.6),
    ConditionKind.ROOM: _Meaning("own rooms", "impulse responses of --rooms DIR"),
    ConditionKind.TELEPHONE: _Meaning("telephone", "8 kHz, 300-3400 Hz, mu-law"),
    ConditionKind.MP3: _Meaning("MP3", "constant bit rate", "kbit/s", MP3_KBPS[0], MP3_KBPS[-1], 16),
    ConditionKind.OPUS: _Meaning("Opus", "variable bit rate", "kbit/s", *OPUS_KBPS, 16),
    ConditionKind.GAIN: _Meaning("gain", "what exceeds full scale is clipped, as in 16-bit files", "dB", -60, 60, -30),
    ConditionKind.CLIP: _Meaning("clipping", "below each utterance's own peak", "dB", 0.1, 60, 6),
}
_NOISES = (ConditionKind.WHITE, ConditionKind.PINK, ConditionKind.BABBLE, ConditionKind.NOISE)


@dataclasses.dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        kind: what happens.
        value: how much, in the kind's unit; None for kinds without one.
    """

    kind: ConditionKind
    value: float | None = None

    def __post_init__(self) -> None:
        meaning, kind = _MEANINGS[self.kind], self.kind.value
        if not meaning.unit:
            if self.value is not None:
                raise DegradationError(f"{kind} takes no value; write {kind} alone")
            return
        limits = f"{meaning.low:g} to {meaning.high:g} {meaning.unit}"
        if self.value is None:
            raise DegradationError(
                f"{kind} needs a value ({meaning.about}, {limits}), such as {kind}:{meaning.example:g}"
            )
        if not meaning.low <= self.value <= meaning.high:
            raise DegradationError(f"{kind}:{self.value:g} is out of range; use {limits}")
        if self.kind is ConditionKind.MP3 and self.value not in MP3_KBPS:
            raise DegradationError(f"MP3 at 16 kHz has no {self.value:g} kbit/s; use {', '.join(map(str, MP3_KBPS))}")

    @property
    def name(self) -> str:
        """As on the command line: ``white:10``."""
        return self.kind.value if self.value is None else f"{self.kind.value}:{self.value:g}"

    @property
    def title(self) -> str:
        """For people: ``white noise, 10 dB``."""
        meaning = _MEANINGS[self.kind]
        return meaning.title if self.value is None else f"{meaning.title}, {self.value:g} {meaning.unit}"

    @property
    def is_noise(self) -> bool:
        """Whether the value is an SNR."""
        return self.kind in _NOISES

    @property
    def kind_title(self) -> str:
        """For people, without the value."""
        return _MEANINGS[self.kind].title


def _conditions(**values: Sequence[float]) -> tuple[Condition, ...]:
    return tuple(Condition(ConditionKind(kind), value) for kind, each in values.items() for value in each)


CLEAN = Condition(ConditionKind.CLEAN)
DEFAULT_CONDITIONS: tuple[Condition, ...] = (
    *_conditions(white=(20, 10, 5, 0), pink=(20, 10, 5, 0), babble=(20, 10, 5, 0), reverb=(0.3, 0.6, 1.0)),
    Condition(ConditionKind.TELEPHONE),
    *_conditions(mp3=(32, 16, 8), opus=(16, 8), gain=(-30, 20), clip=(6, 20)),
)


def parse_conditions(words: Sequence[str]) -> tuple[Condition, ...]:
    """Conditions as they are written on a command line.

    Args:
        words: each ``KIND`` or ``KIND:VALUE[,VALUE...]``.

    Raises:
        DegradationError: an unknown kind, a value that is missing, superfluous, no number or out of range.
    """
    found: dict[Condition, None] = {}
    for word in words:
        name, colon, values = word.partition(":")
        kinds = {kind.value: kind for kind in ConditionKind}
        if name not in kinds:
            near = difflib.get_close_matches(name, kinds, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(kinds)}"
            raise DegradationError(f"there is no condition {name!r}; {hint}")
        for value in values.split(",") if colon else [None]:
            found[Condition(kinds[name], None if value is None else _number(value, kinds[name]))] = None
    return tuple(found)


def _number(text: str, kind: ConditionKind) -> float:
    try:
        return float(text)
    except ValueError:
        meaning = _MEANINGS[kind]
        fix = f"{kind.value}:{meaning.example:g}" if meaning.unit else f"{kind.value} alone"
        raise DegradationError(f"{kind.value}:{text}: {text!r} is no number; write {fix}") from None


def describe_kinds() -> str:
    """One line for each kind, for a help text."""
    lines = []
    for kind, meaning in _MEANINGS.items():
        value = f":{meaning.low:g}..{meaning.high:g}" if meaning.unit else ""
        unit = f" in {meaning.unit}" if meaning.unit else ""
        lines.append(f"  {kind.value + value:<18}{unit:<10} {meaning.title}: {meaning.about}")
    return "\n".join(lines)
