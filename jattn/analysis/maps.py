"""Attention maps from any source as one object: what every measure and every view takes.

`read` (in `jattn.analysis.reading`) makes it. The arrays stay what and where they were, on an accelerator or in
PyTorch, and become NumPy arrays one layer at a time, when `Layer.weights` is asked for.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import jax
import numpy as np

from ..foundation.arrays import describe
from ..foundation.columns import columns
from ..ops.attention.recording.choice import Layers, abbreviates, listed, matches
from .foreign import as_numpy, attention_shape, row_softmax

SIDES = ("self", "encoder", "decoder", "cross")
"""What attends to what: one sequence to itself ("self"); where there are two, the encoder's to itself, the decoder's to
itself, or the decoder's to the encoder's ("cross")."""

Tokens = tuple[tuple[str, ...], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Layer:
    """The attention maps of one layer.

    Attributes:
        name: its name.
        side: one of `SIDES`.
        source: the weights as they were given; a `jax.ShapeDtypeStruct` where they are to be computed from `query` and
            `key`.
        heads: the indices of the heads in the model, in the order of `weights`.
        queries: the indices of the queries, likewise.
        q_len: how many queries there were to choose from.
        examples: the indices of the examples in `source`, in the order of `weights`.
        picked: the indices of the heads in `source`, likewise.
        query_tokens, key_tokens: for each example, the tokens of its queries and keys; None if they are not known.
        mask: booleans `[batch or 1, heads or 1, queries, keys]`, True where a query may attend; None if not known.
        valid_queries, valid_keys: booleans `[batch, queries]` and `[batch, keys]`, False for padding; None if there is
            none.
        query, key: what the weights were made of, as given, or None; `vectors` has them as NumPy arrays.
        besides: what else they were made of than softmax(query · key | mask), if it is known: names of pieces.
        gradient: the gradient of a loss with respect to the weights, as given, or None.
    """

    name: str
    side: str
    source: Any
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    q_len: int
    examples: tuple[int, ...]
    picked: tuple[int, ...]
    query_tokens: Tokens | None = None
    key_tokens: Tokens | None = None
    mask: np.ndarray | None = None
    valid_queries: np.ndarray | None = None
    valid_keys: np.ndarray | None = None
    query: Any = None
    key: Any = None
    gradient: Any = None
    besides: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`[batch, heads, queries, keys]` of `weights`, which reads no value."""
        _, _, queries, keys = attention_shape(self.name, self.source)
        return len(self.examples), len(self.heads), queries, keys

    @property
    def positions(self) -> np.ndarray | None:
        """Where each query is among the keys, if it is one of them; None in cross-attention and with a cache."""
        return np.array(self.queries) if self.side != "cross" and self.q_len == self.shape[3] else None

    @property
    def weights(self) -> np.ndarray:
        """The weights, float32 `[batch, heads, queries, keys]`. Converted or computed anew each time, and not kept.

        Raises:
            ValueError: they are to be computed, and depend on more than the query, key and mask.
        """
        if not isinstance(self.source, jax.ShapeDtypeStruct):
            return self._chosen(self.source)
        vectors = self.vectors
        if self.besides or vectors is None:
            more = f"they also depend on {', '.join(self.besides)}" if self.besides else "there is no query and key"
            raise ValueError(
                f"the weights of {self.name!r} were not kept and cannot be computed: {more}. Record them, too: "
                "`keep=('weights', 'query', 'key')`."
            )
        scores = np.matmul(vectors[0], vectors[1].swapaxes(-1, -2))
        return row_softmax(scores, self.mask)

    @property
    def gradients(self) -> np.ndarray | None:
        """The gradient with respect to the weights, likewise; None if it is not known."""
        return None if self.gradient is None else self._chosen(self.gradient)

    @property
    def vectors(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Queries and keys, float32 `[batch, heads, queries or keys, features]`; None if they are not known."""
        if self.query is None or self.key is None:
            return None
        return self._chosen(self.query), self._chosen(self.key)

    def _chosen(self, source: Any) -> np.ndarray:
        """The chosen examples and heads of an array, as NumPy's `[batch, heads, ...]`."""
        array = as_numpy(source)
        array = array.reshape(-1, *array.shape[-3:])
        array = array.repeat(attention_shape(self.name, self.source)[1] // array.shape[1], 1)  # keys that heads share
        if self.examples != tuple(range(array.shape[0])):
            array = array[list(self.examples)]
        if self.picked != tuple(range(array.shape[1])):
            array = array[:, list(self.picked)]
        return array

    @property
    def may_attend(self) -> np.ndarray:
        """Booleans `[batch or 1, heads or 1, queries, keys]`: where a query may attend to a key.

        The given mask. Without one, the pairs whose weight is not exactly 0 in some head: a softmax gives 0 to pairs
        that are masked, and to others only where the exponential underflows.
        """
        return (self.weights != 0).any(1, keepdims=True) if self.mask is None else self.mask

    @property
    def counted(self) -> np.ndarray | None:
        """Booleans `[batch, 1, queries, keys]`: pairs of which neither is padding. None if there is no padding."""
        if self.valid_queries is None or self.valid_keys is None:
            return None
        return (self.valid_queries[:, :, None] & self.valid_keys[:, None, :])[:, None]

    def notes(self) -> list[str]:
        """What is unusual about the values, in words: NaN, negative numbers, rows that do not sum to 1."""
        weights, found = self.weights, []
        bad = int((~np.isfinite(weights)).sum())
        if bad:
            example, head, *_ = np.argwhere(~np.isfinite(weights))[0]
            found.append(
                f"{self.name}: {bad:,} of {weights.size:,} weights are NaN or infinite, the first in head "
                f"{self.heads[head]} of example {self.examples[example]}"
            )
        if (weights < 0).any():
            found.append(
                f"{self.name}: {int((weights < 0).sum()):,} weights are negative, the least {weights.min():.3g}"
            )
        sums = weights.sum(-1)
        if self.valid_queries is not None:
            sums = sums[np.broadcast_to(self.valid_queries[:, None], sums.shape)]
        sums = sums[np.isfinite(sums) & (sums != 0)]  # a query that may attend to nothing has a row of zeros
        if sums.size and np.abs(sums - 1).max() > 0.02:
            found.append(
                f"{self.name}: rows sum to {sums.min():.3g} to {sums.max():.3g}, so these are not of a softmax"
            )
        return found


@dataclasses.dataclass(frozen=True, eq=False)
class Maps(Sequence[Layer]):
    """The attention maps of several layers: a sequence of `Layer`, also found by name. Printing it shows a table.

    Attributes:
        layers: in their order.
    """

    layers: tuple[Layer, ...]

    @property
    def names(self) -> list[str]:
        """The names of the layers, in their order."""
        return [layer.name for layer in self.layers]

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Layer]:
        return iter(self.layers)

    @overload
    def __getitem__(self, key: int | str) -> Layer: ...
    @overload
    def __getitem__(self, key: slice) -> "Maps": ...  # type: ignore[override]
    def __getitem__(self, key: Any) -> Any:
        """A layer by its number, its name, or parts of the name that stand for one layer."""
        if isinstance(key, slice):
            return Maps(self.layers[key])
        if isinstance(key, str):
            if key in self.names:
                return self.layers[self.names.index(key)]
            meant = [layer for layer in self.layers if abbreviates(key, layer.name)]
            if len(meant) == 1:
                return meant[0]
            what = f"any of {listed([layer.name for layer in meant])}" if meant else "none"
            raise KeyError(f"{key!r} stands for {what} of the layers {listed(self.names)}.")
        if not is_index(key):
            raise ValueError(f"a layer of `Maps` is found by its number or its name; got {describe(key)}.")
        return self.layers[key]

    def choose(self, *, layers: Layers = None, heads: Any = None, examples: Any = None) -> "Maps":
        """The maps of some layers, heads and examples.

        Args:
            layers: names, patterns such as `"decoder.*.cross"`, or numbers of layers, one or several; None for all.
            heads: indices of heads, one or several.
            examples: indices of examples, one or several.

        Raises:
            ValueError: one does not exist; the message lists those that do.
        """
        wanted = _several(layers)
        if layers is not None and not wanted:
            raise ValueError(f"`layers` must name at least one layer, or be None for all; got {describe(layers)}.")
        found = [
            layer
            for number, layer in enumerate(self.layers)
            if layers is None or any(_met(one, layer.name, number) for one in wanted)
        ]
        for one in wanted:
            if not any(_met(one, layer.name, number) for number, layer in enumerate(self.layers)):
                raise ValueError(
                    f"`layers` must be names or patterns of layers, or numbers from 0 to {len(self) - 1}; got {one!r}. "
                    f"There are: {listed(self.names)}."
                )
        return Maps(tuple(_of(_of(layer, "heads", heads), "examples", examples) for layer in found))

    def arrays(self, *, limit: int = 2**30) -> dict[str, np.ndarray]:
        """All weights at once, float32 `[batch, heads, queries, keys]` by name.

        Args:
            limit: the largest number of bytes.

        Raises:
            ValueError: they take more.
        """
        self.check_size(limit)
        return {layer.name: layer.weights for layer in self.layers}

    def check_size(self, limit: int) -> None:
        """Check that all weights take at most so many bytes as float32.

        Raises:
            ValueError: they take more; the message says how many maps there are, and how to choose.
        """
        if not is_index(limit) or limit < 0:
            raise ValueError(f"`limit` must be a number of bytes, such as `2**30`; got {describe(limit)}.")
        count = sum(layer.shape[0] * layer.shape[1] for layer in self.layers)
        size = sum(4 * int(np.prod(layer.shape, dtype=np.int64)) for layer in self.layers)
        if size > limit:
            raise ValueError(
                f"`limit` is {limit:,} bytes, and {count:,} maps of {len(self)} layers take {size:,}. Choose "
                "fewer with `layers=`, `heads=` or `examples=`, take one layer at a time, or raise `limit=`."
            )

    def each(self, function: Callable[..., Any]) -> dict[str, Any]:
        """`function(weights, where)` of each layer by name, compiled, one layer at a time.

        Args:
            function: of float32 `[batch, heads, queries, keys]` and of booleans that broadcast with it, True for pairs
                without padding: any measure of this package, or a function of JAX.

        Returns:
            For each layer the result as NumPy arrays.
        """
        if not callable(function):
            raise ValueError(f"`function` must be a function of weights and `where`; got {describe(function)}.")
        compiled = jax.jit(function)
        always = np.ones((1, 1, 1, 1), bool)
        found = {}
        for layer in self.layers:
            counted = layer.counted
            found[layer.name] = jax.tree.map(
                np.asarray, compiled(layer.weights, always if counted is None else counted)
            )
        return found

    def notes(self) -> list[str]:
        """What is unusual about the values of any layer, in words."""
        return [note for layer in self.layers for note in layer.notes()]

    def __repr__(self) -> str:
        rows: list[tuple[str, ...]] = [("layer", "side", "batch", "heads", "queries", "keys", "tokens")]
        for layer in self.layers:
            tokens = "-" if layer.key_tokens is None else " ".join(layer.key_tokens[0][:4])
            rows.append((layer.name, layer.side, *map(str, layer.shape), tokens[:30]))
        return "\n".join(columns(rows))


def is_index(value: Any) -> bool:
    """Whether it is an int, of Python or NumPy."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _several(given: Any) -> list[Any]:
    """One or several layers as a list, empty for None."""
    if given is None:
        return []
    if isinstance(given, str | int | np.integer):
        return [given]
    try:
        return list(given)
    except TypeError:
        raise ValueError(f"`layers` must be a name, a number, or several of these; got {describe(given)}.") from None


def _met(wanted: Any, name: str, number: int) -> bool:
    """Whether a name, pattern or number stands for the layer of this name and number."""
    return matches(name, wanted) if isinstance(wanted, str) else number == wanted


def _of(layer: Layer, axis: str, given: Any) -> Layer:
    """The layer with some of its heads or examples."""
    if given is None:
        return layer
    there = list(getattr(layer, axis))
    try:
        array = np.atleast_1d(np.asarray(list(given) if isinstance(given, range | set | frozenset) else given))
    except ValueError:  # lists of different lengths
        array = np.zeros(0)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"`{axis}` must be one index or several; got {describe(given)}.")
    wanted = array.tolist()
    for one in wanted:
        if one not in there:
            raise ValueError(f"`{axis}` must be among {listed(list(map(str, there)))} for {layer.name!r}; got {one}.")
    places = [there.index(one) for one in wanted]

    def some(array: Any, number: int) -> Any:
        """Of an axis of size 1 or that of the layer."""
        if array is None or array.shape[number] == 1 < len(there):
            return array
        return array.take(places, number)

    if axis == "heads":
        return dataclasses.replace(
            layer,
            heads=tuple(wanted),
            picked=tuple(layer.picked[place] for place in places),
            mask=some(layer.mask, 1),
        )
    tokens = {
        name: None if (found := getattr(layer, name)) is None else tuple(found[place] for place in places)
        for name in ("query_tokens", "key_tokens")
    }
    arrays = {name: some(getattr(layer, name), 0) for name in ("mask", "valid_queries", "valid_keys")}
    return dataclasses.replace(layer, examples=tuple(wanted), **tokens, **arrays)
