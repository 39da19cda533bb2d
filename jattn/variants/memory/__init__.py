"""Memory: attention over facts, over what was written, and over the past."""

from .compressive import Compressive, CompressiveMemory
from .end_to_end import MemoryNetwork, memory_hops, position_encoding
from .memorizing import Memorizing, RingBuffer, empty_ring_buffer, ring_buffer_attention, write_ring_buffer
from .transformer_xl import SegmentMemory, TransformerXL, relative_attention
from .turing import Addressing, TuringMemory, TuringState, address, read_slots, sharpen, write_slots

__all__ = [
    "Addressing",
    "Compressive",
    "CompressiveMemory",
    "Memorizing",
    "MemoryNetwork",
    "RingBuffer",
    "SegmentMemory",
    "TransformerXL",
    "TuringMemory",
    "TuringState",
    "address",
    "empty_ring_buffer",
    "memory_hops",
    "position_encoding",
    "read_slots",
    "relative_attention",
    "ring_buffer_attention",
    "sharpen",
    "write_ring_buffer",
    "write_slots",
]
