"""What members start from: a checkpoint's encoder, and heads that are random, the checkpoint's or a regression's."""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np

from jax_mtlser.config import ConfigError, HeadInput, HeadStart, ModelConfig, VocabularySource
from jax_mtlser.data.packed import PackedAudio
from jax_mtlser.data.vocabulary import checkpoint_vocabulary
from jax_mtlser.experiments.members import Member
from jax_mtlser.models.pretrained import CtcHead, PretrainedEncoder, ctc_head, encoder_parameters
from jax_mtlser.training import processes
from jax_mtlser.training.prediction import Judge
from jax_mtlser.training.progress import Display
from jax_mtlser.training.regression import fit_heads
from jax_mtlser.training.sharding import CompiledSteps

__all__ = ["InitialWeights", "LastRead"]

# On nEMO, a regression with these copies is right on 81.7 % of what unheard speakers say, without on 80.1 %.
_WARPED_COPIES = 4

# Numbers in one message between processes, about a megabyte.
_TOLD_AT_ONCE = 50_000


@dataclasses.dataclass(frozen=True)
class _Checkpoint:
    encoder: Any
    ctc: CtcHead | None


@dataclasses.dataclass
class LastRead:
    """What was read or computed last, for the next member: of one encoder at a time, because it is large.

    Attributes:
        checkpoint: by file, and whether a CTC head was wanted.
        pooled: what heads read of every utterance and of its copies, by encoder and samples.
    """

    checkpoint: tuple[tuple[Path, bool], _Checkpoint] | None = None
    pooled: tuple[tuple[Any, ...], list[Any], PackedAudio] | None = None


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Of all members with the same encoder and settings.

    Attributes:
        source: where the encoder's weights are.
        model: settings.
        display: where it is told what is left out or fitted.
        last: shared with other settings.
    """

    source: PretrainedEncoder
    model: ModelConfig
    display: Display
    last: LastRead

    def parameters(self, member: Member, judge: Judge, corpus: Any, audio: PackedAudio) -> Any:
        """The model's parameters before the first step, on the devices.

        Args:
            member: which one.
            judge: of the member.
            corpus: on the devices.
            audio: what the corpus was made from.

        Raises:
            CheckpointError: for weights that cannot be read.
            ConfigError: for a regression with nothing to fit.
        """
        steps = judge.steps
        params = dict(steps.init_params(member.seed))
        loaded = self._checkpoint()
        if loaded is not None:
            # Adapters are not in the checkpoint; everything else is.
            params["encoder"] = _overlay(params["encoder"], steps.put(loaded.encoder))
            if loaded.ctc is not None and "asr_head" in params:
                logits = {"kernel": loaded.ctc.kernel, "bias": loaded.ctc.bias}
                params["asr_head"] = {**params["asr_head"], "logits": steps.put(logits)}
        if self.model.head_start is HeadStart.REGRESSION:
            for head, fitted in self._regression(member, judge, params, corpus, audio).items():
                params[head] = {**params[head], "logits": steps.put(fitted)}
        return params

    def encoder(self, steps: CompiledSteps) -> Any:
        """The checkpoint's encoder on the devices."""
        loaded = self._checkpoint()
        assert loaded is not None
        return _overlay(dict(steps.init_params(0))["encoder"], steps.put(loaded.encoder))

    def _checkpoint(self) -> _Checkpoint | None:
        """Its weights, read once."""
        weights, arch = self.source.weights, self.source.arch
        if weights is None:
            return None
        with_head = (
            self.model.vocabulary.source is VocabularySource.CHECKPOINT and self.model.head_input is HeadInput.LAST
        )
        if self.last.checkpoint is not None and self.last.checkpoint[0] == (weights, with_head):
            return self.last.checkpoint[1]
        encoder, dropped = encoder_parameters(weights, arch)
        ctc = None
        if with_head:
            ctc = ctc_head(weights, arch, len(checkpoint_vocabulary(weights.parent).symbols))
        if ctc is not None:
            self.display.line(f"the speech recognition head starts from {weights.parent.name}'s")
            dropped = [key for key in dropped if not key.startswith("lm_head.")]
        if dropped:
            self.display.line(f"left out of {weights.parent.name}: {_summary(dropped)}")
        loaded = _Checkpoint(encoder, ctc)
        self.last.checkpoint = ((weights, with_head), loaded)
        return loaded

    def _regression(self, member: Member, judge: Judge, params: Any, corpus: Any, audio: PackedAudio) -> dict[str, Any]:
        """Fitted parameters of the heads that have labels and a weight, on the member's training part."""
        started = time.perf_counter()
        pooled = self._pooled(judge, params, corpus, audio)
        every = dataclasses.asdict(judge.steps.spec.model.sizes)
        sizes = {task: size for task, size in every.items() if size and task not in judge.untrained}
        found = fit_heads(pooled, judge.source.targets, member.parts.train, sizes, c=self.model.regression_c)
        if not found:
            raise ConfigError(
                "model.head_start is regression, but no task with a weight has labels of two classes in the training "
                "part; use --config.model.head_start=random"
            )
        shown = ", ".join(f"{task} {accuracy:.3f}" for task, (_, accuracy) in found.items())
        seconds = time.perf_counter() - started
        self.display.line(
            f"{member.name}: heads start at a regression (right on the training part: {shown}; {seconds:.1f} s)"
        )
        # One process's answer: the last bits depend on its library.
        return {f"{task}_head": _from_first(fitted) for task, (fitted, _) in found.items()}

    def _pooled(self, judge: Judge, params: Any, corpus: Any, audio: PackedAudio) -> list[Any]:
        """What heads read of every utterance before training; for a checkpoint's encoder, computed once.

        Where the encoder warps frequencies in training, warped copies follow: heads fitted without them would know less
        than the encoder that goes on learning.
        """
        spec, weights = judge.steps.spec, self.source.weights
        model = (spec.model.arch, spec.model.options, spec.model.head_input, spec.plain, spec.normalize_waveform)
        # Copies are drawn batch by batch. The id stands for the samples, which the last entry keeps alive.
        wanted = (weights, *model, judge.source.buckets.bounds, judge.source.buckets.batch_sizes, id(audio))
        if weights is not None and self.last.pooled is not None and self.last.pooled[0] == wanted:
            return self.last.pooled[1]
        every = range(len(audio))
        pooled = [judge.pooled(params, corpus, every)]
        if spec.model.arch.warps_frequencies:
            self.display.line(f"hearing all utterances {_WARPED_COPIES} more times, with warped frequencies")
            pooled += judge.warped(params, corpus, every, _WARPED_COPIES)
        self.last.pooled = (wanted, pooled, audio)
        return pooled


def _from_first(arrays: dict[str, Any]) -> dict[str, Any]:
    """The first process's arrays (float32), in all processes."""
    if processes.alone():
        return arrays
    told = {}
    for name, array in arrays.items():
        parts = np.array_split(array.ravel(), -(-array.size // _TOLD_AT_ONCE))
        values = [value for part in parts for value in processes.from_first(part.tolist())]
        told[name] = np.asarray(values, np.float32).reshape(array.shape)
    return told


def _overlay(tree: Any, loaded: Any) -> Any:
    """``tree`` with every leaf that ``loaded`` has."""
    if not isinstance(tree, dict):
        return loaded
    return {name: _overlay(value, loaded[name]) if name in loaded else value for name, value in tree.items()}


def _summary(keys: list[str]) -> str:
    """Names of tensors, those of one part counted: a decoder has hundreds."""
    parts: dict[str, list[str]] = {}
    for key in keys:
        part = key.removeprefix("model.").partition(".")[0]
        parts.setdefault(part, []).append(key)
    return ", ".join(
        ", ".join(names) if len(names) <= 4 else f"{part} ({len(names)} tensors)" for part, names in parts.items()
    )
