"""Memory: attention over facts, over what was written, and over the past."""

from .compressive import Compressive, CompressiveMemory
from .end_to_end import MemoryNetwork, memory_hops, position_encoding
from .memorizing import Memorizing, Ring, empty_ring, ring_attention, write_ring
from .transformer_xl import Recurrence, TransformerXL, relative_attention
from .turing import Addressing, TuringMemory, TuringState, address, read_slots, sharpen, write_slots

__all__ = [
    "Addressing",
    "Compressive",
    "CompressiveMemory",
    "Memorizing",
    "MemoryNetwork",
    "Recurrence",
    "Ring",
    "TransformerXL",
    "TuringMemory",
    "TuringState",
    "address",
    "empty_ring",
    "memory_hops",
    "position_encoding",
    "read_slots",
    "relative_attention",
    "ring_attention",
    "sharpen",
    "write_ring",
    "write_slots",
]
