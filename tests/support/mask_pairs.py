"""Masks pair by pair: what one allows, against its definition in a double loop."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jattn.foundation.pieces import align


def allowed(mask: Any, q_len: int, kv_len: int, batch: tuple[int, ...] = (), heads: int = 1, **positions) -> np.ndarray:
    """`[batch..., heads, q_len, kv_len]`, as an implementation evaluates it on one tile."""
    aligned = align(mask, batch, {"head": heads, "query": q_len, "key": kv_len})
    query = np.asarray(positions.get("query", np.arange(q_len)), np.int32)
    key = np.asarray(positions.get("key", np.arange(kv_len)), np.int32)
    lead = (1,) * len(batch)
    found = aligned.allows(query.reshape(*lead, 1, q_len, 1), key.reshape(*lead, 1, 1, kv_len))
    assert found.dtype == np.bool_
    return np.broadcast_to(np.asarray(found), (*batch, heads, q_len, kv_len))


def defined(rule: Callable[[int, int], bool], query: Sequence[int] | int, key: Sequence[int] | int) -> np.ndarray:
    """`rule(q, k)` for each pair of Python integers; a number stands for all positions below it."""
    rows, columns = (range(side) if isinstance(side, int) else side for side in (query, key))
    return np.array([[bool(rule(q, k)) for k in columns] for q in rows]).reshape(len(rows), len(columns))
