"""Members that train together in one program, against the same members one after the other on the same device.

    python benchmarks/population.py --preset gpu --output benchmarks/results

For every bucket and number of members P, one turn takes one optimizer step of each member: *together* with one call of
the population's step, *alone* with P calls of the single step, each with its own state, batch and knobs, the way a run
takes them. Batches are full and without padding, so no member ever waits; in a run, members with fewer batches of a bucket
miss its last turns: *turns per step* says how many more turns than steps an epoch then has. The two sides take turns;
medians are quoted. Memory is what XLA plans for the step, arguments included.
"""

import gc
from collections.abc import Mapping, Sequence
from typing import Any

import common
import jax
import numpy as np
import workload

from jax_mtlser import runtime
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import PlannedBatch, plan_together
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.training.memory import step_memory

PRESETS = {
    "cpu": workload.Shapes("small", (2.36, 4.94), 4),
    "gpu": workload.Shapes("base", (2.36, 4.94, 12.18), workload.BATCH_SIZE),
}
FOLDS = 10


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_shapes_arguments(parser, PRESETS)
    parser.add_argument("--members", type=int, nargs="+", default=[2, 4], help="numbers of members")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args(arguments)
    runtime.tune_allocator()
    shapes = workload.shapes_from(options, PRESETS)
    result = {
        **shapes.stated(),
        "repeats": options.repeats,
        "populations": [
            measure(shapes, bucket, members, options.repeats)
            for bucket in range(len(shapes.buckets.bounds))
            for members in options.members
        ],
        "turns_per_step": {members: turns_per_step(members, shapes) for members in options.members},
    }
    common.write(options.output, "population", result, to_table(result))


def measure(shapes: workload.Shapes, bucket: int, members: int, repeats: int) -> dict[str, Any]:
    """One optimizer step of every member, together and one after the other."""
    buckets = workload.one_bucket(shapes.buckets, bucket)
    lengths = np.full(members * shapes.batch_size, buckets.bounds[0])
    source = BatchSource(workload.synthetic_audio(lengths), workload.targets(lengths), buckets, on_device=True)
    resident = source.resident_corpus()
    sides = {}
    for name, count in (("alone", 1), ("together", members)):
        sides[name] = workload.compiled_steps(
            shapes.arch, buckets, shapes.dtype, resident_samples=len(resident), members=count
        )
        sides[name].compile(workload.knobs(), names=("train",))
    one, all_of_them = sides["alone"], sides["together"]
    corpus, knobs = one.put(resident), one.put(workload.knobs())
    rows = np.arange(len(lengths)).reshape(members, -1)
    batches = [source.get(PlannedBatch(0, own)) for own in rows]
    states = [workload.initial_state(one, seed) for seed in range(members)]
    population = all_of_them.together(states)
    knobs_of_all = all_of_them.together([knobs] * members)

    def alone() -> None:
        losses = []
        for index, batch in enumerate(batches):
            states[index], metrics = one.train(0, states[index], one.put_batch(batch), knobs, corpus)
            losses.append(metrics.loss)
        jax.block_until_ready(losses)

    def together() -> None:
        nonlocal population
        batch = all_of_them.put_batches(batches)
        population, metrics = all_of_them.train(0, population, batch, knobs_of_all, corpus)
        jax.block_until_ready(metrics.loss)

    alone(), together()
    with common.measuring():
        times = common.take_turns({"alone": alone, "together": together}, repeats)
    row = {
        "bound_seconds": round(buckets.bounds[0] / SAMPLE_RATE, 2),
        "members": members,
        **{side: common.spread(seconds) for side, seconds in times.items()},
        "megabytes": {side: round(step_memory(steps.program("train", 0)) / 1e6, 1) for side, steps in sides.items()},
        "compile_seconds": {side: round(steps.seconds["train", 0], 2) for side, steps in sides.items()},
    }
    row["speedup"] = round(row["alone"]["median_ms"] / row["together"]["median_ms"], 3)
    del states, population
    gc.collect()
    return row


def turns_per_step(members: int, shapes: workload.Shapes) -> float:
    """Turns that a population of folds of IEMOCAP's size takes for one step of its largest member."""
    lengths = workload.lengths()
    buckets = workload.buckets_for(lengths, workload.targets(lengths), shapes.arch, batch_size=shapes.batch_size)
    order = np.random.default_rng(0).permutation(len(lengths))
    rows = [order[order % FOLDS != fold % FOLDS] for fold in range(members)]
    turns = plan_together(rows, buckets, seeds=range(members), epoch=0)
    most = max(sum(not turn[index].empty for turn in turns) for index in range(members))
    return round(len(turns) / most, 3)


def to_table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [
            f"{row['bound_seconds']} s", row["members"], row["alone"]["median_ms"], row["together"]["median_ms"],
            f"**{row['speedup']}**", row["megabytes"]["alone"], row["megabytes"]["together"],
        ]
        for row in result["populations"]
    ]  # fmt: skip
    waits = ", ".join(f"{count} members {turns}" for count, turns in result["turns_per_step"].items())
    return "\n".join([
        f"One optimizer step of every member, together and one after the other: four tasks on {result['encoder']}, "
        f"batches of {result['batch_size']}, {result['precision']}, median of {result['repeats']}. MB as XLA plans the "
        "step of one member and of all.",
        "",
        common.table(["bucket", "members", "alone (ms)", "together (ms)", "speedup", "MB alone", "MB together"], rows),
        f"Turns for one step of the largest of several tenfold training parts: {waits}.",
        "",
    ])  # fmt: skip


if __name__ == "__main__":
    main()
