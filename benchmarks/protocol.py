"""Hours of the paper's protocol, ten folds times 100 epochs, projected from measured steps on a corpus' own lengths.

    python benchmarks/protocol.py --preset cpu --lengths LENGTHS.npz --output benchmarks/results

One training and one evaluation step of every bucket are timed (medians, one bucket after the other, each step waited
for), and multiplied by the steps that the batch plans of all folds have: training on nine folds, evaluation of the
tenth after every epoch. Then consecutive steps of a real plan run as the training loop runs them (batches prefetched, metrics
fetched every few steps), and the seconds they took are compared with the sum of their medians. Compilation, decoding
and checkpoints are not in the hours.
"""

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import common
import jax
import numpy as np
import workload

from jax_mtlser import runtime
from jax_mtlser.architecture import EncoderArchitecture
from jax_mtlser.config import Residency, TrainingConfig
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, Buckets, PlannedBatch, plan_epoch, plan_in_order
from jax_mtlser.data.batches import BatchSource, prefetch
from jax_mtlser.data.labels import Targets
from jax_mtlser.evaluation.protocols import Fold, stratified_folds
from jax_mtlser.models.flops import training_macs
from jax_mtlser.training.sharding import CompiledSteps

FOLDS, EPOCHS = 10, 100
SEED = 0
WARMUPS = 2
LOG_EVERY_STEPS = TrainingConfig().log_every_steps


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the measurement; the projection is always over the whole corpus.

    Attributes:
        encoder: shape, see :func:`workload.encoder`.
        num_buckets: of the run; None: what a run would choose.
        utterances: noise that is made, spread over the lengths; None: all.
        repeats: timed steps of each bucket.
        slice_steps: consecutive steps of a real plan.
    """

    encoder: str
    num_buckets: int | None
    utterances: int | None
    repeats: int
    slice_steps: int


PRESETS = {
    "cpu": Preset("small", num_buckets=4, utterances=400, repeats=5, slice_steps=30),
    "gpu": Preset("base", num_buckets=None, utterances=None, repeats=20, slice_steps=300),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, project, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_lengths_arguments(parser)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--encoder", choices=workload.ENCODERS, help="instead of the preset's")
    parser.add_argument("--precision", choices=workload.PRECISIONS, default="auto")
    for name in ("num_buckets", "utterances", "repeats", "slice_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, help="instead of the preset's")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    given = {field.name: getattr(options, field.name) for field in dataclasses.fields(Preset)}
    preset = dataclasses.replace(preset, **{name: value for name, value in given.items() if value is not None})
    runtime.tune_allocator()

    corpus, lengths = workload.lengths_from(options)
    arch, dtype = workload.encoder(preset.encoder), workload.compute_dtype(options.precision)
    targets = workload.targets(lengths)
    buckets = workload.buckets_for(lengths, targets, arch, num_buckets=preset.num_buckets)
    folds = stratified_folds([str(emotion) for emotion in targets.emotion], FOLDS, SEED, validation_fraction=0.0)
    bench = Bench(lengths, targets, buckets, arch, dtype, preset)
    with common.measuring():
        measured = measure(bench, preset, folds, lengths)
    result = {
        "corpus": corpus,
        "utterances": len(lengths),
        "encoder": preset.encoder,
        "precision": jax.numpy.dtype(dtype).name,
        "batch_size": workload.BATCH_SIZE,
        "folds": FOLDS,
        "epochs": EPOCHS,
        **measured,
    }
    common.write(options.output, "protocol", result, to_table(result))


class Bench:
    """Compiled programs, noise to feed them with, and a state that their steps change."""

    def __init__(
        self,
        lengths: np.ndarray,
        targets: Targets,
        buckets: Buckets,
        arch: EncoderArchitecture,
        dtype: Any,
        preset: Preset,
    ) -> None:
        rows = workload.thinned_rows(lengths, preset.utterances)
        audio = workload.synthetic_audio(lengths[rows])
        self.buckets = dataclasses.replace(buckets, bucket_of=buckets.bucket_of[rows])
        self.source = BatchSource.create(audio, workload.chosen(targets, rows), self.buckets, Residency.AUTO)
        corpus = self.source.resident_corpus()
        resident = len(corpus) if self.source.on_device else None
        self.steps: CompiledSteps = workload.compiled_steps(arch, buckets, dtype, resident_samples=resident)
        started = time.perf_counter()
        self.steps.compile(workload.knobs())
        self.compile_seconds = time.perf_counter() - started
        self.corpus = self.steps.put(corpus)
        self.knobs = self.steps.put(workload.knobs())
        self.state = workload.initial_state(self.steps)
        self.params = self.steps.ready(self.state.params)

    def training_step(self, bucket: int) -> Callable[[], object]:
        """One step of a bucket on a batch that is on the device already."""
        batch = self._batch_of(bucket)

        def run() -> None:
            self.state, metrics = self.steps.train(bucket, self.state, batch, self.knobs, self.corpus)
            jax.block_until_ready((self.state, metrics))

        return run

    def evaluation_step(self, bucket: int) -> Callable[[], object]:
        """The same for evaluation."""
        batch = self._batch_of(bucket)
        return lambda: jax.block_until_ready(self.steps.evaluate(bucket, self.params, batch, self.corpus))

    def _batch_of(self, bucket: int) -> Any:
        members = np.flatnonzero(self.buckets.bucket_of == bucket)
        size = self.buckets.batch_sizes[bucket]
        # A step takes as long on rows that only fill the batch: shapes decide.
        rows = np.resize(members, size) if len(members) else np.full(size, FILL)
        return self.steps.put_batch(self.source.get(PlannedBatch(bucket, rows)))

    def run(self, plan: Sequence[PlannedBatch]) -> float:
        """Seconds of consecutive steps, run as the training loop runs them."""
        pending: list[Any] = []
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        for planned, batch in prefetch(lambda planned: self.steps.put_batch(self.source.get(planned)), plan):
            self.state, metrics = self.steps.train(planned.bucket, self.state, batch, self.knobs, self.corpus)
            pending.append(metrics)
            if len(pending) == LOG_EVERY_STEPS:
                jax.device_get(pending)
                pending.clear()
        jax.block_until_ready(self.state)
        return time.perf_counter() - started


def measure(bench: Bench, preset: Preset, folds: Sequence[Fold], lengths: np.ndarray) -> dict[str, Any]:
    """Times per bucket, the protocol's hours, and the measured slice beside its projection."""
    buckets = bench.steps.buckets
    every = range(len(buckets))
    train = [repeated(bench.training_step(b), preset.repeats) for b in every]
    evaluation = [repeated(bench.evaluation_step(b), preset.repeats) for b in every]
    train_median = [statistics.median(seconds) for seconds in train]
    evaluation_median = [statistics.median(seconds) for seconds in evaluation]

    # Steps per bucket depend on the fold, not on the epoch.
    train_steps = steps_of([plan_epoch(fold.train, buckets, seed=SEED, epoch=0) for fold in folds], len(buckets))
    evaluation_steps = steps_of([plan_in_order(fold.test, buckets) for fold in folds], len(buckets))
    train_seconds = EPOCHS * float(train_steps @ np.array(train_median))
    evaluation_seconds = EPOCHS * float(evaluation_steps @ np.array(evaluation_median))

    plan = consecutive(bench.buckets, preset.slice_steps)
    projected = sum(train_median[planned.bucket] for planned in plan)
    took = bench.run(plan)

    trained = [int(row) for fold in folds for row in fold.train]
    macs = training_macs(bench.steps.spec.model.arch, lengths[trained]).values()
    flops = 2 * EPOCHS * float(sum(part.sum(dtype=np.float64) for part in macs))
    return {
        "compile_seconds": round(bench.compile_seconds, 1),
        "buckets": [
            {
                "bound_seconds": round(buckets.bounds[b] / SAMPLE_RATE, 2),
                "train_steps_per_epoch": round(float(train_steps[b]) / len(folds), 1),
                "evaluation_steps_per_epoch": round(float(evaluation_steps[b]) / len(folds), 1),
                "train": common.spread(train[b]),
                "evaluation": common.spread(evaluation[b]),
                "share_of_training": round(EPOCHS * float(train_steps[b]) * train_median[b] / train_seconds, 3),
            }
            for b in every
        ],
        "steps": EPOCHS * int(train_steps.sum()),
        "hours": {
            "training": round(train_seconds / 3600, 3),
            "evaluation": round(evaluation_seconds / 3600, 3),
            "total": round((train_seconds + evaluation_seconds) / 3600, 3),
        },
        "utterances_per_second": round(EPOCHS * len(trained) / train_seconds, 1),
        "true_training_tflop_per_second": float(f"{flops / train_seconds / 1e12:.4g}"),
        "slice": {
            "steps": len(plan),
            "steps_of_buckets": steps_of([plan], len(buckets)).tolist(),
            "measured_seconds": round(took, 3),
            "projected_seconds": round(projected, 3),
            "measured_over_projected": round(took / projected, 3),
        },
    }


def repeated(step: Callable[[], object], repeats: int) -> list[float]:
    """Seconds of the same step, one after the other.

    Not in turns: most steps of an epoch follow one of a similar size, and a short step right behind the longest finds
    caches and allocator as that one left them.
    """
    return common.take_turns({"step": step}, repeats, WARMUPS)["step"]


def steps_of(plans: Sequence[Sequence[PlannedBatch]], num_buckets: int) -> np.ndarray:
    """int64 [buckets] batches of each bucket in all plans."""
    return np.bincount([planned.bucket for plan in plans for planned in plan], minlength=num_buckets)


def consecutive(buckets: Buckets, steps: int) -> list[PlannedBatch]:
    """The first steps of a training over the noise that was made, over as many epochs as that takes."""
    rows = range(len(buckets.bucket_of))
    epochs = (plan_epoch(rows, buckets, seed=SEED, epoch=epoch) for epoch in itertools.count())
    return list(itertools.islice(itertools.chain.from_iterable(epochs), steps))


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [
            f"{row['bound_seconds']} s", row["train_steps_per_epoch"], row["train"]["median_ms"],
            f"{row['train']['min_ms']} - {row['train']['max_ms']}", row["evaluation_steps_per_epoch"],
            row["evaluation"]["median_ms"], f"{100 * row['share_of_training']:.0f} %",
        ]
        for row in result["buckets"]
    ]  # fmt: skip
    hours, part = result["hours"], result["slice"]
    return "\n".join([
        f"{result['folds']} folds x {result['epochs']} epochs on {result['corpus']} ({result['utterances']} "
        f"utterances), four tasks on {result['encoder']}, batches of {result['batch_size']}, {result['precision']}: "
        f"**{hours['total']} h** ({hours['training']} h training, {hours['evaluation']} h evaluation), "
        f"{result['steps']} steps, {result['utterances_per_second']} utterances/s, "
        f"{result['true_training_tflop_per_second']} TFLOP/s without counting padding. "
        f"{result['compile_seconds']} s of compilation are not included.",
        "",
        common.table(
            ["bucket", "training steps per epoch", "step (ms)", "least - greatest", "evaluation steps per epoch",
             "evaluation (ms)", "share of training"],
            rows,
        ),
        f"{part['steps']} consecutive steps of a plan ({', '.join(map(str, part['steps_of_buckets']))} of the buckets in "
        f"this order), run as in training: {part['measured_seconds']} s; their medians "
        f"add up to {part['projected_seconds']} s (ratio {part['measured_over_projected']}).",
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
