"""Position embeddings: functions of a query, a key or an embedding, applied before attention.

`jattn/positions/README.md` maps the rotary configurations of published checkpoints to calls.
"""

from .axes import rotary_2d, rotary_sections
from .packing import from_attention_mask, from_cu_seqlens
from .rotary import rotary
from .scaling import NTK, DynamicNTK, Linear, Llama3, LongRoPE, Proportional, Scaling, YaRN, rotary_frequencies
from .sinusoidal import sinusoidal
from .xpos import xpos

__all__ = [
    "NTK",
    "DynamicNTK",
    "Linear",
    "Llama3",
    "LongRoPE",
    "Proportional",
    "Scaling",
    "YaRN",
    "from_attention_mask",
    "from_cu_seqlens",
    "rotary",
    "rotary_2d",
    "rotary_frequencies",
    "rotary_sections",
    "sinusoidal",
    "xpos",
]
