"""Long convolutions, and attention without queries against keys: linear or nearly linear in the length."""

from .aft import aft_full, aft_local, aft_simple, aft_state, aft_step, relative_bias
from .aft_layers import AFTConv, AFTFull, AFTLocal, AFTSimple, AFTState
from .convolution import long_convolution
from .hyena import Hyena, HyenaState
from .short_convolution import short_convolution

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
    "long_convolution",
    "relative_bias",
    "short_convolution",
]
