"""What every benchmark states and how it measures: machine and versions, sides that take turns, medians with spread."""

import argparse
import contextlib
import fcntl
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from jax_mtlser import runtime

RESULTS = Path(__file__).parent / "results"


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON file and the table")
    return parser


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, accelerator and versions."""
    import jax

    found = {
        "processor": processor(),
        "cores": runtime.available_cores(),
        "device": jax.devices()[0].device_kind,
        **runtime.versions(),
    }
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["torch"] = metadata.version("torch")
    return found


def processor() -> str:
    """The processor's name, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


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
    here = machine()
    complete = {"benchmark": name, "machine": here, **result}
    text = f"{text.rstrip()}\n\n{stated(here)}\n"
    (output / f"{name}.json").write_text(json.dumps(complete, indent=2) + "\n")
    (output / f"{name}.md").write_text(text)
    print(text)


def stated(machine: Mapping[str, Any]) -> str:
    """Where a result comes from, in a line."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("jax", "flax", "torch") if name in machine)
    where = f"{machine['processor']}, {machine['cores']} cores, {machine['device']}"
    return f"Run on: {where}; Python {machine['python']}, {versions}."
