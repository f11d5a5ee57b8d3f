"""Settings of the whole test suite; they must be in place before JAX starts."""

import atexit
import gc
import os
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

import hypothesis
import pytest

# Eight emulated devices, so that sharding is tested on any machine. Compilation is most of the suite's time, and the
# tests' models are too small to repay optimisations: LLVM's, and the long code that XLA's newer emitter of fusions
# gives it (a flag that jaxlib 0.11 has no longer, and an unknown one would abort the process). Dividing a program among
# threads costs more than it saves where the tests have a process for each core. Flags of the user come last and win; see
# as_released for what makes programs be compiled as they are outside of tests.
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        *(["--xla_cpu_use_fusion_emitters=false"] if metadata.version("jaxlib").startswith("0.10.") else ()),
        os.environ.get("XLA_FLAGS", ""),
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# One cache for the whole session, its worker processes and the commands that tests start: most of the suite's
# time is compilation, and many tests compile the same programs. User caches stay untouched.
if "MTLSER_TEST_CACHE" not in os.environ:
    os.environ["MTLSER_TEST_CACHE"] = tempfile.mkdtemp(prefix="jax_mtlser_tests_")
    atexit.register(shutil.rmtree, os.environ["MTLSER_TEST_CACHE"], ignore_errors=True)
os.environ["XDG_CACHE_HOME"] = os.environ["MTLSER_TEST_CACHE"]
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(os.environ["MTLSER_TEST_CACHE"], "xla")

import jax

import jax_mtlser

jax_mtlser.runtime.enable_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
jax.config.update("jax_numpy_rank_promotion", "raise")
# How long one example takes says nothing on a machine that does other things too.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")


def pytest_collection_finish() -> None:
    """What was imported until here stays, and is not looked through for garbage again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def as_released() -> dict[str, bool | int]:
    """Compiler options of programs as they are outside of tests: for what is judged by its program or its last bit."""
    emitters = {"xla_cpu_use_fusion_emitters": True} if metadata.version("jaxlib").startswith("0.10.") else {}
    return {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False, **emitters}


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings and weights that ``MTLSER_REAL_DATA`` names."""
    folder = os.environ.get("MTLSER_REAL_DATA")
    if not folder:
        pytest.skip("MTLSER_REAL_DATA is not set: no real recordings to test on")
    return Path(folder)
