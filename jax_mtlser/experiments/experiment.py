"""What the members of an experiment share: corpus, shapes, encoder, devices, compiled programs."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_mtlser import runtime
from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import (
    AudioConfig,
    Config,
    ConfigError,
    EncoderConfig,
    Freeze,
    Precision,
    VocabularySource,
)
from jax_mtlser.corpora.load import load_corpus
from jax_mtlser.corpora.manifest import Manifest, ManifestError
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import Buckets, make_buckets, plan_epoch, plan_in_order
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.data.labels import LabelMaps, encode_targets, normalized_transcripts
from jax_mtlser.data.packed import PackedAudio, Skipped, pack
from jax_mtlser.data.vocabulary import (
    Vocabulary,
    checkpoint_vocabulary,
    paper_vocabulary,
    transcripts_vocabulary,
)
from jax_mtlser.experiments.initial_weights import InitialWeights, LastRead
from jax_mtlser.experiments.kept_frames import KeptFrames, kept_frames
from jax_mtlser.experiments.knobs import compiled_in, knobs
from jax_mtlser.experiments.members import Member
from jax_mtlser.models.frozen import FrozenPart
from jax_mtlser.models.layers import Lora
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel
from jax_mtlser.models.pretrained import CheckpointError, PretrainedEncoder, open_encoder
from jax_mtlser.models.transformer import EncoderOptions
from jax_mtlser.training.frozen_corpus import frozen_corpus
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display
from jax_mtlser.training.sharding import CompiledSteps, make_mesh
from jax_mtlser.training.step import Knobs, StepSpec, TrainState

__all__ = ["Experiment", "experiments_by_variant"]


@dataclasses.dataclass
class Experiment:
    """Loaded once, used by every member with these settings.

    Attributes:
        config: validated, of one variant.
        manifest: utterances whose audio could be used.
        audio: their samples.
        skipped: the others.
        encoder: architecture and where its weights are.
        transcripts: normalised, by row.
        buckets: padded shapes.
        mesh: devices.
        shared: what variants use in common.
    """

    config: Config
    manifest: Manifest
    audio: PackedAudio
    skipped: tuple[Skipped, ...]
    encoder: PretrainedEncoder
    transcripts: list[str | None]
    buckets: Buckets
    mesh: Any
    display: Display
    shared: "_Shared"

    @classmethod
    def load(cls, config: Config, display: Display, manifest: Manifest | None = None) -> "Experiment":
        """Find the encoder, load and decode the corpus, fix the batch shapes.

        Args:
            config: validated, of one variant.
            display: where progress goes.
            manifest: used instead of loading ``config.corpus``.
        """
        encoder, manifest = cls._find(config, display, manifest)
        _check_durations(config.audio, encoder.arch)
        mesh = _mesh(config)
        with display.counting("decoding audio") as progress:
            manifest, audio, skipped = pack(manifest, config.audio, progress=progress)
        transcripts = normalized_transcripts(manifest, config.model.vocabulary.language)
        buckets = _buckets(config, audio, transcripts, encoder.arch, mesh)
        shared = _Shared(encoders=[(config.model.encoder, encoder)])
        experiment = cls(config, manifest, audio, skipped, encoder, transcripts, buckets, mesh, display, shared)
        experiment._summarise()
        return experiment

    def under(self, config: Config) -> "Experiment":
        """The same corpus with a variant's settings. Encoders, samples on the devices and programs are shared.

        Args:
            config: validated; corpus and audio as here.

        Raises:
            ConfigError, CheckpointError: for an encoder that cannot be used.
        """
        encoder = self.shared.encoder(config.model.encoder)
        _check_durations(config.audio, encoder.arch)
        mesh = _mesh(config, self)
        transcripts, buckets, language = self.transcripts, self.buckets, config.model.vocabulary.language
        if language != self.config.model.vocabulary.language:
            transcripts = normalized_transcripts(self.manifest, language)
        before = (self.config.batching, self.config.model.encoder.hf_compat, self.encoder.arch.hop(), self.mesh)
        wanted = (config.batching, config.model.encoder.hf_compat, encoder.arch.hop(), mesh)
        if wanted != before or transcripts is not self.transcripts:
            buckets = _buckets(config, self.audio, transcripts, encoder.arch, mesh)
        return dataclasses.replace(
            self, config=config, encoder=encoder, mesh=mesh, transcripts=transcripts, buckets=buckets
        )

    @staticmethod
    def _find(config: Config, display: Display, manifest: Manifest | None) -> tuple[PretrainedEncoder, Manifest]:
        """The encoder and the corpus; when both are missing, both are told."""
        problems: list[Exception] = []
        try:
            if manifest is None:
                with display.counting("reading the corpus") as progress:
                    manifest = load_corpus(config.corpus, progress)
        except ManifestError as error:
            problems.append(error)
        try:
            encoder = open_encoder(config.model.encoder)
        except CheckpointError as error:
            problems.append(error)
        if problems:
            raise ConfigError("\n".join(map(str, problems))) from problems[0]
        assert manifest is not None
        return encoder, manifest

    def with_audio(self, audio: PackedAudio) -> "Experiment":
        """The same experiment with other samples of the same lengths; compiled programs are shared.

        Raises:
            ValueError: utterances of other lengths.
        """
        if not np.array_equal(audio.offsets, self.audio.offsets):
            raise ValueError("the samples of an experiment can only be replaced by as many for each utterance")
        return dataclasses.replace(self, audio=audio)

    def _summarise(self) -> None:
        lengths, buckets = self.audio.lengths, self.buckets
        padded = sum(
            len(batch.rows) * buckets.bounds[batch.bucket] for batch in plan_in_order(range(len(lengths)), buckets)
        )
        bounds = " ".join(f"{bound / SAMPLE_RATE:.2f}" for bound in buckets.bounds)
        self.display.line(
            f"{self.manifest.name}: {len(self.manifest)} utterances, {lengths.sum() / SAMPLE_RATE / 60:.1f} min"
            + (f", {len(self.skipped)} left out (skipped.csv)" if self.skipped else "")
            + f"; buckets end at {bounds} s, {padded / lengths.sum():.3f}x of the audio with padding"
        )
        dtype = jnp.dtype(compute_dtype(self.config.training.precision)).name
        self.display.line(f"computing in {dtype} on {jax.device_count()} x {jax.devices()[0].device_kind}")

    def maps_of(self, member: Member) -> LabelMaps:
        """Class names of a member, from its training part."""
        return LabelMaps.of(self.manifest, member.parts.train, self.config.corpus.emotions)

    def vocabulary_of(self, member: Member) -> Vocabulary | None:
        """CTC symbols of a member; None when nothing in its training part is transcribed."""
        texts = [text for row in member.parts.train if (text := self.transcripts[row])]
        if not texts:
            return None
        match self.config.model.vocabulary.source:
            case VocabularySource.PAPER:
                return paper_vocabulary()
            case VocabularySource.CHECKPOINT:
                if self.encoder.folder is None:
                    raise ConfigError(
                        "model.vocabulary.source is checkpoint, but model.encoder.checkpoint is empty; "
                        "use --config.model.vocabulary.source=paper or transcripts"
                    )
                return checkpoint_vocabulary(self.encoder.folder)
            case VocabularySource.TRANSCRIPTS:
                return transcripts_vocabulary(texts)

    def head_sizes(self, maps: LabelMaps, vocabulary: Vocabulary | None) -> HeadSizes:
        """Sizes of the heads that have something to learn.

        Raises:
            ConfigError: when there is none.
        """

        def size(classes: tuple[str, ...]) -> int:
            return len(classes) if len(classes) > 1 else 0

        sizes = HeadSizes(
            emotion=size(maps.emotion),
            gender=size(maps.gender),
            speaker=size(maps.speaker),
            asr=len(vocabulary.symbols) if vocabulary else 0,
        )
        if sizes == HeadSizes():
            raise ConfigError(
                f"{self.manifest.name} has no labels to learn from: no task has two classes, and there are no transcripts"
            )
        return sizes

    def steps_of(self, sizes: HeadSizes, blank: int, members: int = 1) -> CompiledSteps:
        """The programs for a model with these heads; members with equal ones share them, whatever their variant.

        Args:
            sizes, blank: of the heads.
            members: trainings in one step.
        """
        encoder, config, kept = self.config.model.encoder, self.config, self.kept
        spec = StepSpec(
            model=MultitaskModel(
                self.encoder.arch,
                sizes,
                EncoderOptions(
                    dtype=compute_dtype(config.training.precision),
                    hf_compat=encoder.hf_compat,
                    lora=Lora(encoder.lora_rank, encoder.lora_alpha) if encoder.lora_rank else None,
                    remat=encoder.remat,
                    scan_layers=encoder.scan_layers,
                ),
                config.model.head_input,
                frozen_encoder=encoder.freeze is Freeze.ENCODER and not encoder.lora_rank,
            ),
            optimizer=compiled_in(config.optimizer),
            normalize_waveform=self.encoder.normalize_waveform,
            freeze=encoder.freeze,
            freeze_layers=encoder.freeze_layers,
            ctc_normalization=config.weights.ctc_normalization,
            plain=config.training.plain,
            blank=blank,
            accumulation_steps=config.batching.accumulation_steps,
            method=config.weights.method,
            frozen=kept.part if kept else FrozenPart.NOTHING,
        )
        samples = len(self.audio.samples) + self.buckets.bounds[-1] if not kept and self.on_device else None
        frames = kept.total if kept else None
        # Knobs are traced, but which of them there are is compiled in.
        structure = jax.tree.structure(self.any_knobs())
        for known_structure, known in self.shared.steps:
            shape = (known.mesh, known.members, known.resident_samples, known.resident_frames)
            alike = known.spec == spec and shape == (self.mesh, members, samples, frames)
            if alike and known_structure == structure and _equal(known.buckets, self.buckets):
                return known
        steps = CompiledSteps(
            spec, self.buckets, self.mesh, resident_samples=samples, resident_frames=frames, members=members
        )
        self.shared.steps.append((structure, steps))
        return steps

    @property
    def on_device(self) -> bool:
        """Whether the corpus lies on the accelerator."""
        return self._source(None).on_device

    def compile(self, steps: CompiledSteps, *, names: tuple[str, ...] = ("train", "eval")) -> float:
        """Compile what is not compiled yet; returns the seconds that took."""
        before = dict(steps.seconds)
        total = len(names) * len(self.buckets)
        with self.display.steps("compiling", 0, total) as show:
            done = 0

            def progress(name: str, bucket: int, seconds: float) -> None:
                nonlocal done
                done += 1
                show(done, f"{name} {self.buckets.bounds[bucket] / SAMPLE_RATE:.2f} s took {seconds:.1f} s")

            steps.compile(self.any_knobs(), names=names, progress=progress)
        new = {key: seconds for key, seconds in steps.seconds.items() if key not in before}
        if new:
            shown = ", ".join(
                f"{name} {self.buckets.bounds[bucket] / SAMPLE_RATE:.2f} s: {seconds:.1f} s"
                for (name, bucket), seconds in sorted(new.items())
            )
            self.display.line(f"compiled {len(new)} programs ({shown})")
        return sum(new.values())

    def judge_of(self, member: Member, maps: LabelMaps, vocabulary: Vocabulary | None) -> Judge:
        """What evaluates, and for training feeds, a member."""
        targets = encode_targets(self.manifest, maps, self.transcripts, vocabulary)
        return Judge(
            member=member.name,
            repeat=member.repeat,
            fold=member.fold,
            manifest=self.manifest,
            maps=maps,
            vocabulary=vocabulary,
            transcripts=self.transcripts,
            untrained=self._untrained(),
            steps=self.steps_of(self.head_sizes(maps, vocabulary), vocabulary.blank if vocabulary else 0),
            source=self._source(targets),
            display=self.display,
        )

    def _untrained(self) -> frozenset[str]:
        weights = self.config.weights
        shares = {"gender": weights.alpha, "speaker": weights.beta, "asr": weights.gamma}
        return frozenset(task for task, share in shares.items() if share == 0)

    def any_knobs(self) -> Knobs:
        """Knobs of the structure that all members have, for compiling."""
        return knobs(self.config, 1, 1)

    def knobs_of(self, member: Member, steps: CompiledSteps) -> Knobs:
        """Task weights and learning rates of a member, on the devices."""
        per_epoch = len(plan_epoch(member.parts.train, self.buckets, seed=0, epoch=0))
        return steps.put(knobs(self.config, per_epoch, per_epoch * self.config.training.epochs))

    def initial_state(self, member: Member, judge: Judge, corpus: Any) -> TrainState:
        """What a member starts from, see :class:`InitialWeights`.

        Args:
            member: which one.
            judge: of the member.
            corpus: on the devices.
        """
        params = self._initial_weights().parameters(member, judge, corpus, self.audio)
        return judge.steps.init_state(params, member.seed)

    def _initial_weights(self) -> InitialWeights:
        return InitialWeights(self.encoder, self.config.model, self.display, self.shared.read)

    def resident_corpus(self, steps: CompiledSteps) -> Any:
        """The corpus on the devices, moved there once; one sample where batches bring their own."""
        source = self._source(None)
        # The id stands for the samples, which the tuple's last entry keeps alive.
        wanted = (source.on_device, self.buckets.bounds[-1], self.mesh, id(self.audio), *self._kept_by(steps))
        if self.shared.resident is None or self.shared.resident[0] != wanted:
            self.shared.resident = None  # freed first: the accelerator need not hold two
            corpus = self._frozen_corpus(steps) if self.kept else source.resident_corpus()
            self.shared.resident = (wanted, steps.put(corpus), self.audio)
        return self.shared.resident[1]

    @property
    def kept(self) -> KeptFrames | None:
        """The frames that lie on the accelerator in place of the samples."""
        dtype = compute_dtype(self.config.training.precision)
        return kept_frames(self.config, self.encoder, self.audio.lengths, self.buckets.bounds[-1], dtype)

    def _kept_by(self, steps: CompiledSteps) -> tuple[Any, ...]:
        """What the frames of the frozen part follow from, beside the samples."""
        spec = steps.spec
        if spec.frozen is FrozenPart.NOTHING:
            return ()
        return spec.frozen, spec.model.options, spec.model.head_input, spec.plain, self.encoder.weights

    def _frozen_corpus(self, steps: CompiledSteps) -> Any:
        self.compile(steps, names=("frozen",))
        encoder = self._initial_weights().encoder(steps)
        with self.display.counting("computing what is frozen") as progress:
            return frozen_corpus(steps, self._source(None), encoder, progress)

    def _source(self, targets: Any) -> BatchSource:
        source = BatchSource.create(self.audio, targets, self.buckets, self.config.batching.residency)
        kept = self.kept
        return dataclasses.replace(source, on_device=True, frame_offsets=kept.offsets) if kept else source


def experiments_by_variant(
    base: Experiment, settings: Mapping[str, Config], members: Sequence[Member]
) -> dict[str, Experiment]:
    """What the members of each variant share.

    Raises:
        ConfigError: naming every encoder that is missing, or a variant with nothing to learn from.
    """
    experiments: dict[str, Experiment] = {}
    problems: list[str] = []
    for member in members:
        if member.variant in experiments:
            continue
        try:
            experiment = base.under(settings[member.variant])
        except CheckpointError as error:
            problems.append(str(error))
            continue
        experiment.head_sizes(experiment.maps_of(member), experiment.vocabulary_of(member))
        experiments[member.variant] = experiment
    if problems:
        raise ConfigError("\n".join(dict.fromkeys(problems)))
    return experiments


@dataclasses.dataclass
class _Shared:
    """What variants of an experiment use in common.

    Attributes:
        encoders: opened so far, by their settings.
        steps: programs so far, with the structure of their knobs.
        read: weights and what follows from them.
        resident: the corpus on the devices, by its place, padding and samples.
    """

    encoders: list[tuple[EncoderConfig, PretrainedEncoder]]
    steps: list[tuple[Any, CompiledSteps]] = dataclasses.field(default_factory=list)
    read: LastRead = dataclasses.field(default_factory=LastRead)
    resident: tuple[tuple[Any, ...], Any, PackedAudio] | None = None

    def encoder(self, config: EncoderConfig) -> PretrainedEncoder:
        """The encoder with these settings, found once."""
        for known, encoder in self.encoders:
            if known == config:
                return encoder
        self.encoders.append((config, open_encoder(config)))
        return self.encoders[-1][1]


def _mesh(config: Config, other: Experiment | None = None) -> Any:
    """The devices that a configuration asks for: ``other``'s where it asks for the same."""
    training = config.training
    wanted = (training.data_devices, training.member_devices)
    if other is not None and wanted == (other.config.training.data_devices, other.config.training.member_devices):
        return other.mesh
    return make_mesh(*wanted)


def _buckets(
    config: Config, audio: PackedAudio, transcripts: list[str | None], arch: EncoderArchitecture, mesh: Any
) -> Buckets:
    batching = config.batching
    return make_buckets(
        audio.lengths,
        np.array([len(text or "") for text in transcripts]),
        num_buckets=batching.num_buckets,
        batch_size=batching.batch_size,
        batch_seconds=batching.batch_seconds,
        rows_multiple=batching.accumulation_steps * mesh.shape["data"],
        multiple=arch.hop(),
        joins=not config.model.encoder.hf_compat,
    )


def _equal(one: Buckets, other: Buckets) -> bool:
    shapes = [(b.bounds, b.batch_sizes, b.transcript_widths, b.joins) for b in (one, other)]
    return one is other or (shapes[0] == shapes[1] and np.array_equal(one.bucket_of, other.bucket_of))


def _check_durations(audio: AudioConfig, arch: EncoderArchitecture) -> None:
    """Refuse recordings that the encoder cannot take, before anything is decoded."""
    shortest, longest = arch.min_samples() / SAMPLE_RATE, arch.max_samples()
    if audio.min_seconds < shortest:
        raise ConfigError(
            f"audio.min_seconds is {audio.min_seconds}; this encoder needs at least {shortest} s for one frame"
        )
    if longest is not None and audio.max_seconds > longest / SAMPLE_RATE:
        raise ConfigError(
            f"audio.max_seconds is {audio.max_seconds}; this {arch.family.value} encoder takes at most "
            f"{longest / SAMPLE_RATE:g} s. Use --config.audio.max_seconds={longest / SAMPLE_RATE:g}: longer "
            "recordings are then listed and left out"
        )


def compute_dtype(precision: Precision) -> Any:
    """The compute type that a precision means on this machine."""
    match precision:
        case Precision.FLOAT32:
            return jnp.float32
        case Precision.BFLOAT16:
            return jnp.bfloat16
        case Precision.AUTO:
            low = jax.default_backend() != "cpu" or runtime.has_bfloat16_products()
            return jnp.bfloat16 if low else jnp.float32
