"""A corpus under any condition, with the recordings of noise and rooms that the conditions need."""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import soundfile
from jaxtyping import Float32

from jax_mtlser import runtime
from jax_mtlser.config import AudioConfig
from jax_mtlser.corpora.manifest import Manifest, Utterance
from jax_mtlser.data import degradations
from jax_mtlser.data.audio import AudioError, decode, from_int16, to_int16
from jax_mtlser.data.conditions import BABBLE_VOICES, Condition, ConditionKind
from jax_mtlser.data.degradations import DegradationError
from jax_mtlser.data.packed import PackedAudio, pack

__all__ = ["Degrader", "Sounds"]

_MAX_NOISE_SECONDS = 4 * 3600.0


@dataclasses.dataclass(frozen=True, eq=False)
class Sounds:
    """The user's own recordings that conditions need.

    Attributes:
        noise: of ``--noise``; None when no condition needs it.
        rooms: impulse responses of ``--rooms``, float32 at 16 kHz.
        digests: content hash of each of the two, by kind.
        left_out: files that cannot be used, with the reason.
    """

    noise: PackedAudio | None = None
    rooms: tuple[Float32[np.ndarray, " R"], ...] = ()
    digests: Mapping[ConditionKind, str] = dataclasses.field(default_factory=dict)
    left_out: tuple[str, ...] = ()

    @classmethod
    def load(
        cls, conditions: Sequence[Condition], noise: Path | None, rooms: Path | None, cache_dir: str = ""
    ) -> "Sounds":
        """Find and decode what the conditions need, and try the codecs they use: before anything is judged.

        Args:
            conditions: all that are to be judged.
            noise: folder of noise recordings, searched with its sub-folders.
            rooms: folder of impulse responses, likewise.
            cache_dir: as in :class:`AudioConfig`.

        Raises:
            DegradationError: a folder that is missing, not needed, or without usable audio; a codec that the
                installed libsndfile does not have.
        """
        kinds = {condition.kind for condition in conditions}
        for kind, folder, flag in ((ConditionKind.NOISE, noise, "--noise"), (ConditionKind.ROOM, rooms, "--rooms")):
            if kind in kinds and folder is None:
                raise DegradationError(
                    f"the condition {kind.value} needs recordings; name their folder with {flag} DIR"
                )
            if kind not in kinds and folder is not None:
                raise DegradationError(
                    f"{flag} is given, but no condition uses it; add --condition {kind.value}"
                    + (":20,10,0" if kind is ConditionKind.NOISE else "")
                )
        for codec in {c.kind: c for c in conditions if c.kind in (ConditionKind.MP3, ConditionKind.OPUS)}.values():
            _CHANNELS[codec.kind](np.zeros(1600, np.float32), codec.value)
        packed, responses, digests = None, [], {}
        left_out: list[str] = []
        if noise is not None:
            packed, skipped, digests[ConditionKind.NOISE] = _pack_noise(noise, cache_dir)
            left_out += skipped
        if rooms is not None:
            for path in _audio_files(rooms):
                try:
                    response = decode(path)
                    if not response.any():
                        raise AudioError("silent: every sample is 0")
                    responses.append(response)
                except AudioError as error:
                    left_out.append(f"{path}: {error}")
            if not responses:
                raise DegradationError(f"no impulse response in {rooms} can be used ({left_out[0]})")
            digests[ConditionKind.ROOM] = _digest(responses)
        return cls(packed, tuple(responses), digests, tuple(left_out))


def _audio_files(folder: Path) -> list[Path]:
    """Recordings below a folder, in the order of their names."""
    if not folder.is_dir():
        raise DegradationError(f"{folder} is {'a file' if folder.exists() else 'missing'}; name a folder of recordings")
    endings = {f".{name.lower()}" for name in soundfile.available_formats()} | {".aif", ".oga", ".opus"}
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in endings and not p.name.startswith("."))
    if not found:
        raise DegradationError(f"there is no recording in {folder} (wav, flac, ogg, mp3, ...)")
    return found


def _pack_noise(folder: Path, cache_dir: str) -> tuple[PackedAudio, list[str], str]:
    names = {path.relative_to(folder).as_posix(): path for path in _audio_files(folder)}
    manifest = Manifest("noise", tuple(Utterance(id=name, path=path) for name, path in names.items()))
    try:
        # Packed like a corpus: decoded once, mapped into memory, however large the collection.
        _, packed, skipped = pack(manifest, AudioConfig(max_seconds=_MAX_NOISE_SECONDS, cache_dir=cache_dir))
    except AudioError as error:
        raise DegradationError(f"no recording in {folder} can be used: {error}") from None
    return packed, [f"{item.path}: {item.reason}" for item in skipped], _digest([packed.samples, packed.offsets])


def _digest(arrays: Sequence[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.int64(len(array)).tobytes())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:16]


# Channels need nothing but the utterance and the value.
_CHANNELS: Mapping[ConditionKind, Callable[..., np.ndarray]] = {
    ConditionKind.TELEPHONE: lambda speech, _: degradations.telephone(speech),
    ConditionKind.MP3: degradations.mp3,
    ConditionKind.OPUS: degradations.opus,
    ConditionKind.GAIN: degradations.gain,
    ConditionKind.CLIP: degradations.clip_peaks,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Degrader:
    """A corpus under any condition.

    Attributes:
        manifest: the utterances.
        audio: their samples.
        sounds: the user's recordings.
        seed: of noise, babble and rooms. The noise of an utterance is the same at every SNR.
    """

    manifest: Manifest
    audio: PackedAudio
    sounds: Sounds = dataclasses.field(default_factory=Sounds)
    seed: int = 0

    def check(self, conditions: Sequence[Condition]) -> None:
        """Refuse what this corpus cannot give.

        Raises:
            DegradationError: babble, where there are too few utterances by others than an utterance's speaker.
        """
        if not any(condition.kind is ConditionKind.BABBLE for condition in conditions):
            return
        speakers = self.manifest.counts("speaker")
        most, count = max(speakers.items(), key=lambda item: item[1], default=("", 1))
        if len(self.manifest) - count < BABBLE_VOICES:
            whose = f"by others than {most}" if most else "beside the one that is judged"
            raise DegradationError(
                f"babble needs {BABBLE_VOICES} utterances {whose}, and {self.manifest.name} has {len(self.manifest) - count}; "
                "leave babble out with --condition, or use --condition noise:10 --noise DIR"
            )

    def fingerprint(self, condition: Condition) -> dict[str, object]:
        """All that decides what the audio becomes, beside the corpus."""
        used: dict[str, object] = {"condition": condition.name}
        if condition.is_noise or condition.kind in (ConditionKind.REVERB, ConditionKind.ROOM):
            used["seed"] = self.seed
        if condition.kind in self.sounds.digests:
            used["recordings"] = self.sounds.digests[condition.kind]
        if condition.kind in (ConditionKind.MP3, ConditionKind.OPUS):
            used["libsndfile"] = soundfile.__libsndfile_version__
        return used

    def utterance(self, row: int, condition: Condition) -> Float32[np.ndarray, " S"]:
        """One utterance under a condition; with noise or in rooms scaled down where it would exceed full scale."""
        speech, kind, value = from_int16(self.audio[row]), condition.kind, condition.value
        if kind is ConditionKind.CLEAN:
            return speech
        if channel := _CHANNELS.get(kind):
            return channel(speech, value)
        random = degradations.generator(self.seed, kind.value, self.manifest.utterances[row].id)
        if condition.is_noise:
            assert value is not None
            return degradations.fit_full_scale(degradations.add_noise(speech, self._noise(row, kind, random), value))
        if kind is ConditionKind.REVERB:
            assert value is not None
            response = degradations.room_impulse_response(value, random)
        else:
            response = self.sounds.rooms[int(random.integers(len(self.sounds.rooms)))]
        return degradations.fit_full_scale(degradations.reverberate(speech, response))

    def corpus(
        self,
        rows: Sequence[int],
        condition: Condition,
        *,
        folder: Path | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> PackedAudio:
        """The corpus under a condition, at 16 bits a sample, for use in the place of :attr:`audio`.

        Args:
            rows: utterances that will be judged; the others are silent in the result.
            condition: what happens to them.
            folder: where the samples are kept, in a file without a name that vanishes with the result.
            progress: called with (utterances done, all utterances).
        """
        if condition.kind is ConditionKind.CLEAN:
            return self.audio
        offsets = self.audio.offsets
        with tempfile.TemporaryFile(dir=folder) as file:
            # Mapped, not in memory: a large corpus may exceed it.
            samples = np.memmap(file, dtype="<i2", mode="w+", shape=(int(offsets[-1]),))

        def write(row: int) -> None:
            samples[offsets[row] : offsets[row + 1]] = to_int16(self.utterance(row, condition))

        with ThreadPoolExecutor(runtime.available_cores()) as pool:
            for done, _ in enumerate(pool.map(write, rows), 1):
                if progress is not None:
                    progress(done, len(rows))
        return PackedAudio(samples, offsets)

    def _noise(self, row: int, kind: ConditionKind, random: np.random.Generator) -> np.ndarray:
        samples = int(self.audio.lengths[row])
        match kind:
            case ConditionKind.WHITE:
                return degradations.white_noise(samples, random)
            case ConditionKind.PINK:
                return degradations.pink_noise(samples, random)
            case ConditionKind.BABBLE:
                return degradations.babble(samples, self._voices(row, random), random)
        assert self.sounds.noise is not None
        recording = self.sounds.noise[int(random.integers(len(self.sounds.noise)))]
        noise = _stretch(recording, int(random.integers(len(recording))), samples)
        # Digital silence has no level to set: take the stretch from the loudest sample on.
        return noise if noise.any() else _stretch(recording, int(np.argmax(np.abs(recording))), samples)

    def _voices(self, row: int, random: np.random.Generator) -> list[np.ndarray]:
        """Utterances by others: not by the row's speaker where that is known, never the row itself."""
        own = self.manifest.utterances[row].speaker
        chosen: dict[int, None] = {}
        while len(chosen) < BABBLE_VOICES:
            other = int(random.integers(len(self.manifest)))
            if other != row and (own is None or self.manifest.utterances[other].speaker != own):
                chosen[other] = None
        return [from_int16(self.audio[other]) for other in chosen]


def _stretch(recording: np.ndarray, start: int, samples: int) -> Float32[np.ndarray, " S"]:
    """``samples`` samples from ``start`` on, beginning anew at the recording's end."""
    if start + samples <= len(recording):
        return from_int16(recording[start : start + samples])
    return from_int16(np.resize(np.concatenate([recording[start:], recording[:start]]), samples))
