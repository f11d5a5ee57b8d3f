"""What XLA makes of one training step: kernels, matrix products by type, loops, memory. Nothing is run.

    python benchmarks/compiled_step.py                  # for an H200, on any machine; no GPU is needed
    python benchmarks/compiled_step.py --target cpu     # for this machine's processor

The step is the whole one: int16 corpus on the device and gathered inside, dropout, SpecAugment and LayerDrop, four
heads, CTC, clipping, AdamW. All figures are counted in XLA's own output (``training/program_report.py``), so they
are exact and the same everywhere; they say nothing of time. For the H200 this needs Python 3.12 and

    pip install "jax>=0.11.2" jax-cuda13-plugin jax-cuda13-pjrt nvidia-cuda-nvcc nvidia-nvvm

with one version of jax, jaxlib, plugin and pjrt. Products go to cuBLAS, as in a run (``runtime.compiler_options``);
``--products triton`` has XLA write kernels for them instead, its own default. It can try nothing out without the device,
so it takes its first choice.
"""

import argparse
import collections
import dataclasses
import importlib.util
import os
import re
import site
import time
from importlib import metadata
from pathlib import Path
from typing import Any
from unittest import mock

import common
import jax
import jax.numpy as jnp
import numpy as np
import optax
import workload
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from jax_mtlser.config import Freeze, Moments
from jax_mtlser.models import products
from jax_mtlser.training import losses
from jax_mtlser.training.program_report import Kernel, ProgramReport, part_of, program_report
from jax_mtlser.training.sharding import make_mesh

H200 = Path(__file__).parent / "h200.txtpb"
CUDA_PACKAGES = ("jax-cuda13-plugin", "jax-cuda13-pjrt", "nvidia-cuda-nvcc", "nvidia-nvvm")
IEMOCAP_SAMPLES = 402_600_000  # of the resident corpus: 6.989 h
LARGEST = 12  # kernels listed


@dataclasses.dataclass(frozen=True)
class Shape:
    """What is compiled.

    Attributes:
        batch: utterances.
        seconds: padded length of each.
        precision: compute type.
        freeze, lora_rank, remat, scan_layers, accumulation_steps: see :class:`~jax_mtlser.config.Config`.
        resident: the corpus lies on the device.
        encoder: ``base`` or ``small``.
        ctc: ``own``, or ``optax``, which costs two loops over the frames.
        plain: textbook formulas, see :class:`~jax_mtlser.config.TrainingConfig`.
        moments: see :class:`~jax_mtlser.config.OptimizerConfig`.
    """

    batch: int = workload.BATCH_SIZE
    seconds: float = 4.5
    precision: str = "bfloat16"
    freeze: Freeze = Freeze.NOTHING
    lora_rank: int = 0
    remat: bool = False
    scan_layers: bool = False
    accumulation_steps: int = 1
    resident: bool = True
    encoder: str = "base"
    ctc: str = "own"
    plain: bool = False
    moments: Moments = Moments.FLOAT32


# What differs from the options given.
VARIANTS: dict[str, dict[str, Any]] = {
    "step": {},
    "float32": {"precision": "float32"},
    "CTC of optax": {"ctc": "optax"},
    "plain formulas": {"plain": True},
    "frozen convolutions": {"freeze": Freeze.FEATURE_ENCODER},
    "probe": {"freeze": Freeze.ENCODER},
    "adapters": {"freeze": Freeze.ENCODER, "lora_rank": 8},
    "recomputed layers": {"remat": True},
    "scanned layers": {"scan_layers": True},
    "accumulated": {"accumulation_steps": 2},
    "audio in the batch": {"resident": False},
    "bfloat16 moments": {"moments": Moments.BFLOAT16},
}


def main() -> None:
    """Compile what is asked for and write what was counted."""
    arguments = parse()
    if arguments.target == "h200":
        prepare_cuda(arguments.products)
    shape = Shape(
        batch=arguments.batch, seconds=arguments.seconds, precision=arguments.precision,
        freeze=Freeze(arguments.freeze), encoder=arguments.encoder, ctc=arguments.ctc,
    )  # fmt: skip
    rows = []
    for name in arguments.variant:
        changed = dataclasses.replace(shape, **VARIANTS[name])
        compiled, seconds = compile_step(changed, arguments.target)
        rows.append(figures(name, changed, program_report(compiled), seconds))
        print(f"{name}: {rows[-1]['kernels']} kernels, compiled in {seconds:.0f} s", flush=True)
        if arguments.text:
            arguments.text.write_text(compiled.as_text())
        jax.clear_caches()
    result = {
        "target": arguments.target,
        "products": arguments.products,
        "compiler": compiler(arguments.target),
        "rows": rows,
    }
    common.write(
        arguments.output, name_of(arguments.target), result, to_text(arguments.target, arguments.products, rows)
    )


def parse() -> argparse.Namespace:
    """The command line."""
    parser = common.parser(__doc__)
    parser.add_argument("--target", choices=("h200", "cpu"), default="h200", help="what is compiled for")
    parser.add_argument("--batch", type=int, default=Shape.batch, help="utterances")
    parser.add_argument("--seconds", type=float, default=Shape.seconds, help="padded length of each utterance")
    parser.add_argument("--precision", choices=("bfloat16", "float32"), default=Shape.precision)
    parser.add_argument("--freeze", choices=("nothing", "feature_encoder", "encoder"), default="nothing")
    parser.add_argument("--encoder", choices=("base", "small"), default=Shape.encoder)
    parser.add_argument("--ctc", choices=("own", "optax"), default=Shape.ctc, help="implementation of the CTC loss")
    parser.add_argument("--products", choices=("library", "triton"), default="library", help="how the H200 multiplies")
    parser.add_argument("--variant", nargs="+", choices=tuple(VARIANTS), default=["step"], help="rows of the table")
    parser.add_argument("--text", type=Path, help="also write XLA's text of the (last) program to this file")
    return parser.parse_args()


# --- Compilation -----------------------------------------------------------------------------------------


def missing_for_h200() -> str:
    """Why this Python cannot compile for an H200; empty when it can."""
    lacking = [name for name in CUDA_PACKAGES if not _is_installed(name)]
    if lacking:
        return f"needs {', '.join(lacking)}"
    versions = {metadata.version(name) for name in ("jaxlib", "jax-cuda13-plugin", "jax-cuda13-pjrt")}
    return "" if len(versions) == 1 else "needs one version of jaxlib, jax-cuda13-plugin and jax-cuda13-pjrt"


def _is_installed(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True


def prepare_cuda(products: str) -> None:
    """Let XLA find the CUDA tools and look for no GPU; before JAX starts.

    Args:
        products: ``triton``, or ``library`` for cuBLAS.

    Raises:
        SystemExit: packages are missing.
    """
    if missing := missing_for_h200():
        raise SystemExit(f"compiling for an H200 {missing}; see the text at the top of {Path(__file__).name}")
    (root,) = [Path(path) / "nvidia" / "cu13" for path in _site_packages() if (Path(path) / "nvidia" / "cu13").is_dir()]
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    os.environ["PATH"] = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    flags = f"--xla_gpu_cuda_data_dir={root} --xla_gpu_autotune_level=0"
    if products == "library":
        flags += " --xla_gpu_enable_triton_gemm=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    jax.config.update("jax_platforms", "cpu")


def _site_packages() -> list[str]:
    found = importlib.util.find_spec("jax_plugins.xla_cuda13")
    beside = [str(Path(found.origin).parents[2])] if found and found.origin else []
    return list(dict.fromkeys([*beside, *site.getsitepackages()]))


def mesh_of(target: str) -> Mesh:
    """One device of the target; it need not exist."""
    if target == "cpu":
        return make_mesh(1)
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=H200.read_text(), topology="1x1x1"
    )
    devices: Any = np.array(topology.devices).reshape(1, 1)
    return Mesh(devices, ("member", "data"), axis_types=(AxisType.Auto, AxisType.Auto))


def compile_step(shape: Shape, target: str) -> tuple[Any, float]:
    """The compiled training step, and the seconds that tracing and compilation took."""
    arch = workload.encoder(shape.encoder)
    buckets = workload.fixed_buckets([shape.seconds], arch, batch_size=shape.batch)
    resident = IEMOCAP_SAMPLES if shape.resident else None
    steps = workload.compiled_steps(
        arch, buckets, jnp.dtype(shape.precision), freeze=shape.freeze, lora_rank=shape.lora_rank, remat=shape.remat,
        scan_layers=shape.scan_layers, accumulation_steps=shape.accumulation_steps, resident_samples=resident,
        plain=shape.plain, moments=shape.moments, mesh=mesh_of(target),
    )  # fmt: skip
    ctc_loss = optax.ctc_loss if shape.ctc == "optax" else losses.ctc_loss
    platform = "gpu" if target == "h200" else "cpu"
    with products.formulation(platform=platform), mock.patch.object(losses, "ctc_loss", ctc_loss):
        started = time.perf_counter()
        compiled = steps.lower("train", 0, workload.knobs()).compile()
        return compiled, time.perf_counter() - started


# --- Figures ---------------------------------------------------------------------------------------------


def figures(name: str, shape: Shape, report: ProgramReport, seconds: float) -> dict[str, Any]:
    """A row of the result."""
    parts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for kernel in report.kernels:
        parts[part_of(kernel.op_name)][0] += kernel.launches
        parts[part_of(kernel.op_name)][1] += kernel.bytes_total
    settings = dataclasses.asdict(shape) | {"freeze": shape.freeze.value, "moments": shape.moments.value}
    largest = sorted(report.kernels, key=lambda kernel: -kernel.bytes_total)[:LARGEST]
    return {
        "variant": name,
        "settings": settings,
        "kernels": report.num_kernels,
        "kernels_in_loops": report.num_loop_kernels,
        "loops": [dataclasses.asdict(loop) for loop in report.loops],
        "kinds": dict(collections.Counter(_kind(kernel) for kernel in report.kernels).most_common()),
        "products": report.product_types(),
        "f32_products": [_short(product.op_name) for product in report.products_of("f32")],
        "convolutions": len(report.convolutions),
        "host_calls": report.host_calls,
        "temporary_bytes": report.temporary_bytes,
        "argument_bytes": report.argument_bytes,
        "output_bytes": report.output_bytes,
        "alias_bytes": report.alias_bytes,
        "moved_bytes": report.bytes_moved,
        "parts": {
            part: {"kernels": count, "moved_bytes": size}
            for part, (count, size) in sorted(parts.items(), key=lambda item: -item[1][0])
        },
        "largest_kernels": [
            {"op_name": _short(k.op_name), "target": k.target, "launches": k.launches, "moved_bytes": k.bytes_total}
            for k in largest
        ],
        "compile_seconds": round(seconds, 1),
    }


def _kind(kernel: Kernel) -> str:
    return f"{kernel.opcode} with {kernel.target}" if kernel.target else kernel.opcode


def _short(op_name: str) -> str:
    return re.sub(r"^jit\(\w+\)/", "", op_name)


def compiler(target: str) -> dict[str, str]:
    """Versions that the figures depend on."""
    return {"jaxlib": metadata.version("jaxlib")} | (
        {name: metadata.version(name) for name in CUDA_PACKAGES} if target == "h200" else {}
    )


def name_of(target: str) -> str:
    """Name of the result's files."""
    return "compiled_step" if target == "h200" else f"compiled_step_{target}"


def to_text(target: str, products: str, rows: list[dict[str, Any]]) -> str:
    """The result as Markdown."""
    first = rows[0]["settings"]
    where = "an NVIDIA H200, ahead of time" if target == "h200" else "this processor"
    text = (
        f"One training step compiled for {where}: wav2vec2-{first['encoder']}, batch {first['batch']} x "
        f"{first['seconds']:g} s, {first['precision']}, all four tasks, dropout, SpecAugment, LayerDrop, CTC, AdamW. "
        "Counted in XLA's output; nothing was run.\n\n"
    )
    text += common.table(
        ["variant", "kernels", "of these in loops", "products", "of these float32", "convolutions", "temporary (GB)",
         "arguments (GB)", "moved (GB)", "compilation (s)"],
        [
            [
                row["variant"], row["kernels"], _loops(row), sum(row["products"].values()), len(row["f32_products"]),
                row["convolutions"], f"{row['temporary_bytes'] / 1e9:.2f}", f"{row['argument_bytes'] / 1e9:.2f}",
                f"{row['moved_bytes'] / 1e9:.1f}", f"{row['compile_seconds']:.0f}",
            ]
            for row in rows
        ],
    )  # fmt: skip
    text += f"\nKernels and traffic by part ({rows[0]['variant']}):\n\n" + common.table(
        ["part", "kernels", "moved (GB)"],
        [[part, of["kernels"], f"{of['moved_bytes'] / 1e9:.2f}"] for part, of in rows[0]["parts"].items()],
    )
    text += "\nKernels that move most:\n\n" + common.table(
        ["MB", "launches", "operation"],
        [[round(k["moved_bytes"] / 1e6), k["launches"], f"`{k['op_name']}`"] for k in rows[0]["largest_kernels"]],
    )
    if rows[0]["f32_products"]:
        counts = collections.Counter(rows[0]["f32_products"])
        text += "\nFloat32 products:\n\n" + "".join(f"- `{name}`: {count}\n" for name, count in counts.items())
    text += (
        "\nA kernel is whatever the host launches: fusions, library calls, copies; in a loop, once per iteration. "
        "Moved: operands and results of every kernel, no cache considered. "
    )
    if target == "h200" and products == "triton":
        text += "Without the device XLA tries nothing out and takes its first choice, Triton, for every product."
    elif target == "h200":
        text += "All products go to cuBLAS."
    return text.rstrip() + "\n"


def _loops(row: dict[str, Any]) -> str:
    """Such as ``4704 (224 x 14 + 224 x 7)``; equal loops are put together."""
    counts = collections.Counter(f"{loop['trips'] or '?'} x {loop['kernels_per_trip']}" for loop in row["loops"])
    each = [loop if count == 1 else f"{count} of {loop}" for loop, count in counts.items()]
    return f"{row['kernels_in_loops']}{' (' + ' + '.join(each) + ')' if each else ''}"


if __name__ == "__main__":
    main()
