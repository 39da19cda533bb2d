"""Eight emulated CPU devices for every test, and a quick compiler; JAX reads the environment when it is imported."""

import os
import sys

import pytest

if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could ask it for eight CPU devices")

FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Most of a test is the compiler, and what LLVM makes of the program is not ours to test. To have it optimise as it
    # does for users: XLA_FLAGS="--xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false".
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
}
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given)])
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances are measured in full float32, which a GPU's default is not
os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files

import jax  # noqa: E402  (behind the environment that it reads)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Programs of one file are of no use to the next. Each takes several memory maps, of which a process may have so
    many (65,530 on Linux): thousands of tests in one process crash the compiler."""
    yield
    jax.clear_caches()
