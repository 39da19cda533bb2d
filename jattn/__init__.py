"""Every attention, as one JAX function that knows how to skip, stream and shard."""

from . import implementations, masks, normalizers, positions, scores, similarities
from .core.contract import Implementation, Unsupported
from .core.dropout import Dropout
from .core.partial import Partial, merge
from .explain import Explanation, explain, explain_calls
from .front import attention, attention_weights, dot_product_attention, partial_attention

__all__ = [
    "Dropout",
    "Explanation",
    "Implementation",
    "Partial",
    "Unsupported",
    "attention",
    "attention_weights",
    "dot_product_attention",
    "explain",
    "explain_calls",
    "implementations",
    "masks",
    "merge",
    "normalizers",
    "partial_attention",
    "positions",
    "scores",
    "similarities",
]
