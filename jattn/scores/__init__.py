"""Scores: modify the number of a pair, before the mask and the normalizer."""

from .alibi import ALiBi
from .base import Score, of
from .bias import Bias, Shift
from .distances import RelativeLogits
from .forget import Forget
from .gaussian_window import GaussianWindow
from .grids import RelativeGrid
from .relative import RelativeBuckets
from .scale import Scale
from .soft_cap import SoftCap

__all__ = [
    "ALiBi",
    "Bias",
    "Forget",
    "GaussianWindow",
    "RelativeBuckets",
    "RelativeGrid",
    "RelativeLogits",
    "Scale",
    "Score",
    "Shift",
    "SoftCap",
    "of",
]
