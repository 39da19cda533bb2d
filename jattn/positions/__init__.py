"""What happens to a query and a key, or to an embedding, so that positions show in them."""

from .rotary import rotary, rotary_2d
from .scaling import NTK, Linear, Llama3, Scaling, YaRN
from .sinusoidal import sinusoidal

__all__ = ["NTK", "Linear", "Llama3", "Scaling", "YaRN", "rotary", "rotary_2d", "sinusoidal"]
