"""What a page shows, as JSON and packed arrays: groups of layers that share tokens, their heads, masks and labels."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..analysis import Layer, Maps
from ..analysis.maps import SIDES
from ..foundation.arrays import describe
from . import encoding
from .absent import is_absent, off_by
from .grids import Picture
from .labels import Labels
from .tiles import Tiles, fits


@dataclasses.dataclass(frozen=True)
class Beside:
    """What is shown besides the maps.

    Attributes:
        labels: of heads, and measures to sort them by.
        sentences: for each side, or "self", the sentence of each token, 0 or 1.
        picture: an image that some tokens are patches of.
        plan: the tiles that attention visits, for maps of its size.
        title: of the page.
        start: the state in which the page opens.
        masked: the mask, in words.
        notes: sentences to show.
    """

    labels: Labels
    sentences: Mapping[str, Sequence[int]]
    picture: Picture | None
    plan: Tiles | None
    title: str
    start: Mapping[str, Any]
    masked: str = ""
    notes: tuple[str, ...] = ()


class Blobs:
    """Packed arrays, each once, by their index."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._known: dict[bytes, int] = {}

    def add(self, array: np.ndarray, *, shared: bool = False) -> int:
        """The index of an array's bytes; with `shared`, that of equal ones if there are any."""
        data = array.tobytes() if shared else b""
        if shared and data in self._known:
            return self._known[data]
        self._arrays.append(array)
        if shared:
            self._known[data] = len(self._arrays) - 1
        return len(self._arrays) - 1

    def packed(self) -> list[str]:
        """All arrays as the page reads them."""
        return encoding.packed_all(self._arrays)


def contents(maps: Maps, beside: Beside, bits: int) -> tuple[dict[str, Any], list[str]]:
    """The page's JSON, and the packed arrays that it names.

    Args:
        maps: of one example.
        beside: what is shown besides them.
        bits: of the codes of weights.
    """
    blobs = Blobs()
    groups: dict[Any, dict[str, Any]] = {}
    notes = list(beside.notes)
    for layer in maps:
        key = _group_of(layer)
        if key not in groups:
            groups[key] = _group(layer, beside, len(groups))
        groups[key]["layers"].append(_layer(layer, beside, bits, blobs, notes))
    for group in groups.values():
        group["name"] = _title(group, list(groups.values()))
    return {
        "title": beside.title,
        "notes": notes,
        "levels": 2**bits - 1,
        "bits": bits,
        "groups": list(groups.values()),
        "measures": list(beside.labels.measures),
        "image": None if beside.picture is None else beside.picture.url,
        "start": dict(beside.start),
        "masked": beside.masked,
    }, blobs.packed()


def _group_of(layer: Layer) -> tuple[Any, ...]:
    """A key that is equal for layers of one group: the same tokens, and names that differ only by numbers."""
    pattern = re.sub(r"\d+", "*", layer.name)
    return layer.side, pattern, layer.shape[2:], layer.queries, layer.query_tokens, layer.key_tokens


def _group(layer: Layer, beside: Beside, number: int) -> dict[str, Any]:
    _, _, queries, keys = layer.shape
    sides = {"queries": layer.side, "keys": layer.side}
    if layer.side == "cross":
        sides = {"queries": "decoder", "keys": "encoder"}
    texts = {
        "queries": layer.query_tokens[0] if layer.query_tokens else tuple(map(str, layer.queries)),
        "keys": layer.key_tokens[0] if layer.key_tokens else tuple(map(str, range(keys))),
    }
    places = {"queries": layer.queries, "keys": tuple(range(keys))}
    parts, grids = {}, {}
    for of, count in (("queries", queries), ("keys", keys)):
        parts[of] = _parts(beside.sentences, sides[of], places[of], count)
        grids[of] = (
            None if beside.picture is None else beside.picture.grid_for(places[of], keys if of == "keys" else None)
        )
    return {
        "name": re.sub(r"[._#]?\d+", "", layer.name),
        "side": layer.side,
        "queries": list(texts["queries"]),
        "keys": list(texts["keys"]),
        "numbers": list(layer.queries),
        "same": queries == keys and texts["queries"] == texts["keys"],
        "sentences": None if None in parts.values() else parts,
        "grids": grids,
        "layers": [],
    }


def _title(group: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    """What the page calls a group: by its side, or by its name and size where several groups have that side."""
    sides = [one["side"] for one in groups]
    words = {"self": "self-attention", "encoder": "encoder", "decoder": "decoder", "cross": "cross: decoder to encoder"}
    if sides.count(group["side"]) == 1:
        return words[group["side"]]
    return f"{group['name'].strip('.') or words[group['side']]} ({len(group['queries'])} × {len(group['keys'])})"


def _parts(sentences: Mapping[str, Sequence[int]], side: str, places: Sequence[int], count: int) -> list[int] | None:
    """The sentence of each query or key, 0 or 1; None if it is not known for all."""
    given = sentences.get(side, sentences.get("self"))
    if given is None or len(given) <= max(places):
        return None
    return [int(given[place]) for place in places][:count]


def _layer(layer: Layer, beside: Beside, bits: int, blobs: Blobs, notes: list[str]) -> dict[str, Any]:
    absent = is_absent(layer)
    weights = None if absent else layer.weights[0]
    if weights is not None:
        notes.extend(layer.notes())
    mask = _mask(layer, weights)
    vectors = layer.vectors
    heads = []
    for place, number in enumerate(layer.heads):
        head: dict[str, Any] = {"number": number, **beside.labels.of(layer.name, number)}
        if weights is not None:
            one = weights[place]
            head["weights"] = blobs.add(encoding.codes(one, bits))
            if (scale := encoding.scale_of(one)) != 1:
                head["scale"] = scale
            bad = ~np.isfinite(one)
            if bad.any():
                head["bad"] = blobs.add(encoding.bits_of(bad))
        own = None if mask is None else mask[min(place, len(mask) - 1)]
        if vectors is not None and not all(np.isfinite(one[0, place % one.shape[1]]).all() for one in vectors):
            notes.append(f"{layer.name}: the query or key of head {number} is NaN or infinite in part, and not shown")
        elif vectors is not None:
            head |= _vectors(
                vectors[0][0, place], vectors[1][0, place], own, None if weights is None else weights[place], blobs
            )
        if own is not None and not own.all():
            head["mask"] = blobs.add(encoding.bits_of(own), shared=True)
        if beside.plan is not None and fits(beside.plan, layer.shape[2:]):
            q_tile, k_tile, states, _ = beside.plan
            states = states.reshape(-1, *states.shape[-2:])
            chosen = states[number % len(states)].astype(np.uint8)
            head["plan"] = {"tiles": [q_tile, k_tile], "states": blobs.add(chosen, shared=True)}
        heads.append(head)
    return {"name": layer.name, "heads": heads, **({"besides": list(layer.besides)} if layer.besides else {})}


def _mask(layer: Layer, weights: np.ndarray | None) -> np.ndarray | None:
    """Booleans `[heads or 1, queries, keys]`: the mask that is known, or else where no head's weight is 0."""
    if layer.mask is not None:
        found = layer.mask[0]
    elif weights is not None:
        found = (weights != 0).any(0, keepdims=True)
    else:
        found = None
    if layer.valid_keys is not None:
        valid = layer.valid_keys[0][None, None]
        found = np.broadcast_to(valid, (1, *layer.shape[2:])) if found is None else found & valid
    return found


def _vectors(
    query: np.ndarray, key: np.ndarray, mask: np.ndarray | None, weights: np.ndarray | None, blobs: Blobs
) -> dict[str, Any]:
    """Queries and keys of a head as int8, and how far the softmax of their products is from the weights."""
    stored_query, read_query = encoding.vectors(query)
    stored_key, read_key = encoding.vectors(key)
    found: dict[str, Any] = {
        "query": blobs.add(stored_query),
        "key": blobs.add(stored_key, shared=True),  # grouped heads share it
        "features": int(query.shape[-1]),
    }
    if weights is not None and weights.size <= 2**22:
        found["off"] = off_by(read_query, read_key, mask, weights)
    return found


def check_sentences(given: Any, maps: Maps, example: int) -> dict[str, list[int]]:
    """`sentences` as a list for each side.

    Args:
        given: as in `view`.
        maps: of one example.
        example: its number in the batch, which chooses among lists for several examples.

    Raises:
        ValueError: it is not the start of the second sentence, nor ones and zeros for the tokens.
    """
    if given is None:
        return {}
    found = {}
    one: Any
    if isinstance(given, Mapping) and set(given) - set(SIDES):
        raise ValueError(f"`sentences` must have keys among {', '.join(map(repr, SIDES))}; got {list(given)}.")
    for side, one in (given if isinstance(given, Mapping) else {"self": given}).items():
        one = one.tolist() if hasattr(one, "tolist") else list(one) if isinstance(one, tuple) else one
        length = max((max(layer.queries) + 1 for layer in maps), default=0)
        if isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= length:
            one = [int(place >= one) for place in range(max(length, *(layer.shape[3] for layer in maps)))]
        if isinstance(one, list) and one and isinstance(one[0], list | tuple):
            one = one[0] if len(one) == 1 else one[example] if example < len(one) else None
        if not isinstance(one, list | tuple) or not all(number in (0, 1) for number in one) or len(one) < length:
            raise ValueError(
                "`sentences` must be the number of the first token of the second sentence, or 0 and 1 for each of the "
                f"{length} tokens, as a tokenizer's `token_type_ids`; got {describe(given)}."
            )
        found[side] = [int(number) for number in one]
    return found
