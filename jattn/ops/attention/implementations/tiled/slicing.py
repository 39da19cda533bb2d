"""Slices of every array for a tile, and the sweep over the tiles of a row."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import of_rank, put_at, quotient, slice_at
from .....foundation.pieces import take
from .....foundation.sharding import full, vary, varying_axes
from ...call import Pieces
from ...plan import Lists
from ...tile import allowed_pairs
from .tiling import Tiling

CHEAP = frozenset(("le", "lt", "ge", "gt", "eq", "ne", "and", "or", "xor", "not", "add", "sub", "mul", "iota"))
FREE = frozenset(("broadcast_in_dim", "reshape", "squeeze", "convert_element_type"))
FEW = 6
"""A mask of at most this many cheap operations is evaluated in full tiles too: it compiles faster than a branch."""
SHORT = 16
"""As many tiles are few: computing them takes less time than compiling a branch."""


def row_of(lists: Lists, starts: dict[int, Any], tiling: Tiling, q_index: Any) -> tuple[Any, Any, Any]:
    """(start, full_stop, stop) of a query tile in a block."""
    shape = lists.bounds.shape
    index = [starts.get(axis, 0) for axis in range(tiling.rank)]
    index += [quotient(starts[tiling.rank], tiling.q_heads)[0], q_index]
    place = [0 if size == 1 else position for size, position in zip(shape, [*index, 0], strict=True)]
    start, full_stop, stop = slice_at(lists.bounds, place, (*[1] * len(index), 3)).reshape(3)
    return start, full_stop, stop


def key_tile_at(lists: Lists, place: Any) -> jax.Array:
    """The index of the key tile at a place in the order."""
    return slice_at(lists.order, (place,), (1,)).reshape(())


def rows_of(array: jax.Array, tiling: Tiling, starts: dict[int, Any], *, keys: bool) -> jax.Array:
    """The tile `[batch..., heads, rows, dim]` of an array `[batch..., length, heads, dim]`."""
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
    """Write a query tile `[batch..., heads, rows, ...]` back. With `fresh`, write only the rows where it is True."""
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
    """The rows `[q_tile]` of a query tile that the previous, overlapping tile does not own; None if none overlaps."""
    if not tiling.ragged[0]:
        return None
    return tiling.q_start(q_index) + jnp.arange(tiling.q_tile) >= q_index * tiling.q_tile


def slice_pieces(pieces: Pieces, tiling: Tiling, starts: dict[int, Any]) -> Pieces:
    """The pieces, sliced for a tile."""
    sizes = tiling.sizes()
    return jax.tree.map(lambda leaf: take(leaf, starts, sizes), pieces)


def loop(count: int, body: Callable[[Any, Any], Any], carry: Any) -> Any:
    """Fold `body(index, carry)` over the indices 0 to `count` - 1.

    `jax.lax.fori_loop` has two counters if both bounds are known. For loops inside loops, XLA needs one pass over the
    program per loop to find that they are the same.
    """

    def step(state):
        index, carry = state
        return index + 1, body(index, carry)

    return jax.lax.while_loop(lambda state: state[0] < count, step, (jnp.zeros((), int), carry))[1]


def sweep(visit: Callable[[Any, Any, Any], Any], row: tuple[Any, Any, Any], carry: Any, apart: bool) -> Any:
    """Fold `visit(place, carry, partial)` over the tiles of one row of the plan.

    By default one loop, in which `partial` is traced; this halves compile time. With `apart`, one loop over the full
    and one over the partial tiles, in which `partial` is False and True.
    """
    start, full_stop, stop = row
    if not apart:
        return jax.lax.fori_loop(start, stop, lambda at, carry: visit(at, carry, at >= full_stop), carry)
    carry = jax.lax.fori_loop(start, full_stop, lambda at, carry: visit(at, carry, False), carry)
    return jax.lax.fori_loop(full_stop, stop, lambda at, carry: visit(at, carry, True), carry)


def own_pairs(
    pieces: Pieces, tiling: Tiling, starts: dict[int, Any], q_index: Any, k_index: Any, partial: Any
) -> jax.Array | None:
    """`pairs_of` in a partial tile, else True. None if no tile masks any pair.

    Args:
        pieces: not sliced.
        tiling: the sizes of the loop.
        starts: where the tile is.
        q_index: the index of the query tile.
        k_index: the index of the key tile.
        partial: whether the plan has the tile as partial. If this is traced, the mask is not evaluated in full tiles,
            unless it is cheap.
    """
    tile = slice_pieces(pieces, tiling, starts)

    def pairs():
        # Sliced again in the branch: XLA then compiles fewer operations.
        return pairs_of(slice_pieces(pieces, tiling, starts), tiling, q_index, k_index)

    if partial is False or (pieces.mask is None and not any(tiling.ragged)):
        return None
    if partial is True or is_cheap(lambda: pairs_of(tile, tiling, q_index, k_index)):
        return pairs_of(tile, tiling, q_index, k_index)
    shape = jax.eval_shape(pairs).shape
    axes = varying_axes(pieces, partial)
    return in_branches(partial, pairs, lambda: full(shape, True, bool, axes), axes)


def in_branches(
    partial: Any, masked: Callable[[], jax.Array], plain: Callable[[], jax.Array], axes: tuple[str, ...]
) -> jax.Array:
    """`masked()` in a partial tile, else `plain()`. The result varies over the mesh axes `axes`."""
    return jax.lax.cond(partial, lambda: vary(masked(), axes), lambda: vary(plain(), axes))


def is_short(lists: Lists) -> bool:
    """Whether few tiles are visited and at most half of them are full, both known.

    Then a branch in the forward pass would save little, and a program without it compiles faster. Where many tiles are
    visited, one with the branch runs faster even if all are partial (a window of 512 of 16,384 positions: by 7%).
    """
    if not isinstance(lists.bounds, np.ndarray):
        return False
    start, full_stop, stop = np.moveaxis(lists.bounds, -1, 0)
    visited = (stop - start).sum()
    return bool(visited <= SHORT and 2 * (full_stop - start).sum() <= visited)


def is_cheap(function: Callable[[], Any]) -> bool:
    """Whether a function consists of a few cheap operations."""
    names = [equation.primitive.name for equation in jax.make_jaxpr(function)().jaxpr.eqns]
    return CHEAP.union(FREE).issuperset(names) and sum(name in CHEAP for name in names) <= FEW


def pairs_of(tile: Pieces, tiling: Tiling, q_index: Any, k_index: Any) -> Any:
    """The allowed pairs of a tile, without rows and columns that the previous, overlapping tile owns. None for all."""
    allowed = allowed_pairs(tile)
    fresh = fresh_rows(tiling, q_index)
    if fresh is not None:
        allowed = fresh[:, None] if allowed is None else allowed & of_rank(fresh[:, None], allowed.ndim)
    if tiling.ragged[1]:
        new = tiling.k_start(k_index) + jnp.arange(tiling.k_tile) >= k_index * tiling.k_tile
        allowed = new if allowed is None else allowed & of_rank(new, allowed.ndim)
    return allowed
