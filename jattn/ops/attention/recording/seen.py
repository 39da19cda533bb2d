"""What `jattn.record` has seen: weights by the name of their layer."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ....foundation.arrays import describe
from ....foundation.columns import columns
from .choice import KEPT, Layers, abbreviates, listed, matches

Tokens = tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Record:
    """The weights of one attention call. A pytree of its arrays.

    Attributes:
        weights: `[..., heads, queries, kv_len]`, those that the values were multiplied by: after the normalizer and
            dropout. None if they were not kept.
        gradient: the gradient with respect to the weights, of the same shape, or None.
        heads: the indices of the heads that were chosen; None for all.
        queries: the indices of the queries that were chosen; None for all.
        q_heads, q_len, kv_len: the sizes of the call.
        query_tokens: the token of each recorded query: texts, or a tuple of them for each example; or None.
        key_tokens: the token of each key, likewise.
        query: `[..., heads, queries, features]`, as it enters the scores: after projection, rotary positions and
            normalization, times the scale. None if it was not kept.
        key: `[..., kv_heads, kv_len, features]`, likewise. Consecutive heads share a key head; with chosen `heads`,
            each has its own.
        allowed: which pairs may attend, as bits in uint8 `[..., heads or 1, queries, ⌈kv_len / 8⌉]`; None if all may,
            or if neither query nor key was kept. `mask` has booleans.
        besides: names of what makes the weights besides softmax(query · key | mask), such as `("SoftCap",)`.
    """

    weights: Any
    gradient: Any
    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None
    q_heads: int
    q_len: int
    kv_len: int
    query_tokens: Tokens | None = None
    key_tokens: Tokens | None = None
    query: Any = None
    key: Any = None
    allowed: Any = None
    besides: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape `[..., heads, queries, kv_len]` of the weights, kept or not."""
        if self.weights is not None:
            return tuple(self.weights.shape)
        heads = self.q_heads if self.heads is None else len(self.heads)
        queries = self.q_len if self.queries is None else len(self.queries)
        batch = (self.key if self.query is None else self.query).shape[:-3]
        return (*batch, heads, queries, self.kv_len)

    @property
    def mask(self) -> jax.Array | None:
        """Booleans `[..., heads or 1, queries, kv_len]`, True where a query may attend; None if `allowed` is None."""
        if self.allowed is None:
            return None
        return jnp.unpackbits(self.allowed, axis=-1, count=self.kv_len).astype(bool)

    def with_tokens(self, name: str, queries: Any, keys: Any) -> "Record":
        """The record with tokens of the whole call, of which it keeps those of its queries and keys."""
        query_tokens = _checked("queries", queries, self.q_len, name)
        key_tokens = _checked("keys", keys, self.kv_len, name)
        if self.queries is not None:
            nested = bool(query_tokens) and isinstance(query_tokens[0], tuple)
            rows = query_tokens if nested else (query_tokens,)
            chosen = tuple(tuple(row[index] for index in self.queries) for row in rows)
            query_tokens = chosen if nested else chosen[0]
        return dataclasses.replace(self, query_tokens=query_tokens, key_tokens=key_tokens)


jax.tree_util.register_dataclass(
    Record,
    data_fields=["weights", "gradient", "query", "key", "allowed"],
    meta_fields=["heads", "queries", "q_heads", "q_len", "kv_len", "query_tokens", "key_tokens", "besides"],
)


def _checked(argument: str, tokens: Any, length: int, name: str) -> Tokens:
    """Tokens of a call as a tuple, or a tuple for each example.

    Raises:
        ValueError: they are no lists, or of another length.
    """
    rows, nested = token_rows(argument, tokens)
    for row in rows:
        if len(row) != length:
            raise ValueError(
                f"`{argument}` must have {length} tokens for {name!r}; got {len(row)}. Name the layers that these "
                "tokens are for: `seen.tokens(queries, keys, layers=...)`."
            )
    return tuple(rows) if nested else rows[0]


def token_rows(argument: str, tokens: Any) -> tuple[list[Tokens], bool]:
    """The lists of tokens in an argument, and whether there is one for each example.

    Raises:
        ValueError: it is no list.

    >>> token_rows("tokens", ["the", "cat"]), token_rows("tokens", [["the"], ["a"]])
    (([('the', 'cat')], False), ([('the',), ('a',)], True))
    """
    found = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if isinstance(found, str) or not isinstance(found, Sequence):
        raise ValueError(f"`{argument}` must be a list of tokens, or one for each example; got {describe(tokens)}.")
    nested = bool(found) and all(isinstance(row, Sequence) and not isinstance(row, str | bytes) for row in found)
    return [tuple(row) for row in (found if nested else [found])], nested


@jax.tree_util.register_pytree_with_keys_class
class Seen(Mapping[str, Any]):
    """Attention weights by name: a mapping, in the order of the calls, and a pytree of the arrays.

    `seen["decoder.blocks.3.cross"]` are the weights `[..., heads, queries, kv_len]`, and so are
    `seen["decoder.3.cross"]`: parts of a name suffice if they stand for one. A layer that attended several times has
    the names `name#0`, `name#1`, ... Calls outside of modules and `jattn.named` are `attention.0`, `attention.1`, ...
    Printing it shows a table.

    Attributes:
        records: for each name its `Record`: also the indices of heads and queries, and tokens.
    """

    def __init__(self, records: Mapping[str, Record] | None = None):
        self.records: dict[str, Record] = dict(records or {})

    def __getitem__(self, name: str) -> Any:
        record = self.record(name)
        if record.weights is None:
            raise ValueError(
                f"the weights of {name!r} were not kept: `keep=('weights', 'query', 'key')` keeps them too. What was "
                f"kept is in `seen.record({name!r})`."
            )
        return record.weights

    def __contains__(self, name: object) -> bool:
        try:
            return self.record(name) is not None  # type: ignore[arg-type]
        except KeyError:
            return False

    def __iter__(self) -> Iterator[str]:
        return iter(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def record(self, name: str) -> Record:
        """The `Record` of a name, or of parts of it.

        Raises:
            KeyError: there is none, or more than one; the message lists them.
        """
        if name in self.records:
            return self.records[name]
        meant = [one for one in self.records if isinstance(name, str) and abbreviates(name, one)]
        if len(meant) == 1:
            return self.records[meant[0]]
        if meant:
            raise KeyError(f"{name!r} may be any of {listed(meant)}: name one of them.")
        raise KeyError(f"nothing is recorded under {name!r}, but under {listed(list(self.records)) or 'no name'}.")

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """For each name, the shape of its weights, kept or not."""
        return {name: record.shape for name, record in self.records.items()}

    @property
    def gradients(self) -> dict[str, Any]:
        """For each name, the gradient with respect to the weights, of their shape.

        Raises:
            ValueError: gradients were not recorded.
        """
        if any(record.gradient is None for record in self.records.values()):
            raise ValueError(
                "gradients were not recorded: `jattn.recorded(function, gradients=True)` records those of the number "
                "that `function` returns."
            )
        return {name: record.gradient for name, record in self.records.items()}

    def tokens(self, queries: Any, keys: Any = None, *, layers: Layers = None) -> "Seen":
        """A copy with tokens attached.

        Args:
            queries: the tokens of all queries of the calls, a list of texts or one list for each example.
            keys: those of the keys; by default the same.
            layers: the names or patterns of the layers that they are for, by default all.

        Raises:
            ValueError: a layer has another number of queries or keys; no name matches.

        >>> import jax, jattn
        >>> x = jax.random.normal(jax.random.key(0), (3, 2, 4))
        >>> with jattn.record(queries=-1) as seen:
        ...     y = jattn.attention(x, x, x)
        >>> seen.tokens(["the", "cat", "sat"]).record("attention.0").query_tokens
        ('sat',)
        """
        chosen = set(self._chosen(layers))
        keys = queries if keys is None else keys
        return Seen(
            {
                name: record.with_tokens(name, queries, keys) if name in chosen else record
                for name, record in self.records.items()
            }
        )

    def stack(self, layers: Layers = None) -> Any:
        """The weights of several layers in one array `[layers, ..., heads, queries, kv_len]`.

        Raises:
            ValueError: their shapes differ; no name matches.
        """
        names = self._chosen(layers)
        shapes = {name: self.shapes[name] for name in names}
        if len(set(shapes.values())) > 1:
            found = listed([f"{name} {shape}" for name, shape in shapes.items()])
            raise ValueError(f"`layers` must have weights of one shape to be stacked; got {found}.")
        return jnp.stack([self[name] for name in names])

    def _chosen(self, layers: Layers) -> list[str]:
        if layers is None and self.records:
            return list(self.records)
        given = [layers] if isinstance(layers, str | int) else list(layers or ())
        names = list(self.records)
        found = [
            name
            for number, name in enumerate(names)
            if any(number == one if isinstance(one, int) else matches(name, one) for one in given)
        ]
        if not found:
            raise ValueError(f"`layers` must match some of {listed(names) or 'no names'}; got {layers!r}.")
        return found

    def __repr__(self) -> str:
        kept = [name for name in KEPT if any(getattr(one, name) is not None for one in self.records.values())]
        header = ("name", *(kept or KEPT[:1]), "heads", "queries", "keys", "tokens")
        lines = columns([header, *(_row(name, record, header[1:-4]) for name, record in self.records.items())])
        size = sum(
            math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(self) if hasattr(leaf, "dtype")
        )
        graded = bool(self.records) and all(record.gradient is not None for record in self.records.values())
        lines.append(f"{len(self)} recorded, {size / 2**20:,.1f} MiB{', with gradients' if graded else ''}")
        return "\n".join(lines)

    def tree_flatten_with_keys(self) -> tuple[Any, Any]:
        """Records by name, in the order of the calls."""
        return [(jax.tree_util.DictKey(name), record) for name, record in self.records.items()], tuple(self.records)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Likewise, without keys."""
        return list(self.records.values()), tuple(self.records)

    @classmethod
    def tree_unflatten(cls, names: tuple[str, ...], records: Sequence[Record]) -> "Seen":
        """The inverse of `tree_flatten`."""
        return cls(dict(zip(names, records, strict=True)))

    __eq__ = object.__eq__  # two recordings are not compared: their arrays have no one truth value
    __hash__ = object.__hash__  # type: ignore[assignment]


def _row(name: str, record: Record, kept: Sequence[str]) -> tuple[str, ...]:
    def shape(array: Any) -> str:
        return f"{array.dtype}{list(array.shape)}" if hasattr(array, "shape") else "-"

    def some(indices: tuple[int, ...] | None, count: int) -> str:
        return f"all {count}" if indices is None else listed(list(map(str, indices)), most=6)

    tokens = "-" if record.query_tokens is None else "attached"
    return (
        name,
        *(shape(getattr(record, one)) for one in kept),
        some(record.heads, record.q_heads),
        some(record.queries, record.q_len),
        str(record.kv_len),
        tokens,
    )
