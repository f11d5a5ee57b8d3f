"""Training throughput against PyTorch at three levels, on utterances of the same lengths.

    python benchmarks/train_step.py --preset cpu --lengths FILE.npz
    python benchmarks/train_step.py --preset gpu --lengths FILE.npz

Every side trains wav2vec2-base with the same four heads, losses, dropout (0.1, no LayerDrop, no SpecAugment),
gradient clipping and AdamW.

- **L0, as the paper**: transformers' model in float32, AdamW as it is by default (not fused), batches of 8 at random, padded
  to their longest by the feature extractor from Python lists, inside the step. What this loading takes is stated too.
- **L1, tuned**: bfloat16 autocast where ours takes bfloat16 too (on a processor that is slow at it, both are better off with
  float32), SDPA attention, fused AdamW, batches of 8 grouped by length, on the device before their step, as if workers hid
  all loading.
- **L2, best**: L1 over the same length buckets as ours (static shapes); on a GPU each bucket compiled with CUDA graphs.
- **ours**: the package's own training step over its own plan, its batches made by the loop's own prefetching thread.
- **ours, N folds together** (on a GPU): the same with N trainings in one program, as ``training.population`` runs them, each
  over nine tenths of the utterances. Turns that a fold misses because the others have more batches are counted.

PyTorch's forward pass is also measured with weights in the tuned type themselves, cast once, and weight norm computed once, as
ours does in evaluation.

Two measurements, sides in turns within each: steps of a batch without padding, and an epoch's throughput, from steps evenly
spread over each side's batches in the order of their padded lengths, scaled by padded samples. Each turn is a few steps in a
row, waited for at its end, as in a training. Compilation is stated apart, and not counted; nor is the first call of each shape
on a GPU. On a CPU no side compiles at its first call. There, where a batch of 8 long utterances would need more memory than most
machines have, every side works batches of more than ``part_seconds`` of padded audio through in equal parts (gradient
accumulation); half of that where all are in float32. Needs the extra ``test``.

PyTorch compiles one shape after the other, about a minute each. ``--compile-only 1/5`` compiles a fifth of all programs,
and ends: five such processes at once leave torch's and JAX's caches on disk, from which the measurement then starts.
``--without-l2`` leaves out what PyTorch compiles, most of the time that it all takes.
"""

import argparse
import contextlib
import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np
import torch
import torch.nn.attention
import workload
from sides import Corpus, Ours, Theirs, evenly, in_groups

from jax_mtlser import runtime
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import FILL, PlannedBatch, plan_epoch, plan_together

Attention = torch.nn.attention.SDPBackend
FOLDS = 10
MATMUL_SIZE = {"cpu": 2048, "gpu": 8192}


@dataclasses.dataclass(frozen=True)
class Preset:
    """How much is measured.

    Attributes:
        batch, seconds: shape of the step without padding.
        repeats: turns of that step, for every side.
        steps: measured of each side's epoch.
        in_a_row: steps of one turn.
        float32: also measure our step in float32 where another type is chosen.
        part_seconds: most padded audio in one forward and backward pass; None for no limit.
        folds: that are also trained in one program; 1 for none.
    """

    batch: int
    seconds: float
    repeats: int
    steps: int
    in_a_row: int = 1
    float32: bool = True
    part_seconds: float | None = None
    folds: int = 1

    def parts(self, rows: int, samples: int) -> int:
        """Equal parts in which a batch is worked through."""
        if self.part_seconds is None:
            return 1
        fits = lambda parts: rows // parts * samples <= self.part_seconds * SAMPLE_RATE
        divisors = [parts for parts in range(1, rows + 1) if rows % parts == 0]
        return next((parts for parts in divisors if fits(parts)), rows)


PRESETS = {
    "cpu": Preset(4, 4.0, 7, 16, part_seconds=32.0),
    "gpu": Preset(8, 4.5, 20, 40, in_a_row=8, float32=False, folds=5),
    "smoke": Preset(2, 0.5, 2, 2, part_seconds=6.0, folds=2),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table."""
    parser = common.parser(__doc__)
    parser.add_argument("--preset", choices=PRESETS, default="cpu")
    parser.add_argument("--lengths", type=Path, help="NPZ with samples per utterance; default: a log-normal law")
    parser.add_argument("--encoder", choices=("base", "small"), default="base")
    parser.add_argument("--utterances", type=int, help="of the lengths, spread evenly; default: all")
    parser.add_argument(
        "--compile-only", metavar="I/N", type=share, help="compile a part of all programs into the caches, and end"
    )
    parser.add_argument("--without-l2", action="store_true", help="nothing that PyTorch compiles")
    options = parser.parse_args(arguments)
    runtime.tune_allocator()
    torch.manual_seed(0)
    preset = PRESETS[options.preset]

    lengths = workload.thinned(workload.lengths(options.lengths), options.utterances)
    corpus = Corpus.create(lengths, options.encoder)
    if preset.part_seconds is not None and corpus.fast == "float32":
        # Activations are twice as large: three sides with as long parts did not fit into 24 GB.
        preset = dataclasses.replace(preset, part_seconds=preset.part_seconds / 2)
    if options.compile_only:
        compile_part(corpus, preset, *options.compile_only, l2=torch.cuda.is_available() and not options.without_l2)
        return
    fixed = step_without_padding(corpus, preset, compiled=not options.without_l2)
    print(sides_table(fixed), flush=True)  # the epoch takes longer, and may not fit into memory
    epoch = epoch_throughput(corpus, preset, l2=not options.without_l2)
    peak = {name: matmul_rate(dtype) for name, dtype in (("float32", jnp.float32), ("bfloat16", jnp.bfloat16))}
    fast = f"ours {corpus.fast}"
    flops = 6.0 * sum(map(corpus.macs, lengths)) / len(lengths)  # of one utterance: 2 per MAC, forward and backward
    rate = {name: side["utterances_per_second"] for name, side in epoch.items()}
    result = {
        "settings": {
            **dataclasses.asdict(preset), "preset": options.preset, "encoder": options.encoder,
            "lengths": workload.lengths_name(options.lengths), "utterances": len(lengths),
            "batch_size": workload.BATCH_SIZE, "threads": torch.get_num_threads(), "dropout": 0.1,
            "tuned_precision": corpus.fast,
        },
        "step_without_padding": fixed,
        "epoch": epoch,
        **{
            f"speedup_vs_{kind}_reference{suffix}": round(rate[side] / rate[level], 3)
            for suffix, side in (("", fast), ("_together", together_name(fast, preset)))
            for kind, level in (("paper", "L0"), ("tuned", "L1"), ("best", "L2"))
            if side in rate and level in rate
        },
        "utterances_per_second": rate[fast],
        "matmul_flops_per_second": peak,
        "model_flops_utilisation": round(rate[fast] * flops / peak[corpus.fast], 4),
    }  # fmt: skip
    name = common.name_of("train_step", options.preset) + "_without_l2" * options.without_l2
    common.write(options.output, name, result, to_table(result))


def share(text: str) -> tuple[int, int]:
    """``I/N``: the I-th of N shares, counted from 1."""
    part, _, parts = text.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 1/5")
    return int(part), int(parts)


def together_name(fast: str, preset: Preset) -> str:
    """The side on which several folds train in one program."""
    return f"{fast}, {preset.folds} folds together"


def matmul_rate(dtype: Any) -> float:
    """The most operations per second that a large square product reaches here."""
    size = MATMUL_SIZE["cpu" if jax.default_backend() == "cpu" else "gpu"]
    x = jnp.ones((size, size), dtype)
    product = jax.jit(lambda a, b: jnp.dot(a, b, preferred_element_type=jnp.float32).astype(dtype))
    times = common.take_turns({"product": lambda: jax.block_until_ready(product(x, x))}, 10)
    return 2.0 * size**3 / min(times["product"])


# --- Measurements ------------------------------------------------------------------------------------------


def step_without_padding(corpus: Corpus, preset: Preset, *, compiled: bool) -> dict[str, Any]:
    """Forward pass (evaluation) and whole training step, all rows of the same length; ``compiled``: PyTorch's too."""
    flat = without_padding(corpus, preset)
    planned, rows = PlannedBatch(0, np.arange(preset.batch)), np.arange(preset.batch)
    training: dict[str, Callable[[], object]] = {}
    forward: dict[str, Callable[[], object]] = {}
    compile_seconds = {}
    for dtype in dict.fromkeys((*["float32"] * preset.float32, corpus.fast)):
        ours = Ours(flat, dtype, ("train", "eval"))
        compile_seconds[f"ours {dtype}"] = round(ours.compile_seconds, 1)
        training[f"ours {dtype}"] = lambda ours=ours: ours.run([(planned,)] * preset.in_a_row)
        forward[f"ours {dtype}"] = lambda ours=ours: ours.score([planned] * preset.in_a_row)
    theirs_of = {dtype: (dtype, False) for dtype in ("float32", corpus.fast)}
    if compiled and torch.cuda.is_available():
        theirs_of[f"compiled {corpus.fast}"] = (corpus.fast, True)
    for name, (dtype, whole) in theirs_of.items():
        theirs = Theirs(flat, dtype, compiled=whole)
        batches = [theirs.tensors(flat, rows, None, lists=False)] * preset.in_a_row
        training[f"PyTorch {name}"] = lambda theirs=theirs, batches=batches: theirs.run(batches)
        if not whole:  # see inference.py
            forward[f"PyTorch {name}"] = lambda theirs=theirs, batches=batches: theirs.evaluate(batches)
    cast = Theirs(flat, corpus.fast, cast=True)
    batches = [cast.tensors(flat, rows, None, lists=False)] * preset.in_a_row
    forward[f"PyTorch {corpus.fast} weights"] = lambda: cast.evaluate(batches)

    def turns(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        times = common.take_turns(runs, preset.repeats)
        return {name: [seconds / preset.in_a_row for seconds in values] for name, values in times.items()}

    # One shape only, so PyTorch may try out which convolution is fastest.
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, deterministic=False, allow_tf32=True):
        for run in (*training.values(), *forward.values()):
            run()
        with common.measuring():
            steps, forwards = turns(training), turns(forward)
    sides = {
        name: {
            kind: common.spread(times[name])
            for kind, times in (("step", steps), ("forward", forwards))
            if name in times
        }
        for name in dict.fromkeys((*training, *forward))
    }
    ours_step, ours_forward = (statistics.median(times[f"ours {corpus.fast}"]) for times in (steps, forwards))
    ratios = {
        f"{kind}_speedup_vs_{name.replace(' ', '_').lower()}": round(statistics.median(times[name]) / ours, 3)
        for kind, times, ours in (("step", steps, ours_step), ("forward", forwards, ours_forward))
        for name in times
        if name.startswith("PyTorch")
    }
    return {"sides": sides, **ratios, "compile_seconds": compile_seconds}


@dataclasses.dataclass(frozen=True)
class Side:
    """One side of the epoch.

    Attributes:
        batches: of the whole epoch.
        size: padded samples of each row of a batch.
        run: training steps on some of the batches.
        utterances: in all batches.
        rows: of a batch.
        warmups: calls of each shape that are not counted; 0: of the first batch only.
    """

    batches: list[Any]
    size: Callable[[Any], int]
    run: Callable[[list[Any]], None]
    utterances: int
    rows: Callable[[Any], int] = len
    warmups: int = 0


def without_padding(corpus: Corpus, preset: Preset) -> Corpus:
    """One batch of utterances of the same length."""
    lengths = np.full(preset.batch, round(preset.seconds * SAMPLE_RATE))
    targets = workload.targets(lengths)
    buckets = workload.buckets_for(lengths, targets, corpus.arch, num_buckets=1, batch_size=preset.batch)
    return dataclasses.replace(corpus, audio=workload.synthetic_audio(lengths), targets=targets, buckets=buckets)


def compile_part(corpus: Corpus, preset: Preset, part: int, parts: int, *, l2: bool) -> None:
    """Compile every so many of the programs that are measured, from the ``part``-th, counted from 1."""

    @functools.cache
    def their_side() -> Theirs:
        return Theirs(corpus, corpus.fast, compiled=True)

    def bucket_of_theirs(bucket: int) -> None:
        theirs = their_side()
        rows = np.resize(np.flatnonzero(corpus.buckets.bucket_of == bucket), corpus.buckets.batch_sizes[bucket])
        theirs.run([theirs.tensors(corpus, rows, corpus.buckets.bounds[bucket], lists=False)])

    flat = without_padding(corpus, preset)
    programs: list[Callable[[], object]] = [
        *(
            functools.partial(Ours, corpus, corpus.fast, ("train",), preset.parts, [bucket], members)
            for members in sorted({preset.folds, 1}, reverse=True)
            for bucket in range(len(corpus.buckets))
        ),
        lambda: Ours(flat, corpus.fast, ("train", "eval")),
    ]
    if l2:
        programs += [
            lambda: their_side().run([their_side().tensors(flat, np.arange(preset.batch), None, lists=False)]),
            *(functools.partial(bucket_of_theirs, bucket) for bucket in range(len(corpus.buckets))),
        ]
    for build in programs[part - 1 :: parts]:
        build()


def epoch_throughput(corpus: Corpus, preset: Preset, *, l2: bool) -> dict[str, dict[str, float]]:
    """Utterances per second of an epoch, for every side, from a sample of its steps; ``l2``: of that side too."""
    lengths = corpus.audio.lengths
    every = np.arange(len(lengths))
    plan = plan_epoch(every, corpus.buckets, seed=0, epoch=0)
    bound = lambda planned: corpus.buckets.bounds[planned.bucket]
    random = in_groups(np.random.default_rng(0).permutation(every))
    order = np.random.default_rng(0).permutation(every)
    grouped = in_groups(workload.length_grouped(lengths, workload.BATCH_SIZE, order))
    longest = lambda rows: int(lengths[rows].max())

    paper, tuned = Theirs(corpus, "float32", fused=False), Theirs(corpus, corpus.fast)
    gpu = torch.cuda.is_available()
    best = Theirs(corpus, corpus.fast, compiled=True) if gpu and l2 else tuned  # the same but for the data
    loading: list[float] = []
    ready: dict[int, dict[str, Any]] = {}

    def loaded(rows: np.ndarray) -> dict[str, Any]:
        started = time.perf_counter()
        tensors = paper.tensors(corpus, rows, None, lists=True)
        loading.append(time.perf_counter() - started)
        return tensors

    def kept(batch: Any) -> dict[str, Any]:
        """The tensors of a batch of L1 or L2, made when it is first asked for."""
        if id(batch) not in ready:
            if isinstance(batch, PlannedBatch):
                rows = np.where(batch.rows == FILL, batch.rows[0], batch.rows)
                ready[id(batch)] = best.tensors(corpus, rows, bound(batch), lists=False)
            else:
                ready[id(batch)] = tuned.tensors(corpus, batch, None, lists=False)
        return ready[id(batch)]

    sides = {
        "L0": Side(random, longest, lambda group: paper.run(map(loaded, group), preset.parts), len(every), warmups=gpu),
        "L1": Side(grouped, longest, lambda group: tuned.run(map(kept, group), preset.parts), len(every), warmups=gpu),
    }
    if l2:
        # A graph is recorded in the second call of a shape.
        sides["L2"] = Side(
            plan, bound, lambda group: best.run(map(kept, group), preset.parts), len(every),
            rows=lambda planned: len(planned.rows), warmups=3 * gpu,
        )  # fmt: skip
    compile_seconds = {}
    fast = f"ours {corpus.fast}"
    for members, name in {preset.folds: together_name(fast, preset), 1: fast}.items():  # one fold: no side of its own
        ours = Ours(corpus, corpus.fast, ("train",), preset.parts, members=members)
        compile_seconds[name] = round(ours.compile_seconds, 1)
        parts = [every[order % FOLDS != fold] for fold in range(members)] if members > 1 else [every]
        sides[name] = Side(
            plan_together(parts, corpus.buckets, seeds=range(members), epoch=0), lambda turn: bound(turn[0]), ours.run,
            sum(map(len, parts)), rows=lambda turn: sum(len(planned.rows) for planned in turn), warmups=gpu,
        )  # fmt: skip
    samples = {name: evenly(side.batches, side.size, preset.steps) for name, side in sides.items()}
    for batch in (*samples["L1"], *samples.get("L2", ())):
        kept(batch)
    for name, side in sides.items():
        shapes = {(side.size(batch), side.rows(batch)): batch for batch in samples[name]}
        with tuned_for_shapes(name):
            for batch in shapes.values() if side.warmups else samples[name][:1]:
                side.run([batch] * max(side.warmups, 1))
    # Groups of the same places in each side's order: in every turn all sides have the same mixture of lengths.
    places = np.random.default_rng(0).permutation(min(map(len, samples.values())))
    groups = [places[start : start + preset.in_a_row] for start in range(0, len(places), preset.in_a_row)]
    loading.clear()
    times: dict[str, list[float]] = {name: [] for name in sides}
    with common.measuring():
        for group, (name, side) in itertools.product(groups, sides.items()):
            with tuned_for_shapes(name):
                started = time.perf_counter()
                side.run([samples[name][place] for place in group])
                times[name].append(time.perf_counter() - started)
    result: dict[str, dict[str, float]] = {}
    for name, side in sides.items():
        padded, measured = (
            sum(side.size(batch) * side.rows(batch) for batch in batches)
            for batches in (side.batches, [samples[name][place] for place in places])
        )
        epoch_seconds = sum(times[name]) * padded / measured
        result[name] = {
            "utterances_per_second": round(side.utterances / epoch_seconds, 3),
            "epoch_seconds": round(epoch_seconds, 1),
            "steps_measured": len(places),
            "steps_per_epoch": len(side.batches),
            "padded_over_true_samples": round(padded / (float(lengths.mean()) * side.utterances), 3),
            **common.spread([seconds / len(group) for seconds, group in zip(times[name], groups, strict=True)]),
        }
        if name in compile_seconds:
            result[name]["compile_seconds"] = compile_seconds[name]
    result["L0"]["loading_ms"] = round(1e3 * statistics.fmean(loading), 3)
    return result


@contextlib.contextmanager
def tuned_for_shapes(name: str) -> Iterator[None]:
    """PyTorch's settings for a level.

    L1 and L2 may try out which convolution is fastest: what they find for a shape they keep, and every shape has been
    seen before it is measured. L1, which has many, does not use cuDNN's attention, which makes a plan for each.
    """
    with contextlib.ExitStack() as settings:
        tries = name in ("L1", "L2")
        settings.enter_context(
            torch.backends.cudnn.flags(enabled=True, benchmark=tries, deterministic=False, allow_tf32=True)
        )
        if name == "L1":
            others = [Attention.FLASH_ATTENTION, Attention.EFFICIENT_ATTENTION, Attention.MATH]
            settings.enter_context(torch.nn.attention.sdpa_kernel(others, set_priority=True))
        yield


def sides_table(fixed: dict[str, Any]) -> str:
    """The step without padding as Markdown."""
    return common.table(
        ("side", "training step (ms)", "forward (ms)"),
        [
            (name, *(side.get(kind, {}).get("median_ms", "") for kind in ("step", "forward")))
            for name, side in fixed["sides"].items()
        ],
    )


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    settings, fixed, epoch = result["settings"], result["step_without_padding"], result["epoch"]
    lines = [
        f"Training wav2vec2-{settings['encoder']} with four heads.",
        "",
        f"One batch of {settings['batch']} x {settings['seconds']:g} s without padding, medians of "
        f"{settings['repeats']}, sides in turns:",
        "",
        sides_table(fixed),
        "Ours over PyTorch: "
        + ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in fixed.items() if "speedup" in key)
        + ".",
        "",
        f"An epoch over {settings['utterances']} utterances ({settings['lengths']}), {settings['steps']} steps measured; L1 and "
        f"L2 in {settings['tuned_precision']}:",
        "",
        common.table(
            ("side", "utterances/s", "padded / true", "ours is faster by"),
            [
                (name, side["utterances_per_second"], side["padded_over_true_samples"],
                 round(result["utterances_per_second"] / side["utterances_per_second"], 2))
                for name, side in epoch.items()
            ],
        ),
        f"Of each step of L0, {epoch['L0']['loading_ms']} ms are the loading of its batch.",
        "",
        f"Model FLOPs utilisation {100 * result['model_flops_utilisation']:.1f} % of the fastest product measured here.",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
