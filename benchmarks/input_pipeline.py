"""Host time of input: ours against the usual Hugging Face pipeline, on the same utterances in the same batches.

    python benchmarks/input_pipeline.py --preset cpu --lengths LENGTHS.npz --output benchmarks/results

Ours reads packed int16 audio and leaves padding and normalisation to the compiled step; the time that these take
there, on this machine's device, is a row of its own. Theirs runs ``Wav2Vec2FeatureExtractor`` (zero mean, unit
variance, padding to the longest, PyTorch tensors) on the batch's waveforms as NumPy arrays or as Python lists, which is
how ``datasets`` hands out a column that has no format set; or it pads waveforms that were normalised beforehand. Both
start from decoded audio. The sides take turns batch by batch. Needs the extra ``test``.
"""

import argparse
import dataclasses
import functools
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import torch
import transformers
import workload

from jax_mtlser import runtime
from jax_mtlser.config import Residency
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, PlannedBatch, plan_epoch
from jax_mtlser.data.batches import Batch, BatchSource, gather, prefetch, waveform
from jax_mtlser.data.packed import PackedAudio

OURS = ("ours, resident", "ours, memory map", "ours, memory map, moved to the device")
IN_THE_STEP = "ours, what the step does: gather, pad, normalise"
THEIRS = ("extractor on NumPy arrays", "extractor on Python lists", "padding of prepared arrays")
FULL_SCALE = 32_768


@dataclasses.dataclass(frozen=True)
class Preset:
    """Size of the measurement.

    Attributes:
        utterances: at most so many, spread over the lengths; None: all.
        batches: timed one by one.
    """

    utterances: int | None
    batches: int


PRESETS = {"cpu": Preset(utterances=800, batches=40), "gpu": Preset(utterances=None, batches=100)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_lengths_arguments(parser)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--utterances", type=int, help="instead of the preset's; 0: all")
    parser.add_argument("--batches", type=int, help="instead of the preset's")
    options = parser.parse_args(arguments)
    preset = PRESETS[options.preset]
    count = preset.utterances if options.utterances is None else options.utterances
    runtime.tune_allocator()

    name, audio = corpus(options, count)
    with tempfile.TemporaryDirectory() as folder:
        measured = measure(on_disk(audio, Path(folder)), options.batches or preset.batches)
    result = {"corpus": name, "utterances": len(audio), "batch_size": workload.BATCH_SIZE, **measured}
    common.write(options.output, "input_pipeline", result, to_table(result))


def corpus(options: argparse.Namespace, count: int | None) -> tuple[str, PackedAudio]:
    """A real corpus as it is, or noise."""
    if options.corpus is not None:
        return workload.corpus_audio(options.corpus)
    name, lengths = workload.lengths_from(options)
    return f"noise of {name}", workload.synthetic_audio(workload.thinned(lengths, count))


def on_disk(audio: PackedAudio, folder: Path) -> PackedAudio:
    """The same audio in a memory-mapped file, as runs have it; in the page cache, since it was just written."""
    path = folder / "samples.int16"
    audio.samples.tofile(path)
    return PackedAudio(np.memmap(path, dtype=np.int16, mode="r"), audio.offsets)


def measure(audio: PackedAudio, batches: int) -> dict[str, Any]:
    """Time of batches one by one, side by side, and of our whole epoch behind the prefetching thread."""
    arch = workload.base_architecture()
    targets = workload.targets(audio.lengths)
    buckets = workload.buckets_for(audio.lengths, targets, arch)
    mapped = BatchSource.create(audio, targets, buckets, Residency.HOST)
    resident = dataclasses.replace(mapped, on_device=True)
    plan = plan_epoch(range(len(audio)), buckets, seed=0, epoch=0)
    in_step = InStep(resident)

    times: dict[str, list[float]] = {}
    for planned in plan[:batches]:
        theirs = Theirs(audio)  # anew: lists of floats are sixteen times as large as the audio
        sides: dict[str, Callable[[], object]] = {
            OURS[0]: functools.partial(resident.get, planned),
            OURS[1]: functools.partial(mapped.get, planned),
            OURS[2]: functools.partial(to_device, mapped, planned),
            IN_THE_STEP: in_step.side(planned),
            THEIRS[0]: functools.partial(theirs.from_arrays, planned),
            THEIRS[1]: functools.partial(theirs.from_lists, planned),
            THEIRS[2]: functools.partial(theirs.from_prepared, planned),
        }
        with common.measuring():
            taken = common.take_turns(sides, repeats=1)
        for side, seconds in taken.items():
            times.setdefault(side, []).extend(seconds)
    padded = np.mean([buckets.bounds[planned.bucket] for planned in plan]) / SAMPLE_RATE
    return {
        "steps_per_epoch": len(plan),
        "timed_batches": len(times[OURS[0]]),
        "mean_padded_seconds": round(float(padded), 2),
        "per_batch": {side: common.spread(seconds) for side, seconds in times.items()},
        "epoch_seconds": {side: round(statistics.mean(seconds) * len(plan), 4) for side, seconds in times.items()},
        "prefetched_epoch_seconds": {
            OURS[0]: round(prefetched_epoch(resident, plan), 4),
            OURS[1]: round(prefetched_epoch(mapped, plan), 4),
        },
    }


def to_device(source: BatchSource, planned: PlannedBatch) -> Batch:
    """A batch with its audio, copied to the device."""
    return jax.block_until_ready(jax.device_put(source.get(planned)))


def prefetched_epoch(source: BatchSource, plan: Sequence[PlannedBatch]) -> float:
    """Seconds in which the prefetching thread hands out an epoch on the device, when the steps cost nothing."""
    started = time.perf_counter()
    for _, batch in prefetch(lambda planned: jax.device_put(source.get(planned)), plan):
        jax.block_until_ready(batch)
    return time.perf_counter() - started


class InStep:
    """What our step does on the device in place of a feature extractor."""

    def __init__(self, source: BatchSource) -> None:
        self._source = source
        self._corpus = jax.device_put(source.resident_corpus())

        @functools.partial(jax.jit, static_argnums=3)
        def run(corpus: Any, offsets: Any, lengths: Any, num_samples: int) -> Any:
            return waveform(gather(corpus, offsets, lengths, num_samples), lengths, normalize=True)

        self._run = run

    def side(self, planned: PlannedBatch) -> Callable[[], Any]:
        """One batch; its few numbers are on the device already."""
        batch, bound = jax.device_put(self._source.get(planned)), self._source.buckets.bounds[planned.bucket]
        return lambda: jax.block_until_ready(self._run(self._corpus, batch.offsets, batch.lengths, bound))


class Theirs:
    """The reference implementation's feature extractor as a collate function."""

    def __init__(self, audio: PackedAudio) -> None:
        self._audio = audio
        self._extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
        self._stored: dict[int, np.ndarray] = {}
        self._listed: dict[int, list[float]] = {}
        self._prepared: dict[int, np.ndarray] = {}

    def _wave(self, row: int) -> np.ndarray:
        if row not in self._stored:  # decoding is nobody's time here
            self._stored[row] = self._audio[row].astype(np.float32) / FULL_SCALE
        return self._stored[row]

    def from_arrays(self, planned: PlannedBatch) -> torch.Tensor:
        """Normalise and pad float32 arrays."""
        return self._extract([self._wave(row) for row in real_rows(planned)])

    def from_lists(self, planned: PlannedBatch) -> torch.Tensor:
        """Normalise and pad lists of floats; the first call makes the lists, so it must not be timed."""
        rows = real_rows(planned)
        for row in rows:
            if row not in self._listed:
                self._listed[row] = self._wave(row).tolist()
        return self._extract([self._listed[row] for row in rows])

    def from_prepared(self, planned: PlannedBatch) -> torch.Tensor:
        """Pad arrays that are normalised already; the first call normalises them, so it must not be timed."""
        rows = real_rows(planned)
        for row in rows:
            if row not in self._prepared:
                extracted = self._extractor(self._wave(row), sampling_rate=SAMPLE_RATE, return_tensors="np")
                self._prepared[row] = extracted["input_values"][0]
        inputs: Any = {"input_values": [self._prepared[row] for row in rows]}
        return self._extractor.pad(inputs, padding="longest", return_tensors="pt")["input_values"]

    def _extract(self, waves: list[Any]) -> torch.Tensor:
        batch = self._extractor(waves, sampling_rate=SAMPLE_RATE, padding="longest", return_tensors="pt")
        return batch["input_values"]


def real_rows(planned: PlannedBatch) -> list[int]:
    """Utterances of a batch without those that only fill it."""
    return [int(row) for row in planned.rows if row != FILL]


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [side, times["median_ms"], times["min_ms"], times["max_ms"], result["epoch_seconds"][side]]
        for side, times in result["per_batch"].items()
    ]
    behind = result["prefetched_epoch_seconds"]
    return "\n".join([
        f"Input, {result['corpus']} ({result['utterances']} utterances), batches of {result['batch_size']} padded to "
        f"{result['mean_padded_seconds']} s on average. {result['timed_batches']} batches, sides interleaved; an epoch "
        f"is the mean batch times {result['steps_per_epoch']} steps.",
        "",
        common.table(["side", "median (ms)", "least (ms)", "greatest (ms)", "epoch (s)"], rows),
        "Our whole epoch behind the prefetching thread, copies to the device included: "
        + ", ".join(f"{side.removeprefix('ours, ')} {seconds} s" for side, seconds in behind.items())
        + ".",
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    main()
