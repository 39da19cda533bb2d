"""Attention across devices: partition specs derived from declared axes, and head parallelism."""

from .heads import Heads
from .specs import ArraySpecs, array_specs, partition_spec, partition_specs

__all__ = ["ArraySpecs", "Heads", "array_specs", "partition_spec", "partition_specs"]
