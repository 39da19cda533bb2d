"""Similarities: from a query and a key to a score."""

from .additive import Additive
from .bilinear import Bilinear, SharedBilinear
from .dot import Cosine, Dot, Prepared, ScaledDot, Similarity
from .gaussian import Gaussian
from .relative import RelativeDot

__all__ = [
    "Additive",
    "Bilinear",
    "Cosine",
    "Dot",
    "Gaussian",
    "Prepared",
    "RelativeDot",
    "ScaledDot",
    "SharedBilinear",
    "Similarity",
]
