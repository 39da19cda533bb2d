"""Decoding: attention of a few queries over a long cache, which takes as long as reading the cache.

    rows      = the query heads of a key head x their queries
    scores    = rows keysᵀ                        [rows, keys]
    out       = weights values                    [rows, features]

The rows of a key head are few, so a tile of scores `[rows, keys]` fills registers if the keys are its lanes, and the
online softmax is cheap beside the copies of keys and values. So the kernel is built around these copies:

* A step of the grid has all heads of one example. A tile of a cache `[places, heads, features]` then is one piece of
  memory, and is read as it lies there (`storage`): transposing a cache would take longer than the attention.
* The tiles that the plan leaves are one list for all examples, so the copies for the next example begin while the last
  tiles of this one are computed. All buffers but one are on their way at any time.
* A cache in pages is read through its table: a tile is as many copies as it has pages. Pages that the table does not
  have are not copied.
* Values that are the keys (latent attention) are read once.
* A chip whose two cores are one device deals out the tiles of each example to both. Their results are merged by the law
  of `Partial`, as is all attention over disjoint keys.

Masks, scores and the other pieces are evaluated as in the other kernels, with the rows of a tile in place of queries:
an array that rides on heads or queries becomes one number a row; one that rides on keys too is copied with the keys.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import iota
from .....foundation.sharding import vary
from .....foundation.target import expected_target
from .....similarities.dot import folded_scale
from ...call import Call
from ...partial import Partial, log_of_sum, merge
from ...plan import EMPTY, FULL, PARTIAL, Plan, make_plan
from ..lowering import Lowered
from . import decode_kernel, geometry
from .decode_kernel import Decoding, RowField
from .estimate import estimate_step
from .storage import FEATURES, HEADS, LANES, SUBLANES, Storage, order_of

QUERIES = 16
"""The most queries of a call that decodes."""

TILE_BYTES = 2 * 2**20
"""Keys and values of a tile: enough to hide the latency of a copy, and the overhead of a tile."""

BUFFERS = 2
MOST_KEYS, MOST_SCORES = 2048, 2**17
"""The most keys of a tile, and the most entries of its scores over all heads."""

SCALARS = 2**16
"""The most entries of lists and tables: scalar memory holds 1 MiB."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """How a call is cut: see `Decoding`."""

    rows: int
    tile: int
    parts: int
    tiles: int


def sizes_of(call: Call, tile: int | None = None, page: int | None = None) -> Sizes:
    """The sizes for a call.

    Args:
        call: prepared.
        tile: keys of a tile, if the caller chose it.
        page: places of a page.
    """
    rows = geometry.rounded(call.q_heads // call.kv_heads * call.q_len, SUBLANES)
    if tile is None:
        key, value = (jnp.dtype(one).itemsize for one in call.dtypes[1:])
        wide = call.qk_dim * key + (0 if call.keys_as_values else call.v_dim * value)
        small = 2 if geometry.vmem_of(call.target) <= 16 * geometry.MEGABYTE else 1
        most = min(TILE_BYTES // small // (call.kv_heads * wide), MOST_SCORES // (call.kv_heads * rows), MOST_KEYS)
        tile = max(most // LANES * LANES, LANES)
    step = LANES if page is None else math.lcm(LANES, page)
    tile = min(geometry.rounded(tile, step), geometry.rounded(call.kv_len, step))
    generation = call.target.generation if call.target is not None else None
    parts = min(geometry.CORES.get(generation or "", 1), -(-call.kv_len // tile))
    return Sizes(rows, tile, parts, -(-call.kv_len // tile))


def serves(call: Call, lowered: Lowered, tile: int | None = None, page: int | None = None) -> bool:
    """Whether this kernel is the one for a call.

    Args:
        call: prepared.
        lowered: how a tile is computed, without rows of distances.
        tile: keys of a tile, if the caller chose it.
        page: places of a page.
    """
    if call.q_len > QUERIES or lowered.refusal is not None or call.v_dim == 0:
        return False
    sizes, batch = sizes_of(call, tile, page), math.prod(call.batch)
    scalars = batch * (2 * geometry.rounded(sizes.tiles, sizes.parts) + 3 * sizes.parts)
    if page is not None:
        orders = [order_of(call.kv_heads, dim) for dim in (call.qk_dim, call.v_dim)]
        if FEATURES in orders or (HEADS in orders and page % (2 * SUBLANES)):
            return False
        scalars += batch * sizes.tiles * (sizes.tile // page)
    return scalars <= SCALARS and sizes.rows * call.kv_heads * sizes.tile <= 4 * MOST_SCORES


def plan_of(call: Call, given: bool, tile: int) -> Plan:
    """The plan of all queries and each tile of keys.

    Args:
        call: prepared.
        given: whether keys have other positions than 0, 1, ...
        tile: keys of a tile.
    """
    pieces, lead = call.pieces, (1,) * (len(call.batch) + 2)
    key = pieces.key_positions if given else iota(call.kv_len).reshape(*lead, call.kv_len)
    return make_plan(pieces.mask, pieces.query_positions, key, call.q_len, tile)


def describe(call: Call, given: bool, tile: int | None = None) -> tuple[Plan, str]:
    """The plan of a call, and the sizes in words."""
    sizes = sizes_of(call, tile)
    plan = plan_of(call, given, sizes.tile)
    heads = "1 key head" if call.kv_heads == 1 else f"{call.kv_heads} key heads"
    words = f"{heads} x {sizes.rows} rows x {sizes.tile} keys a tile"
    words += "" if sizes.parts == 1 else f", dealt out to {sizes.parts} cores"
    cost = estimate_step(call, plan, sizes.parts, call.target or expected_target())
    return plan, words if cost is None else f"{words}; {cost}"


def attend(
    call: Call,
    lowered: Lowered,
    given: bool,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    *,
    table: jax.Array | None = None,
    tile: int | None = None,
    interpret: bool = False,
    axes: tuple[str, ...] = (),
    trips: tuple[int, int] | None = None,
) -> Partial:
    """`Streaming.stream` of a call with few queries.

    Args:
        call: prepared. Its key positions are those of all places.
        lowered: as in `serves`.
        given: whether keys have other positions than 0, 1, ...
        query: `[batch..., q_len, q_heads, qk_dim]`.
        key: `[batch..., kv_len, kv_heads, qk_dim]`; with a table, a pool `[pages, places, kv_heads, qk_dim]`.
        value: likewise.
        table: int32 `[batch..., slots]`, the pages of each sequence; -1 for none.
        tile: keys of a tile, if the caller chose it.
        interpret: whether to interpret the kernel on this machine.
        axes: the mesh axes over which the arrays vary.
        trips: as in `Decoding`.
    """
    pieces, page = call.pieces, None if table is None else key.shape[-3]
    sizes = sizes_of(call, tile, page)
    batch, rank = math.prod(call.batch), len(call.batch)
    query, scale = folded_scale(pieces.similarity, query, call.scale)
    key, value = (array if page else array.reshape(batch, *array.shape[rank:]) for array in (key, value))
    read = lowered.fields(pieces)
    read += [pieces.query_positions, *([pieces.key_positions] if given else [])]
    fields = [_field(array, rank) for array in read]
    place = len(fields) - 1 - given
    fields[place] = dataclasses.replace(fields[place], by_row=True)  # positions of queries have the shape of the rows
    design = Decoding(
        axes=call.batch,
        batch=batch,
        q_len=call.q_len,
        kv_len=call.kv_len,
        q_heads=call.q_heads,
        kv_heads=call.kv_heads,
        qk_dim=call.qk_dim,
        v_dim=call.v_dim,
        rows=sizes.rows,
        tile=sizes.tile,
        parts=sizes.parts,
        buffers=BUFFERS,
        key=Storage.of(key, sizes.tile),
        value=Storage.of(value, sizes.tile),
        keys_as_values=call.keys_as_values,
        page=page,
        slots=0 if table is None else geometry.rounded(table.shape[-1], sizes.tile // key.shape[-3]),
        lowered=lowered,
        fields=tuple(fields),
        given=given,
        scale=scale * lowered.before,
        softmax=pieces.normalizer.streams_as == "softmax",
        interpret=interpret,
        vmem=geometry.vmem_limit(call.target),
        trips=trips,
    )
    scalars = list(_lists(plan_of(call, given, sizes.tile), design))
    if table is not None:
        table = jnp.asarray(table, jnp.int32).reshape(batch, -1)
        missing = design.slots - table.shape[-1]
        scalars.append(jnp.pad(table, ((0, 0), (0, missing)), constant_values=-1).reshape(-1))
    stored = [_stored(field, array, design) for field, array in zip(design.fields, read, strict=True)]
    sides = [design.key.stored(key), *([] if call.keys_as_values else [design.value.stored(value)])]
    arrays = scalars, _rows_of_query(query, design), sides, stored
    out, rows = decode_kernel.call(design, axes, *vary(arrays, axes))
    out, top, mass = (_unfolded(one, design) for one in (out, rows[..., 0], rows[..., 1]))
    return _merged(out, top, mass, design)


def _merged(out: jax.Array, top: jax.Array, mass: jax.Array, design: Decoding) -> Partial:
    """The results of all parts together."""
    if not design.softmax:
        mass = mass.sum(0)
        return Partial(out.sum(0), jnp.log(mass), jnp.zeros_like(mass))
    lse, remainder = log_of_sum(top, mass)
    found = [Partial(out[part], lse[part], remainder[part]) for part in range(design.parts)]
    return merge(found) if design.parts > 1 else found[0]


def _lists(plan: Plan, design: Decoding) -> tuple[Any, Any, Any]:
    """The bounds of each part and example, the order of tiles, and the example of each; for scalar memory.

    Tile t belongs to part t mod parts.
    """
    states = plan.coarse((), design.q_heads).states
    xp: Any = np if isinstance(states, np.ndarray) else jnp
    states = xp.broadcast_to(states, (*design.axes, 1, 1, design.tiles)).reshape(design.batch, design.tiles)
    if design.tail:
        ends = np.arange(design.tiles) == design.tiles - 1
        states = xp.where(ends & (states == FULL), np.uint8(PARTIAL), states)
    parts = design.parts
    states = xp.pad(states, ((0, 0), (0, -design.tiles % parts)), constant_values=EMPTY)
    states = xp.moveaxis(states.reshape(design.batch, -1, parts), -1, 0)
    lists = dataclasses.replace(plan, states=states).lists()
    stop = lists.bounds[..., 2].reshape(-1)
    row = (stop[None, :] <= xp.arange(lists.order.size)[:, None]).sum(1)
    row = xp.minimum(row, stop.size - 1)
    order = lists.order * parts + row // design.batch
    found = lists.bounds.reshape(-1), order, row % design.batch
    return tuple(jnp.asarray(one, jnp.int32) for one in found)  # type: ignore[return-value]


def _field(array: Any, rank: int) -> RowField:
    batch, (head, query, key) = array.shape[:rank], array.shape[rank : rank + 3]
    kinds = {jnp.floating: jnp.float32, jnp.unsignedinteger: jnp.uint32}
    dtype = next((wide for kind, wide in kinds.items() if jnp.issubdtype(array.dtype, kind)), jnp.int32)
    return RowField(any(size > 1 for size in batch), max(head, query) > 1, key > 1, jnp.dtype(dtype).name)


def _stored(field: RowField, array: Any, design: Decoding) -> jax.Array:
    """An aligned array as the kernel reads it.

    `[batch or 1, rows or 1, 1]`; if it is copied with the keys, `[batch or 1, tiles, rows or 1, tile]`.
    """
    array = jnp.asarray(array).astype(field.dtype)
    rank = len(design.axes)
    if field.by_batch:
        array = jnp.broadcast_to(array, (*design.axes, *array.shape[rank:]))
    array = array.reshape(-1, *array.shape[rank:])
    if field.by_row:
        array = jnp.broadcast_to(array, (array.shape[0], design.q_heads, design.q_len, array.shape[3]))
        array = array.reshape(array.shape[0], design.kv_heads, -1, array.shape[3])
        array = jnp.pad(array, ((0, 0), (0, 0), (0, design.rows - array.shape[2]), (0, 0)), mode="edge")
    array = array.reshape(array.shape[0], -1, array.shape[-1])
    if not field.by_key:
        return array
    array = jnp.pad(array, ((0, 0), (0, 0), (0, design.tiles * design.tile - array.shape[2])))
    return array.reshape(*array.shape[:2], design.tiles, design.tile).swapaxes(1, 2)


def _rows_of_query(query: jax.Array, design: Decoding) -> jax.Array:
    """`[batch..., q_len, q_heads, dim]` -> `[batch, kv_heads, rows, dim]`."""
    query = query.reshape(design.batch, design.q_len, design.kv_heads, -1, design.qk_dim)
    query = query.transpose(0, 2, 3, 1, 4).reshape(design.batch, design.kv_heads, -1, design.qk_dim)
    return jnp.pad(query, ((0, 0), (0, 0), (0, design.rows - query.shape[2]), (0, 0)))


def _unfolded(array: jax.Array, design: Decoding) -> jax.Array:
    """`[parts, batch, kv_heads * rows, ...]` -> `[parts, batch..., q_len, q_heads, ...]`."""
    rest = array.shape[3:]
    group = design.q_heads // design.kv_heads
    array = array.reshape(design.parts, design.batch, design.kv_heads, design.rows, *rest)
    array = array[:, :, :, : group * design.q_len]
    array = array.reshape(design.parts, design.batch, design.q_heads, design.q_len, *rest).swapaxes(2, 3)
    return array.reshape(design.parts, *design.axes, design.q_len, design.q_heads, *rest)
