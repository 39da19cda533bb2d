"""The interface of caches of keys and values: append tokens, and attend to everything cached."""

import abc
import dataclasses
import json
from collections.abc import Callable
from typing import Any, Self, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_batch, check_counts, check_dtype, check_positive
from ...foundation.arrays import describe, dtype_of, known_values, of_rank
from ...foundation.pieces import array, piece, unique_name
from ...foundation.shapes import check_shapes
from ...foundation.shard_map import run_split
from ...foundation.sharding import Layout, gather, layout, split_like, split_of
from ...masks import Mask
from ...masks.base import restricted
from ...ops.attention.api import attention

CacheType = TypeVar("CacheType", bound=type)


def exportable(cls: CacheType) -> CacheType:
    """Register a frozen dataclass as a pytree that `jax.export` can serialize; its static fields are integers."""
    cls = jax.tree_util.register_dataclass(cls)
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=unique_name(cls),
        serialize_auxdata=lambda static: json.dumps(static).encode(),
        deserialize_auxdata=lambda data: tuple(json.loads(data)),
    )
    return cls


@piece
class RealQueries(Mask):
    """Excludes padding queries, which attend to nothing: `real[i]` for the i-th query of the call."""

    real: jax.Array | np.ndarray = array("query")

    def allows(self, query, key):
        del query, key
        return self.real


class View(abc.ABC):
    """The keys and values that new tokens may attend to, with the positions that masks and scores see.

    A place of a cache may be empty, and adjacent places need not hold consecutive tokens. Masks and scores use
    `key_positions`, so they mean the same at every step as over the whole sequence.

    Attributes:
        key: `[batch..., places, kv_heads, k_dim]`, in the dtype of the cache.
        value: `[batch..., places, kv_heads, v_dim]`.
        key_positions: the position of the token in each place, int32 `[places]` or `[batch..., places]`; arbitrary in
            empty places.
        query_positions: the positions of the new tokens, int32 `[batch..., new]`; None if there are none.
        mask: which places a query may see: those that hold a token; none for padding queries. Combine it with the mask
            of the attention.
        overflowed: booleans `[batch...]`: sequences that have exceeded the capacity of the cache, or None if there is
            no limit. The contents of their places are undefined.
    """

    key: Any
    value: Any
    key_positions: Any
    query_positions: Any
    mask: Any
    overflowed: Any

    def attend(self, query: jax.Array, *, mask: Any = None, query_positions: Any = None, **pieces: Any) -> jax.Array:
        """`jattn.attention` of these queries over the cache: `[batch..., new, q_heads, v_dim]`.

        Args:
            query: `[batch..., new, q_heads, k_dim]`.
            mask: a mask over positions: for language models, `Causal()`. By default every query sees every cached
                token, including those appended with it.
            query_positions: by default those of the tokens appended last.
            **pieces: as in `jattn.attention`: `similarity`, `scores`, `normalizer`, `dropout`, `implementation`.

        Returns:
            As `jattn.attention`. 0 for padding. NaN for a sequence that has exceeded the capacity, if this could not
            raise because lengths are traced.

        Raises:
            ValueError: as in `jattn.attention`.
        """
        out = attention(
            query,
            self.key,
            self.value,
            mask=restricted(mask, self.mask),
            query_positions=self.query_positions if query_positions is None else query_positions,
            key_positions=self.key_positions,
            **pieces,
        )
        return self.checked(out)

    @abc.abstractmethod
    def with_keys_as_values(self) -> Self:
        """The view with its keys as values, `v_dim = k_dim`, without a copy: for a cache of latents."""

    def checked(self, out: jax.Array) -> jax.Array:
        """The output `[batch..., ...]` of attention over this view, with NaN for sequences that have overflowed."""
        if self.overflowed is None:
            return out
        overflowed = self.overflowed.reshape(*self.overflowed.shape, *[1] * (out.ndim - self.overflowed.ndim))
        return jnp.where(overflowed, jnp.nan, out)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ArrayView(View):
    """A view of existing arrays. See `View`."""

    key: jax.Array
    value: jax.Array
    key_positions: Any
    query_positions: jax.Array | None
    mask: Mask | None
    overflowed: jax.Array | None = None

    def with_keys_as_values(self):
        return dataclasses.replace(self, value=self.key)


class Cache(abc.ABC):
    """The keys and values of a batch of sequences so far: a pytree. `append` returns a new cache.

    With `jax.jit(..., donate_argnums=...)`, the new cache reuses the memory of the old one.

    Attributes:
        keys, values: the arrays that hold them; their last two axes are `kv_heads` and `k_dim` or `v_dim`.
        lengths: int32 `[batch...]`, the number of tokens of each sequence so far, not counting padding.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array

    def positions(self, new: int, valid: Any = None) -> jax.Array:
        """The positions of the next `new` tokens in their sequences, int32 `[batch..., new]`, as needed to rotate them.

        Args:
            new: the number of new tokens.
            valid: as in `append`. The position of padding is that of the token before it, or 0.
        """
        check_counts(new=new)
        if valid is None:
            return self.lengths[..., None] + of_rank(jnp.arange(new, dtype=jnp.int32), self.lengths.ndim + 1)
        real = as_valid(valid, (*self.lengths.shape, new))
        return jnp.maximum(self.lengths[..., None] + jnp.cumsum(real, -1, dtype=jnp.int32) - 1, 0)

    @abc.abstractmethod
    def append(self, key: jax.Array, value: jax.Array, *, valid: Any = None) -> tuple[View, Self]:
        """Append new tokens to each sequence.

        Args:
            key: `[batch..., new, kv_heads, k_dim]`, stored in the dtype of the cache.
            value: `[batch..., new, kv_heads, v_dim]`.
            valid: booleans `[batch..., new]` or `[new]`: which of the tokens are real; by default all. Prompts of
                different lengths are padded on the right, `np.arange(new) < lengths[:, None]`, or on the left,
                `np.arange(new) >= new - lengths[:, None]`. Padding is not cached and does not advance the position.

        Returns:
            The view that the new tokens attend to, and the cache after them.

        Raises:
            ValueError: shapes do not match; there are more tokens than places, where that is known. In a traced call
                (`jax.jit`) lengths are not known: there `View.attend` returns NaN for these sequences from then on.
        """

    @abc.abstractmethod
    def view(self) -> View:
        """The tokens so far, for queries that append none: cross-attention over keys that are computed once."""

    def _beside(self, key: jax.Array, value: jax.Array) -> tuple[Self, jax.Array, jax.Array]:
        """The cache, sharded like the new tokens where those are split over Explicit mesh axes."""
        key, value = gather(key, -3), gather(value, -3)
        kept: Any = self
        lengths = split_like(self.lengths, key)
        return (
            dataclasses.replace(
                kept, keys=split_like(self.keys, key), values=split_like(self.values, value), lengths=lengths
            ),
            key,
            value,
        )

    def _checked(self, key: Any, value: Any, valid: Any) -> jax.Array | None:
        """Check the new tokens against the cache; returns `valid` as an array of the batch, or None."""
        kv_heads, k_dim = self.keys.shape[-2:]
        sizes = {"kv_heads": kv_heads, "k_dim": k_dim, "v_dim": self.values.shape[-1]}
        found = check_shapes(sizes, key=(key, "... new kv_heads k_dim"), value=(value, "... new kv_heads v_dim"))
        if tuple(key.shape[:-3]) != self.lengths.shape:
            raise ValueError(
                f"`key` must have the batch axes {self.lengths.shape} of the cache in front of [new, kv_heads, k_dim]; "
                f"got {key.shape}."
            )
        return None if valid is None else as_valid(valid, (*self.lengths.shape, found["new"]))


@dataclasses.dataclass(frozen=True)
class Spec(abc.ABC):
    """How keys and values are cached, without arrays: hashable, so a layer may have it as a field."""

    @abc.abstractmethod
    def create(
        self, batch: tuple[int, ...], kv_heads: int, k_dim: int, v_dim: int | None = None, dtype: Any = jnp.float32
    ) -> Cache:
        """A cache without tokens.

        Args:
            batch: batch axes of the keys to come; `()` for none.
            kv_heads: number of key and value heads.
            k_dim: features of a key.
            v_dim: features of a value, by default `k_dim`; 0 if values are computed from the keys.
            dtype: the dtype to store them in. A bfloat16 cache is half as large, and rounds what is stored.

        Raises:
            ValueError: a size or the dtype is invalid.
        """


def check_sizes(batch: Any, kv_heads: Any, k_dim: Any, v_dim: Any, dtype: Any) -> int:
    """Check the arguments of `Spec.create`; returns `v_dim` with its default filled in.

    Raises:
        ValueError: names the invalid argument.
    """
    check_batch(batch)
    check_positive(kv_heads=kv_heads, k_dim=k_dim)
    check_dtype("dtype", dtype)
    if v_dim is None:
        return k_dim
    check_counts(v_dim=v_dim)
    return v_dim


def as_valid(valid: Any, shape: tuple[int, ...]) -> jax.Array:
    """Which tokens are real, as an array `[batch..., new]`.

    Raises:
        ValueError: they are not booleans, or have another shape.
    """
    dtype = dtype_of(valid)
    if dtype != np.bool_ or tuple(valid.shape) not in (shape, shape[-1:]):
        wanted = f"{shape} or {shape[-1:]}" if len(shape) > 1 else f"{shape}"
        raise ValueError(
            f"`valid` must be booleans of shape {wanted}, [batch..., new] or [new], True for tokens that are not "
            f"padding; got {describe(valid)}."
        )
    return jnp.broadcast_to(valid, shape)


def check_room(lengths: jax.Array, new: int, valid: jax.Array | None, places: Any, argument: str) -> None:
    """Check that there is room for the new tokens, as far as lengths are known.

    Raises:
        ValueError: there is not.
    """
    had, real = known_values(lengths), None if valid is None else known_values(valid)
    room = known_values(places) if isinstance(places, jax.Array) else places
    count = real.sum(-1) if real is not None else new if valid is None else None
    if room is None or count is None:
        return
    total = count if had is None else had + count
    if np.size(total) and (np.asarray(total) > room).any():
        total, room = (
            np.broadcast_to(one, np.broadcast_shapes(np.shape(total), np.shape(room))) for one in (total, room)
        )
        worst = np.unravel_index(np.argmax(total - room), total.shape)
        raise ValueError(
            f"`key` must end within the {room[worst]} places of the cache; with its tokens a sequence has "
            f"{total[worst]}. {argument}"
        )


def put_rows(kept: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
    """`kept [batch..., places, heads, dim]`, with row i of `rows [batch..., new, heads, dim]` at `place[..., i]`.

    Rows whose place is beyond the last one are dropped.
    """
    axes = place.ndim - 1
    of_rows = layout(axes, None, "head", None)
    return on_shards(_by_rows, (kept, rows.astype(kept.dtype), place), (of_rows, of_rows, layout(axes, None)), of_rows)


def put_block(kept: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    """`kept` with all of `rows` copied to the places from `start [batch...]` on, which must be enough."""
    axes = start.ndim
    of_rows = layout(axes, None, "head", None)
    return on_shards(_as_block, (kept, rows.astype(kept.dtype), start), (of_rows, of_rows, layout(axes)), of_rows)


def on_shards(function: Callable[..., Any], arrays: tuple, layouts: tuple, result: Layout) -> jax.Array:
    """`function(*arrays)`; of arrays split over Explicit axes, on each device's own part.

    There JAX does not differentiate what reads and writes at indices.
    """
    split = split_of(arrays, layouts)
    return function(*arrays) if split is None else run_split(function, arrays, layouts, result, split)


def _by_rows(kept: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
    def one(kept: jax.Array, rows: jax.Array, place: jax.Array) -> jax.Array:
        return kept.at[place].set(rows, mode="drop")

    return _over_batch(one, place.ndim - 1)(kept, rows, place)


def _as_block(kept: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
    def one(kept: jax.Array, rows: jax.Array, start: jax.Array) -> jax.Array:
        return jax.lax.dynamic_update_slice_in_dim(kept, rows, start, 0)

    return _over_batch(one, start.ndim)(kept, rows, start)


def _over_batch(function: Callable[..., Any], axes: int) -> Callable[..., Any]:
    """`function`, mapped over this many batch axes."""
    for _ in range(axes):
        function = jax.vmap(function)
    return function
