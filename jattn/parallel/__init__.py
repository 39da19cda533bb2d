"""Attention across devices: partition specs from declared axes, and the strategies that use them."""

from .heads import Heads
from .specs import ArraySpecs, array_specs, partition_spec, partition_specs

__all__ = ["ArraySpecs", "Heads", "array_specs", "partition_spec", "partition_specs"]
