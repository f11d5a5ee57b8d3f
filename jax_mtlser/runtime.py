"""What has to be settled before JAX starts its backend: XLA flags, memory allocator, compilation cache."""

import ctypes
import functools
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = [
    "available_cores",
    "cache_root",
    "compiler_options",
    "enable_compilation_cache",
    "has_bfloat16_products",
    "prepare_xla",
    "processor_flags",
    "tune_allocator",
    "versions",
]

# jaxlib 0.10.2 computes wrong sums on CPU when reductions go to YNNPACK (jax-ml/jax#39103): no error, no
# warning. Fusing nothing but single matrix products keeps its fast products and its results. An XLA that does
# not know a flag aborts the process, so the flag is set for the affected release only.
_AFFECTED_JAXLIB = "0.10.2"
_SAFE_FLAG = "--xla_cpu_experimental_ynn_fusion_type=individual_dot"

# On a GPU, XLA writes a kernel of its own for every shape of product, and compiles dozens of each to try them out. A
# training step of wav2vec2-base then was not compiled after 136 s on an H200 with 16 cores; with cuBLAS it takes 27 s,
# and there products are not where a step loses time.
_OWN_PRODUCTS = "xla_gpu_enable_triton_gemm"

# Several processes would divide the tuning of a program's kernels, and one that finds the program in its cache would
# not do its share: the others would wait for it.
_SHARED_TUNING = "xla_gpu_shard_autotuning"

# LLVM fills half of AVX-512's registers, for processors that lower their clock with whole ones. Those with AMX do not.
_VECTOR_BITS = "xla_cpu_prefer_vector_width"


def prepare_xla() -> None:
    """Set the XLA flags that correct results depend on; called when the package is imported.

    Raises:
        RuntimeError: JAX already runs without them, so its results could be wrong.
    """
    if metadata.version("jaxlib") != _AFFECTED_JAXLIB:
        return
    flags = os.environ.get("XLA_FLAGS", "")
    if "xla_cpu_experimental_ynn_fusion_type" in flags:
        return
    if _backend_is_running():
        raise RuntimeError(
            f"jaxlib {_AFFECTED_JAXLIB} gives wrong sums on CPU unless XLA_FLAGS has {_SAFE_FLAG}, and JAX has "
            "already started without it. Import jax_mtlser before the first JAX computation, set XLA_FLAGS "
            "yourself, or use another jaxlib."
        )
    os.environ["XLA_FLAGS"] = f"{flags} {_SAFE_FLAG}".strip()


def compiler_options() -> dict[str, Any]:
    """What XLA is told for this backend when a program is compiled; ``XLA_FLAGS`` that say otherwise win."""
    import jax  # not at module level: prepare_xla() must come first

    options: dict[str, Any] = {}
    if jax.default_backend() == "gpu":
        options = {_OWN_PRODUCTS: False, **({_SHARED_TUNING: False} if jax.process_count() > 1 else {})}
    elif jax.default_backend() == "cpu" and "amx_bf16" in processor_flags():
        options = {_VECTOR_BITS: 512}
    return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}


def available_cores() -> int:
    """Cores that this process may use."""
    # The affinity mask counts those that a scheduler granted, not the machine's.
    return max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _backend_is_running() -> bool:
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()


def tune_allocator() -> bool:
    """Keep freed memory in the process instead of returning it to the kernel after every step.

    XLA allocates and frees its buffers at each call; with glibc's defaults every large one costs page faults. The price is
    memory: a buffer does not always fit where the last one of its size was, and what is free between two of them stays. A
    step of wav2vec2-base with 8 x 4.5 s took 4.1 s instead of 4.9 on an Intel Xeon, and 6.9 GB instead of 6.3; on an AMD EPYC,
    against a threshold of 2 GB, 5.6 s instead of 6.8, and 9.2 GB instead of 6.5. Where the user has set, in
    glibc's own environment variables, when memory goes back (``MALLOC_TRIM_THRESHOLD_`` and its kin, ``GLIBC_TUNABLES``), nothing
    is set; a number of arenas (``MALLOC_ARENA_MAX``) is kept, and the rest set.

    Called by the command-line programs, not on import: it changes the whole process.

    Returns:
        Whether glibc took all settings (False on other platforms, and where the user has set some).
    """
    returning = ("trim_threshold", "mmap_threshold", "mmap_max", "top_pad")
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    own = any(f"MALLOC_{name.upper()}_" in os.environ or f"glibc.malloc.{name}" in tunables for name in returning)
    if own or platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Numbers of malloc.h. Without a threshold nothing is returned; the greatest that there can be, 2 GB, is less than a
    # step of long batches frees.
    mmap_max, trim_threshold, top_pad, arena_max = (-4, 0), (-1, -1), (-2, 64 << 20), (-8, 1)
    arenas = [] if "MALLOC_ARENA_MAX" in os.environ or "glibc.malloc.arena_max" in tunables else [arena_max]
    taken = [mallopt(*setting) == 1 for setting in (mmap_max, trim_threshold, top_pad, *arenas)]
    return all(taken)


def has_bfloat16_products() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones (Intel AMX, AVX-512 BF16)."""
    return not processor_flags().isdisjoint(("amx_bf16", "avx512_bf16"))


@functools.cache
def processor_flags() -> frozenset[str]:
    """What this processor has, in Linux' names; none where that is not told, so that it computes in float32."""
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().partition("\nflags")[2].partition("\n")[0].split())
    except OSError:
        return frozenset()


def cache_root() -> Path:
    """The user's cache folder of this package: ``$XDG_CACHE_HOME/jax_mtlser`` or ``~/.cache/jax_mtlser``."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification says that a relative path is to be ignored.
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "jax_mtlser"


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk, so that a second run starts at once.

    A cache folder that the user has set (``JAX_COMPILATION_CACHE_DIR``) is kept.
    """
    import jax  # not at module level: prepare_xla() must come first

    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(cache_root() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def versions() -> dict[str, str]:
    """Versions and device that a result depends on."""
    import jax

    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "transformers")
    return {
        "jax_mtlser": metadata.version("jax-mtlser"),
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in packages},
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "platform": f"{platform.system()} {platform.machine()}",
    }
