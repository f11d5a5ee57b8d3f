"""Inference against PyTorch: latency of one utterance by length, and throughput over a corpus.

    python benchmarks/inference.py --preset cpu --lengths FILE.npz
    python benchmarks/inference.py --preset gpu --lengths FILE.npz

wav2vec2-base with four heads on both sides; ours is the evaluation program that training and testing run, and of single
utterances also what ``jax-mtlser predict`` and the page run, which pad to one of a few lengths; PyTorch is transformers'
model with SDPA attention, eagerly in float32 and, where ours takes bfloat16, under bfloat16 autocast; with weights
themselves in the type that ours takes, cast once, and weight norm computed once, as ours does; and on a GPU also compiled
for each length with CUDA graphs. Sides take turns; compilation and each shape's first call are not counted. Of a corpus,
some batches are measured, and their time is scaled by padded samples. The paper's cost columns are given per length:
operations with "1 MAC = 2 FLOP", and milliseconds per utterance. Needs the extra ``test``.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import common
import jax.numpy as jnp
import numpy as np
import torch
import workload
from sides import Corpus, Ours, Theirs, evenly, in_groups

from jax_mtlser import runtime
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import plan_in_order
from jax_mtlser.data.vocabulary import paper_vocabulary
from jax_mtlser.inference.ensemble import Ensemble
from jax_mtlser.inference.recognition import Asked
from jax_mtlser.inference.trained_model import TrainedModel
from jax_mtlser.models.multitask import HeadSizes, MultitaskModel


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        seconds: lengths of single utterances.
        repeats: of each.
        batches: of each side that are measured, evenly spread over its batches in the order of their padded lengths; 0
            for all.
        utterances: of the corpus, spread evenly over its lengths; 0 for all.
        passes: over these batches, of every side.
    """

    seconds: tuple[float, ...]
    repeats: int
    batches: int
    utterances: int = 0
    passes: int = 3


PRESETS = {
    "cpu": Preset((1.0, 2.5, 5.0, 10.0), 9, 8),
    "gpu": Preset((1.0, 4.5, 10.0), 100, 170),
    "smoke": Preset((0.5, 1.0), 2, 0, utterances=16),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--lengths", type=Path, help="NPZ with samples per utterance; default: a log-normal law")
    parser.add_argument("--encoder", choices=("base", "small"), default="base")
    options = parser.parse_args(arguments)
    runtime.tune_allocator()
    torch.manual_seed(0)
    preset = PRESETS[options.preset]
    lengths = workload.thinned(workload.lengths(options.lengths), preset.utterances)
    result = {
        "settings": {
            **dataclasses.asdict(preset), "preset": options.preset, "encoder": options.encoder,
            "lengths": workload.lengths_name(options.lengths), "threads": torch.get_num_threads(),
        },
        "latency": latency(options.encoder, preset),
        "throughput": throughput(Corpus.create(lengths, options.encoder), preset),
    }  # fmt: skip
    common.write(options.output, common.name_of("inference", options.preset), result, to_table(result))


def their_sides(corpus: Corpus) -> dict[str, Theirs]:
    """The variants of PyTorch."""
    eager = dict.fromkeys(("float32", corpus.fast))  # one where that is the same
    sides = {f"PyTorch eager {dtype}": Theirs(corpus, dtype) for dtype in eager}
    sides[f"PyTorch eager {corpus.fast} weights"] = Theirs(corpus, corpus.fast, cast=True)
    if torch.cuda.is_available():
        sides[f"PyTorch compiled {corpus.fast}"] = Theirs(corpus, corpus.fast, compiled=True)
    return sides


def as_predict(corpus: Corpus, params: Any) -> Ensemble:
    """A trained model of these parameters, as it is put to use."""
    names = {"emotion": workload.EMOTIONS, "gender": workload.GENDERS, "speaker": workload.SPEAKERS}
    vocabulary = paper_vocabulary()
    sizes = names | {"asr": workload.SYMBOLS + 1}
    if len(vocabulary.symbols) != sizes["asr"]:
        raise SystemExit(f"the paper's vocabulary has {len(vocabulary.symbols)} symbols, the workload {sizes['asr']}")
    description = {
        "heads": sizes,
        "labels": {task: [f"{task}{number}" for number in range(count)] for task, count in names.items()},
        "vocabulary": vocabulary.to_dict(),
        "untrained": [],
        "audio": {"max_seconds": float(max(corpus.audio.lengths)) / SAMPLE_RATE},
        "normalize_waveform": True,
    }
    model = MultitaskModel(corpus.arch, HeadSizes(**sizes))
    member = TrainedModel("benchmark", model, params, description, None)
    return Ensemble([member], calibrated=False, dtype=getattr(jnp, corpus.fast), batch_seconds=None)


def latency(encoder: str, preset: Preset) -> list[dict[str, Any]]:
    """One utterance at a time."""
    lengths = np.array([round(seconds * SAMPLE_RATE) for seconds in preset.seconds])
    corpus = Corpus.create(lengths, encoder)
    buckets = workload.buckets_for(lengths, corpus.targets, corpus.arch, num_buckets=len(lengths), batch_size=1)
    corpus = dataclasses.replace(corpus, buckets=buckets)
    ours, theirs = Ours(corpus, corpus.fast, ("eval",)), their_sides(corpus)
    ensemble, asked = as_predict(corpus, ours.params), Asked(speaker=True, transcript=True)
    rows = []
    for row, planned in enumerate(plan_in_order(np.arange(len(lengths)), buckets)):
        sides: dict[str, Callable[[], None]] = {f"ours {corpus.fast}": lambda planned=planned: ours.evaluate(planned)}
        samples = [corpus.audio[row]]
        sides[f"ours {corpus.fast}, as predict"] = lambda samples=samples: ensemble.scores(samples, asked)
        for name, side in theirs.items():
            sides[name] = functools.partial(side.evaluate, [side.tensors(corpus, np.array([row]), None, lists=False)])
        for run in [*sides.values()] * 2:
            run()
        with common.measuring():
            times = common.take_turns(sides, preset.repeats)
        medians = {name: statistics.median(values) for name, values in times.items()}
        rows.append(
            {
                "seconds": preset.seconds[row],
                "gflop": round(2e-9 * corpus.macs(lengths[row]), 2),
                "sides": {name: common.spread(values) for name, values in times.items()},
                "speedups": {
                    name: round(value / medians[f"ours {corpus.fast}"], 3)
                    for name, value in medians.items()
                    if not name.startswith("ours")
                },
            }
        )
    return rows


def throughput(corpus: Corpus, preset: Preset) -> dict[str, dict[str, float]]:
    """All utterances in batches of 8: ours in buckets, results on the host; PyTorch sorted by length, batches ready on the
    device and padded to their longest."""
    lengths, bounds = corpus.audio.lengths, corpus.buckets.bounds
    ours, plan = Ours(corpus, corpus.fast, ("eval",)), plan_in_order(np.arange(len(lengths)), corpus.buckets)
    some = evenly(plan, lambda planned: bounds[planned.bucket], preset.batches or len(plan))
    runs: dict[str, Callable[[], object]] = {f"ours {corpus.fast}": lambda: ours.score(some)}
    work = lambda planned: len(planned.rows) * bounds[planned.bucket]
    share = {f"ours {corpus.fast}": sum(map(work, some)) / sum(map(work, plan))}
    ordered = in_groups(np.argsort(lengths, kind="stable"))
    groups = evenly(ordered, lambda rows: int(lengths[rows].max()), preset.batches or len(ordered))
    padded = lambda groups: sum(len(rows) * int(lengths[rows].max()) for rows in groups)
    batches: list[dict[str, Any]] = []
    for name, side in their_sides(corpus).items():
        if "compiled" not in name:  # a program per length would compile for hours
            batches = batches or [side.tensors(corpus, rows, None, lists=False) for rows in groups]
            runs[name] = functools.partial(side.evaluate, batches)
            share[name] = padded(groups) / padded(ordered)
    with common.measuring():
        times = common.take_turns(runs, preset.passes)
    audio_seconds = float(lengths.sum()) / SAMPLE_RATE
    result = {}
    for name, values in times.items():
        whole = statistics.median(values) / share[name]
        result[name] = {
            "seconds_for_all": round(whole, 3),
            "utterances_per_second": round(len(lengths) / whole, 2),
            "audio_seconds_per_second": round(audio_seconds / whole, 1),
            **common.spread(values),
        }
    return result


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings = result["settings"]
    names = list(result["latency"][0]["sides"])
    lines = [
        f"Inference of wav2vec2-{settings['encoder']} with four heads.",
        "",
        f"Batch 1, milliseconds (medians of {settings['repeats']}, sides in turns); GFLOP = 2 per MAC:",
        "",
        common.table(
            ("seconds", "GFLOP", *names),
            [
                (row["seconds"], row["gflop"], *(row["sides"][name]["median_ms"] for name in names))
                for row in result["latency"]
            ],
        ),
        f"Batches of 8 over {settings['lengths']}, medians of {settings['passes']}"
        + (f", from {settings['batches']} batches of each side:" if settings["batches"] else ":"),
        "",
        common.table(
            ("side", "utterances/s", "audio s/s"),
            [
                (name, side["utterances_per_second"], side["audio_seconds_per_second"])
                for name, side in result["throughput"].items()
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
