"""Two sides that train and evaluate the same four-task model on the same utterances: this package, and PyTorch.

Ours is the package's own training and evaluation steps over its own buckets; theirs transformers' model with the same
heads, losses, dropout and optimizer. ``train_step.py`` and ``inference.py`` compare them.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
import transformers
import workload

from jax_mtlser.config import TaskWeights
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import PlannedBatch
from jax_mtlser.data.batches import Batch, BatchSource, prefetch
from jax_mtlser.models.flops import forward_macs
from jax_mtlser.training.sharding import CompiledSteps

__all__ = ["Corpus", "Ours", "Parts", "Theirs", "Turn", "evenly", "in_groups"]

Turn = tuple[PlannedBatch, ...]  # of all members, in the same bucket
Parts = Callable[[int, int], int]  # from rows and padded samples of a batch, in how many parts it is worked through


@dataclasses.dataclass(frozen=True)
class Corpus:
    """Utterances, our shapes for them, and the architecture.

    Attributes:
        fast: the compute type that the package chooses on this machine.
    """

    arch: Any
    audio: Any
    targets: Any
    buckets: Any
    fast: str

    @classmethod
    def create(cls, lengths: np.ndarray, encoder: str) -> "Corpus":
        arch = dataclasses.replace(workload.encoder(encoder), layerdrop=0.0, apply_spec_augment=False)
        audio, targets = workload.synthetic_audio(lengths), workload.targets(lengths)
        buckets = workload.buckets_for(lengths, targets, arch)
        return cls(arch, audio, targets, buckets, jnp.dtype(workload.compute_dtype("auto")).name)

    def macs(self, num_samples: int) -> float:
        """Multiply-accumulates of the encoder's forward pass."""
        return float(sum(forward_macs(self.arch, int(num_samples)).values()))


class Ours:
    """The package's own training and evaluation steps over a corpus' shapes, with the corpus on the device.

    Args:
        parts: of each batch; default: one.
        only: buckets whose programs are compiled; default: all.
        members: trainings in one step.
    """

    def __init__(
        self,
        corpus: Corpus,
        dtype: str,
        names: Sequence[str],
        parts: Parts = lambda *_: 1,
        only: Sequence[int] | None = None,
        members: int = 1,
    ) -> None:
        buckets = corpus.buckets
        self.source = BatchSource(corpus.audio, corpus.targets, buckets, on_device=True)
        resident = self.source.resident_corpus()
        shapes = zip(buckets.batch_sizes, buckets.bounds, strict=True)
        parts_of = [parts(rows, bound) for rows, bound in shapes]
        started = time.perf_counter()
        by_parts: dict[int, CompiledSteps] = {}
        for count in sorted(set(parts_of)):
            by_parts[count] = workload.compiled_steps(
                corpus.arch,
                buckets,
                getattr(jnp, dtype),
                resident_samples=len(resident),
                accumulation_steps=count,
                members=members,
            )
            own = [
                bucket for bucket, wanted in enumerate(parts_of) if wanted == count and (only is None or bucket in only)
            ]
            by_parts[count].compile(workload.knobs(), names=names, buckets=own)
        self.compile_seconds = time.perf_counter() - started
        self.steps = [by_parts[count] for count in parts_of]
        first = self.steps[0]
        self.knobs, self.corpus = first.together([first.put(workload.knobs())] * members), first.put(resident)
        states = [workload.initial_state(first, seed) for seed in range(members)]
        # Evaluation casts kernels once for all of its batches.
        self.params, self.state = first.ready(states[0].params), first.together(states)

    def run(self, turns: Sequence[Turn]) -> None:
        """Training steps in a row, as the training loop runs them."""
        for turn, batch in prefetch(self._batches, turns):
            bucket = turn[0].bucket
            self.state, metrics = self.steps[bucket].train(bucket, self.state, batch, self.knobs, self.corpus)
        jax.block_until_ready((self.state, metrics))

    def evaluate(self, planned: PlannedBatch) -> None:
        """Evaluate one batch and wait for it."""
        jax.block_until_ready(self._evaluated(planned, self._batch(planned)))

    def score(self, plan: Sequence[PlannedBatch]) -> list[Any]:
        """Everything that evaluation gives of every batch, on the host."""
        return jax.device_get([self._evaluated(*ready) for ready in prefetch(self._batch, plan)])

    def _evaluated(self, planned: PlannedBatch, batch: Batch) -> Any:
        return self.steps[planned.bucket].evaluate(planned.bucket, self.params, batch, self.corpus)

    def _batch(self, planned: PlannedBatch) -> Batch:
        return self.steps[planned.bucket].put_batch(self.source.get(planned))

    def _batches(self, turn: Turn) -> Batch:
        return self.steps[turn[0].bucket].put_batches([self.source.get(planned) for planned in turn])


class Theirs(torch.nn.Module):
    """transformers' model with the same heads, and one optimizer step on it.

    Args:
        dtype: ``float32``, or ``bfloat16``: of forward passes, where torch.autocast chooses it; weights stay float32.
        fused: one AdamW kernel for all parameters, instead of a loop over them.
        compiled: the forward pass by torch.compile, with CUDA graphs.
        cast: for evaluation alone: weights are of this type themselves, and taps' weight norm is computed once.
    """

    def __init__(
        self, corpus: Corpus, dtype: str, *, fused: bool = True, compiled: bool = False, cast: bool = False
    ) -> None:
        super().__init__()
        if dtype not in ("float32", "bfloat16"):
            raise ValueError(f"dtype {dtype!r} is neither float32 nor bfloat16")
        arch = corpus.arch
        config = transformers.Wav2Vec2Config(
            hidden_size=arch.hidden_size, num_hidden_layers=arch.num_hidden_layers,
            num_attention_heads=arch.num_attention_heads, intermediate_size=arch.intermediate_size,
            conv_dim=arch.conv_dim, num_conv_pos_embeddings=arch.num_conv_pos_embeddings,
            num_conv_pos_embedding_groups=arch.num_conv_pos_embedding_groups, layerdrop=0.0, apply_spec_augment=False,
            mask_time_prob=0.0, feat_proj_dropout=arch.feat_proj_dropout, attn_implementation="sdpa",
        )  # fmt: skip
        self.device_name = "cuda" if torch.cuda.is_available() else "cpu"
        self.encoder = transformers.Wav2Vec2Model(config)
        sizes = {"emotion": workload.EMOTIONS, "gender": workload.GENDERS, "speaker": workload.SPEAKERS}
        self.heads = torch.nn.ModuleDict({k: torch.nn.Linear(arch.hidden_size, n) for k, n in sizes.items()})
        self.ctc = torch.nn.Linear(arch.hidden_size, workload.SYMBOLS + 1)
        self.dropout = torch.nn.Dropout(0.1)
        self.to(self.device_name)
        self._set_training(not cast)
        self.autocast = dtype == "bfloat16" and not cast
        if cast:
            torch.nn.utils.parametrize.remove_parametrizations(self.encoder.encoder.pos_conv_embed.conv, "weight")
            self.to(getattr(torch, dtype))
        self.optimizer = torch.optim.AdamW(self.parameters(), lr=1e-5, **({"fused": True} if fused else {}))
        self.extractor = transformers.Wav2Vec2FeatureExtractor()
        self.forward_loss = self.loss
        if compiled:
            # Every shape is compiled for itself, however many there are, and as a whole: otherwise torch would, without
            # an error, compile the second for any shape, run the ninth uncompiled, and leave gaps between graphs.
            torch._dynamo.config.recompile_limit = 64
            self.forward_loss = torch.compile(self.loss, mode="reduce-overhead", dynamic=False, fullgraph=True)

    def loss(self, audio: Any, frames: Any, classes: dict[str, Any]) -> tuple[Any, Any]:
        """Sum of the classification losses, and the log-probabilities for CTC."""
        hidden = self.encoder(audio).last_hidden_state
        mask = (torch.arange(hidden.shape[1], device=hidden.device)[None] < frames[:, None])[..., None]
        pooled = self.dropout((hidden * mask).sum(1) / mask.sum(1))
        shares = dict(zip(("emotion", "gender", "speaker"), (1.0, *_weights()[:2]), strict=True))
        total = sum(
            share * torch.nn.functional.cross_entropy(self.heads[task](pooled).float(), classes[task])
            for task, share in shares.items()
        )
        return total, self.ctc(self.dropout(hidden)).float().log_softmax(-1).transpose(0, 1)

    def run(self, batches: Iterable[dict[str, Any]], parts: Parts = lambda *_: 1) -> None:
        """Training steps in a row."""
        self._set_training(True)
        for tensors in batches:
            self._step(tensors, parts(*tensors["audio"].shape))
        self._wait()

    def _step(self, tensors: dict[str, Any], parts: int) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            rows = slice(part, None, parts)
            classes = {task: labels[rows] for task, labels in tensors["classes"].items()}
            with torch.autocast(self.device_name, torch.bfloat16, enabled=self.autocast):
                loss, symbols = self.forward_loss(tensors["audio"][rows], tensors["frames"][rows], classes)
            # Lengths on the CPU: on a GPU that is what the native kernel wants.
            loss = loss + _weights()[2] * torch.nn.functional.ctc_loss(
                symbols, tensors["transcript"][rows], tensors["frames_host"][rows], tensors["transcript_lengths"][rows]
            )
            (loss / parts).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters(), 1.0)
        self.optimizer.step()

    def evaluate(self, batches: Iterable[dict[str, Any]]) -> None:
        """Evaluate batches in a row."""
        self._set_training(False)
        with torch.inference_mode(), torch.autocast(self.device_name, torch.bfloat16, enabled=self.autocast):
            for tensors in batches:
                audio = tensors["audio"].to(self.ctc.weight.dtype)
                self.forward_loss(audio, tensors["frames"], tensors["classes"])
        self._wait()

    def _set_training(self, training: bool) -> None:
        """Dropout or none, once for many calls; and spare torch.compile two breaks of its graph, which changes no result.

        transformers draws LayerDrop on the host, also at a rate of 0, unless this module alone is told to evaluate (its
        children decide about dropout themselves), and asks for the gradient of the samples, for checkpointing only.
        """
        if self.training != training or self.encoder.encoder.training:
            self.train(training)
        self.encoder.encoder.training = False
        self.encoder.feature_extractor._requires_grad = False

    def _wait(self) -> None:
        if self.device_name == "cuda":
            torch.cuda.synchronize()

    def tensors(self, corpus: Corpus, rows: np.ndarray, padded: int | None, *, lists: bool) -> dict[str, Any]:
        """A batch: by the feature extractor from Python lists, or from arrays."""
        clips = [corpus.audio[int(row)].astype(np.float32) / 32768 for row in rows]
        if lists:
            clips = [clip.tolist() for clip in clips]
            audio = self.extractor(clips, sampling_rate=SAMPLE_RATE, padding=True, return_tensors="pt").input_values
        else:
            audio = torch.zeros(len(rows), padded or max(map(len, clips)))
            for place, clip in enumerate(clips):
                audio[place, : len(clip)] = torch.from_numpy((clip - clip.mean()) / np.sqrt(clip.var() + 1e-7))
        frames = torch.from_numpy(np.asarray(corpus.arch.num_frames(corpus.audio.lengths[rows])))
        targets = corpus.targets
        widest = int(targets.transcript_lengths[rows].max())
        return {
            "audio": audio.to(self.device_name),
            "frames": frames.to(self.device_name),
            "frames_host": frames,
            "classes": {
                task: torch.from_numpy(getattr(targets, task)[rows].astype(np.int64)).to(self.device_name)
                for task in ("emotion", "gender", "speaker")
            },
            "transcript": torch.from_numpy(targets.transcript[rows, :widest].astype(np.int64)).to(self.device_name),
            "transcript_lengths": torch.from_numpy(targets.transcript_lengths[rows].astype(np.int64)),
        }


def in_groups(rows: np.ndarray) -> list[np.ndarray]:
    """Consecutive batches; the last may be smaller."""
    return [rows[start : start + workload.BATCH_SIZE] for start in range(0, len(rows), workload.BATCH_SIZE)]


def evenly(batches: list, size: Callable[[Any], int], count: int) -> list:
    """``count`` batches, evenly spread over the batches in the order of their padded lengths."""
    ordered = sorted(batches, key=size)
    count = min(count, len(ordered))
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def _weights() -> tuple[float, float, float]:
    weights = TaskWeights()
    return weights.alpha, weights.beta, weights.gamma
