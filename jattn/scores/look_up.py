"""Table lookups shared by scores: the index of a pair, and the lookup itself."""

from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import as_array, describe, dtype_of
from ..foundation.fields import set_field
from ..foundation.numerics import accumulation_dtype
from ..foundation.pieces import Piece


def look_up(table: Any, index: jax.Array) -> jax.Array:
    """`table[..., index]`, elementwise, clamped. The leading axes of `table [..., entries]` broadcast with `index`."""
    index = jax.lax.broadcast_to_rank(index[..., None], max(table.ndim, index.ndim + 1))
    table = jax.lax.broadcast_to_rank(table, index.ndim)
    return jnp.take_along_axis(table, index, axis=-1, mode="clip")[..., 0]


def check_coordinates(piece: Piece, *, floating: bool) -> None:
    """Check the fields `query_coordinates` and `key_coordinates` of a piece. By default keys have those of the queries.

    Raises:
        ValueError: an array has another dtype or no axis, or only `key_coordinates` is given.
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
    """key - query, from the piece's (aligned) coordinates if it has them, otherwise from positions."""
    if piece.query_coordinates is None:
        return key - query
    key, query = (jnp.asarray(one) for one in (piece.key_coordinates, piece.query_coordinates))
    dtype = jnp.promote_types(key.dtype, query.dtype)
    integers = jnp.issubdtype(dtype, jnp.integer)
    wide = jnp.promote_types(dtype, jnp.int32) if integers else accumulation_dtype(dtype)
    return key.astype(wide) - query.astype(wide)
