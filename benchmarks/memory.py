"""Memory of the training step, as XLA plans it: per bucket, and what each way to save memory saves.

    python benchmarks/memory.py --preset cpu --output benchmarks/results

The programs are compiled and asked; nothing is run, so programs that would not fit are counted too. *Arguments* are
parameters, optimizer state and batch; *output* the same without the batch; *alias* the part of the output that takes
the arguments' place (the donated state); *temporary* what lives only during the step: activations, gradients, work
space. The step needs arguments + output - alias + temporary, and the libraries' own buffers, which XLA does not know.
On a CPU with jax 0.10, recomputation acts only together with the loop over layers.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import common
import workload

from jax_mtlser.config import Freeze, Moments
from jax_mtlser.data.audio import SAMPLE_RATE
from jax_mtlser.models.flops import training_macs

LORA_RANK = 8
KINDS = ("temporary", "arguments", "output", "alias")


@dataclasses.dataclass(frozen=True)
class Variant:
    """Arguments of :func:`workload.compiled_steps`."""

    freeze: Freeze = Freeze.NOTHING
    lora_rank: int = 0
    remat: bool = False
    scan_layers: bool = False
    moments: Moments = Moments.FLOAT32


VARIANTS = {
    "plain": Variant(),
    "remat": Variant(remat=True),
    "scan_layers + remat": Variant(remat=True, scan_layers=True),
    "frozen feature encoder": Variant(freeze=Freeze.FEATURE_ENCODER),
    "bfloat16 moments": Variant(moments=Moments.BFLOAT16),
    f"LoRA, rank {LORA_RANK}": Variant(freeze=Freeze.ENCODER, lora_rank=LORA_RANK),
}


PRESETS = {
    "cpu": workload.Shapes("base", (2.36, 4.94), workload.BATCH_SIZE),
    "gpu": workload.Shapes("base", (2.36, 4.94, 12.18, 34.14), workload.BATCH_SIZE),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Compile, ask, write a JSON file and a table."""
    parser = common.parser(__doc__)
    workload.add_shapes_arguments(parser, PRESETS)
    parser.add_argument("--variants", choices=VARIANTS, nargs="+", default=list(VARIANTS))
    options = parser.parse_args(arguments)
    shapes = workload.shapes_from(options, PRESETS)
    rows = [{"variant": variant, **row} for variant in options.variants for row in measure(shapes, VARIANTS[variant])]
    result = {
        **shapes.stated(),
        "training_gflop": [
            round(2e-9 * shapes.batch_size * sum(training_macs(shapes.arch, bound).values()), 1)
            for bound in shapes.buckets.bounds
        ],
        "megabytes": rows,
    }
    common.write(options.output, "memory", result, to_table(result))


def measure(shapes: workload.Shapes, variant: Variant) -> list[dict[str, Any]]:
    """Megabytes of the training step of every bucket."""
    steps = workload.compiled_steps(
        shapes.arch, shapes.buckets, shapes.dtype,
        freeze=variant.freeze, lora_rank=variant.lora_rank, remat=variant.remat, scan_layers=variant.scan_layers,
        moments=variant.moments,
    )  # fmt: skip
    steps.compile(workload.knobs(), names=("train",))
    rows = []
    for bucket, bound in enumerate(steps.buckets.bounds):
        planned = steps.program("train", bucket).memory_analysis()
        parts = {
            "temporary": planned.temp_size_in_bytes,
            "arguments": planned.argument_size_in_bytes,
            "output": planned.output_size_in_bytes,
            "alias": planned.alias_size_in_bytes,
        }
        total = parts["arguments"] + parts["output"] - parts["alias"] + parts["temporary"]
        megabytes = {kind: round(size / 1e6, 1) for kind, size in {**parts, "total": total}.items()}
        rows.append({"bound_seconds": round(bound / SAMPLE_RATE, 2), **megabytes})
    return rows


def to_table(result: Mapping[str, Any]) -> str:
    """The result as Markdown."""
    rows = [
        [row["variant"], f"{row['bound_seconds']} s", *(row[kind] for kind in (*KINDS, "total"))]
        for row in result["megabytes"]
    ]
    return "\n".join([
        f"Memory of the training step in MB, as XLA plans it: four tasks on {result['encoder']}, batches of "
        f"{result['batch_size']}, {result['precision']}. Nothing was run.",
        "",
        common.table(["variant", "bucket", *KINDS, "all"], rows),
    ])  # fmt: skip


if __name__ == "__main__":
    main()
