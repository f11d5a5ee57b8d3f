"""Process set-up: jaxlib 0.10.2's silent CPU bug cannot reach a user, in whatever order things are imported; the allocator."""

import os
import platform
import subprocess
import sys
import types
from importlib import metadata

import jax
import pytest

from jax_mtlser import runtime

AFFECTED = metadata.version("jaxlib") == "0.10.2"

# jax-ml/jax#39103: the sum of squares of a rotated row, compiled and not.
REPRO = """
import jax, jax.numpy as jnp
def last_row(n=32769):
    row = jnp.arange(n, dtype=jnp.float32)
    x = jnp.stack((row, jnp.zeros_like(row), jnp.zeros_like(row)), axis=1)
    square = lambda x: jax.vmap(lambda r: jnp.sum((jnp.eye(3) @ r) ** 2))(x)
    return float(square(x)[-1]), float(jax.jit(square)(x)[-1])
eager, compiled = last_row()
print("same" if eager == compiled == 32768.0**2 else f"wrong: {eager} {compiled}")
"""

# More than the 2 GB that a threshold can be: what a step of long batches frees at once.
PAGE_FAULTS = """
import resource
import numpy as np
from jax_mtlser import runtime
tuned = runtime.tune_allocator()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(5 << 29, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(tuned, faults(), faults())
"""


def run(code: str, **variables: str) -> subprocess.CompletedProcess:
    # The suite's own flags must not help: each process starts as a user's would.
    own = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR", "MALLOC_", "GLIBC_TUNABLES")
    environment = {k: v for k, v in os.environ.items() if not k.startswith(own)} | variables
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_compiled_sums_are_right_after_importing_the_package():
    assert run("import jax_mtlser\n" + REPRO).stdout.strip() == "same"


def test_importing_jax_first_does_not_bring_the_bug_back():
    assert run("import jax\nimport jax_mtlser\n" + REPRO).stdout.strip() == "same"


@pytest.mark.skipif(not AFFECTED, reason="only jaxlib 0.10.2 has the bug that the next two tests need")
def test_the_repro_does_show_the_bug_where_nothing_is_done():
    assert run(REPRO).stdout.startswith("wrong")


@pytest.mark.skipif(not AFFECTED, reason="only jaxlib 0.10.2 has the bug")
def test_a_backend_that_started_without_the_flag_is_refused():
    result = run("import jax\njax.devices()\nimport jax_mtlser")
    assert result.returncode != 0
    assert "Import jax_mtlser before the first JAX computation" in result.stderr


@pytest.mark.skipif(not AFFECTED, reason="only jaxlib 0.10.2 is told a flag")
def test_a_users_own_choice_of_the_flag_is_kept():
    code = (
        "import os\nos.environ['XLA_FLAGS'] = '--xla_cpu_experimental_ynn_fusion_type=individual_dot'\n"
        "import jax_mtlser\nprint(os.environ['XLA_FLAGS'].count('ynn_fusion'))"
    )
    assert run(code).stdout.strip() == "1"


def test_importing_the_package_starts_no_backend():
    code = "import jax_mtlser\nfrom jax._src import xla_bridge\nprint(xla_bridge.backends_are_initialized())"
    assert run(code).stdout.strip() == "False"


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
@pytest.mark.parametrize("variables", [{}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}])
def test_a_number_of_arenas_is_set_unless_the_user_has_set_one(variables, monkeypatch):
    settings = []
    glibc = types.SimpleNamespace(mallopt=lambda name, value: settings.append(name) or 1)
    monkeypatch.setattr(runtime.ctypes, "CDLL", lambda _: glibc)
    for name in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert runtime.tune_allocator()
    arena_max = -8
    assert (arena_max in settings) == (not variables)
    assert len(settings) == 3 + (not variables)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is tuned")
@pytest.mark.parametrize(
    ("variables", "kept"),
    [
        ({}, True),
        ({"MALLOC_TRIM_THRESHOLD_": str(1 << 30)}, False),
        ({"GLIBC_TUNABLES": f"glibc.malloc.trim_threshold={1 << 30}"}, False),
    ],
)
def test_a_tuned_allocator_keeps_all_memory_unless_the_user_says_when_it_goes_back(variables, kept):
    result = run(PAGE_FAULTS, **variables)
    assert result.returncode == 0, f"{result.returncode} (negative: killed, as for memory): {result.stderr}"
    tuned, first, second = result.stdout.split()
    assert (tuned == "True") == kept
    assert (int(second) < int(first) / 10) == kept


def test_processors_with_amx_fill_their_vectors_unless_the_user_says_otherwise(monkeypatch):
    found = []
    for flags in ({"avx512f"}, {"avx512f", "amx_bf16"}):
        monkeypatch.setattr(runtime, "processor_flags", lambda flags=flags: flags)
        found.append(runtime.compiler_options())
    assert found == [{}, {"xla_cpu_prefer_vector_width": 512}]
    # An option that XLA does not know would be refused here.
    assert jax.jit(lambda x: x + 1, compiler_options=found[1])(1) == 2
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_prefer_vector_width=256")
    assert runtime.compiler_options() == {}
