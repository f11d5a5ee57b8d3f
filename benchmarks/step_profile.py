"""Where the device time of one training step goes: by part of the model, and by kernel.

    python benchmarks/step_profile.py --preset gpu --output benchmarks/results

The step is that of ``train_step.py`` (no LayerDrop, no SpecAugment) over a resident corpus, on batches without padding.
First it is timed twice: *waited for*, one step at a time, and *in a row*, the way training runs it, where the host
prepares the next step meanwhile. Then a few steps run under JAX's profiler, and every kernel's time goes to the part of
the model that the operation belongs to (``training/program_report.py``). On a GPU, kernels that XLA launches as one graph
do not tell which operation they are; ``--without-graphs`` launches them one by one, which takes the host longer but the
kernels themselves just as long. Where kernels run side by side their times add up to more than a step takes.
"""

import collections
import dataclasses
import os
import tempfile
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import common
import jax
import numpy as np
import workload
from jax.profiler import ProfileData

from jax_mtlser import runtime
from jax_mtlser.config import Freeze
from jax_mtlser.data.batch_plan import PlannedBatch
from jax_mtlser.data.batches import BatchSource
from jax_mtlser.experiments.kept_frames import KeptFrames
from jax_mtlser.models.frozen import FrozenPart, frozen_part
from jax_mtlser.training.frozen_corpus import frozen_corpus
from jax_mtlser.training.hlo_text import Instruction, read_program
from jax_mtlser.training.program_report import part_of

PRESETS = {
    "cpu": workload.Shapes("small", (4.5,), workload.BATCH_SIZE),
    "gpu": workload.Shapes("base", (4.5,), workload.BATCH_SIZE),
}
WITHOUT_GRAPHS = "--xla_gpu_enable_command_buffer="
IN_A_ROW = 10  # steps of one turn
PROFILED = 5  # steps
LARGEST = 25  # kernels listed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, profile, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_shapes_arguments(parser, PRESETS)
    parser.add_argument("--freeze", choices=[freeze.value for freeze in Freeze if freeze is not Freeze.LAYERS],
                        default="nothing")  # fmt: skip
    parser.add_argument("--keep-frozen", action="store_true", help="frames of the frozen part lie on the device")
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--name", default="step_profile", help="of the files written")
    parser.add_argument("--without-graphs", action="store_true", help="launch kernels one by one, to tell them apart")
    options = parser.parse_args(arguments)
    if options.keep_frozen and options.freeze == Freeze.NOTHING.value:
        parser.error("--keep-frozen needs --freeze feature_encoder or encoder: nothing else stays as it is")
    if options.without_graphs:  # before JAX starts
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {WITHOUT_GRAPHS}".strip()
    runtime.tune_allocator()
    shapes = workload.shapes_from(options, PRESETS)
    bench = Bench(shapes, Freeze(options.freeze), kept=options.keep_frozen)
    with common.measuring():
        measured = bench.measure(options.repeats)
    result = {
        **shapes.stated(),
        "freeze": options.freeze,
        "kept": bench.steps.spec.frozen.value,
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        **measured,
    }
    common.write(options.output, options.name, result, to_table(result))


class Bench:
    """A compiled step, its state, and batches on the device."""

    def __init__(self, shapes: workload.Shapes, freeze: Freeze, *, kept: bool) -> None:
        arch = dataclasses.replace(shapes.arch, layerdrop=0.0, apply_spec_augment=False)
        lengths = np.full(4 * shapes.batch_size, shapes.buckets.bounds[0])
        buckets = dataclasses.replace(
            workload.one_bucket(shapes.buckets, 0), bucket_of=np.zeros(len(lengths), np.int64)
        )
        source = BatchSource(workload.synthetic_audio(lengths), workload.targets(lengths), buckets, on_device=True)
        corpus: Any = source.resident_corpus()
        frozen = FrozenPart.NOTHING
        resident: dict[str, int] = {"resident_samples": len(corpus)}
        if kept:
            frozen = frozen_part(arch, freeze, lora=False, hf_compat=False)
            frames = KeptFrames.of(frozen, arch, lengths, buckets.bounds[0])
            source = dataclasses.replace(source, frame_offsets=frames.offsets)
            resident = {"resident_frames": frames.total}
        self.steps = workload.compiled_steps(arch, buckets, shapes.dtype, freeze=freeze, frozen=frozen, **resident)
        started = time.perf_counter()
        self.steps.compile(workload.knobs(), names=("train", "frozen") if kept else ("train",))
        self.compile_seconds = time.perf_counter() - started
        self.state = workload.initial_state(self.steps)
        if kept:
            corpus = frozen_corpus(self.steps, source, self.state.params["encoder"], lambda *_: None)
        self.corpus, self.knobs = self.steps.put(corpus), self.steps.put(workload.knobs())
        rows = np.arange(len(lengths)).reshape(-1, shapes.batch_size)
        self.batches = [self.steps.put_batch(source.get(PlannedBatch(0, own))) for own in rows]

    def run(self, steps: int) -> None:
        """Consecutive steps, waited for at the end."""
        for number in range(steps):
            batch = self.batches[number % len(self.batches)]
            self.state, metrics = self.steps.train(0, self.state, batch, self.knobs, self.corpus)
        jax.block_until_ready((self.state, metrics))

    def measure(self, repeats: int) -> dict[str, Any]:
        """Times and profile."""
        self.run(3)
        times = common.take_turns({"waited": lambda: self.run(1), "row": lambda: self.run(IN_A_ROW)}, repeats)
        with tempfile.TemporaryDirectory() as folder:
            with jax.profiler.trace(folder):
                self.run(PROFILED)
            (file,) = Path(folder).rglob("*.xplane.pb")
            with warnings.catch_warnings():
                # Of jaxlib 0.12's own type; made an error, it would end the process.
                warnings.filterwarnings("ignore", "builtin type event_stats", DeprecationWarning)
                events = list(kernel_events(ProfileData.from_file(str(file))))
        program = self.steps.program("train", 0)
        instructions = {
            name: instruction
            for computation in read_program(program.as_text()).computations.values()
            for name, instruction in computation.items()
        }
        return {
            "compile_seconds": round(self.compile_seconds, 1),
            "waited_for": common.spread(times["waited"]),
            "in_a_row": common.spread([seconds / IN_A_ROW for seconds in times["row"]]),
            "finite": bool(
                np.all([np.isfinite(leaf).all() for leaf in jax.device_get(list(self.state.stacks.values()))])
            ),
            **by_part(events, instructions),
        }


def kernel_events(profile: ProfileData) -> Iterable[tuple[str, str, float]]:
    """(kernel, instruction, nanoseconds) of everything that the program ran."""
    planes = list(profile.planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")] or planes
    for plane in devices:
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                if "hlo_op" in stats or "correlation_id" in stats:
                    yield event.name, str(stats.get("hlo_op", "")), float(event.duration_ns)


def by_part(events: Sequence[tuple[str, str, float]], instructions: dict[str, Instruction]) -> dict[str, Any]:
    """Milliseconds a step, summed over parts and over kernels."""
    parts: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0])
    kernels: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for kernel, operation, nanoseconds in events:
        instruction = instructions.get(operation)
        part = part_of(instruction.op_name) if instruction and instruction.op_name else "not told"
        where = instruction.op_name if instruction else operation
        for total in (parts[part], kernels[kernel, where]):
            total[0] += nanoseconds
            total[1] += 1

    def stated(total: list[float]) -> dict[str, float]:
        return {"ms": round(total[0] / PROFILED / 1e6, 4), "launches": round(total[1] / PROFILED, 1)}

    ordered = sorted(kernels.items(), key=lambda item: -item[1][0])
    return {
        "busy_ms": round(sum(total[0] for total in parts.values()) / PROFILED / 1e6, 3),
        "launches": round(len(events) / PROFILED, 1),
        "parts": {part: stated(total) for part, total in sorted(parts.items(), key=lambda item: -item[1][0])},
        "kernels": [{"kernel": kernel, "op_name": where, **stated(total)} for (kernel, where), total in ordered],
    }


def to_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [
        f"One training step of {result['encoder']}, batch {result['batch_size']} x {result['bounds_seconds'][0]} s, "
        f"{result['precision']}, frozen: {result['freeze']}, kept on the device: {result['kept']}: "
        f"**{result['in_a_row']['median_ms']} ms** in a row, {result['waited_for']['median_ms']} ms "
        f"waited for; kernels busy for {result['busy_ms']} ms in {result['launches']:g} launches.",
        "",
        common.table(
            ("part", "ms", "launches"),
            [(part, total["ms"], total["launches"]) for part, total in result["parts"].items()],
        ),
        "Kernels that take longest:",
        "",
        common.table(
            ("ms", "launches", "kernel", "operation"),
            [
                (k["ms"], k["launches"], f"`{k['kernel'][:60]}`", f"`{k['op_name'][-90:]}`")
                for k in result["kernels"][:LARGEST]
            ],
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
