"""Trained members as one judge: utterances of any lengths in, mean probabilities out, few compiled shapes."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Int16

from jax_mtlser import runtime
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, Buckets, plan_in_order, rows_within
from jax_mtlser.data.batches import waveform
from jax_mtlser.inference.recognition import Asked, Scores
from jax_mtlser.inference.trained_model import ModelError, TrainedModel
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel, ready_to_multiply

__all__ = ["Ensemble"]

# Half an octave apart: padding adds a sixth on average and never more than a half, and every recording of 1 to 35 s
# falls into one of eleven.
_GRID_SECONDS = tuple(float(2**octave * step) for octave in range(7) for step in (1.0, 1.5))
_MOST_ROWS = 64


@flax.struct.dataclass
class _Heads:
    """What one member says of a batch; None for a head that is not there.

    Attributes:
        emotion, gender, speaker: float32 [B, C] probabilities.
        asr: int32 [B, T] most probable symbols for a single member, float32 [B, T, V] probabilities for several.
        frame_lengths: [B].
        embedding: float32 [B, D].
    """

    emotion: Array | None
    gender: Array | None
    speaker: Array | None
    asr: Array | None
    frame_lengths: Array
    embedding: Array


class Ensemble:
    """One or several members of the same tasks.

    An utterance is padded to the next of a few lengths, and batches to one of two sizes, so there are at most two
    programs per length. They are compiled when first met, and kept in the persistent cache where that is set up.

    Attributes:
        members: the models.
        tasks: what all of them were trained for.
        temperatures: of each member; 1 where none is applied.
        dtype: of the computation.
        batch_seconds: padded audio that is computed at once.
    """

    def __init__(
        self, members: Sequence[TrainedModel], *, calibrated: bool, dtype: Any, batch_seconds: float | None
    ) -> None:
        """Put members together.

        Args:
            members: of one run, or of runs with the same emotions.
            calibrated: divide emotion logits by each member's temperature, where it has one.
            dtype: of the computation.
            batch_seconds: padded audio in a batch; None: 32 on a CPU, 256 on an accelerator.

        Raises:
            ModelError: members that do not fit together.
        """
        self.members, self.dtype = tuple(members), dtype
        first = members[0]
        self.tasks = first.tasks
        for other in members[1:]:
            self._require_equal(other, "arch", "encoders")
            self._require_equal(other, "tasks", "trained tasks")
            self._require_equal(other, "limits", "limits of recordings")
            for task in ("emotion", "gender"):
                if task in self.tasks and getattr(first.labels, task) != getattr(other.labels, task):
                    raise ModelError(f"{first.name} and {other.name} know different {task} classes; choose one member")
        self.temperatures = tuple((calibrated and member.temperature) or 1.0 for member in members)
        self.batch_seconds = batch_seconds or (32.0 if jax.default_backend() == "cpu" else 256.0)
        limits, hop = first.limits, first.arch.hop()
        longest = -(-round(limits.max_seconds * SAMPLE_RATE) // hop) * hop
        # The last but one must be worth a program of its own.
        grid = [-(-round(seconds * SAMPLE_RATE) // hop) * hop for seconds in _GRID_SECONDS]
        self._bounds = (*(bound for bound in grid if bound < 0.85 * longest), longest)
        self._rows = tuple(min(_MOST_ROWS, max(1, rows_within(self.batch_seconds, bound))) for bound in self._bounds)
        self._programs: dict[Asked, tuple[Any, list[Any]]] = {}

    def _require_equal(self, other: TrainedModel, name: str, what: str) -> None:
        if getattr(self.members[0], name) != getattr(other, name):
            raise ModelError(f"{self.members[0].name} and {other.name} have different {what}; choose one member")

    def require(self, asked: Asked) -> None:
        """Refuse what these members cannot answer.

        Raises:
            ModelError: no such head, or members whose answers cannot be averaged.
        """
        first, several = self.members[0], len(self.members) > 1
        if asked.speaker and "speaker" not in self.tasks:
            raise ModelError(f"{first.name} has no trained speaker head, so it cannot name speakers")
        if asked.transcript and "asr" not in self.tasks:
            raise ModelError(f"{first.name} has no trained speech recognition head, so it cannot write transcripts")
        if asked.speaker and any(other.labels.speaker != first.labels.speaker for other in self.members):
            raise ModelError("the members were trained on different speakers; choose one member to name speakers")
        if asked.transcript and any(other.vocabulary != first.vocabulary for other in self.members):
            raise ModelError("the members write different symbols; choose one member for transcripts")
        if asked.embedding and several:
            raise ModelError("embeddings of different members have nothing in common; choose one member")

    def scores(self, utterances: Sequence[Int16[np.ndarray, " S"]], asked: Asked) -> list[Scores]:
        """Judge utterances; each gets the same numbers whatever the others are.

        Args:
            utterances: int16 samples at 16 kHz, each within the models' limits.
            asked: what to tell beside emotion and gender.
        """
        lengths = np.array([len(samples) for samples in utterances], np.int64)
        # Conversion of a longest recording's rate may round one sample up.
        lengths = np.minimum(lengths, self._bounds[-1])
        bucket_of = np.searchsorted(self._bounds, lengths)
        joins = not self.members[0].model.options.hf_compat
        buckets = Buckets(self._bounds, self._rows, (0,) * len(self._bounds), bucket_of, joins)
        found: dict[int, Scores] = {}
        # A single utterance does not wait for a batch of padding.
        for planned in plan_in_order(np.arange(len(utterances)), buckets, singles=True):
            rows, size = planned.rows[planned.rows != FILL], len(planned.rows)
            audio = np.zeros((size, self._bounds[planned.bucket]), np.int16)
            for place, row in enumerate(rows):
                audio[place, : lengths[row]] = utterances[row][: lengths[row]]
            batch_lengths = np.zeros(size, np.int32)
            batch_lengths[: len(rows)] = lengths[rows]
            found |= zip(rows.tolist(), self._batch_scores(audio, batch_lengths, len(rows), asked), strict=True)
        return [found[row] for row in range(len(utterances))]

    def _batch_scores(self, audio: np.ndarray, lengths: np.ndarray, count: int, asked: Asked) -> list[Scores]:
        program, params = self._program(asked)
        heads = None
        for own, temperature in zip(params, self.temperatures, strict=True):
            said = program(own, audio, lengths, np.float32(temperature))
            heads = said if heads is None else jax.tree.map(jnp.add, heads, said)
        members = len(self.members)
        heads = jax.tree.map(lambda x: x / members if members > 1 else x, jax.device_get(heads))

        def row(name: str, place: int) -> np.ndarray | None:
            values = getattr(heads, name)
            return None if values is None or name not in self.tasks else values[place]

        return [
            Scores(
                emotion=row("emotion", place),
                gender=row("gender", place),
                speaker=row("speaker", place),
                transcript=self._transcript(row("asr", place), heads.frame_lengths[place]),
                embedding=heads.embedding[place] if asked.embedding else None,
            )
            for place in range(count)
        ]

    def _transcript(self, said: np.ndarray | None, frames: float) -> str | None:
        vocabulary = self.members[0].vocabulary
        if said is None or vocabulary is None:
            return None
        said = said[: round(float(frames))]
        return vocabulary.decode((said if said.ndim == 1 else said.argmax(axis=-1)).tolist())

    def _program(self, asked: Asked) -> tuple[Any, list[Any]]:
        """The compiled function for what is asked, and each member's parameters for it."""
        if asked not in self._programs:
            unused = {task for task, wanted in (("speaker", asked.speaker), ("asr", asked.transcript)) if not wanted}
            first = self.members[0]
            sizes = {
                task: 0 if task in unused else size for task, size in dataclasses.asdict(first.model.sizes).items()
            }
            model = first.model.clone(
                sizes=HeadSizes(**sizes), options=dataclasses.replace(first.model.options, dtype=self.dtype)
            )
            normalize = first.description["normalize_waveform"]
            function = jax.jit(
                functools.partial(_judge, model, normalize, len(self.members) > 1),
                compiler_options=runtime.compiler_options(),
            )
            # Heads that are not read are left out: members may differ in them, and still share programs.
            read = [
                {name: leaf for name, leaf in member.params.items() if name.removesuffix("_head") not in unused}
                for member in self.members
            ]
            params = [ready_to_multiply(own, self.dtype) for own in read]
            self._programs[asked] = function, params
        return self._programs[asked]


def _judge(
    model: MultitaskModel,
    normalize: bool,
    several: bool,
    params: Any,
    audio: Int16[Array, "B S"],
    lengths: Int[Array, " B"],
    temperature: Float[Array, ""],
) -> _Heads:
    """What one member says; the same computation as the evaluation step of a training."""
    x = waveform(audio, lengths, normalize=normalize)
    output: Any = model.apply({"params": params}, x, lengths, train=False)

    def probabilities(logits: Array | None) -> Array | None:
        return None if logits is None else jax.nn.softmax(logits, axis=-1)

    asr = output.asr
    if asr is not None:
        # Probabilities where they are to be averaged; otherwise the logits decide, as in training.
        asr = jax.nn.softmax(asr, axis=-1) if several else jnp.argmax(asr, axis=-1).astype(jnp.int32)
    return _Heads(
        emotion=probabilities(None if output.emotion is None else output.emotion / temperature),
        gender=probabilities(output.gender),
        speaker=probabilities(output.speaker),
        asr=asr,
        frame_lengths=output.frame_lengths,
        embedding=output.embedding.astype(jnp.float32),
    )
