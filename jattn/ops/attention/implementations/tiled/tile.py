"""One tile: its slices of every array, its scores, and the pairs in it that may attend."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .....foundation.arrays import of_rank
from .....foundation.pieces import take
from .....foundation.slices import put_at, quotient, slice_at
from .....foundation.varying import full, vary, varying_axes
from ...call import Pieces
from ...plan import Lists
from .tiling import Tiling

CHEAP = frozenset(("le", "lt", "ge", "gt", "eq", "ne", "and", "or", "xor", "not", "add", "sub", "mul", "iota"))
FREE = frozenset(("broadcast_in_dim", "reshape", "squeeze", "convert_element_type"))
FEW = 6
"""A mask of so many cheap operations is evaluated in full tiles too: the compiler spends more on a branch around it."""


def row_of(lists: Lists, starts: dict[int, Any], tiling: Tiling, q_index: Any) -> tuple[Any, Any, Any]:
    """(start, full_stop, stop) of a query tile in a block."""
    shape = lists.bounds.shape
    index = [starts.get(axis, 0) for axis in range(tiling.rank)]
    index += [quotient(starts[tiling.rank], tiling.q_heads)[0], q_index]
    place = [0 if size == 1 else position for size, position in zip(shape, [*index, 0], strict=True)]
    start, full_stop, stop = slice_at(lists.bounds, place, (*[1] * len(index), 3)).reshape(3)
    return start, full_stop, stop


def key_tile_at(lists: Lists, place: Any) -> jax.Array:
    """The key tile that stands at a place of the order."""
    return slice_at(lists.order, (place,), (1,)).reshape(())


def rows_of(array: jax.Array, tiling: Tiling, starts: dict[int, Any], *, keys: bool) -> jax.Array:
    """The tile `[batch..., heads, rows, dim]` of a `[batch..., length, heads, dim]` array."""
    rank = tiling.rank
    start = [starts.get(axis, 0) for axis in range(rank)]
    size = [1 if axis in starts else array.shape[axis] for axis in range(rank)]
    heads = tiling.kv_heads if keys else tiling.q_heads
    first_head = tiling.key_head(starts) if keys else starts[rank]
    row = starts[rank + 2] if keys else starts[rank + 1]
    start += [row, first_head]
    size += [tiling.k_tile if keys else tiling.q_tile, heads]
    extra = array.ndim - len(size)
    tile = slice_at(array, [*start, *[0] * extra], [*size, *array.shape[array.ndim - extra :]])
    return jnp.swapaxes(tile, rank, rank + 1)


def put_rows(array: jax.Array, tile: jax.Array, tiling: Tiling, starts: dict[int, Any], fresh: jax.Array | None) -> Any:
    """Write a query tile `[batch..., heads, rows, ...]` back; only the rows that are `fresh`, if that is given."""
    rank = tiling.rank
    tile = jnp.swapaxes(tile, rank, rank + 1).astype(array.dtype)
    start = [
        *(starts.get(axis, 0) for axis in range(rank)),
        starts[rank + 1],
        starts[rank],
        *[0] * (array.ndim - rank - 2),
    ]
    if fresh is not None:
        old = slice_at(array, start, tile.shape)
        tile = jnp.where(fresh.reshape(-1, *[1] * (array.ndim - rank - 1)), tile, old)
    return put_at(array, tile, start)


def fresh_rows(tiling: Tiling, q_index: Any) -> jax.Array | None:
    """Which rows `[q_tile]` of a query tile no earlier tile holds; None if all, whatever the tile."""
    if not tiling.ragged[0]:
        return None
    return tiling.q_start(q_index) + jnp.arange(tiling.q_tile) >= q_index * tiling.q_tile


def slice_pieces(pieces: Pieces, tiling: Tiling, starts: dict[int, Any]) -> Pieces:
    """The pieces as the tile sees them."""
    sizes = tiling.sizes()
    return jax.tree.map(lambda leaf: take(leaf, starts, sizes), pieces)


def sweep(visit: Callable[[Any, Any, Any], Any], row: tuple[Any, Any, Any], carry: Any, apart: bool) -> Any:
    """Fold `visit(place, carry, partial)` over the tiles of a row of the plan.

    One loop, in which `partial` is traced, is half as much to compile as one for the full and one for the partial tiles
    (`apart`), in which it is True or False.
    """
    start, full_stop, stop = row
    if not apart:
        return jax.lax.fori_loop(start, stop, lambda at, carry: visit(at, carry, at >= full_stop), carry)
    carry = jax.lax.fori_loop(start, full_stop, lambda at, carry: visit(at, carry, False), carry)
    return jax.lax.fori_loop(full_stop, stop, lambda at, carry: visit(at, carry, True), carry)


def allowed_pairs(tile: Pieces, tiling: Tiling, q_index: Any, k_index: Any, partial: Any) -> jax.Array | None:
    """The pairs that may attend and that no earlier tile holds; None for all.

    Args:
        tile: the slices of all pieces.
        tiling: how the call is cut.
        q_index: which query tile.
        k_index: which key tile.
        partial: whether the plan has it as a partial one: a full one, where this is traced, is not asked for its mask.
    """
    if partial is False or (tile.mask is None and not any(tiling.ragged)):
        return None
    if partial is True:
        return _allowed_pairs(tile, tiling, q_index, k_index)
    if _is_cheap(lambda: _allowed_pairs(tile, tiling, q_index, k_index)):
        # Written out once, or each of several loops over the scores would evaluate it again, for every head.
        return jax.lax.optimization_barrier(_allowed_pairs(tile, tiling, q_index, k_index))
    shape = jax.eval_shape(lambda: _allowed_pairs(tile, tiling, q_index, k_index)).shape
    axes = varying_axes(tile, partial)
    return jax.lax.cond(
        partial,
        lambda: vary(_allowed_pairs(tile, tiling, q_index, k_index), axes),
        lambda: full(shape, True, bool, axes),
    )


def _is_cheap(function: Callable[[], Any]) -> bool:
    """Whether a function consists of a few cheap operations."""
    names = [equation.primitive.name for equation in jax.make_jaxpr(function)().jaxpr.eqns]
    return CHEAP.union(FREE).issuperset(names) and sum(name in CHEAP for name in names) <= FEW


def _allowed_pairs(tile: Pieces, tiling: Tiling, q_index: Any, k_index: Any) -> Any:
    allowed = None
    if tile.mask is not None:
        allowed = tile.mask.allows(tile.query_positions, tile.key_positions)
    fresh = fresh_rows(tiling, q_index)
    if fresh is not None:
        allowed = fresh[:, None] if allowed is None else allowed & of_rank(fresh[:, None], allowed.ndim)
    if tiling.ragged[1]:
        new = tiling.k_start(k_index) + jnp.arange(tiling.k_tile) >= k_index * tiling.k_tile
        allowed = new if allowed is None else allowed & of_rank(new, allowed.ndim)
    return allowed


def modify_scores(raw: jax.Array, scale: float, tile: Pieces) -> jax.Array:
    """The tile's scores from its pairs' numbers."""
    scores = raw if scale == 1.0 else raw * scale
    for score in tile.scores:
        scores = score.modify(scores, tile.query_positions, tile.key_positions)
    return scores
