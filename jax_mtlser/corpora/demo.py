"""A small emotional speech corpus, synthesised on the spot, so that everything runs without a download.

Ten voices of the speech synthesiser espeak-ng speak short sentences in four speaking styles. A style is a
distribution over speaking rate, pitch, pitch range, pauses, course of the loudness and vocal effort. The
distributions overlap and each utterance draws its own values, so no single number tells the emotion, and
each voice speaks each of its sentences in all four styles, so the text does not tell it either.
"""

import contextlib
import ctypes
import dataclasses
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import soundfile
import soxr
from jaxtyping import Float

from jax_mtlser.config import DemoConfig, to_dict
from jax_mtlser.corpora.manifest import Manifest, ManifestError, Utterance, read_manifest, write_manifest
from jax_mtlser.run_folder import read_json, write_json

__all__ = ["make_demo_corpus"]

_SAMPLE_RATE = 16_000
# Raise when the same settings would give other recordings: corpora of older formats are then made anew.
_FORMAT = 2


@dataclasses.dataclass(frozen=True)
class _Voice:
    """One speaker.

    Attributes:
        espeak: accent and variant (vocal tract and pitch) by espeak-ng's name.
        pitch: centre of the voice on espeak-ng's pitch scale (0 to 99, 50 is the variant's own).
    """

    espeak: str
    pitch: float


# Variants whose average spectra are far apart, so that a few minutes of training can tell them.
_VOICES = {
    "F1": _Voice("en-us+Alicia", 44),
    "M1": _Voice("en-us+Lee", 50),
    "F2": _Voice("en+Andrea", 50),
    "M2": _Voice("en+m2", 56),
    "F3": _Voice("en-us+anika", 46),
    "M3": _Voice("en-gb-scotland+quincy", 46),
    "F4": _Voice("en-gb-scotland+belinda", 52),
    "M4": _Voice("en-us+victor", 44),
    "F5": _Voice("en-gb-x-rp+steph", 48),
    "M5": _Voice("en-gb-x-rp+benjamin", 54),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Style:
    """How an emotion is spoken: mean and standard deviation over utterances of each dimension.

    Attributes:
        rate: words per minute.
        pitch: shift of the voice's centre, in espeak-ng's units.
        range: extent of the pitch movements, in espeak-ng's units (0 to 99, 50 is usual).
        word_gap: extra pause between words, in units of 10 ms at the usual rate.
        level: loudness in dB.
        slope: change of loudness from the first to the last sample, in dB.
        effort: coefficient of a first difference; a pressed voice has relatively more high frequencies
            (positive), a slack one fewer (negative).
    """

    rate: tuple[float, float]
    pitch: tuple[float, float]
    range: tuple[float, float]
    word_gap: tuple[float, float]
    level: tuple[float, float]
    slope: tuple[float, float]
    effort: tuple[float, float]


_STYLES = {
    "angry": _Style(
        rate=(215, 12),
        pitch=(4, 4),
        range=(55, 9),
        word_gap=(0.3, 0.5),
        level=(-3, 1.5),
        slope=(-7, 2),
        effort=(0.65, 0.12),
    ),
    "happy": _Style(
        rate=(185, 12),
        pitch=(16, 5),
        range=(88, 9),
        word_gap=(1.2, 0.7),
        level=(-5, 1.5),
        slope=(6, 2),
        effort=(0.25, 0.12),
    ),
    "neutral": _Style(
        rate=(168, 12),
        pitch=(0, 4),
        range=(40, 9),
        word_gap=(1.2, 0.7),
        level=(-7, 1.5),
        slope=(1, 2),
        effort=(0.0, 0.12),
    ),
    "sad": _Style(
        rate=(138, 12),
        pitch=(-8, 4),
        range=(16, 8),
        word_gap=(5.0, 1.5),
        level=(-10, 1.5),
        slope=(-6, 2),
        effort=(-0.50, 0.12),
    ),
}

# Short, common words that sound unlike each other: a recogniser trained from nothing has to learn them
# within minutes. Each pattern is drawn equally often, whatever the number of its sentences.
_VERBS = ("bring", "find", "open", "hide", "keep", "show")
_THINGS = ("lamp", "fish", "book", "door", "apple", "sugar", "tent", "coat")
_KINDS = ("red", "small", "green", "old", "heavy")
_TIMES = ("now", "here", "today", "soon")
_PATTERNS = (
    (_VERBS, ("it",), _TIMES),
    (("please",), _VERBS, ("it",)),
    (_VERBS, ("the", "my"), _THINGS),
    (_VERBS, ("the", "my"), _THINGS, _TIMES),
    (_VERBS, ("the", "my"), _KINDS, _THINGS),
    (_VERBS, ("the", "my"), _KINDS, _THINGS, _TIMES),
)


def make_demo_corpus(
    directory: Path, config: DemoConfig, *, progress: Callable[[int, int], None] | None = None
) -> Manifest:
    """Make the corpus, or read it where it was made before with the same settings.

    ``directory`` gets ``wav/<id>.wav`` (16 kHz, mono, 16 bit), ``corpus.json`` with the settings and, last,
    ``manifest.csv``; a folder without it holds an unfinished corpus, which the next call replaces. The
    recordings are a function of ``config`` and of the installed espeak-ng.

    Args:
        directory: folder of the corpus; made when it is absent.
        config: size and seed.
        progress: called with (utterances done, utterances in all) after each one.

    Returns:
        The manifest "demo" with group columns ``sentence_id`` and ``session`` (``S1`` to ``S5``, each one
        female and one male voice).

    Raises:
        ManifestError: espeak-ng is not installed or does not start; more sentences are wanted than the
            grammar has; the folder holds another table.
    """
    table = directory / "manifest.csv"
    settings = {"corpus": "demo", "format": _FORMAT, "settings": to_dict(config)}
    previous = _settings_of(directory)
    if table.exists() and previous == settings:
        manifest = read_manifest(table, name="demo")
        if all(utterance.path.is_file() for utterance in manifest.utterances):
            return manifest
    plan = _plan(config)
    with _Espeak(config.seed) as espeak:
        table.unlink(missing_ok=True)
        if previous is not None and previous != settings:
            for path in (directory / "wav").glob("[FM][1-5]_*.wav"):
                path.unlink()
        write_json(directory / "corpus.json", settings)
        (directory / "wav").mkdir(exist_ok=True)
        utterances = []
        for done, spoken in enumerate(plan, start=1):
            path = directory / "wav" / f"{spoken.id}.wav"
            _write_wav(path, _speak(espeak, spoken))
            utterances.append(spoken.utterance(path))
            if progress is not None:
                progress(done, len(plan))
    write_manifest(Manifest("demo", tuple(utterances)), table)
    return read_manifest(table, name="demo")


def _settings_of(directory: Path) -> dict[str, Any] | None:
    """Settings of the demo corpus in a folder; None where the folder holds no corpus at all."""
    path = directory / "corpus.json"
    settings = read_json(path) if path.is_file() else None
    if isinstance(settings, dict) and settings.get("corpus") == "demo":
        return settings
    for existing in (path, directory / "manifest.csv"):
        if existing.exists():
            raise ManifestError(
                f"{existing} is not a demo corpus and would be overwritten; choose an empty folder with "
                "--config.corpus.path, or read it with --config.corpus.kind=table"
            )
    return None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Spoken:
    """An utterance to be spoken; ``seed`` decides its values within the style."""

    voice: str
    emotion: str
    text: str
    sentence: int
    seed: tuple[int, ...]

    @property
    def id(self) -> str:
        return f"{self.voice}_{self.sentence:04d}_{self.emotion}"

    def utterance(self, path: Path) -> Utterance:
        return Utterance(
            id=self.id,
            path=path,
            emotion=self.emotion,
            gender="female" if self.voice.startswith("F") else "male",
            speaker=self.voice,
            text=self.text,
            groups={"sentence_id": f"{self.sentence:04d}", "session": f"S{self.voice[1:]}"},
        )


def _sentences() -> tuple[list[str], Float[np.ndarray, " sentences"]]:
    """All sentences of the grammar and the probability of drawing each one."""
    by_pattern = [[" ".join(words) for words in itertools.product(*pattern)] for pattern in _PATTERNS]
    sentences = list(itertools.chain.from_iterable(by_pattern))
    probability = np.concatenate([np.full(len(group), 1 / len(group)) for group in by_pattern])
    return sentences, probability / len(by_pattern)


def _plan(config: DemoConfig) -> list[_Spoken]:
    """Who says what in which style: each voice draws its sentences and says each one in every style."""
    sentences, probability = _sentences()
    if config.sentences_per_style > len(sentences):
        raise ManifestError(
            f"corpus.demo.sentences_per_style is {config.sentences_per_style}, but the demo grammar has "
            f"{len(sentences)} sentences; use at most that many"
        )
    plan: list[_Spoken] = []
    for index, voice in enumerate(_VOICES):
        rng = np.random.default_rng((config.seed, index))
        drawn = rng.choice(len(sentences), config.sentences_per_style, replace=False, p=probability)
        for sentence, (style, emotion) in itertools.product(drawn.tolist(), enumerate(_STYLES)):
            seed = (config.seed, index, sentence, style)
            text = sentences[sentence]
            plan.append(_Spoken(voice=voice, emotion=emotion, text=text, sentence=sentence, seed=seed))
    return plan


def _speak(espeak: "_Espeak", spoken: _Spoken) -> Float[np.ndarray, " S"]:
    """Samples at 16 kHz, between -1 and 1."""
    rng = np.random.default_rng(spoken.seed)
    voice, style = _VOICES[spoken.voice], _STYLES[spoken.emotion]
    value = {field.name: rng.normal(*getattr(style, field.name)) for field in dataclasses.fields(style)}
    speech = espeak.say(
        spoken.text,
        voice.espeak,
        rate=float(np.clip(value["rate"], 110, 250)),
        pitch=float(np.clip(voice.pitch + value["pitch"], 0, 99)),
        pitch_range=float(np.clip(value["range"], 0, 99)),
        word_gap=max(0.0, value["word_gap"]),
    )
    speech = soxr.resample(speech, espeak.sample_rate, _SAMPLE_RATE)
    effort = np.clip(value["effort"], -0.8, 0.8)
    shaped = speech - effort * np.concatenate([[0.0], speech[:-1]])
    # The tilt alone must not decide the level: that is another dimension of the style.
    shaped *= np.sqrt(np.mean(speech**2) / np.mean(shaped**2))
    gain_db = value["level"] + value["slope"] * np.linspace(-0.5, 0.5, len(shaped))
    return _in_a_room(shaped * 10 ** (gain_db / 20), rng)


def _in_a_room(speech: Float[np.ndarray, " S"], rng: np.random.Generator) -> Float[np.ndarray, " S_long"]:
    """Silence of random length around the speech, and noise 25 to 35 dB below it."""
    before, after = (rng.uniform(0.04, 0.16, size=2) * _SAMPLE_RATE).astype(int)
    noise_rms = np.sqrt(np.mean(speech**2)) * 10 ** (-rng.uniform(25, 35) / 20)
    padded = np.pad(speech, (before, after))
    return np.clip(padded + rng.normal(0, noise_rms, size=len(padded)), -1, 1)


def _write_wav(path: Path, samples: Float[np.ndarray, " S"]) -> None:
    """16-bit mono; whole or not at all, since another process may be reading the same corpus."""
    # soundfile would wait for the disk after each file, which takes longer than the synthesis.
    wav = io.BytesIO()
    soundfile.write(wav, samples, _SAMPLE_RATE, subtype="PCM_16", format="WAV")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(wav.getvalue())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Constants and types of espeak-ng's C interface (speak_lib.h).
_SYNCHRONOUS = 2  # espeak_Synth returns when the whole utterance has been handed to the callback
_DONT_EXIT = 0x8000  # without it a missing data folder ends the process
_CHARS_UTF8 = 1
_POS_CHARACTER = 1
_RATE, _VOLUME, _PITCH, _RANGE, _WORD_GAP = 1, 2, 3, 4, 7
_SYNTH_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class _Espeak(contextlib.AbstractContextManager):
    """A synthesiser whose output depends on the seed and the calls made to it, and on nothing before.

    espeak-ng keeps the phase of its pitch flutter in a variable that no call resets, and starts its
    breath noise from the clock. A private copy of the library starts with fresh variables, also when the
    process uses espeak-ng elsewhere, and the noise is seeded here.

    Attributes:
        sample_rate: of the samples :meth:`say` returns, in Hz.
    """

    def __init__(self, seed: int):
        try:
            import espeakng_loader
        except ImportError as error:
            raise ManifestError(
                'the demo corpus needs espeak-ng; install it with: pip install "jax-mtlser[demo]"'
            ) from error
        self._chunks: list[np.ndarray] = []
        self._error: BaseException | None = None
        self._callback = _SYNTH_CALLBACK(self._collect)  # C keeps only the pointer: it must live as long
        # A library that is still mapped cannot be deleted on Windows.
        self._folder = tempfile.TemporaryDirectory(prefix="espeak-", ignore_cleanup_errors=True)
        try:
            copy = shutil.copy(espeakng_loader.get_library_path(), self._folder.name)
            self._library = ctypes.CDLL(copy)
            self.sample_rate = self._start(espeakng_loader.get_data_path(), seed)
        except OSError as error:
            self._folder.cleanup()
            raise ManifestError(f"espeak-ng cannot be loaded ({error}); reinstall espeakng-loader") from error
        except BaseException:
            self._folder.cleanup()
            raise

    def _start(self, data: str, seed: int) -> int:
        sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, os.fsencode(data), _DONT_EXIT)
        if sample_rate <= 0:
            raise ManifestError(
                f"espeak-ng did not start (status {sample_rate}) with its data at {data}; reinstall "
                "espeakng-loader, in a folder whose path is shorter than 150 characters"
            )
        self._library.espeak_SetSynthCallback(self._callback)
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed & 0x7FFFFFFF))
        return sample_rate

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._library.espeak_Terminate()
        self._folder.cleanup()

    def _collect(self, samples: Any, count: int, events: Any) -> int:
        # An exception cannot pass through C code: it is kept for say(), and 1 stops the synthesis.
        try:
            if samples and count > 0:
                self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
            return 0
        except BaseException as error:
            self._error = error
            return 1

    def say(
        self, text: str, voice: str, *, rate: float, pitch: float, pitch_range: float, word_gap: float
    ) -> Float[np.ndarray, " S"]:
        """Samples at :attr:`sample_rate`, between -1 and 1.

        Args:
            text: what is spoken.
            voice: language and variant, such as ``en-us+f1``.
            rate: words per minute.
            pitch: 0 to 99.
            pitch_range: 0 to 99.
            word_gap: pause between words in units of 10 ms at the usual rate.

        Raises:
            ManifestError: espeak-ng lacks the voice, or gives no samples.
        """
        self._chunks.clear()
        self._check(self._library.espeak_SetVoiceByName(voice.encode()), f"has no voice {voice!r}")
        # Volume 70 leaves room for every voice's peaks; loudness is set afterwards, without clipping.
        values = {_RATE: rate, _VOLUME: 70, _PITCH: pitch, _RANGE: pitch_range, _WORD_GAP: word_gap}
        for parameter, value in values.items():
            self._check(self._library.espeak_SetParameter(parameter, round(value), 0), f"refuses {value}")
        encoded = text.encode() + b"\0"
        size = ctypes.c_size_t(len(encoded))
        status = self._library.espeak_Synth(encoded, size, 0, _POS_CHARACTER, 0, _CHARS_UTF8, None, None)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        self._check(status, f"cannot speak {text!r}")
        self._check(0 if self._chunks else -1, f"gave no sound for {text!r}")
        return np.concatenate(self._chunks).astype(np.float64) / 32768

    @staticmethod
    def _check(status: int, problem: str) -> None:
        if status != 0:
            raise ManifestError(f"espeak-ng {problem} (status {status}); reinstall espeakng-loader")
