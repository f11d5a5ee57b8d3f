"""Judges a configuration before anything is loaded."""

import math
import re
from collections.abc import Sequence

from jax_mtlser.architecture import EncoderFamily
from jax_mtlser.config.corpus import CorpusConfig, CorpusKind, CorpusPart
from jax_mtlser.config.errors import ConfigError
from jax_mtlser.config.model import EncoderConfig, Freeze, HeadStart
from jax_mtlser.config.protocol import Mates, ProtocolConfig, ProtocolKind
from jax_mtlser.config.run import Config
from jax_mtlser.config.training import HeadMode, Selection, TaskWeights, TrainingConfig, WeightingMethod
from jax_mtlser.config.variants import override_problems

__all__ = ["validate"]

# They combine the tasks' gradients at the encoder's output, or weigh by them.
_GRADIENT_METHODS = (
    WeightingMethod.GRADNORM,
    WeightingMethod.PCGRAD,
    WeightingMethod.CAGRAD,
    WeightingMethod.NASH_MTL,
)


def validate(config: Config) -> None:
    """Judge a configuration, with all its variants, before anything is loaded.

    Raises:
        ConfigError: listing every problem found, each with the value, the limit and the fix.
    """
    problems = _problems(config)
    own = list(override_problems(type(config), config.variants))
    if not own:
        for number, variant in enumerate(config.variants):
            found = (text for text in _problems(config.under(variant)) if text not in problems)
            own += [f"variants[{number}] ({variant.name}): {text}" for text in found]
    _raise([*problems, *own])


def _problems(config: Config) -> list[str]:
    """Of a configuration without its variants."""
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
    problems += _corpus_problems(corpus)
    positive(corpus__demo__sentences_per_style=corpus.demo.sentences_per_style)
    positive(audio__min_seconds=audio.min_seconds, audio__max_seconds=audio.max_seconds)
    require(
        audio.min_seconds < audio.max_seconds,
        f"audio.min_seconds {audio.min_seconds} is not below audio.max_seconds {audio.max_seconds}",
    )
    require(audio.silence_dbfs < 0, f"audio.silence_dbfs is {audio.silence_dbfs}; full scale is 0, use e.g. -60")

    positive(batching__accumulation_steps=batching.accumulation_steps)
    if batching.num_buckets is not None:
        positive(batching__num_buckets=batching.num_buckets)
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

    problems += _weights_problems(config.weights, encoder)
    optimizer = config.optimizer
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
        optimizer__heads_first_fraction=optimizer.heads_first_fraction,
    )
    together = optimizer.heads_first_fraction + optimizer.warmup_fraction
    require(
        together < 1,
        f"optimizer.heads_first_fraction {optimizer.heads_first_fraction} and optimizer.warmup_fraction "
        f"{optimizer.warmup_fraction} leave the encoder no step at its full rate; their sum must be below 1",
    )

    protocol, training = config.protocol, config.training
    problems += _protocol_problems(protocol)
    positive(protocol__repeats=protocol.repeats, model__regression_c=config.model.regression_c)
    fitted = config.model.head_start is HeadStart.REGRESSION
    require(
        training.epochs > 0 or (fitted and training.epochs == 0),
        f"training.epochs is {training.epochs}; it must be greater than 0, or 0 with "
        "--config.model.head_start=regression, which then is the whole training",
    )
    require(training.seed >= 0, f"training.seed is {training.seed}; it must be 0 or greater")
    fraction(protocol__validation_fraction=protocol.validation_fraction)
    validating_mates = protocol.mate_column != "" and protocol.mates is Mates.VALIDATION
    require(
        protocol.validation_fraction > 0 or validating_mates or training.selection is not Selection.BEST_VALIDATION,
        "protocol.validation_fraction is 0, so no best epoch can be chosen; "
        "set it above 0 or use --config.training.selection=last",
    )
    positive(
        training__log_every_steps=training.log_every_steps,
        training__checkpoint_every_steps=training.checkpoint_every_steps,
        training__checkpoint_every_epochs=training.checkpoint_every_epochs,
    )
    require(
        training.checkpoint_every_epochs == 1 or training.selection is Selection.LAST,
        f"training.checkpoint_every_epochs is {training.checkpoint_every_epochs}, but training.selection is "
        f"{training.selection.value}, which chooses among what every epoch has saved; use 1, or "
        "--config.training.selection=last",
    )
    require(training.data_devices >= 0, f"training.data_devices is {training.data_devices}; use 0 for all devices")
    parts = max(training.data_devices, 1) * max(batching.accumulation_steps, 1)
    require(
        batching.batch_seconds is not None or training.data_devices < 2 or batching.batch_size % parts == 0,
        f"batching.batch_size {batching.batch_size} does not divide over training.data_devices "
        f"{training.data_devices} x batching.accumulation_steps {batching.accumulation_steps}; use a multiple of {parts}",
    )
    problems += _population_problems(training)
    return problems


def _population_problems(training: TrainingConfig) -> Sequence[str]:
    population, devices = training.population, training.member_devices
    if population < 0:
        return [f"training.population is {population}; use 1 or more, or 0 for as many members as fit into memory"]
    if devices < 1:
        return [f"training.member_devices is {devices}; it must be 1 or greater"]
    if population % devices:
        return [
            f"training.population {population} does not divide over training.member_devices {devices}; use "
            f"--config.training.population={-(-population // devices) * devices}, or fewer member devices"
        ]
    return []


def _protocol_problems(protocol: ProtocolConfig) -> Sequence[str]:
    problems = []
    kind, folds = protocol.kind, protocol.folds
    grouped = kind is ProtocolKind.GROUPED
    if kind in (ProtocolKind.STRATIFIED, ProtocolKind.GROUPED) and not (folds >= 2 or (grouped and folds == 0)):
        problems.append(f"protocol.folds is {folds}; use 2 or more{', or 0 for one fold per group' if grouped else ''}")
    if grouped and not protocol.group_column:
        problems.append(
            "protocol.group_column is empty; name the manifest column whose groups stay together, e.g. speaker"
        )
    if kind is ProtocolKind.FIXED and not protocol.split_column:
        problems.append("protocol.split_column is empty; name the manifest column that says train, dev or test")
    if kind is ProtocolKind.LISTS and not protocol.fold_lists:
        problems.append("protocol.fold_lists is empty; name the file or folder with --config.protocol.fold_lists=PATH")
    if protocol.mate_column and not grouped:
        problems.append(
            f"protocol.mate_column is {protocol.mate_column!r}, but protocol.kind is {kind.value}; groups have mates, so "
            "use --config.protocol.kind=grouped"
        )
    if bool(protocol.filter_column) != bool(protocol.filter_values):
        problems.append(
            f"protocol.filter_column is {protocol.filter_column!r} and filter_values is {protocol.filter_values}; a "
            "filter takes a column and the values to keep"
        )
    try:
        re.compile(protocol.group_pattern)
    except re.error as error:
        problems.append(f"protocol.group_pattern is {protocol.group_pattern!r}, no regular expression: {error}")
    if protocol.seed < 0:
        problems.append(f"protocol.seed is {protocol.seed}; it must be 0 or greater")
    counted = {"only_folds": (protocol.only_folds, folds), "only_repeats": (protocol.only_repeats, protocol.repeats)}
    if kind in (ProtocolKind.FIXED, ProtocolKind.LISTS):
        counted["only_folds"] = (protocol.only_folds, 0)  # known when the folds are drawn
    for name, (chosen, count) in counted.items():
        outside = [index for index in chosen if index < 0 or (count > 0 and index >= count)]
        if outside:
            problems.append(f"protocol.{name} names {outside}; indices run from 0 to {count - 1}")
    return problems


def _corpus_problems(corpus: CorpusConfig) -> Sequence[str]:
    problems = []
    joined = corpus.kind is CorpusKind.JOINED
    places: list[tuple[str, CorpusConfig | CorpusPart]] = [("corpus", corpus)]
    places += [(f"corpus.parts[{number}]", part) for number, part in enumerate(corpus.parts)]
    for where, each in places:
        if each.path == "" and each.kind not in (CorpusKind.DEMO, CorpusKind.JOINED):
            file = each.kind is CorpusKind.TABLE
            problems.append(
                f"{where}.path is empty; name the {'CSV or JSONL file' if file else 'folder of the release'} "
                f"with --config.{where}.path=PATH"
            )
        if each is not corpus and each.kind is CorpusKind.JOINED:
            problems.append(f"{where}.kind is joined; a part is one corpus, so list its parts in corpus.parts instead")
    if joined and len(corpus.parts) < 2:
        problems.append(
            f"corpus.kind is joined, but corpus.parts has {len(corpus.parts)} entries; list two or more in the "
            'configuration file, such as CorpusPart(kind=CorpusKind.EMO_DB, path="emo_db")'
        )
    if corpus.parts and not joined:
        problems.append(f"corpus.parts is set, but corpus.kind is {corpus.kind.value}; use --config.corpus.kind=joined")
    if corpus.votes and corpus.kind not in (CorpusKind.IEMOCAP, CorpusKind.MSP_IMPROV):
        problems.append(
            f"corpus.votes is set, but the annotators' votes are read from iemocap and msp_improv only, not from "
            f"{corpus.kind.value}; use --config.corpus.votes=false"
        )
    if len(set(corpus.emotions)) != len(corpus.emotions) or len(corpus.emotions) == 1:
        problems.append(
            f"corpus.emotions is {corpus.emotions}; name at least two different classes, or none to keep all"
        )
    return problems


def _weights_problems(weights: TaskWeights, encoder: EncoderConfig) -> Sequence[str]:
    problems = []
    for name in ("alpha", "beta", "gamma", "gradnorm_alpha", "famo_decay", "reversal_strength"):
        value = getattr(weights, name)
        if not (math.isfinite(value) and value >= 0):
            problems.append(f"weights.{name} is {value}; it must be 0 or greater")
    for name, rate in (("temperature", weights.temperature), ("learning_rate", weights.learning_rate)):
        if rate is not None and not (math.isfinite(rate) and rate > 0):
            problems.append(f"weights.{name} is {rate}; it must be greater than 0")
    if not 0 <= weights.cagrad_c < 1:
        problems.append(f"weights.cagrad_c is {weights.cagrad_c}; it must lie in [0, 1)")
    frozen = encoder.freeze is Freeze.ENCODER and not encoder.lora_rank
    untrained = "but model.encoder.freeze is encoder, so nothing that the tasks share is trained"
    modes = (("gender_mode", weights.gender_mode, "alpha"), ("speaker_mode", weights.speaker_mode, "beta"))
    for name, mode, weight in modes:
        if mode is HeadMode.ADVERSARIAL and getattr(weights, weight) == 0:
            problems.append(
                f"weights.{name} is adversarial, but weights.{weight} is 0, which switches the head off; "
                f"give it a weight, or use --config.weights.{name}=aux"
            )
        if mode is HeadMode.ADVERSARIAL and frozen:
            problems.append(f"weights.{name} is adversarial, {untrained}; use --config.weights.{name}=aux")
    method = weights.method
    if method in _GRADIENT_METHODS and frozen:
        problems.append(f"weights.method is {method.value}, {untrained}; use --config.weights.method=fixed")
    others = [weights.alpha, weights.beta, weights.gamma]
    for index, (_, mode, _) in enumerate(modes):
        if mode is HeadMode.ADVERSARIAL:
            others[index] = 0.0
    if method not in (WeightingMethod.FIXED, WeightingMethod.EQUAL) and not any(others):
        problems.append(
            f"weights.method is {method.value}, but emotion is the only task to weigh: tasks with weight 0 are left "
            "out, and adversarial heads keep their weight; use --config.weights.method=fixed"
        )
    return problems


def _encoder_problems(encoder: EncoderConfig) -> Sequence[str]:
    problems = []
    for name, value in encoder.regularisation().items():
        if not 0 <= value < 1 and not isinstance(value, bool):
            problems.append(f"model.encoder.{name} is {value}; it must lie in [0, 1)")
    if encoder.num_layers is not None and encoder.num_layers < 1:
        problems.append(f"model.encoder.num_layers is {encoder.num_layers}; it must be 1 or more, or None for all")
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
