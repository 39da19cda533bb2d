"""Every attention, as one JAX function that knows how to skip, stream and shard.

`jattn.analysis`, `jattn.benchmarks`, `jattn.layers`, `jattn.linen`, `jattn.models`, `jattn.nnx`, `jattn.parallel`,
`jattn.variants` and `jattn.visualization` are imported when they are first asked for.
"""

import importlib
import importlib.metadata
from typing import Any

from . import masks, normalizers, positions, scores, similarities
from .foundation.target import compiled_for
from .ops.attention import implementations
from .ops.attention.api import attention, attention_weights, dot_product_attention, partial_attention
from .ops.attention.dropout import Dropout
from .ops.attention.explain import Explanation, explain, explain_calls
from .ops.attention.partial import Partial, merge
from .ops.attention.recording import Record, Seen, named, record, recorded
from .ops.convolution import long_convolution, short_convolution
from .ops.dispatch import Implementation, Unsupported
from .ops.recurrence import delta_rule, delta_step, linear_recurrence, linear_step

__all__ = [
    "Dropout",
    "Explanation",
    "Implementation",
    "Partial",
    "Record",
    "Seen",
    "Unsupported",
    "attention",
    "attention_weights",
    "compiled_for",
    "delta_rule",
    "delta_step",
    "dot_product_attention",
    "explain",
    "explain_calls",
    "implementations",
    "linear_recurrence",
    "linear_step",
    "long_convolution",
    "masks",
    "merge",
    "named",
    "normalizers",
    "partial_attention",
    "positions",
    "record",
    "recorded",
    "scores",
    "short_convolution",
    "similarities",
]

_ON_DEMAND = ("analysis", "benchmarks", "layers", "linen", "models", "nnx", "parallel", "variants", "visualization")


def __getattr__(name: str) -> Any:
    if name in _ON_DEMAND:
        return importlib.import_module(f".{name}", __name__)
    if name == "__version__":
        return importlib.metadata.version(__name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_DEMAND, "__version__"})
