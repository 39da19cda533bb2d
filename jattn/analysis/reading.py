"""`read`: any source of attention maps as `Maps`."""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from .. import masks
from ..foundation.arrays import describe
from ..ops.attention.recording import Seen
from ..ops.attention.recording.choice import Layers, listed
from ..ops.attention.recording.seen import token_rows
from .foreign import as_numpy, attention_shape, check_floats
from .maps import SIDES, Layer, Maps, Tokens

CROSS = re.compile(r"cross|enc_?dec_?att|encoder_?att", re.IGNORECASE)


def read(
    source: Any,
    *,
    tokens: Any = None,
    key_tokens: Any = None,
    side: str | None = None,
    mask: Any = None,
    valid: Any = None,
    query: Any = None,
    key: Any = None,
    layers: Layers = None,
    heads: Any = None,
    examples: Any = None,
) -> Maps:
    """Attention maps from any source.

    | source | is |
    |---|---|
    | `seen` of `jattn.record` or `jattn.recorded` | with its tokens, gradients, query, key, and indices of heads |
    | a list of arrays, one for each layer | `outputs.attentions` of Hugging Face, and what BertViz takes |
    | the output of a model of Hugging Face | with weights of all sides |
    | a mapping from names to arrays | names as of layers: `{"blocks.0": array}` |
    | a mapping from sides to lists | `{"encoder": [...], "decoder": [...], "cross": [...]}` |
    | `Maps` | of which some are chosen |

    An array has shape `[batch, heads, queries, keys]` or `[heads, queries, keys]`, and is of JAX, NumPy or PyTorch.
    Nothing is copied until `Layer.weights` is asked for.

    Args:
        source: as above.
        tokens: a list of texts, or one list for each example; `{"encoder": ..., "decoder": ...}` if both attend.
        key_tokens: the tokens of the keys, by default those of the queries.
        side: what all layers attend to, one of `SIDES`; by default from the names: those of cross-attention have
            `cross` in them, and `encoder` and `decoder` tell the others apart if both are there.
        mask: which pairs may attend: a mask of `jattn.masks`, or booleans `[queries, keys]` or `[batch or 1, heads or
            1, queries, keys]`. A mapping gives one for each side.
        valid: ones or booleans `[batch, tokens]`, 0 or False for padding, as Hugging Face's `attention_mask`; a mapping
            for encoder and decoder.
        query, key: queries and keys `[batch, heads, length, features]`, scaled and rotated so that their products are
            the scores; a list or a mapping like `source`. Keys may have fewer heads. By default those that `seen` has:
            `jattn.record(keep=("weights", "query", "key"))`.
        layers: names, patterns or numbers of layers, one or several; by default all.
        heads: indices of heads, likewise.
        examples: indices of examples, likewise.

    Raises:
        ValueError: nothing has attended; a shape is not that of attention; tokens of another length; a layer, head or
            example that does not exist.

    >>> import numpy as np
    >>> from jattn import analysis
    >>> maps = analysis.read([np.full((1, 2, 3, 3), 1 / 3)] * 2, tokens=["the", "cat", "sat"])
    >>> maps
    layer  side  batch  heads  queries  keys  tokens
    0      self  1      2      3        3     the cat sat
    1      self  1      2      3        3     the cat sat
    >>> maps[1].weights.shape
    (1, 2, 3, 3)
    """
    if side is not None and side not in SIDES:
        raise ValueError(f"`side` must be one of {', '.join(map(repr, SIDES))}; got {side!r}.")
    made = isinstance(source, Maps)
    found = source if made else Maps(tuple(_layers(source, side)))
    if made and side is not None:
        raise ValueError("`side` must be left out for `Maps`, whose layers have theirs.")
    queries, keys = _beside(query, "query", found), _beside(key, "key", found)
    given = (tokens, key_tokens, mask, valid)
    complete = [_with(layer, *given, queries.get(layer.name), keys.get(layer.name)) for layer in found]
    return Maps(tuple(complete)).choose(layers=layers, heads=heads, examples=examples)


def _layers(source: Any, side: str | None) -> list[Layer]:
    if isinstance(source, Seen):
        if not source:
            raise ValueError(
                "`source` must have recorded some attention, and is empty: either the `with jattn.record()` block has "
                "not ended, or nothing in it attended through jattn."
            )
        sides = _sides(list(source), side)
        return [_recorded(name, record, sides[name]) for name, record in source.records.items()]
    named = list(_named(source))
    if not named:
        raise ValueError("`source` must have at least one layer; got none.")
    sides = _sides([name for name, _ in named], side)
    found = []
    for name, array in named:
        batch, heads, queries, _ = attention_shape(name, array)
        every = tuple(range(heads))
        found.append(Layer(name, sides[name], array, every, tuple(range(queries)), queries, tuple(range(batch)), every))
    return found


def _named(source: Any) -> Iterable[tuple[str, Any]]:
    """The layers of a list or a mapping, with names."""
    source = _attentions(source)
    if isinstance(source, Mapping):
        for name, value in source.items():
            if isinstance(value, list | tuple):
                yield from ((f"{name}.{number}", one) for number, one in enumerate(value))
            else:
                yield str(name), value
        return
    shape = getattr(source, "shape", None)
    if shape is not None and len(shape) == 5:  # stacked
        source = [source[number] for number in range(shape[0])]
    if not isinstance(source, list | tuple):
        hint = ""
        if shape is not None:
            hint = " For one layer: `[weights]`."
        elif callable(source):
            hint = " Record a model first: `with jattn.record() as seen: model(x)`, then give `seen`."
        raise ValueError(
            "`source` must be what `jattn.record` gives, a list of arrays [batch, heads, queries, keys], one for each "
            f"layer, or a mapping from names to such arrays; got {describe(source)}.{hint}"
        )
    for number, array in enumerate(source):
        if array is None:
            raise ValueError(
                f"layer {number} of `source` is None: the model did not return its weights. Models of Hugging Face do "
                'with `attn_implementation="eager"` and `output_attentions=True`.'
            )
        yield str(number), array


OUTPUTS = {
    "attentions": "self",
    "encoder_attentions": "encoder",
    "decoder_attentions": "decoder",
    "cross_attentions": "cross",
}
"""Of the output of a model of Hugging Face, the fields of weights, and their sides."""


def _attentions(source: Any) -> Any:
    """The weights in the output of a model of Hugging Face; anything else as it is."""
    fields = [name for name in OUTPUTS if hasattr(source, name)]
    if not fields and not hasattr(source, "last_hidden_state"):
        return source
    found = {OUTPUTS[name]: getattr(source, name) for name in fields if getattr(source, name)}
    if not found:
        raise ValueError(
            "`source` is the output of a model that did not return its weights. Models of Hugging Face do with "
            '`attn_implementation="eager"` and `output_attentions=True`.'
        )
    return found["self"] if list(found) == ["self"] else found


def _sides(names: Sequence[str], side: str | None) -> dict[str, str]:
    if side is not None:
        return dict.fromkeys(names, side)

    def of(name: str) -> str:
        if CROSS.search(name):
            return "cross"
        parts = re.split(r"[._#/]", name)
        return next((one for one in ("encoder", "decoder") if one in parts), "self")

    found = {name: of(name) for name in names}
    alone = len(set(found.values())) == 1 and "cross" not in found.values()
    return dict.fromkeys(names, "self") if alone else found


def _recorded(name: str, record: Any, side: str) -> Layer:
    weights = record.weights
    if weights is None and (record.query is None or record.key is None):
        raise ValueError(
            f"`source` must have the weights of {name!r}, or both its query and key: `jattn.record(keep=...)`."
        )
    for argument in ("query", "key"):
        if getattr(record, argument) is not None:
            check_floats(f"the {argument} of {name!r}", getattr(record, argument))
    source = jax.ShapeDtypeStruct(record.shape, np.float32) if weights is None else weights
    batch, heads, queries, _ = attention_shape(name, source)

    def indices(chosen: Any, count: int, size: int) -> tuple[int, ...]:
        return tuple(range(size)) if chosen is None else tuple(index % count for index in chosen)

    return Layer(
        name,
        side,
        source,
        indices(record.heads, record.q_heads, heads),
        indices(record.queries, record.q_len, queries),
        record.q_len,
        tuple(range(batch)),
        tuple(range(heads)),
        _texts("queries", record.query_tokens, batch, queries, name),
        _texts("keys", record.key_tokens, batch, record.kv_len, name),
        mask=_recorded_mask(record),
        query=record.query,
        key=record.key,
        gradient=record.gradient,
        besides=record.besides,
    )


def _recorded_mask(record: Any) -> np.ndarray | None:
    """Which pairs may attend, `[batch or 1, heads or 1, queries, keys]`: once where all heads or examples agree."""
    if record.allowed is None:
        return None
    bits = np.asarray(record.allowed)
    bits = bits.reshape(-1, *bits.shape[-3:])
    for axis in (0, 1):
        first = bits.take([0], axis)
        bits = first if (bits == first).all() else bits
    return np.unpackbits(bits, axis=-1, count=record.kv_len).astype(bool)


def _texts(argument: str, tokens: Any, batch: int, length: int, name: str) -> Tokens | None:
    """Tokens for each example."""
    if tokens is None:
        return None
    rows, nested = token_rows(argument, tokens)
    rows = [tuple(map(str, row)) for row in rows] * (1 if nested else batch)
    if len(rows) != batch:
        raise ValueError(
            f"`{argument}` must be one list, or {batch} for the examples of {name!r}; got {len(rows)} lists."
        )
    for row in rows:
        if len(row) != length:
            raise ValueError(f"`{argument}` must have {length} tokens for {name!r}; got {len(row)}: {listed(row, 8)}.")
    return tuple(rows)


def _by_side(argument: str, given: Any, layer: Layer, of: str) -> Any:
    """Of a mapping, what is for the queries or keys of a layer; anything else is for all layers."""
    if not isinstance(given, Mapping):
        return given
    wanted = {"cross": {"queries": "decoder", "keys": "encoder"}[of]}.get(layer.side, layer.side)
    unknown = set(given) - set(SIDES)
    if unknown or not given:
        raise ValueError(f"`{argument}` must have keys among 'encoder', 'decoder' and 'self'; got {list(given)}.")
    if wanted == "self" and wanted not in given and len(given) == 1:
        return next(iter(given.values()))
    if wanted not in given:
        raise ValueError(f"`{argument}` must also have {wanted!r}, for {layer.name!r}; got {list(given)}.")
    return given[wanted]


def _with(layer: Layer, tokens: Any, key_tokens: Any, mask: Any, valid: Any, query: Any, key: Any) -> Layer:
    """The layer with what was given beside its weights."""
    batch, _, rows, columns = layer.shape
    change: dict[str, Any] = {}
    if layer.side == "cross" and tokens is not None and key_tokens is None and not isinstance(tokens, Mapping):
        raise ValueError(
            f"`tokens` must say which are whose, as {layer.name!r} attends from a decoder to an encoder: "
            "`tokens={'encoder': [...], 'decoder': [...]}`."
        )
    if tokens is not None:
        whole = _by_side("tokens", tokens, layer, "queries")
        if _some_queries(layer):
            whole = _rows_of(whole, layer)
        change["query_tokens"] = _texts("tokens", whole, batch, rows, layer.name)
        others = _by_side("tokens", tokens, layer, "keys") if key_tokens is None else key_tokens
        change["key_tokens"] = _texts(
            "tokens" if key_tokens is None else "key_tokens", others, batch, columns, layer.name
        )
    elif key_tokens is not None:
        change["key_tokens"] = _texts("key_tokens", key_tokens, batch, columns, layer.name)
    if mask is not None:
        chosen = mask
        if isinstance(mask, Mapping):
            if unknown := [one for one in mask if one not in SIDES]:
                raise ValueError(f"`mask` must have keys among {', '.join(map(repr, SIDES))}; got {unknown}.")
            chosen = mask.get(layer.side)
        if chosen is not None:
            change["mask"] = _dense(chosen, layer)
    if valid is not None:
        for of, count in (("queries", rows), ("keys", columns)):
            change[f"valid_{of}"] = _valid(_by_side("valid", valid, layer, of), layer, of, count)
    if query is not None or key is not None:
        change |= _vectors(layer, query, key)
    return dataclasses.replace(layer, **change)


def _some_queries(layer: Layer) -> bool:
    """Whether only some queries were recorded, or in another order."""
    return layer.queries != tuple(range(layer.shape[2]))


def _rows_of(tokens: Any, layer: Layer) -> Any:
    """Of the tokens of a whole call, those of the recorded queries."""
    rows, nested = token_rows("tokens", tokens)
    least = max(layer.queries) + 1
    if any(len(row) < least for row in rows):
        raise ValueError(
            f"`tokens` must have all tokens of {layer.name!r}, at least {least}, for query {least - 1}; got "
            f"{min(map(len, rows))}."
        )
    chosen = [[row[index] for index in layer.queries] for row in rows]
    return chosen if nested else chosen[0]


def _dense(mask: Any, layer: Layer) -> np.ndarray:
    batch, heads, rows, columns = layer.shape
    if isinstance(mask, masks.Mask):
        positions = np.array(layer.queries, np.int32) if _some_queries(layer) else None
        found = np.asarray(masks.create(mask, rows, columns, query_positions=positions))
    else:
        found = as_numpy(mask) if hasattr(mask, "detach") else np.asarray(mask)
    if found.ndim == 2:
        found = found[None, None]
    elif found.ndim == 3 and isinstance(mask, masks.Mask):  # one for each head
        found = found[None]
    wanted = (batch, heads, rows, columns)
    if (
        found.ndim != 4
        or any(have not in (1, want) for have, want in zip(found.shape[:2], wanted[:2], strict=True))
        or (found.shape[2:] != wanted[2:])
    ):
        raise ValueError(
            f"`mask` must be a mask of `jattn.masks`, or booleans [{rows}, {columns}] or [{batch} or 1, {heads} or 1, "
            f"{rows}, {columns}] for {layer.name!r}; got {describe(mask)}."
        )
    if found.dtype != np.bool_ and not np.isin(found, (0, 1)).all():
        raise ValueError("`mask` must be booleans, True where a query may attend; got other numbers than 0 and 1.")
    return found.astype(bool)


def _valid(valid: Any, layer: Layer, of: str, count: int) -> np.ndarray:
    found = np.asarray(as_numpy(valid) if hasattr(valid, "detach") else valid)
    if found.ndim == 1:
        found = found[None]
    batch = layer.shape[0]
    if of == "queries" and _some_queries(layer) and found.ndim == 2 and found.shape[1] > max(layer.queries):
        found = found[:, list(layer.queries)]
    ones = found.dtype == np.bool_ or (found.dtype.kind in "iuf" and np.isin(found, (0, 1)).all())
    if not ones or found.ndim != 2 or found.shape[0] not in (1, batch) or found.shape[1] != count:
        raise ValueError(
            f"`valid` must be ones or booleans [{batch}, {count}] for the {of} of {layer.name!r}, 0 or False for "
            f"padding; got {describe(valid)}."
        )
    return np.broadcast_to(found.astype(bool), (batch, count))


def _beside(given: Any, argument: str, maps: Maps) -> dict[str, Any]:
    """Queries or keys by the names of the layers."""
    if given is None:
        return {}
    found = dict(given) if isinstance(given, Mapping) else dict(zip(maps.names, given, strict=False))
    if set(found) - set(maps.names) or (not isinstance(given, Mapping) and len(given) != len(maps)):
        raise ValueError(
            f"`{argument}` must have one array for each of the {len(maps)} layers {listed(maps.names)}; got "
            f"{listed(list(map(str, found)))}."
        )
    return found


def _vectors(layer: Layer, query: Any, key: Any) -> dict[str, Any]:
    batch, heads, rows, columns = attention_shape(layer.name, layer.source)
    if query is None or key is None:
        raise ValueError(f"`query` and `key` must be given together, for {layer.name!r}.")
    found = {}
    for name, array, length in (("query", query, rows), ("key", key, columns)):
        shape = check_floats(f"`{name}` of {layer.name!r}", array)
        full = (1, *shape) if len(shape) == 3 else shape
        fits = len(full) == 4 and full[0] == batch and full[2] == length and heads % max(full[1], 1) == 0
        if not fits or (name == "query" and full[1] != heads):
            raise ValueError(
                f"`{name}` of {layer.name!r} must have shape [{batch}, {heads}, {length}, features]; got {list(shape)}."
            )
        found[name] = array
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`query` and `key` of {layer.name!r} must have the same number of features; got {query.shape[-1]} and "
            f"{key.shape[-1]}."
        )
    return found | {"besides": ()}
