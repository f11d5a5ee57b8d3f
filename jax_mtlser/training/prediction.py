"""From evaluation steps to one :class:`Prediction` per utterance."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float32

from jax_mtlser.corpora.manifest import Manifest
from jax_mtlser.data.batch_plan import FILL, PlannedBatch, plan_in_order
from jax_mtlser.data.batches import BatchSource, prefetch
from jax_mtlser.data.labels import LabelMaps
from jax_mtlser.data.vocabulary import Vocabulary
from jax_mtlser.evaluation.predictions import Part, Prediction
from jax_mtlser.training.losses import LossSums
from jax_mtlser.training.progress import Display
from jax_mtlser.training.sharding import CompiledSteps
from jax_mtlser.training.step import Evaluation

__all__ = ["Judge", "Judged"]


@dataclasses.dataclass(frozen=True)
class Judged:
    """Predictions in the order of the rows asked for, and the losses over them (None for no rows)."""

    predictions: list[Prediction]
    losses: LossSums | None


@dataclasses.dataclass(frozen=True)
class Judge:
    """Judges utterances with a member's parameters.

    Attributes:
        member, repeat, fold: written into the predictions.
        manifest: all utterances.
        maps: class names.
        vocabulary: CTC symbols; None without an ASR head.
        transcripts: normalised references, by row.
        untrained: tasks whose weight is 0; what their heads say means nothing and is not written down.
        steps: compiled programs.
        source: batches.
        display: where progress goes.
    """

    member: str
    repeat: int
    fold: int
    manifest: Manifest
    maps: LabelMaps
    vocabulary: Vocabulary | None
    transcripts: Sequence[str | None]
    untrained: frozenset[str]
    steps: CompiledSteps
    source: BatchSource
    display: Display

    def __call__(self, params: Any, corpus: Any, rows: Sequence[int], part: Part) -> Judged:
        """Evaluate ``rows`` of the manifest."""
        found: dict[int, Prediction] = {}
        losses: LossSums | None = None
        for planned, evaluation in self._evaluated(params, corpus, rows, f"{self.member}: {part}"):
            result = jax.device_get(evaluation)
            losses = result.losses if losses is None else losses + result.losses
            for place, row in enumerate(planned.rows):
                if row != FILL:
                    found[int(row)] = self._prediction(int(row), part, result, place)
        return Judged([found[row] for row in rows], losses)

    def pooled(self, params: Any, corpus: Any, rows: Sequence[int]) -> Float32[np.ndarray, "N D"]:
        """What the heads of utterances read before they learn, for each of ``rows``."""
        evaluated = self._evaluated(params, corpus, rows, "hearing")
        return _in_order(rows, ((planned, evaluation.pooled) for planned, evaluation in evaluated))

    def warped(self, params: Any, corpus: Any, rows: Sequence[int], copies: int) -> list[Float32[np.ndarray, "N D"]]:
        """What :meth:`pooled` gives of ``rows``, with frequencies warped as the encoder's ``frequency_warp`` says.

        Args:
            params: of the model.
            corpus: on the devices.
            rows: of the manifest.
            copies: how often; factors are drawn from each copy's number, batch by batch.
        """
        batches = plan_in_order(rows, self.source.buckets)
        buckets, compiled = sorted({planned.bucket for planned in batches}), itertools.count(1)
        with self.display.counting("compiling") as progress:
            self.steps.compile(
                None, names=("hear",), buckets=buckets, progress=lambda *_: progress(next(compiled), len(buckets))
            )
        params = self.steps.ready(params)

        def heard(copy: int) -> Iterator[tuple[PlannedBatch, Any]]:
            keys = jax.random.split(jax.random.key(copy), len(batches))
            title = f"hearing, warped ({copy + 1} of {copies})"
            for key, (planned, batch) in zip(keys, self._on_devices(batches, title), strict=True):
                yield planned, self.steps.hear(planned.bucket, params, batch, corpus, self.steps.put(key))

        return [_in_order(rows, heard(copy)) for copy in range(copies)]

    def _evaluated(
        self, params: Any, corpus: Any, rows: Sequence[int], title: str
    ) -> Iterator[tuple[PlannedBatch, Evaluation]]:
        params = self.steps.ready(params)
        for planned, batch in self._on_devices(plan_in_order(rows, self.source.buckets), title):
            yield planned, self.steps.evaluate(planned.bucket, params, batch, corpus)

    def _on_devices(self, batches: Sequence[PlannedBatch], title: str) -> Iterator[tuple[PlannedBatch, Any]]:
        """Batches with their samples; a bar counts the utterances of those that are done."""
        counts = [int(np.sum(planned.rows != FILL)) for planned in batches]
        with self.display.counting(title) as progress:
            done = itertools.accumulate(counts)
            for planned, batch in prefetch(lambda planned: self.steps.put_batch(self.source.get(planned)), batches):
                yield planned, batch
                progress(next(done), sum(counts))

    def _prediction(self, row: int, part: Part, result: Any, place: int) -> Prediction:
        utterance, maps = self.manifest.utterances[row], self.maps

        def chosen(task: str) -> tuple[str | None, tuple[float, ...]]:
            shares = getattr(result, task)
            if shares is None or task in self.untrained:
                return None, ()
            shares = shares[place]
            return getattr(maps, task)[int(np.argmax(shares))], tuple(float(share) for share in shares)

        emotion, emotion_shares = chosen("emotion")
        gender, gender_shares = chosen("gender")
        text_predicted = None
        if self.vocabulary is not None and result.symbols is not None and "asr" not in self.untrained:
            frames = int(result.frame_lengths[place])
            text_predicted = self.vocabulary.decode(result.symbols[place, :frames].tolist())
        return Prediction(
            id=utterance.id,
            member=self.member,
            repeat=self.repeat,
            fold=self.fold,
            part=part,
            emotion=utterance.emotion,
            emotion_predicted=emotion,
            emotion_probabilities=emotion_shares,
            gender=utterance.gender,
            gender_predicted=gender,
            gender_probabilities=gender_shares,
            speaker=utterance.speaker,
            speaker_known=utterance.speaker in maps.speaker,
            speaker_predicted=chosen("speaker")[0],
            text=self.transcripts[row] or None,
            text_predicted=text_predicted,
            groups=dict(utterance.groups),
        )


def _in_order(
    rows: Sequence[int], batches: Iterable[tuple[PlannedBatch, Float32[Array, "B D"]]]
) -> Float32[np.ndarray, "N D"]:
    """Results of batches by row of the manifest."""
    found: dict[int, np.ndarray] = {}
    for planned, result in batches:
        result = jax.device_get(result)
        found.update((int(row), result[place]) for place, row in enumerate(planned.rows) if row != FILL)
    return np.stack([found[row] for row in rows])
