"""Gradients of fields: where a kernel adds them up in float32, and the way back to the fields' shapes.

    kind        what a step adds to                                      where
    scalar      `[batch, steps, chunks, units, queries of a unit]`       a block; XLA sums it
    query       `[batch, steps, chunks, heads, q_len]`                   a block, of a query tile
    key         `[batch, steps, chunks, heads, tiles, kv_tile]`          a block, of all keys of a chunk
    distance    `[batch, steps, chunks, heads, q_len + kv_len]`          a block
    feature     `[batch, steps, chunks, units, features, LANES]`         a block; XLA sums it
    pair        `[batch, head, kv_len, q_len]`, the shape of the field   memory, tile by tile, by copies to and fro

Heads are those of a step if the heads of the field differ, otherwise 1, to which all heads of a step add.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import fields as kinds
from .design import Design
from .fields import DISTANCE, FEATURE, KEY, PAIR, QUERY, SCALAR, Field
from .geometry import LANES, Cut

IN_MEMORY = pl.BlockSpec(memory_space=pltpu.HBM)


def _sizes(field: Field, cut: Cut) -> tuple[int, ...]:
    """The sizes of a step's part, with all queries."""
    heads = field.heads(cut)
    if field.kind == SCALAR:
        return cut.units, cut.unit
    if field.kind == FEATURE:
        return cut.units, cut.rows[0], LANES
    if field.kind == KEY:
        return heads, cut.chunk_tiles, cut.kv_tile
    return heads, cut.padded[0] + (cut.padded[1] if field.kind == DISTANCE else 0)


def pairs(field: Field, cut: Cut) -> jax.ShapeDtypeStruct:
    """The gradient of a pair field."""
    shape = cut.batch if field.by_batch else 1, cut.q_heads if field.by_head else 1, cut.padded[1], cut.padded[0]
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def shape(field: Field, design: Design) -> jax.ShapeDtypeStruct:
    """The output for a field."""
    cut = design.cut
    if field.kind == PAIR:
        return design.shape(*pairs(field, cut).shape)
    return design.shape(cut.batch, cut.steps, cut.chunks, *_sizes(field, cut))


def spec(field: Field, cut: Cut, at: Any) -> pl.BlockSpec:
    """Its block.

    Args:
        field: which.
        cut: the sizes.
        at: (batch element, step, query tile) from the grid's indices, of which the third is the chunk.
    """
    if field.kind == PAIR:
        return IN_MEMORY
    sizes = _sizes(field, cut)
    if field.kind == QUERY:
        sizes = sizes[0], cut.q_tile

    def place(*grid: Any) -> tuple[Any, ...]:
        batch, step, tile = at(*grid)
        rest = (0, tile) if field.kind == QUERY else (0,) * len(sizes)
        return batch, step, grid[2], *rest

    return pl.BlockSpec((None, None, None, *sizes), place)


def scratch(wanted: Sequence[Field], cut: Cut) -> list[Any]:
    """For each pair field a tile of its gradient; and the semaphore of their copies."""
    tiles = [
        pltpu.VMEM((field.heads(cut), cut.kv_tile, cut.q_tile), jnp.float32) for field in wanted if field.kind == PAIR
    ]
    return [pltpu.SemaphoreType.DMA((len(tiles),)), *tiles] if tiles else []


@dataclasses.dataclass(frozen=True)
class Collector:
    """The gradients of the fields, inside a kernel.

    Attributes:
        design: the static part.
        place: (batch element, step, query tile).
        first: the first key tile of the chunk.
        wanted: the numbers of the differentiated fields.
        refs: of their outputs.
        scratch: as `scratch` makes it.
    """

    design: Design
    place: tuple[Any, Any, Any]
    first: Any
    wanted: Sequence[int]
    refs: Sequence[Any]
    scratch: Sequence[Any]

    @property
    def of_tiles(self) -> list[tuple[int, Any]]:
        """The numbers of the differentiated fields that a tile sees, and the refs of their outputs."""
        kinds = [self.design.fields[number].kind for number in self.wanted]
        return [
            one for one, kind in zip(zip(self.wanted, self.refs, strict=True), kinds, strict=True) if kind != FEATURE
        ]

    def of_features(self, unit: int) -> list[Any]:
        """The refs of a unit of the outputs for feature fields."""
        tiles = {number for number, _ in self.of_tiles}
        return [ref.at[unit] for number, ref in zip(self.wanted, self.refs, strict=True) if number not in tiles]

    def floats(self, fields: list[jax.Array]) -> list[jax.Array]:
        """The differentiated ones of the fields that a tile sees."""
        return [fields[number] for number, _ in self.of_tiles] if fields else []

    def replaced(self, fields: list[jax.Array], floats: list[jax.Array]) -> list[jax.Array]:
        """The fields with others in place of the differentiated ones."""
        fields = list(fields)
        for (number, _), one in zip(self.of_tiles, floats, strict=True):
            fields[number] = one
        return fields

    def start(self) -> None:
        """Set the sums to 0 in the first step that adds to them."""
        first_query_tile = self.place[2] == 0
        for number, ref in zip(self.wanted, self.refs, strict=True):
            kind = self.design.fields[number].kind
            if kind == QUERY:
                ref[...] = jnp.zeros(ref.shape)
            elif kind != PAIR:

                @pl.when(first_query_tile)
                def _(ref=ref):
                    ref[...] = jnp.zeros(ref.shape)

    def add(self, gradients: list[jax.Array], unit: int, tile: Any) -> None:
        """Add the gradients of what a tile of a unit saw."""
        cut, buffers = self.design.cut, iter(self.scratch[1:])
        for (number, ref), gradient in zip(self.of_tiles, gradients, strict=True):
            field = self.design.fields[number]
            head, queries = cut.head_of(unit) if field.by_head else 0, cut.queries_of(unit)
            gradient = gradient.astype(jnp.float32)
            if field.kind == SCALAR:
                ref[unit : unit + 1] += gradient
            elif field.kind == QUERY:
                ref[head : head + 1, queries] += gradient
            elif field.kind == KEY:
                ref[head, pl.ds(tile - self.first, 1), :] += kinds.as_row(gradient)
            elif field.kind == DISTANCE:
                ref[head : head + 1, kinds.window(cut, self.place, unit, tile)] += gradient
            else:
                next(buffers)[head, :, queries] += gradient

    def fetch(self, tile: Any) -> None:
        """Read a tile of the gradients of pair fields."""
        for memory, buffer, semaphore in self._pairs(tile):
            copy = pltpu.make_async_copy(memory, buffer, semaphore)
            copy.start()
            copy.wait()

    def flush(self, tile: Any) -> None:
        """Write it back."""
        for memory, buffer, semaphore in self._pairs(tile):
            copy = pltpu.make_async_copy(buffer, memory, semaphore)
            copy.start()
            copy.wait()

    def _pairs(self, tile: Any) -> list[tuple[Any, Any, Any]]:
        fields = [self.design.fields[number] for number in self.wanted]
        outputs = [(field, ref) for field, ref in zip(fields, self.refs, strict=True) if field.kind == PAIR]
        cut = self.design.cut
        return [
            (
                kinds.source(field, ref, cut, self.place, cut.keys(tile)),
                self.scratch[1 + order],
                self.scratch[0].at[order],
            )
            for order, (field, ref) in enumerate(outputs)
        ]


def gradient_of(field: Field, found: jax.Array, array: jax.Array, cut: Cut) -> jax.Array:
    """The gradient of an aligned array, from the kernel's output for it."""
    rank = len(cut.axes)
    head, query, key = array.shape[rank : rank + 3]
    if field.kind == PAIR:
        found = jnp.swapaxes(found, 2, 3)[:, :, :query, :key]
    elif field.kind == SCALAR:
        found = found.sum((2, 4)).reshape(cut.batch, cut.q_heads, cut.parts).sum(2)
    elif field.kind == FEATURE:
        found = found.sum((2, 5)).reshape(cut.batch, cut.q_heads, cut.parts, -1).sum(2)[..., : field.features]
    elif field.kind == KEY:
        found = jnp.moveaxis(found, 2, 3)
        found = found.reshape(cut.batch, cut.steps * field.heads(cut), cut.padded[1])[:, :, : cut.kv_len]
    else:
        found = found.sum(2).reshape(cut.batch, cut.steps * field.heads(cut), -1)
        if field.kind == QUERY:
            found = found[:, :, : cut.q_len]
        else:
            before = cut.padded[1] - cut.kv_len
            found = found[:, :, before : before + cut.q_len + cut.kv_len]
    if not field.by_head:
        found = found.sum(1, keepdims=True)
    axes = (1,) * rank if field.kind == PAIR and not field.by_batch else cut.axes
    found = found.reshape(*axes, head, query, key, *array.shape[rank + 3 :])
    shared = tuple(axis for axis in range(rank) if array.shape[axis] == 1)
    return found.sum(shared, keepdims=True)
