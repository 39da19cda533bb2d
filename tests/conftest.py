"""The environment of every test, the cache of compiled programs that they share, and the two tiers of the suite.

**Tiers.** `python -m pytest` runs the tables, the doctests (except those of variants and models), the README and
everything else that is not marked `@pytest.mark.exhaustive`; `python -m pytest --everything` runs that too. Mark what
is expensive and only widens what an unmarked test already shows: reduced experiments, long examples, the wide
side of a product of parameters (`pytest.param(..., marks=pytest.mark.exhaustive)`). A marked test that is named by its
node id, or asked for with `-m exhaustive`, runs without the option. tests/README.md says more.

**Cache.** Most of a test's time is the compiler. Workers and runs share compiled programs in `.pytest_cache/d/xla`
(`--cache-clear` empties it), or wherever `JAX_COMPILATION_CACHE_DIR` says.

JAX reads its environment when it is imported, so this file sets it first: eight emulated CPU devices, a quick compiler.
"""

import gc
import importlib.util
import os
import shutil
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

if "jax" in sys.modules:
    raise RuntimeError("JAX was imported before tests/conftest.py could ask it for eight CPU devices")

FLAGS = {
    "--xla_force_host_platform_device_count": "8",
    # Most of a test is the compiler, and what LLVM makes of the program is not ours to test. To have it optimize as it
    # does for users: XLA_FLAGS="--xla_backend_optimization_level=3 --xla_llvm_disable_expensive_passes=false".
    "--xla_backend_optimization_level": "0",
    "--xla_llvm_disable_expensive_passes": "true",
    # All LLVM functions of a program in one module: many small ones cost more than they save on two cores.
    "--xla_cpu_parallel_codegen_split_count": "1",
}
if version("jaxlib").startswith("0.10."):
    # One LLVM function for each fusion: a third of the time of the MLIR passes, which later releases always run.
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
gc.disable()  # until all is collected (below)
given = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([given, *(f"{flag}={value}" for flag, value in FLAGS.items() if flag not in given)])
os.environ.setdefault("JAX_PLATFORMS", "cpu")  # tolerances are measured in full float32, which a GPU's default is not
os.environ.setdefault("MPLBACKEND", "Agg")  # pictures go to files

import jax  # noqa: E402  (behind the environment that it reads)

ROOT = Path(__file__).parents[1]
WIDE = ROOT / "jattn/models", ROOT / "jattn/variants"
"""Folders whose doctests are marked `exhaustive`: a hundred programs, of what the tables hold always."""

LARGEST_CACHE = 2 << 30  # bytes; JAX could evict old entries itself, but only with a package that it does not require


BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def pytest_addoption(parser):
    parser.addoption(
        "--everything", action="store_true", help="also run what is marked `exhaustive`, which costs most of the time"
    )


def pytest_configure(config):
    # A worker may read what another is writing. JAX then warns and compiles the program itself.
    config.addinivalue_line("filterwarnings", "ignore:Error reading persistent compilation cache:UserWarning")
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if not folder and hasattr(config, "cache"):
        path = config.cache.mkdir("xla")
        if not hasattr(config, "workerinput") and size(path) > LARGEST_CACHE:
            shutil.rmtree(path)
            path.mkdir()
        folder = str(path)
    if folder:
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")  # they are for GPUs


def size(folder: Path) -> int:
    """Of the files in a folder, bytes."""
    return sum(file.stat().st_size for file in folder.iterdir())


def pytest_report_header(config):
    tier = "every test" if everything(config) else "without tests marked `exhaustive`; --everything has them"
    lacking = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
    compared = f"NOT compared with transformers: no {' and '.join(lacking)} here (the extra `peers`)"
    browsers = any(map(shutil.which, BROWSERS)) and importlib.util.find_spec("playwright")
    opened = "opened in a browser" if browsers else "NOT opened in a browser: no Chromium or playwright here"
    return [
        f"jattn: {tier}",
        f"jattn.models: {compared if lacking else 'compared with transformers'}",
        f"jattn.visualization: {opened}",
    ]


def everything(config) -> bool:
    """Whether marked tests run: asked for in general, or in particular."""
    named = any("::" in argument for argument in config.args)
    return bool(config.getoption("everything") or config.option.markexpr or named)


def pytest_collection_modifyitems(config, items):
    for item in items:
        if isinstance(item, pytest.DoctestItem) and any(map(item.path.is_relative_to, WIDE)):
            item.add_marker(pytest.mark.exhaustive)
    if everything(config):
        return
    marked = [item for item in items if item.get_closest_marker("exhaustive")]
    if marked:
        config.hook.pytest_deselected(items=marked)
        items[:] = [item for item in items if item not in set(marked)]


def pytest_collection_finish():
    """What was imported and collected stays: the garbage collector need not look at it again and again, be it while
    tests are collected or, after every few hundred objects, while a function is traced."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
    gc.enable()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """A worker has a run of files, whose tests share fixtures and programs, and takes from another when it is done."""
    if config.getoption("dist") != "load":  # asked for by name
        return None
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Programs of one file are of no use to the next. Each takes several memory maps, of which a process may have so
    many (65,530 on Linux): thousands of tests in one process crash the compiler."""
    yield
    jax.clear_caches()
