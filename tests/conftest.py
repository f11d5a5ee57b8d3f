"""Settings of the whole test suite; they must be in place before JAX starts."""

import os
from pathlib import Path

import pytest

# Eight emulated devices, so that sharding is tested on any machine.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax

import jax_mtlser  # noqa: F401  (sets the flags that correct results depend on)

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real recordings and weights that ``MTLSER_REAL_DATA`` names."""
    folder = os.environ.get("MTLSER_REAL_DATA")
    if not folder:
        pytest.skip("MTLSER_REAL_DATA is not set: no real recordings to test on")
    return Path(folder)


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Decoded audio and corpora of the tests must not end up in the user's cache."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))
