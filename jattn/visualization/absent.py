"""Layers without weights, which the page computes from queries and keys."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from ..analysis import Layer


def is_absent(layer: Layer) -> bool:
    """Whether a layer has no weights, but queries and keys to compute them from."""
    return isinstance(layer.source, jax.ShapeDtypeStruct)


def without_weights(layer: Layer) -> Layer:
    """The layer without its weights; the mask that they show stays."""
    mask = layer.mask if is_absent(layer) else layer.may_attend
    return dataclasses.replace(layer, source=jax.ShapeDtypeStruct(tuple(layer.source.shape), np.float32), mask=mask)


def absent(query: Any, key: Any) -> dict[str, Any]:
    """Stands for the weights that queries and keys give."""
    if query is None or key is None:
        raise ValueError("`source` must be maps of attention; None needs `query` and `key` to compute them from.")
    pairs = query.items() if isinstance(query, Mapping) else ((str(number), one) for number, one in enumerate(query))
    keys = dict(key) if isinstance(key, Mapping) else {str(number): one for number, one in enumerate(key)}
    found = {}
    for name, one in pairs:
        if name not in keys or len(one.shape) not in (3, 4) or len(keys[name].shape) != len(one.shape):
            raise ValueError(f"`query` and `key` must have arrays [batch, heads, length, features] for {name!r} both.")
        found[name] = jax.ShapeDtypeStruct((*one.shape[:-1], keys[name].shape[-2]), np.float32)
    return found
