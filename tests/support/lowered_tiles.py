"""Evaluate lowered pieces tile by tile in plain JAX, for one batch element and head, as a kernel would."""

import jax.numpy as jnp


def tiles(call, size):
    """The slices of the queries and keys of each tile."""
    q_tile, k_tile = size
    for first in range(0, call.q_len, q_tile):
        for start in range(0, call.kv_len, k_tile):
            yield slice(first, min(first + q_tile, call.q_len)), slice(start, min(start + k_tile, call.kv_len))


def of_pair(array, at):
    """An aligned array for one batch element and head, the indices `at`."""
    for index in at:
        array = array[0 if array.shape[0] == 1 else index]
    return array


def field_of_tile(field, kind, at, rows, columns, kv_len):
    """The part of a field that the tile of queries `rows` and keys `columns` sees."""
    field = of_pair(field, at)
    if kind == "distance":
        first = rows.start - columns.stop + kv_len
        return field[0, :, first : first + rows.stop - rows.start + columns.stop - columns.start]
    if kind in ("query", "pair"):
        field = field[rows]
    if kind in ("key", "pair"):
        field = field[:, columns]
    return field.T


def whole(lowered, call, fields, at, size, function):
    """`function(tile, rows, columns)` of all tiles `[k, q]`, put together as `[q_len, kv_len]`."""
    query, key = (of_pair(one, at) for one in (call.pieces.query_positions, call.pieces.key_positions))
    lines = {}
    for rows, columns in tiles(call, size):
        seen = [
            field_of_tile(one, kind, at, rows, columns, call.kv_len)
            for one, kind in zip(fields, lowered.kinds, strict=True)
        ]
        tile = lowered.tile(seen, jnp.asarray(query)[rows].T, jnp.asarray(key)[:, columns].T)
        shape = columns.stop - columns.start, rows.stop - rows.start
        lines.setdefault(rows.start, []).append(jnp.broadcast_to(function(tile, rows, columns), shape).T)
    return jnp.concatenate([jnp.concatenate(line, 1) for line in lines.values()], 0)
