"""Attention weights on demand: recomputed beside the call, for the layers, heads and queries that are asked for."""

from .entry import record, recorded
from .names import named
from .seen import Record, Seen

__all__ = ["Record", "Seen", "named", "record", "recorded"]
