"""What every benchmark states and how it measures: machine and versions, sides that take turns, medians with spread."""

import argparse
import contextlib
import fcntl
import json
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_mtlser import runtime

RESULTS = Path(__file__).parent / "results"
# What a processor multiplies matrices with, the fastest first.
INSTRUCTIONS = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512 BF16", "avx512f": "AVX-512", "avx2": "AVX2"}


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file and the table")
    return parser


def _commit() -> str | None:
    """Of the code that measures, with ``+`` where it was changed since; None without git, or outside a clone."""

    def git(*arguments: str) -> str:
        output = subprocess.check_output(("git", *arguments), cwd=RESULTS.parent, text=True, stderr=subprocess.DEVNULL)
        return output.strip()

    try:
        return git("rev-parse", "--short=10", "HEAD") + "+" * bool(
            git("status", "--porcelain", "../jax_mtlser", "*.py")
        )
    except (OSError, subprocess.CalledProcessError):
        return None


COMMIT = _commit()  # at the start: a long run ends with another tree


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, devices and versions."""
    found = {"processor": processor(), "cores": runtime.available_cores(), **runtime.versions()}
    if COMMIT:
        found["commit"] = COMMIT
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["torch"] = metadata.version("torch")
    return found


def processor() -> str:
    """The processor's name and what it multiplies with, where the system tells: names alone may cover several kinds."""
    cpuinfo = Path("/proc/cpuinfo")
    told = cpuinfo.read_text() if cpuinfo.exists() else ""
    name = told.partition("\nmodel name")[2].partition("\n")[0].strip("\t: ") or platform.processor()
    widest = instructions()
    return f"{name} with {INSTRUCTIONS[widest]}" if widest else name


def instructions() -> str | None:
    """The fastest of :data:`INSTRUCTIONS` that this processor has."""
    return next((flag for flag in INSTRUCTIONS if flag in runtime.processor_flags()), None)


def name_of(benchmark: str, preset: str) -> str:
    """A result's name. On CPUs it tells what products were computed with, on which ratios hang: no kind replaces another."""
    widest = instructions() if preset == "cpu" else None
    return "_".join(filter(None, (benchmark, preset, widest)))


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Wait until no other benchmark on this machine measures: several may compile at once, and then take turns."""
    with open(Path(tempfile.gettempdir()) / "jax_mtlser_benchmark.lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int, warmups: int = 1) -> dict[str, list[float]]:
    """Seconds of each call; the sides alternate, so that a noisy machine disturbs all of them alike.

    A side must return only when its work is done (``jax.block_until_ready``, ``torch.cuda.synchronize``).
    """
    times: dict[str, list[float]] = {name: [] for name in sides}
    for repeat in range(-warmups, repeats):
        for name, run in sides.items():
            started = time.perf_counter()
            run()
            if repeat >= 0:
                times[name].append(time.perf_counter() - started)
    return times


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and greatest, in milliseconds."""
    return {
        "median_ms": round(1e3 * statistics.median(seconds), 3),
        "min_ms": round(1e3 * min(seconds), 3),
        "max_ms": round(1e3 * max(seconds), 3),
    }


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "| --- " * len(header) + "|"]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def write(output: Path, name: str, result: dict[str, Any], text: str) -> None:
    """Write ``name.json`` and ``name.md``, each with the machine and versions, and show the latter."""
    output.mkdir(parents=True, exist_ok=True)
    where = machine()
    complete = {"benchmark": name, "machine": where, **result}
    text = f"{text.rstrip()}\n\n{in_a_line(where)}\n"
    (output / f"{name}.json").write_text(json.dumps(complete, indent=2) + "\n")
    (output / f"{name}.md").write_text(text)
    print(text)


def in_a_line(where: Mapping[str, Any]) -> str:
    """A machine and its versions; nothing need have run on it, some benchmarks only count."""
    versions = ", ".join(f"{name} {where[name]}" for name in ("commit", "jax", "flax", "torch") if name in where)
    parts = f"{where['processor']}, {where['cores']} cores, {where['device']}"
    return f"Machine: {parts}; Python {where['python']}, {versions}."
