"""Seconds to compile the programs of a run: each alone, all of them several at a time, and from the persistent cache.

    python benchmarks/compile_time.py --preset cpu --output benchmarks/results

*Alone* compiles one program after the other without a cache. *Cold* is what the first run waits for: every program, several
at a time, into an empty cache. *Cached* is what the next run waits for, with nothing left in memory: tracing, lowering
and reading, of which only the last is XLA's. On a GPU the cold seconds include XLA's search for the fastest kernels.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import common
import jax
import workload
from jax.experimental.compilation_cache import compilation_cache

from jax_mtlser import runtime
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.data.batch_plan import Buckets
from jax_mtlser.training.sharding import CompiledSteps

NAMES = ("train", "eval")


PRESETS = {
    "cpu": workload.Shapes("base", (2.36, 4.94), 2),
    # Eight buckets; where a run names no number, IEMOCAP has seventeen.
    "gpu": workload.Shapes("base", workload.BASE_BOUNDS_SECONDS, workload.BATCH_SIZE),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_shapes_arguments(parser, PRESETS)
    options = parser.parse_args(arguments)
    shapes = workload.shapes_from(options, PRESETS)
    runtime.tune_allocator()

    def steps_for(buckets: Buckets) -> CompiledSteps:
        return workload.compiled_steps(shapes.arch, buckets, shapes.dtype)

    result = {**shapes.stated(), **measure(steps_for, shapes.buckets)}
    common.write(options.output, "compile_time", result, to_table(result))


def measure(steps_for: Callable[[Buckets], CompiledSteps], buckets: Buckets) -> dict[str, Any]:
    """Seconds of each program and of all of them."""
    rows: dict[tuple[str, int], dict[str, Any]] = {
        (name, bucket): {"program": name, "bound_seconds": round(buckets.bounds[bucket] / SAMPLE_RATE, 2)}
        for name in NAMES
        for bucket in range(len(buckets))
    }
    xla: dict[str, float] = {}
    with compilation_cache_in(None), XlaEvents() as events:
        for (name, bucket), row in rows.items():
            steps = steps_for(workload.one_bucket(buckets, bucket))
            row["alone"] = round(compiled(steps, (name,)), 2)
    totals = {"alone": round(sum(row["alone"] for row in rows.values()), 2)}
    xla["alone"] = round(events.seconds, 2)
    with tempfile.TemporaryDirectory() as folder, compilation_cache_in(Path(folder)):
        for how in ("cold", "cached"):
            steps = steps_for(buckets)
            with XlaEvents() as events:
                totals[how] = round(compiled(steps, NAMES), 2)
            xla[how] = round(events.seconds, 2)
            for key, seconds in steps.seconds.items():
                rows[key][how] = round(seconds, 2)
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
    return {
        "programs": steps.num_programs,
        "total_seconds": totals,
        "xla_seconds": xla,
        "read_from_cache": events.cache_hits,
        "cache_megabytes": round(size / 1e6, 1),
        "seconds": list(rows.values()),
    }


def compiled(steps: CompiledSteps, names: Sequence[str]) -> float:
    """Seconds until every named program is compiled, with nothing left from earlier compilations in memory."""
    jax.clear_caches()
    started = time.perf_counter()
    steps.compile(workload.knobs(), names=names)
    return time.perf_counter() - started


class XlaEvents:
    """Counts what happens in XLA while it is entered; the rest of a compilation is JAX's tracing and lowering.

    Attributes:
        seconds: in XLA's compiler or in reading its cache, added up over threads.
        cache_hits: programs that came from the cache.
    """

    def __init__(self) -> None:
        self.seconds, self.cache_hits = 0.0, 0

    def __enter__(self) -> "XlaEvents":
        jax.monitoring.register_event_duration_secs_listener(self._add_seconds)
        jax.monitoring.register_event_listener(self._count)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._add_seconds)
        jax.monitoring.unregister_event_listener(self._count)

    def _add_seconds(self, event: str, duration_secs: float, **_: str | int) -> None:
        if "backend_compile" in event:
            self.seconds += duration_secs

    def _count(self, event: str, **_: str | int) -> None:
        self.cache_hits += event.endswith("/cache_hits")


@contextmanager
def compilation_cache_in(folder: Path | None) -> Iterator[None]:
    """Every program into this folder's cache, whatever its size; None: no cache. What was set before comes back."""
    changed = {
        "jax_enable_compilation_cache": folder is not None,
        "jax_compilation_cache_dir": None if folder is None else str(folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: jax.config.values[name] for name in changed}
    _configure(changed)
    try:
        yield
    finally:
        _configure(before)


def _configure(values: dict[str, Any]) -> None:
    for name, value in values.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # otherwise JAX keeps the folder that it used first


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [row["program"], f"{row['bound_seconds']} s", *(row[how] for how in ("alone", "cold", "cached"))]
        for row in result["seconds"]
    ]
    total, xla = result["total_seconds"], result["xla_seconds"]
    rows.append(["all", "", *(f"**{total[how]}**" for how in ("alone", "cold", "cached"))])
    rows.append(["of which XLA, all threads", "", *(xla[how] for how in ("alone", "cold", "cached"))])
    return "\n".join([
        f"Seconds to compile {result['programs']} programs of the four-task model on {result['encoder']}, batches of "
        f"{result['batch_size']}, {result['precision']}. Alone: one after the other, no cache. Cold and cached: several at "
        "a time, so a program's seconds overlap with another's, and *all* is what a run waits. "
        f"{result['read_from_cache']} programs came from the cache, which holds {result['cache_megabytes']} MB.",
        "",
        common.table(["program", "bucket", "alone", "cold", "cached"], rows),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
