"""Align masks to lengths and positions, and check them against these."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import as_array, describe, dtype_of
from ..foundation.elementwise import mask_reads_positions
from ..foundation.pieces import align, indexed, map_fields
from .base import Mask, check_extent


def placed(
    mask: Mask,
    q_len: int,
    kv_len: int,
    query_positions: Any,
    key_positions: Any = None,
    *,
    batch: int = 1,
    heads: int = 1,
) -> tuple[Mask, Any, Any]:
    """The aligned mask, and the positions as `[batch..., 1, q_len, 1]` and `[batch..., 1, 1, kv_len]`.

    The batch and the number of heads are those of the mask's arrays and the positions. A function that reads their
    indices is evaluated for the first `batch` and `heads`.

    Raises:
        ValueError: the lengths differ, and the mask needs `query_positions` that are missing; or they are equal and
            only `query_positions` are given; shapes do not match; positions are outside the mask's grid.
    """
    for name, size in (("q_len", q_len), ("kv_len", kv_len), ("batch", batch), ("heads", heads)):
        if not isinstance(size, (int, np.integer)) or isinstance(size, bool) or size < 0:
            raise ValueError(f"`{name}` must be an integer of at least 0; got {size!r}.")
    batches: list[tuple[int, ...]] = [()]
    mask, counts = indexed(mask, (batch,), heads), [1]

    def look(value: Any, axes: tuple[str, ...], name: str) -> Any:
        del name
        shape = jnp.shape(value)
        if not any(axis.startswith("own") for axis in axes):
            batches.append(shape[: len(shape) - len(axes)])
            if "head" in axes:
                counts.append(shape[len(shape) - len(axes) + axes.index("head")])
        return value

    map_fields(mask, look)
    query_positions, key_positions = as_array(query_positions), as_array(key_positions)
    given = {"query_positions": (query_positions, q_len), "key_positions": (key_positions, kv_len)}
    for name, (positions, length) in given.items():
        if positions is None:
            continue
        dtype, shape = dtype_of(positions), getattr(positions, "shape", ())
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or not shape or shape[-1] != length:
            raise ValueError(f"`{name}` must be integers [batch..., {length}]; got {describe(positions)}.")
        batches.append(shape[:-1])
    lead = np.broadcast_shapes(*batches)
    aligned = align(mask, lead, {"head": max(counts), "query": q_len, "key": kv_len})
    if query_positions is None:
        if q_len != kv_len and mask_reads_positions(aligned)[0]:
            raise ValueError(
                f"`query_positions` is needed: {q_len} queries and {kv_len} keys do not say where the queries are. "
                f"Give np.arange({q_len}) if they are the first, np.arange({kv_len} - {q_len}, {kv_len}) if the last."
            )
        query_positions = np.arange(q_len) if key_positions is None or q_len != kv_len else key_positions
    elif key_positions is None and q_len == kv_len:
        check_lone_query_positions(query_positions, q_len, {"mask": mask_reads_positions(aligned)[1]})
    key_positions = np.arange(kv_len) if key_positions is None else key_positions

    def spread(positions: Any, layout: tuple[int, ...]) -> Any:
        xp: Any = jnp if isinstance(positions, jax.Array) else np
        positions = xp.asarray(positions).astype(np.int32)
        own = positions.shape[:-1]
        return positions.reshape((1,) * (len(lead) - len(own)) + own + layout)

    rows, columns = spread(query_positions, (1, q_len, 1)), spread(key_positions, (1, 1, kv_len))
    check_extent(aligned, rows, columns)
    return aligned, rows, columns


def dense(
    mask: Mask, q_len: int, kv_len: int, query_positions: Any, key_positions: Any, *, batch: int, heads: int
) -> jax.Array:
    """See `jattn.masks.create`."""
    aligned, rows, columns = placed(mask, q_len, kv_len, query_positions, key_positions, batch=batch, heads=heads)
    allowed = jnp.asarray(aligned.allows(rows, columns))
    return jnp.broadcast_to(allowed, jnp.broadcast_shapes(allowed.shape, rows.shape, columns.shape))


def check_lone_query_positions(query_positions: Any, length: int, readers: Mapping[str, bool]) -> None:
    """With as many keys as queries, query positions alone are ambiguous about the keys, unless both readings agree.

    Args:
        query_positions: given without key positions.
        length: the number of queries and of keys.
        readers: the names of arguments, and whether they depend on key positions.
    """
    known = query_positions if isinstance(query_positions, np.ndarray) else None
    if known is not None and (known == np.arange(length)).all():
        return
    for name, reads in readers.items():
        if reads:
            raise ValueError(
                f"`query_positions` are given alone, with as many keys as queries ({length}), and `{name}` depends on "
                "key positions: are the keys at the same positions, or at 0, 1, ...? Give `key_positions` too. In "
                "self-attention, also of packed sequences, both are the same, and `key_positions` suffices. With "
                f"a cache: `key_positions=numpy.arange({length})`."
            )
