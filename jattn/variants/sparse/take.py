"""Pieces for a call whose heads, queries or keys are selected by index."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ...foundation.pieces import Piece, map_fields


def take_pieces(tree: Any, *, heads: Any = None, queries: Any = None, keys: Any = None) -> Any:
    """Pieces for a call whose heads, queries or keys are a selection by index (`jnp.take`).

    Functions of positions are unchanged, because the positions are selected too; arrays along these axes are indexed.
    """
    orders = {"head": heads, "query": queries, "key": keys}

    def visit(value: Any, axes: tuple[str, ...], name: str) -> Any:
        del name
        backend: Any = np if isinstance(value, np.ndarray) else jnp
        for place, axis in enumerate(axes, -len(axes)):
            if orders.get(axis) is not None and jnp.shape(value)[place] != 1:
                value = backend.take(value, orders[axis], axis=place)
        return value

    if isinstance(tree, (list, tuple)):
        return tuple(take_pieces(one, heads=heads, queries=queries, keys=keys) for one in tree)
    return map_fields(tree, visit) if isinstance(tree, Piece) else tree
