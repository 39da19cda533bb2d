"""What heads are called, and the numbers that they are sorted by."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from ..analysis import Heads, Maps
from ..analysis import describe as described
from ..foundation.arrays import describe
from .absent import is_absent


@dataclasses.dataclass(frozen=True)
class Labels:
    """For each head, by the name of its layer and its number, a label with its score, and measures.

    Attributes:
        measures: the names of the measures.
        heads: for each head, its label, score and values of the measures, as the page reads them.
    """

    measures: tuple[str, ...]
    heads: Mapping[tuple[str, int], Mapping[str, Any]]

    def of(self, layer: str, head: int) -> dict[str, Any]:
        """What the JSON of a head has of it."""
        return dict(self.heads.get((layer, head), {}))


def labels(maps: Maps, given: Any) -> Labels:
    """Labels and measures of heads.

    Args:
        maps: of one example.
        given: what `analysis.describe` returns; None to call it; False for neither labels nor measures; or a mapping
            from `(layer, head)` to a text, or to a text and a score, in place of its labels.

    Raises:
        ValueError: it is something else, or names a head that is not there.
    """
    if given is False:
        return Labels((), {})
    if not (given is None or isinstance(given, Heads | Mapping)):
        raise ValueError(
            "`labels` must be what `jattn.analysis.describe` returns, a mapping from (layer, head) to a text, or "
            f"False; got {describe(given)}."
        )
    texts = _given(maps, given) if isinstance(given, Mapping) else None
    stored = Maps(tuple(layer for layer in maps if not is_absent(layer)))
    if isinstance(given, Heads) and not any(layer.name == one.layer for layer in maps for one in given):
        raise ValueError(f"`labels` must be of these layers, {maps.names}; got those of others.")
    heads = given if isinstance(given, Heads) else described(stored) if stored else None
    found: dict[tuple[str, int], dict[str, Any]] = {}
    measures: tuple[str, ...] = ()
    if heads is not None and len(heads):
        measures = (*heads[0].measures, *heads.labels)
        for one in heads:
            values = [one.measures.get(name, one.scores.get(name, math.nan)) for name in measures]
            label = {"label": one.label, "score": round(one.score, 4)} if one.label not in ("-", "NaN") else {}
            found[one.layer, one.head] = {
                **(label if texts is None else {}),
                "measures": [round(float(value), 5) if math.isfinite(value) else None for value in values],
            }
    for key, text in (texts or {}).items():
        found[key] = {**found.get(key, {}), **text}
    return Labels(measures, found)


def _given(maps: Maps, given: Mapping[Any, Any]) -> dict[tuple[str, int], dict[str, Any]]:
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
        text, *score = (value,) if isinstance(value, str) or not isinstance(value, Sequence) else value
        number = all(type(one) in (int, float) and math.isfinite(one) for one in score)
        if not isinstance(text, str) or len(score) > 1 or not number:
            raise ValueError(f"`labels[{key!r}]` must be a text, or a text and a finite score; got {describe(value)}.")
        found[name, int(head)] = {"label": text, **({"score": float(score[0])} if score else {})}  # type: ignore[arg-type]
    return found
