"""From a query and a key to a number."""

from .additive import Additive
from .base import Prepared, Similarity
from .bilinear import Bilinear, SharedBilinear
from .dot import Cosine, Dot, ScaledDot
from .gaussian import Gaussian

__all__ = [
    "Additive",
    "Bilinear",
    "Cosine",
    "Dot",
    "Gaussian",
    "Prepared",
    "ScaledDot",
    "SharedBilinear",
    "Similarity",
]
