"""Replacements for attention whose cost is linear, or nearly linear, in the length."""

from .aft import aft_full, aft_local, aft_simple, aft_state, aft_step, relative_bias
from .aft_layers import AFTConv, AFTFull, AFTLocal, AFTSimple, AFTState
from .hyena import Hyena, HyenaState

__all__ = [
    "AFTConv",
    "AFTFull",
    "AFTLocal",
    "AFTSimple",
    "AFTState",
    "Hyena",
    "HyenaState",
    "aft_full",
    "aft_local",
    "aft_simple",
    "aft_state",
    "aft_step",
    "relative_bias",
]
