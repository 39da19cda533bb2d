"""Keys and values of a step: all of them in vector memory, or copied tile by tile as the list says."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .design import Design

KEYS, VALUES = 0, 1


def specs(design: Design, at: Any) -> list[pl.BlockSpec]:
    """Where a kernel finds keys and values.

    Args:
        design: the static part.
        at: (batch element, key heads of the step, chunk) from the grid's indices.
    """
    if not design.resident:
        return [pl.BlockSpec(memory_space=pltpu.HBM)] * 2
    cut = design.cut
    return [
        pl.BlockSpec((None, cut.key_heads, cut.chunk_tiles * cut.kv_tile, width), lambda *grid: (*at(*grid), 0))
        for width in cut.lanes
    ]


def scratch(design: Design, key: jax.Array, value: jax.Array) -> list[Any]:
    """Two tiles that take turns, of keys and of values, and the semaphores of their copies."""
    if design.resident:
        return []
    cut = design.cut
    buffers = [
        pltpu.VMEM((2, cut.key_heads, cut.kv_tile, width), array.dtype)
        for width, array in zip(cut.lanes, (key, value), strict=True)
    ]
    return [*buffers, pltpu.SemaphoreType.DMA((2, 2))]


@dataclasses.dataclass(frozen=True)
class Keys:
    """Keys and values inside a kernel.

    Attributes:
        design: the static part.
        batch: the batch element.
        step: which key heads, in steps.
        refs: of keys and values: blocks, or the whole.
        scratch: as `scratch` makes it.
        first: the first tile of the chunk.
    """

    design: Design
    batch: Any
    step: Any
    refs: Sequence[Any]
    scratch: Sequence[Any]
    first: Any = 0

    def copies(self, tile: Any, slot: Any) -> list[Any]:
        """The copies of a tile into a half of the buffers."""
        if self.design.resident:
            return []
        cut = self.design.cut
        heads, (*buffers, semaphores) = pl.ds(self.step * cut.key_heads, cut.key_heads), self.scratch
        return [
            pltpu.make_async_copy(
                ref.at[self.batch, heads, cut.keys(tile), :], buffer.at[slot], semaphores.at[which, slot]
            )
            for which, (ref, buffer) in enumerate(zip(self.refs, buffers, strict=True))
        ]

    def of(self, which: int, head: int, tile: Any, slot: Any) -> jax.Array:
        """The keys, or values, of a tile.

        Args:
            which: KEYS or VALUES.
            head: the key head, counted in the step.
            tile: the index of the tile.
            slot: the half of the buffer.
        """
        if self.design.resident:
            return self.refs[which][head, self.design.cut.keys(tile - self.first), :]
        return self.scratch[which][slot, head]
