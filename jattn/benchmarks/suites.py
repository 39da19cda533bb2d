"""The benchmark suites, by name."""

from collections.abc import Sequence
from typing import Any

from . import table
from .cases import Speed, cpu
from .decoding import decode
from .encoding import encoding
from .generating import generating
from .gpu import gpu
from .linear import linear
from .pages import pages
from .painting import paints
from .row import Measurable
from .sparse import sparse


def tpu(generations: Sequence[str] | None = None) -> tuple[Measurable, ...]:
    """The rows of `tpu.suite`, which need JAX's Pallas and splash attention."""
    from .tpu import suite

    return suite.tpu(generations or suite.DEFAULT)


def train(length: int = 4096) -> Sequence[Measurable]:
    """The rows of `tpu.training`."""
    from .tpu.training import training

    return training(length)


def whole_models(length: int | None = None) -> tuple[Speed, ...]:
    """The rows of `generating` and `encoding`; `length` is that of the long prompt and of the long text."""
    if length is None:
        return *generating(), *encoding()
    return *generating(min(length, 1023)), *encoding(length)  # GPT-2 has 1,024 positions


def looking() -> tuple[Measurable, ...]:
    """The rows of `pages` and `painting`."""
    return *pages(), *paints()


def about(suite: str, clock: str) -> str:
    """One line that says what the figures of a suite were measured with."""
    if suite not in ("tpu", "train"):
        return table.environment(clock)
    from .tpu.compiler import libtpu_version

    return f"{table.versions()}, libtpu {libtpu_version()}: the compiler's estimates. Compiled, not run: no times"


def begin(suite: str, rows: Sequence[Any]) -> None:
    """Start compiling the rows of the TPU suite in the background. Rows of other suites are timed one by one."""
    if suite == "tpu":
        from .tpu import suite as tpu_suite

        tpu_suite.begin(rows)


SUITES = {
    "cpu": cpu,
    "decode": decode,
    "gpu": gpu,
    "linear": linear,
    "models": whole_models,
    "sparse": sparse,
    "tpu": tpu,
    "train": train,
    "view": looking,
}
