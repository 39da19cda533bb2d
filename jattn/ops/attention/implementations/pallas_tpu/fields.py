"""Fields: the arrays of a lowered call as a kernel reads them, one rule for each kind, and the way of their gradients.

A field `[batch..., head, query, key]` has size 1 on the axes along which it does not vary. What is left decides where a
kernel finds it, and in which shape a tile `[keys, queries]` of a head sees it:

    varies along   in memory                               in the kernel                          a tile sees
    -              `[batch, head]`                         a table (see `tables`)                 [1, queries]
    query          `[batch, head, 1, query]`               a block, of a query tile               [1, queries]
    key            `[batch, head, 1, key]`                 as the keys are (`Design.resident`)    [keys, 1]
    query, key     `[batch, head, key, query]`             copied with the tile's keys            [keys, queries]
    distance       `[batch, head, 1, query + key]`         a block                                [1, keys + queries]
    feature        `[batch, head * feature]`               a table                                (see `feature_sums`)

Batch and head have size 1 where all are the same. A row of distances is that of `lowering.distances`: its entries are
numbers of `query index - key index`.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .geometry import LANES, SUBLANES, Cut
from .tables import Table

SCALAR, QUERY, KEY, PAIR, DISTANCE, FEATURE = "scalar", "query", "key", "pair", "distance", "feature"


@dataclasses.dataclass(frozen=True)
class Field:
    """A field, as far as it is known before running.

    Attributes:
        kind: along what it varies, besides batch and head.
        by_batch: whether batch elements differ.
        by_head: whether heads differ.
        dtype: of 32 bits, except for pairs, of which there are many.
        differentiated: whether its gradient is wanted.
        features: of a feature field.
    """

    kind: str
    by_batch: bool
    by_head: bool
    dtype: Any
    differentiated: bool = False
    features: int = 0

    @classmethod
    def of(cls, array: Any, cut: Cut, differentiated: bool = False, of_features: bool = False) -> "Field":
        """The field of an aligned array."""
        rank = len(cut.axes)
        batch, (head, query, key), distances = array.shape[:rank], array.shape[rank : rank + 3], array.shape[rank + 3 :]
        kind = (PAIR if query > 1 else KEY) if key > 1 else QUERY if query > 1 else SCALAR
        kind = FEATURE if of_features else DISTANCE if distances else kind
        features = array.shape[-1] if of_features else 0
        by_batch = any(size > 1 for size in batch)
        return cls(kind, by_batch, head > 1, jnp.dtype(array.dtype), differentiated, features)

    def copied(self, resident: bool) -> bool:
        """Whether it is copied tile by tile, like keys that are not resident."""
        return self.kind == PAIR or (self.kind == KEY and not resident)

    def heads(self, cut: Cut) -> int:
        """Heads of a block."""
        return cut.heads if self.by_head else 1


def store(field: Field, array: Any, cut: Cut) -> jax.Array:
    """The aligned array in the layout that the kernel reads, padded with zeros."""
    array = cut.folded(jnp.asarray(array))
    batch, head = array.shape[:2]
    queries, keys = ((0, padded - real) for padded, real in zip(cut.padded, (cut.q_len, cut.kv_len), strict=True))
    none = (0, 0)
    if field.kind in (SCALAR, FEATURE):
        return _table(field, cut).stored(array.reshape(batch, -1))
    if field.kind == QUERY:
        return jnp.pad(array, [none, none, queries, none]).reshape(batch, head, 1, -1)
    if field.kind == KEY:
        return jnp.pad(array, [none, none, none, keys])
    if field.kind == PAIR:
        return jnp.swapaxes(jnp.pad(array, [none, none, queries, keys]), 2, 3)
    # The first entry is that of the first query and the key after the last one.
    return jnp.pad(array.reshape(batch, head, 1, -1), [none, none, none, (keys[1], queries[1])])


def spec(field: Field, stored: jax.Array, cut: Cut, resident: bool, at: Any) -> pl.BlockSpec | None:
    """The block of a step; None for a whole table.

    Args:
        field: which.
        stored: as `store` returns it.
        cut: the sizes.
        resident: whether a step has all keys in vector memory.
        at: a function from the grid's indices to (batch element, step, query tile).
    """
    if field.copied(resident):
        return pl.BlockSpec(memory_space=pltpu.HBM)
    if field.kind in (SCALAR, FEATURE):
        return _table(field, cut).spec(lambda *grid: at(*grid)[:1])

    def place(*grid: Any) -> tuple[Any, ...]:
        batch, step, tile = at(*grid)
        batch, step = batch if field.by_batch else 0, step if field.by_head else 0
        return batch, step, 0, tile if field.kind == QUERY else 0

    length = cut.q_tile if field.kind == QUERY else stored.shape[3]
    return pl.BlockSpec((None, field.heads(cut), 1, length), place)


def _table(field: Field, cut: Cut) -> Table:
    width = (cut.q_heads if field.by_head else 1) * (field.features or 1)
    return Table((cut.batch if field.by_batch else 1,), width)


def buffer(field: Field, cut: Cut) -> Any:
    """The scratch into which a field is copied: two tiles that take turns."""
    keys, queries = cut.kv_tile, cut.q_tile
    shape = (1, keys) if field.kind == KEY else (keys, queries)
    return pltpu.VMEM((2, field.heads(cut), *shape), field.dtype)


def source(field: Field, ref: Any, cut: Cut, place: Any, keys: Any) -> Any:
    """What is copied for a tile of keys.

    Args:
        field: which.
        ref: the whole, in memory.
        cut: the sizes.
        place: (batch element, step, query tile).
        keys: the slice of the keys.
    """
    batch, step, tile = place
    heads = pl.ds(step * cut.heads, cut.heads) if field.by_head else pl.ds(0, 1)
    rest = (slice(None), keys) if field.kind == KEY else (keys, pl.ds(tile * cut.q_tile, cut.q_tile))
    return ref.at[(batch if field.by_batch else 0, heads, *rest)]


def read(field: Field, ref: Any, cut: Cut, place: Any, unit: int, tile: Any, slot: Any) -> jax.Array:
    """What a tile of a unit sees of a field.

    Args:
        field: which.
        ref: its block, or its buffer if it is copied.
        cut: the sizes.
        place: (batch element, step, query tile).
        unit: the unit.
        tile: the index of the key tile.
        slot: the half of the buffer if it is copied, otherwise None.
    """
    head, queries = cut.head_of(unit) if field.by_head else 0, cut.queries_of(unit)
    if field.kind == FEATURE:
        return jnp.zeros((1, 1), field.dtype)  # for a tile; sums over features read it one by one
    if field.kind == SCALAR:
        row = _table(field, cut).row(ref, place[0])
        return jnp.full((1, cut.unit), row(place[1] * cut.heads + head if field.by_head else 0), field.dtype)
    if field.kind == QUERY:
        return ref[head, :, queries]
    if field.kind == KEY:
        return column(ref[head, :, cut.keys(tile)] if slot is None else ref[slot, head])
    if field.kind == PAIR:
        return ref[slot, head, :, queries]
    return ref[head, :, window(cut, place, unit, tile)]


def of_feature(field: Field, ref: Any, cut: Cut, place: Any, unit: int, feature: Any) -> Any:
    """The number of a feature field for a unit.

    Args:
        field, ref, cut, place, unit: as in `read`.
        feature: the index of the feature.
    """
    head = place[1] * cut.heads + cut.head_of(unit) if field.by_head else 0
    return _table(field, cut).row(ref, place[0])(head * field.features + feature)


def window(cut: Cut, place: Any, unit: int, tile: Any) -> Any:
    """The slice of a row of distances that a tile of a unit sees."""
    first = place[2] * cut.q_tile + cut.queries_of(unit).start - (tile + 1) * cut.kv_tile + cut.padded[1]
    return pl.ds(pl.multiple_of(first, LANES), cut.kv_tile + cut.unit)


def column(row: jax.Array) -> jax.Array:
    """`[1, n]` of 32 bits as `[n, 1]`."""
    return jnp.broadcast_to(row, (SUBLANES, row.shape[1])).T[:, :1]


def as_row(column: jax.Array) -> jax.Array:
    """`[n, 1]` of 32 bits as `[1, n]`."""
    return jnp.broadcast_to(column, (column.shape[0], LANES)).T[:1]


def position(length_axis: int, size: int, start: Any) -> jax.Array:
    """Indices from `start` along an axis of a tile: 0 for keys, 1 for queries."""
    shape = [1, 1]
    shape[length_axis] = size
    return lax.broadcasted_iota(jnp.int32, tuple(shape), length_axis) + start
