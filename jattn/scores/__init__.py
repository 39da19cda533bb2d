"""What happens to a score before the mask and the normaliser."""

from .alibi import Alibi
from .base import Score, of
from .bias import Bias, Shift
from .relative import RelativeBuckets
from .scale import Scale
from .soft_cap import SoftCap

__all__ = ["Alibi", "Bias", "RelativeBuckets", "Scale", "Score", "Shift", "SoftCap", "of"]
