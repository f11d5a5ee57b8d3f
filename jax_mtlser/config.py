"""Every setting of a run, as a tree of typed dataclasses, and one :func:`validate` that judges it.

Files in ``configs/`` return a :class:`Config`; flags such as ``--config.optimizer.learning_rate=2e-5``
change single fields. Nothing below the training loop sees a :class:`Config`: each module takes the
small dataclass it needs. Enums, not strings, choose between behaviours.
"""

import dataclasses
import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeVar

from jax_mtlser.architecture import EncoderArchitecture, EncoderFamily, Wav2Vec2Architecture, WhisperArchitecture

__all__ = [
    "AudioConfig",
    "BatchingConfig",
    "Config",
    "ConfigError",
    "CorpusConfig",
    "CorpusKind",
    "CtcNormalization",
    "DemoConfig",
    "EncoderConfig",
    "Freeze",
    "HeadInput",
    "LearningRateSchedule",
    "ModelConfig",
    "OptimizerConfig",
    "Precision",
    "ProtocolConfig",
    "ProtocolKind",
    "Residency",
    "Selection",
    "TaskWeights",
    "TrainingConfig",
    "VocabularyConfig",
    "VocabularySource",
    "architecture_from_dict",
    "from_dict",
    "to_dict",
    "validate",
]


class ConfigError(ValueError):
    """A configuration that cannot be run. The message names each value, its limit and the fix."""


class CorpusKind(enum.Enum):
    """Where the utterances come from."""

    DEMO = "demo"  # synthesised on the spot, see corpora/demo.py
    IEMOCAP = "iemocap"  # the official full release
    TABLE = "table"  # a CSV file, one row per utterance, see corpora/manifest.py


class VocabularySource(enum.Enum):
    """Which symbols the CTC head writes."""

    PAPER = "paper"  # the 32 symbols of wav2vec2-base-960h
    CHECKPOINT = "checkpoint"  # vocab.json beside the encoder's weights; a ForCTC checkpoint's head starts ours
    TRANSCRIPTS = "transcripts"  # the letters of the fold's training transcripts


class Residency(enum.Enum):
    """Where the decoded corpus lies during training."""

    AUTO = "auto"  # on the accelerator when it fits into a quarter of its memory
    DEVICE = "device"
    HOST = "host"  # memory-mapped file, batches prefetched by a thread


class Freeze(enum.Enum):
    """Which part of the encoder keeps the weights it was loaded with; heads and LoRA adapters always learn."""

    NOTHING = "nothing"  # the paper
    FEATURE_ENCODER = "feature_encoder"  # all in front of the transformer's input projection
    LAYERS = "layers"  # everything up to and including the first ``freeze_layers`` transformer layers
    ENCODER = "encoder"  # all of it; without adapters it then runs without dropout: a probe


class HeadInput(enum.Enum):
    """What the heads read."""

    LAST = "last"  # the encoder's output
    WEIGHTED_SUM = "weighted_sum"  # each head's own learned average of all layers, each normalised (SUPERB)


class LearningRateSchedule(enum.Enum):
    """Shape of the learning rate after warm-up."""

    CONSTANT = "constant"
    LINEAR = "linear"  # down to zero at the last step
    COSINE = "cosine"  # down to zero at the last step


class CtcNormalization(enum.Enum):
    """What an utterance's CTC loss is divided by before the mean over utterances."""

    NONE = "none"  # negative log-likelihood of the whole transcript (the paper)
    LABELS = "labels"  # per symbol
    FRAMES = "frames"  # per encoder frame


class Precision(enum.Enum):
    """Type of activations and matrix operands; parameters, statistics and losses are always float32."""

    AUTO = "auto"  # bfloat16 on GPU, TPU, and on processors that multiply it faster (AMX, AVX-512 BF16), else float32
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class Selection(enum.Enum):
    """Which epoch's parameters are tested."""

    LAST = "last"
    BEST_VALIDATION = "best_validation"  # highest validation UA, the earliest on ties


class ProtocolKind(enum.Enum):
    """How utterances are divided into folds."""

    STRATIFIED = "stratified"  # random utterances, class shares kept: the paper's protocol
    GROUPED = "grouped"  # whole groups (speakers, sessions, ...): nothing of a test group is trained on


@dataclasses.dataclass(kw_only=True)
class DemoConfig:
    """Size of the synthesised demo corpus.

    Attributes:
        sentences_per_style: utterances for each of the 10 voices in each of the 4 styles.
        seed: everything about the corpus follows from it.
    """

    sentences_per_style: int = 20
    seed: int = 0


@dataclasses.dataclass(kw_only=True)
class CorpusConfig:
    """Which utterances there are.

    Attributes:
        kind: the loader.
        path: IEMOCAP: the folder ``IEMOCAP_full_release``; table: the CSV file or a folder that holds
            ``metadata.csv`` or ``manifest.csv``; demo: where to write it (default: the user's cache).
        emotions: the classes to keep, in the order of the model's outputs; empty keeps all, sorted.
        demo: size of the demo corpus.
    """

    kind: CorpusKind
    path: str = ""
    emotions: tuple[str, ...] = ()
    demo: DemoConfig = dataclasses.field(default_factory=DemoConfig)


@dataclasses.dataclass(kw_only=True)
class AudioConfig:
    """How recordings become samples at 16 kHz.

    Attributes:
        min_seconds: shorter recordings are listed and left out.
        max_seconds: longer recordings are listed and left out.
        silence_dbfs: recordings whose peak stays below this level are listed and left out.
        cache_dir: where decoded corpora are kept; default ``$XDG_CACHE_HOME/jax_mtlser``.
    """

    min_seconds: float = 0.1
    max_seconds: float = 35.0
    silence_dbfs: float = -60.0
    cache_dir: str = ""


@dataclasses.dataclass(kw_only=True)
class VocabularyConfig:
    """How transcripts become CTC targets.

    Attributes:
        source: where the symbols come from.
        language: two-letter code, for writing digits as words and for the letters that are kept.
    """

    source: VocabularySource = VocabularySource.PAPER
    language: str = "en"


@dataclasses.dataclass(kw_only=True)
class BatchingConfig:
    """How utterances are put together.

    Attributes:
        batch_size: utterances per optimizer step; ignored when ``batch_seconds`` is set.
        batch_seconds: padded seconds of audio per optimizer step instead of a number of utterances.
        num_buckets: number of padded lengths, hence of compiled programs.
        accumulation_steps: an optimizer step's batch is worked through in this many equal parts.
        residency: where the corpus lies.
    """

    batch_size: int = 8
    batch_seconds: float | None = None
    num_buckets: int = 8
    accumulation_steps: int = 1
    residency: Residency = Residency.AUTO


@dataclasses.dataclass(kw_only=True)
class EncoderConfig:
    """The shared encoder.

    Attributes:
        checkpoint: Hugging Face Hub id, short name such as ``hubert-base`` (models/pretrained/presets.py), or local
            folder or weight file with ``config.json`` beside it; empty starts from random weights of
            ``architecture``.
        architecture: used only when ``checkpoint`` is empty.
        freeze: the part that is not trained.
        freeze_layers: first transformer layers that are not trained; with ``Freeze.LAYERS``.
        lora_rank: rank of the low-rank adapters on attention and feed-forward (Hu et al. 2022); 0 for none. With
            adapters, ``freeze`` must be ``encoder``.
        lora_alpha: adapters are scaled by ``lora_alpha / lora_rank``.
        remat: recompute each layer's inside in the backward pass: less memory, more time, the same numbers. On CPU it
            acts only together with ``scan_layers``.
        scan_layers: compile one layer and loop over it: shorter compilation, slower steps, the same numbers.
        normalize_waveform: zero mean, unit variance per utterance; None follows the checkpoint's
            ``preprocessor_config.json`` (where there is none: True, for Whisper False).
        hf_compat: treat padding as the reference implementation does: GroupNorm statistics include it, and Whisper
            hears 30 s whatever the utterance's length.
        hidden_dropout, attention_dropout, activation_dropout, feat_proj_dropout, final_dropout,
            layerdrop, apply_spec_augment: None follows the checkpoint or ``architecture``.
    """

    checkpoint: str = "facebook/wav2vec2-base"
    architecture: Wav2Vec2Architecture = dataclasses.field(default_factory=Wav2Vec2Architecture)
    freeze: Freeze = Freeze.NOTHING
    freeze_layers: int = 0
    lora_rank: int = 0
    lora_alpha: float = 16.0
    remat: bool = False
    scan_layers: bool = False
    normalize_waveform: bool | None = None
    hf_compat: bool = False
    hidden_dropout: float | None = None
    attention_dropout: float | None = None
    activation_dropout: float | None = None
    feat_proj_dropout: float | None = None
    final_dropout: float | None = None
    layerdrop: float | None = None
    apply_spec_augment: bool | None = None

    def regularisation(self) -> dict[str, Any]:
        """The fields of an architecture that this configuration overrides."""
        names = (
            "hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout",
            "layerdrop", "apply_spec_augment",
        )  # fmt: skip
        return {name: value for name in names if (value := getattr(self, name)) is not None}


@dataclasses.dataclass(kw_only=True)
class ModelConfig:
    """Encoder and CTC symbols; the heads' sizes follow from the corpus.

    Attributes:
        encoder: shared by all tasks.
        head_input: what the heads read.
        vocabulary: of the speech recognition head.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    head_input: HeadInput = HeadInput.LAST
    vocabulary: VocabularyConfig = dataclasses.field(default_factory=VocabularyConfig)


@dataclasses.dataclass(kw_only=True)
class TaskWeights:
    """L = L_SER + alpha L_GR + beta L_SR + gamma L_ASR; the defaults are the paper's best."""

    alpha: float = 0.4
    beta: float = 0.6
    gamma: float = 0.1
    ctc_normalization: CtcNormalization = CtcNormalization.NONE


@dataclasses.dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW.

    Attributes:
        learning_rate: peak rate of the encoder.
        head_learning_rate: peak rate of the heads; None: the encoder's.
        layer_decay: the encoder's rate falls by this factor from each transformer layer to the one below it; what
            lies below the first layer counts as one more. 1: the same rate everywhere.
        warmup_fraction: share of all steps in which the rate rises linearly from zero.
        clip_norm: largest global gradient norm; None: no clipping.
        decay_biases_and_norms: apply weight decay to vectors too, as ``torch.optim.AdamW`` does.
    """

    learning_rate: float = 1e-5
    head_learning_rate: float | None = None
    layer_decay: float = 1.0
    schedule: LearningRateSchedule = LearningRateSchedule.LINEAR
    warmup_fraction: float = 0.1
    weight_decay: float = 0.01
    decay_biases_and_norms: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip_norm: float | None = 1.0


@dataclasses.dataclass(kw_only=True)
class ProtocolConfig:
    """Cross-validation.

    Attributes:
        kind: how folds are drawn.
        folds: number of folds; 0 with GROUPED: one per group.
        repeats: the whole cross-validation is repeated with as many different seeds.
        seed: of the first repeat; repeat r uses seed + r.
        group_column: manifest column whose values stay together (GROUPED): speaker, session, ...
        validation_fraction: share of each fold's training part held out for validation, drawn by the
            same rule (stratified, or whole groups). 0 only with ``Selection.LAST``.
        only_folds, only_repeats: train only these; empty: all.
    """

    kind: ProtocolKind = ProtocolKind.STRATIFIED
    folds: int = 10
    repeats: int = 1
    seed: int = 0
    group_column: str = ""
    validation_fraction: float = 0.1
    only_folds: tuple[int, ...] = ()
    only_repeats: tuple[int, ...] = ()


@dataclasses.dataclass(kw_only=True)
class TrainingConfig:
    """The loop.

    Attributes:
        epochs: passes over the training part.
        seed: of initial weights, dropout and batch order.
        precision: compute type.
        plain: compute everything by textbook formulas and automatic differentiation, CTC by ``optax.ctc_loss``,
            instead of the fast formulations: slower, for telling whether one of them is at fault.
        selection: which epoch is tested.
        data_devices: devices that share each batch; 0: all.
        log_every_steps: steps between two lines of ``metrics.jsonl``.
        checkpoint_every_steps: steps between two checkpoints within an epoch; each epoch ends with one.
        tensorboard: write event files too.
    """

    epochs: int = 100
    seed: int = 0
    precision: Precision = Precision.AUTO
    plain: bool = False
    selection: Selection = Selection.BEST_VALIDATION
    data_devices: int = 0
    log_every_steps: int = 10
    checkpoint_every_steps: int = 500
    tensorboard: bool = True


@dataclasses.dataclass(kw_only=True)
class Config:
    """A whole run."""

    name: str
    corpus: CorpusConfig
    audio: AudioConfig = dataclasses.field(default_factory=AudioConfig)
    batching: BatchingConfig = dataclasses.field(default_factory=BatchingConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    weights: TaskWeights = dataclasses.field(default_factory=TaskWeights)
    optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
    protocol: ProtocolConfig = dataclasses.field(default_factory=ProtocolConfig)
    training: TrainingConfig = dataclasses.field(default_factory=TrainingConfig)

    def copy(self) -> Self:
        """A deep copy."""
        return from_dict(type(self), to_dict(self))


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON-ready dict of a config dataclass: enums as their values, tuples as lists."""

    def plain(value: Any) -> Any:
        if isinstance(value, enum.Enum):
            return value.value
        if isinstance(value, Mapping):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [plain(item) for item in value]
        return value

    return plain(dataclasses.asdict(config))


_T = TypeVar("_T")


def from_dict(cls: type[_T], values: Mapping[str, Any]) -> _T:
    """The inverse of :func:`to_dict`.

    Raises:
        ConfigError: for a field that ``cls`` does not have.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(values) - set(fields)):
        raise ConfigError(f"{cls.__name__} has no field {', '.join(unknown)}; it has {', '.join(sorted(fields))}")

    def typed(annotation: Any, value: Any) -> Any:
        if dataclasses.is_dataclass(annotation) and isinstance(annotation, type):
            return from_dict(annotation, value)
        if isinstance(annotation, enum.EnumMeta):
            return annotation(value)
        return tuple(value) if isinstance(value, list) else value

    return cls(**{name: typed(fields[name].type, value) for name, value in values.items()})


def architecture_from_dict(values: Mapping[str, Any]) -> EncoderArchitecture:
    """The architecture that :func:`to_dict` described, of the class that its family has."""
    whisper = values.get("family") == EncoderFamily.WHISPER.value
    return from_dict(WhisperArchitecture if whisper else Wav2Vec2Architecture, values)


def validate(config: Config) -> None:
    """Judge a configuration before anything is loaded.

    Raises:
        ConfigError: listing every problem found, each with the value, the limit and the fix.
    """
    problems: list[str] = []

    def require(ok: bool, message: str) -> None:
        if not ok:
            problems.append(message)

    def positive(**values: float) -> None:
        for name, value in values.items():
            require(value > 0, f"{name.replace('__', '.')} is {value}; it must be greater than 0")

    def fraction(**values: float | None) -> None:
        for name, value in values.items():
            ok = value is None or 0 <= value < 1
            require(ok, f"{name.replace('__', '.')} is {value}; it must lie in [0, 1)")

    require(
        bool(config.name) and not set(config.name) & set("/\\"),
        f"name is {config.name!r}; it names the run folder, so use a word without slashes",
    )
    corpus, audio, batching, encoder = config.corpus, config.audio, config.batching, config.model.encoder
    if corpus.kind in (CorpusKind.IEMOCAP, CorpusKind.TABLE):
        require(
            corpus.path != "",
            f"corpus.path is empty; name the {'release folder' if corpus.kind is CorpusKind.IEMOCAP else 'CSV file'} "
            "with --config.corpus.path=PATH",
        )
    require(
        len(set(corpus.emotions)) == len(corpus.emotions) and len(corpus.emotions) != 1,
        f"corpus.emotions is {corpus.emotions}; name at least two different classes, or none to keep all",
    )
    positive(corpus__demo__sentences_per_style=corpus.demo.sentences_per_style)
    positive(audio__min_seconds=audio.min_seconds, audio__max_seconds=audio.max_seconds)
    require(
        audio.min_seconds < audio.max_seconds,
        f"audio.min_seconds {audio.min_seconds} is not below audio.max_seconds {audio.max_seconds}",
    )
    require(audio.silence_dbfs < 0, f"audio.silence_dbfs is {audio.silence_dbfs}; full scale is 0, use e.g. -60")

    positive(batching__num_buckets=batching.num_buckets, batching__accumulation_steps=batching.accumulation_steps)
    if batching.batch_seconds is None:
        positive(batching__batch_size=batching.batch_size)
        require(
            batching.accumulation_steps <= 0 or batching.batch_size % batching.accumulation_steps == 0,
            f"batching.batch_size {batching.batch_size} does not divide into "
            f"batching.accumulation_steps {batching.accumulation_steps} equal parts",
        )
    else:
        require(
            batching.batch_seconds >= audio.max_seconds,
            f"batching.batch_seconds {batching.batch_seconds} is below audio.max_seconds {audio.max_seconds}: "
            "the longest utterance would not fit; raise the first or lower the second",
        )
    problems += _encoder_problems(encoder)

    weights, optimizer = config.weights, config.optimizer
    for name in ("alpha", "beta", "gamma"):
        value = getattr(weights, name)
        require(math.isfinite(value) and value >= 0, f"weights.{name} is {value}; it must be 0 or greater")
    positive(optimizer__learning_rate=optimizer.learning_rate, optimizer__eps=optimizer.eps)
    if optimizer.head_learning_rate is not None:
        positive(optimizer__head_learning_rate=optimizer.head_learning_rate)
    require(0 < optimizer.layer_decay <= 1, f"optimizer.layer_decay is {optimizer.layer_decay}; it must lie in (0, 1]")
    if optimizer.clip_norm is not None:
        positive(optimizer__clip_norm=optimizer.clip_norm)
    require(
        optimizer.weight_decay >= 0,
        f"optimizer.weight_decay is {optimizer.weight_decay}; it must be 0 or greater",
    )
    fraction(
        optimizer__beta1=optimizer.beta1,
        optimizer__beta2=optimizer.beta2,
        optimizer__warmup_fraction=optimizer.warmup_fraction,
    )

    protocol, training = config.protocol, config.training
    grouped = protocol.kind is ProtocolKind.GROUPED
    require(
        protocol.folds >= 2 or (grouped and protocol.folds == 0),
        f"protocol.folds is {protocol.folds}; use 2 or more{', or 0 for one fold per group' if grouped else ''}",
    )
    require(
        not grouped or protocol.group_column != "",
        "protocol.group_column is empty; name the manifest column whose groups stay together, e.g. speaker",
    )
    positive(protocol__repeats=protocol.repeats, training__epochs=training.epochs)
    require(protocol.seed >= 0, f"protocol.seed is {protocol.seed}; it must be 0 or greater")
    require(training.seed >= 0, f"training.seed is {training.seed}; it must be 0 or greater")
    fraction(protocol__validation_fraction=protocol.validation_fraction)
    require(
        protocol.validation_fraction > 0 or training.selection is Selection.LAST,
        "protocol.validation_fraction is 0, so no best epoch can be chosen; "
        "set it above 0 or use --config.training.selection=last",
    )
    for name, chosen, count in (
        ("only_folds", protocol.only_folds, protocol.folds),
        ("only_repeats", protocol.only_repeats, protocol.repeats),
    ):
        outside = [index for index in chosen if index < 0 or (count > 0 and index >= count)]
        require(not outside, f"protocol.{name} names {outside}; indices run from 0 to {count - 1}")
    positive(
        training__log_every_steps=training.log_every_steps,
        training__checkpoint_every_steps=training.checkpoint_every_steps,
    )
    require(training.data_devices >= 0, f"training.data_devices is {training.data_devices}; use 0 for all devices")
    _raise(problems)


def _encoder_problems(encoder: EncoderConfig) -> Sequence[str]:
    problems = []
    for name, value in encoder.regularisation().items():
        if not 0 <= value < 1 and not isinstance(value, bool):
            problems.append(f"model.encoder.{name} is {value}; it must lie in [0, 1)")
    if (encoder.freeze is Freeze.LAYERS) != (encoder.freeze_layers > 0):
        problems.append(
            f"model.encoder.freeze is {encoder.freeze.value} and freeze_layers is {encoder.freeze_layers}; freezing "
            "the first n layers takes --config.model.encoder.freeze=layers and --config.model.encoder.freeze_layers=n"
        )
    if encoder.lora_rank < 0 or encoder.lora_alpha <= 0:
        problems.append(
            f"model.encoder.lora_rank is {encoder.lora_rank} and lora_alpha {encoder.lora_alpha}; the rank must be 0 "
            "(no adapters) or greater, alpha greater than 0"
        )
    if encoder.lora_rank > 0 and encoder.freeze is not Freeze.ENCODER:
        problems.append(
            f"model.encoder.lora_rank is {encoder.lora_rank}, but model.encoder.freeze is {encoder.freeze.value}; "
            "adapters stand in for training the encoder, so use --config.model.encoder.freeze=encoder with them"
        )
    if encoder.checkpoint:
        return problems
    arch, where = encoder.architecture, "model.encoder.architecture"
    if arch.family is EncoderFamily.WHISPER:
        problems.append(f"{where}.family is whisper; Whisper encoders come from a checkpoint only")
    if not len(arch.conv_dim) == len(arch.conv_kernel) == len(arch.conv_stride) > 0:
        problems.append(
            f"{where}.conv_dim, conv_kernel and conv_stride have {len(arch.conv_dim)}, {len(arch.conv_kernel)} and "
            f"{len(arch.conv_stride)} entries; they need one per layer"
        )
    if arch.hidden_size % arch.num_attention_heads:
        problems.append(
            f"{where}.hidden_size {arch.hidden_size} does not divide over num_attention_heads "
            f"{arch.num_attention_heads}"
        )
    if arch.hidden_size % arch.num_conv_pos_embedding_groups:
        problems.append(
            f"{where}.hidden_size {arch.hidden_size} does not divide over num_conv_pos_embedding_groups "
            f"{arch.num_conv_pos_embedding_groups}"
        )
    return problems


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise ConfigError("the configuration cannot be run:\n" + "\n".join(f"  - {text}" for text in problems))
