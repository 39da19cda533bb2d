"""Layers without weights, which the page computes from queries and keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ..analysis import Layer
from ..analysis.foreign import row_softmax
from ..foundation.arrays import describe

ROWS, MOST_OFF = 16, 0.05
"""How many queries of each head are compared, and by how much its weights may differ from the softmax."""


def is_absent(layer: Layer) -> bool:
    """Whether a layer has no weights, but queries and keys to compute them from."""
    return isinstance(layer.source, jax.ShapeDtypeStruct)


def check_computed(layer: Layer) -> None:
    """Check that queries and keys make the weights of a layer, as far as it is known.

    Raises:
        ValueError: the weights depend on more; the query or key is missing, or not finite.
    """
    if layer.query is None or layer.key is None:
        raise ValueError(f"`query` and `key` must be there for {layer.name!r}, to compute its maps from.")
    because = ""
    if not all(np.isfinite(one).all() for one in layer.vectors or ()):
        because = "these are NaN or infinite in part"
    elif layer.besides:
        because = f"they also depend on {', '.join(layer.besides)}"
    elif not is_absent(layer):
        off = _most_off(layer)
        because = f"softmax(query · key) is up to {off:.2g} off" if off > MOST_OFF else ""
    if because:
        raise ValueError(
            f"the maps of {layer.name!r} must be stored, as they cannot be computed from `query` and `key`: {because}. "
            "Keep the weights too, `jattn.record(keep=('weights', 'query', 'key'))`, and choose fewer with `layers=` "
            "or `heads=`, or raise `limit=`."
        )


def _most_off(layer: Layer) -> float:
    """The largest `off_by` of any head, over some queries."""
    vectors = layer.vectors
    assert vectors is not None
    count = layer.shape[2]
    rows = np.unique(np.linspace(0, count - 1, min(ROWS, count)).round().astype(int))
    weights, mask = layer.weights[0], layer.may_attend[0]
    heads = zip(
        vectors[0][0], vectors[1][0], np.broadcast_to(mask, (len(weights), *mask.shape[1:])), weights, strict=True
    )
    return max(off_by(query[rows], key, allowed[rows], weight[rows]) for query, key, allowed, weight in heads)


def off_by(query: np.ndarray, key: np.ndarray, mask: np.ndarray | None, weights: np.ndarray) -> float:
    """The largest difference between softmax(query · key) of one head and its weights. NaN does not count."""
    off = np.abs(row_softmax(query @ key.T, mask) - weights)
    return float(np.nanmax(off)) if np.isfinite(off).any() else 0.0


def without_weights(layer: Layer) -> Layer:
    """The layer without its weights, but with the mask that they imply."""
    mask = layer.mask if is_absent(layer) else layer.may_attend
    return dataclasses.replace(layer, source=jax.ShapeDtypeStruct(tuple(layer.source.shape), np.float32), mask=mask)


def absent(query: Any, key: Any) -> dict[str, Any]:
    """For each layer, the shape of the weights that are to be computed from its query and key: a source for `read`.

    Raises:
        ValueError: a query or key is missing, or they do not have the axes of attention.
    """
    if query is None or key is None:
        raise ValueError("`source` must be maps of attention; None needs `query` and `key` to compute them from.")
    for name, one in {"query": query, "key": key}.items():
        if not isinstance(one, Mapping | Sequence) or isinstance(one, str):
            raise ValueError(f"`{name}` must be arrays for all layers, a list or a mapping; got {describe(one)}.")
    pairs = query.items() if isinstance(query, Mapping) else ((str(number), one) for number, one in enumerate(query))
    keys = dict(key) if isinstance(key, Mapping) else {str(number): one for number, one in enumerate(key)}
    found = {}
    for name, one in pairs:
        if name not in keys or len(one.shape) not in (3, 4) or len(keys[name].shape) != len(one.shape):
            raise ValueError(f"`query` and `key` must have arrays [batch, heads, length, features] for {name!r} both.")
        found[name] = jax.ShapeDtypeStruct((*one.shape[:-1], keys[name].shape[-2]), np.float32)
    return found
