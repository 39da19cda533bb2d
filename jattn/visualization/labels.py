"""What heads are called, and the numbers that they are sorted by."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..analysis import Maps
from ..foundation.arrays import describe
from .encoding import scale_of

MEASURES = ("entropy", "largest", "distance", "first")
"""Of all heads: the mean entropy of a row in nats, its largest weight, its mean distance, its weight on key 0."""


@dataclasses.dataclass(frozen=True)
class Labels:
    """For each head, by the name of its layer and its number, a label with its score, and measures.

    Attributes:
        measures: their names.
        heads: for each head, what the page is told of it.
    """

    measures: tuple[str, ...]
    heads: Mapping[tuple[str, int], Mapping[str, Any]]

    def of(self, layer: str, head: int) -> dict[str, Any]:
        """The part of a head's JSON."""
        return dict(self.heads.get((layer, head), {}))


def labels(maps: Maps, given: Any) -> Labels:
    """Labels that a user gives, and measures computed here.

    Args:
        maps: of one example.
        given: what `analysis.describe` returns; or a mapping from `(layer, head)` to a text, or to a text and a score;
            or None.

    Raises:
        ValueError: it is something else, or names a head that is not there.
    """
    texts = _given(maps, given)
    heads: dict[tuple[str, int], dict[str, Any]] = {}
    for layer in maps:
        numbers = _numbers(layer)
        for place, number in enumerate(layer.heads):
            found = heads[layer.name, number] = dict(texts.get((layer.name, number), {}))
            if numbers is not None:
                found["measures"] = [round(float(one), 5) if np.isfinite(one) else None for one in numbers[:, place]]
    return Labels(MEASURES, heads)


def _numbers(layer: Any) -> np.ndarray | None:
    """`[measures, heads]`, over rows that are no padding and have a weight."""
    if not hasattr(layer.source, "__array__"):
        return None
    weights = np.nan_to_num(layer.weights[0], nan=0, posinf=0, neginf=0)
    weights = weights / scale_of(weights)
    rows = weights.sum(-1)
    counted = rows > 0
    if layer.valid_queries is not None:
        counted = counted & layer.valid_queries[0]
    shares = weights / np.where(rows > 0, rows, 1)[..., None]
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1))).sum(-1)
    far = np.abs(np.array(layer.queries)[:, None] - np.arange(shares.shape[-1])).astype(np.float32)
    measures = np.stack([entropy, shares.max(-1), np.einsum("hqk,qk->hq", shares, far), shares[..., 0]])
    return (measures * counted).sum(-1) / np.maximum(counted.sum(-1), 1)


def _given(maps: Maps, given: Any) -> dict[tuple[str, int], dict[str, Any]]:
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise ValueError(
            "`labels` must be what `jattn.analysis.describe` returns, or a mapping from (layer, head) to a text; got "
            f"{describe(given)}."
        )
    found = {}
    for key, value in given.items():
        layer, head = key if isinstance(key, tuple) and len(key) == 2 else (None, None)
        try:
            name = maps[layer].name  # type: ignore[index]
            known = int(head) in maps[name].heads  # type: ignore[arg-type]
        except (KeyError, IndexError, TypeError, ValueError):
            name, known = "", False
        if not known:
            raise ValueError(f"`labels` must name heads as (layer, head), which are there; got {key!r}. {maps.names}.")
        text, *score = (value,) if isinstance(value, str) else tuple(value)
        found[name, int(head)] = {"label": str(text), **({"score": float(score[0])} if score else {})}  # type: ignore[arg-type]
    return found
