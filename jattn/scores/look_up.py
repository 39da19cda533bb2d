"""What scores that look up a table share: the place of a pair in it, and the look-up."""

from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import as_array, describe, dtype_of
from ..foundation.pieces import Piece
from .arguments import set_field


def look_up(table: Any, index: jax.Array) -> jax.Array:
    """`table[..., index]`, elementwise: the axes of `table [..., entries]` before the last broadcast with `index`."""
    index = jax.lax.broadcast_to_rank(index[..., None], max(table.ndim, index.ndim + 1))
    table = jax.lax.broadcast_to_rank(table, index.ndim)
    return jnp.take_along_axis(table, index, axis=-1, mode="clip")[..., 0]


def check_coordinates(piece: Piece, *, floating: bool) -> None:
    """`query_coordinates` and `key_coordinates` of a piece: arrays of one axis; the keys' are by default the queries'.

    Raises:
        ValueError: another dtype or shape; keys' without queries'.
    """
    given: dict[str, Any] = {name: getattr(piece, name) for name in ("query_coordinates", "key_coordinates")}
    if given["query_coordinates"] is None:
        if given["key_coordinates"] is not None:
            raise ValueError("`key_coordinates` needs `query_coordinates`, which are distances' other end.")
        return
    if given["key_coordinates"] is None:
        given["key_coordinates"] = given["query_coordinates"]
    for name, value in given.items():
        value = as_array(value)
        dtype = dtype_of(value)
        kinds = (jnp.integer, jnp.floating) if floating else (jnp.integer,)
        fits = dtype is not None and any(jnp.issubdtype(dtype, one) for one in kinds)
        if not fits or not value.shape:
            kind = "numbers" if floating else "integers"
            raise ValueError(f"`{name}` must be {kind} [batch..., length], one for each token; got {describe(value)}.")
        set_field(piece, name, value)


def distances_of(piece: Any, query: jax.Array, key: jax.Array) -> jax.Array:
    """key - query, of the coordinates of the aligned piece where it has them, else of the positions."""
    if piece.query_coordinates is None:
        return key - query
    key, query = (jnp.asarray(one) for one in (piece.key_coordinates, piece.query_coordinates))
    dtype = jnp.promote_types(key.dtype, query.dtype)
    wide = jnp.promote_types(dtype, jnp.int32 if jnp.issubdtype(dtype, jnp.integer) else jnp.float32)
    return key.astype(wide) - query.astype(wide)
