"""A cache in pages of a pool shared by all sequences of a batch, so that short sequences leave room for long ones."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_positive
from ...foundation.arrays import as_array, describe, dtype_of, known_values, of_rank
from ...foundation.numerics import accumulation_dtype
from ...foundation.pieces import map_fields
from ...foundation.sharding import gather, layout, spec_of, split_like, vary, varying_axes
from ...masks import Lengths, Mask
from ...masks.base import restricted
from ...normalizers import Softmax
from ...ops.attention.api import attention, partial_attention
from ...ops.attention.call import Pieces, check_pieces
from ...ops.attention.observed import observed, observer_is
from ...ops.attention.paged import Pages, attend_pages
from ...ops.attention.partial import Partial, merge
from .base import Cache, RealQueries, Spec, View, check_room, check_sizes, exportable, on_shards, put_rows


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class PagedView(View):
    """See `View`. `key` and `value` gather all pages of the tables; `attend` gathers only those that hold tokens."""

    pool_keys: jax.Array
    pool_values: jax.Array
    table: jax.Array
    lengths: jax.Array
    query_positions: jax.Array | None
    mask: Mask | None
    overflowed: jax.Array | None
    block: int = dataclasses.field(metadata={"static": True})

    @property
    def key(self) -> jax.Array:  # type: ignore[override]  (made when it is asked for)
        return _of_table(self.pool_keys, self.table)

    @property
    def value(self) -> jax.Array:  # type: ignore[override]
        return _of_table(self.pool_values, self.table)

    @property
    def places(self) -> int:
        """The capacity of each sequence if it had a page in every slot."""
        return self.table.shape[-1] * self.pool_keys.shape[-3]

    @property
    def key_positions(self) -> np.ndarray:  # type: ignore[override]
        return np.arange(self.places, dtype=np.int32)

    def with_keys_as_values(self):
        return dataclasses.replace(self, pool_values=self.pool_keys)

    def attend(self, query, *, mask=None, query_positions=None, **pieces):
        """See `View.attend`. Blocks of pages are gathered one after another, up to the longest sequence.

        On a TPU a kernel reads pages through the table instead, if there are a few queries and features fill whole
        lanes. All pages are gathered at once for pieces with an array over keys, for normalizers whose partial results
        do not merge, and for queries without positions.
        """
        names = ("similarity", "scores", "normalizer", "dropout")
        checked = check_pieces(mask, *(pieces.get(name, () if name == "scores" else None) for name in names))
        at = self.query_positions if query_positions is None else query_positions
        if at is None or _ride_on_keys(checked) or not isinstance(checked[3], Softmax):
            return super().attend(query, mask=mask, query_positions=at, **pieces)
        page_size, slots = self.pool_keys.shape[-3], self.table.shape[-1]
        holds_tokens = of_rank(np.arange(slots), self.table.ndim) * page_size < self.lengths[..., None]
        table = jnp.where(holds_tokens, self.table, -1)
        whole = Pieces(restricted(mask, self.mask), *checked[1:], query_positions=at)
        values = None if self.pool_values is self.pool_keys else self.pool_values
        arrays = Pages(query, self.pool_keys, values, table, whole.checked())
        implementation = pieces.get("implementation")
        loop = _Blocks(max(1, self.block // page_size), implementation)

        def run() -> jax.Array:
            with observer_is(None):
                return attend_pages(arrays, loop, implementation)

        in_order = dataclasses.replace(arrays.pieces, key_positions=self.key_positions)
        return self.checked(observed(run, lambda: (query, self.key, self.value), in_order))


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Attention over the pages of a table, gathered in blocks.

    Args:
        each: the number of pages of a block.
        implementation: of the attention over a block.
    """

    each: int
    implementation: Any

    def __call__(self, pages: Pages) -> jax.Array:
        """The output `[batch..., q_len, q_heads, v_dim]`."""
        query, _, _, table, pieces = pages
        keys, values = pages.pools
        own = {field.name: getattr(pieces, field.name) for field in dataclasses.fields(pieces)}
        own["implementation"] = self.implementation
        del own["key_positions"]
        if self.each >= table.shape[-1]:
            key, value = (_gathered(pool, table) for pool in (keys, values))
            return attention(query, key, value, key_positions=np.arange(key.shape[-3], dtype=np.int32), **own)
        blocks = -(-table.shape[-1] // self.each)
        missing = [(0, 0)] * (table.ndim - 1) + [(0, blocks * self.each - table.shape[-1])]
        table = jnp.pad(table, missing, constant_values=-1)
        size = self.each * keys.shape[-3]
        own["normalizer"] = None

        def with_block(found: Partial, index: jax.Array) -> Partial:
            some = jax.lax.dynamic_slice_in_dim(table, index * self.each, self.each, -1)
            key, value = (_gathered(pool, some) for pool in (keys, values))
            at = index * size + jnp.arange(size, dtype=jnp.int32)
            part = partial_attention(query, key, value, key_positions=at, **own)
            return merge(found, dataclasses.replace(part, out=part.out.astype(found.out.dtype)))

        def step(found: Partial, index: jax.Array) -> tuple[Partial, None]:
            some = jax.lax.dynamic_slice_in_dim(table, index * self.each, self.each, -1)
            return jax.lax.cond((some >= 0).any(), with_block, lambda found, index: found, found, index), None

        wide = accumulation_dtype(query, keys, values)
        empty = Partial.empty(jax.ShapeDtypeStruct((*query.shape[:-1], values.shape[-1]), wide))
        empty = jax.tree.map(lambda leaf: split_like(leaf, query), empty)
        empty = vary(empty, varying_axes(pages))
        found, _ = jax.lax.scan(step, empty, jnp.arange(blocks, dtype=jnp.int32))
        out = pieces.normalizer.rescale(found.out, found.lse, found.remainder)
        return out.astype(values.dtype)


def _of_table(pool: jax.Array, table: jax.Array) -> jax.Array:
    """`_gathered`, also of arrays that are split."""
    axes = table.ndim - 1
    layouts = layout(0, None, None, "head", None), layout(axes, None)
    return on_shards(_gathered, (pool, table), layouts, layout(axes, None, "head", None))


def _gathered(pool: jax.Array, table: jax.Array) -> jax.Array:
    """The pages of each sequence, concatenated: `[batch..., slots * page_size, kv_heads, dim]`."""
    pages = pool.at[jnp.maximum(table, 0)].get(mode="promise_in_bounds")
    return pages.reshape(*table.shape[:-1], table.shape[-1] * pool.shape[-3], *pool.shape[-2:])


def _ride_on_keys(pieces: Any) -> bool:
    found = []
    map_fields(tuple(pieces), lambda value, axes, name: found.append("key" in axes) or value)
    return any(found)


@exportable
@dataclasses.dataclass(frozen=True)
class PagedCache(Cache):
    """Token t of a sequence is at index `t mod page_size` of page `table[..., t // page_size]` of the pool.

    keys: `[pages, page_size, kv_heads, k_dim]`, and values likewise. There are no batch axes, because sequences share
        the pool.
    table: int32 `[batch..., slots]`, the pages of each sequence in order; -1 for none.
    overflowed: booleans `[batch...]`, sequences that had a token without a page for it.

    Because sequences share the pool, the batch cannot be split across devices; the heads can.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array
    table: jax.Array
    overflowed: jax.Array
    pages: int = dataclasses.field(metadata={"static": True})
    block: int = dataclasses.field(metadata={"static": True})

    @property
    def page_size(self) -> int:
        """The number of tokens of a page."""
        return self.keys.shape[-3]

    def append(self, key, value, *, valid=None):
        valid = self._checked(key, value, valid)
        self._check_whole(key)
        key, value = gather(key, -3), gather(value, -3)
        new, slots = key.shape[-3], self.table.shape[-1]
        room = self.page_size * (self.table >= 0).sum(-1)
        remedy = "Give the sequence more pages: `PageAllocator.reserve`, and `cache.with_table(table)`."
        check_room(self.lengths, new, valid, room, remedy)
        check_room(self.lengths, new, valid, self.page_size * slots, "Make it with more slots: `Paged(..., slots)`.")
        positions = self.positions(new, valid)
        slot, inside = positions // self.page_size, positions % self.page_size
        page = jnp.take_along_axis(self.table, jnp.minimum(slot, slots - 1), -1)
        has_page = (slot < slots) & (page >= 0)
        real = True if valid is None else valid
        count = self.pages * self.page_size
        place = jnp.where(has_page & real, page * self.page_size + inside, count).reshape(-1)

        def put(pool: jax.Array, rows: jax.Array) -> jax.Array:
            flat = pool.reshape(count, *pool.shape[2:])
            return put_rows(flat, rows.reshape(place.size, *rows.shape[-2:]), place).reshape(pool.shape)

        after = dataclasses.replace(
            self,
            keys=put(self.keys, key),
            values=put(self.values, value),
            lengths=self.lengths + (new if valid is None else valid.sum(-1, dtype=jnp.int32)),
            overflowed=self.overflowed | (~has_page & real).any(-1),
        )
        view = after.view()
        mask = view.mask if valid is None else restricted(view.mask, RealQueries(valid))
        return dataclasses.replace(view, query_positions=positions, mask=mask), after

    def _check_whole(self, key: jax.Array) -> None:
        """Check that all sequences that share the pool are on this device, and all of its pages.

        Raises:
            ValueError: the batch is split over devices, each of which would write its own tokens into a pool.
        """
        batch = spec_of(key)[: self.lengths.ndim]
        alone = set(varying_axes(key, self.table, self.lengths)) - set(varying_axes(self.keys))
        if any(batch) or alone or self.keys.shape[0] != self.pages:
            raise ValueError(
                "`key` must not have its batch split over devices: sequences share the pages of a paged cache. Make a "
                "cache for each device inside `jax.shard_map`, split the heads, or use `caches.Contiguous(length)`."
            )

    def view(self) -> PagedView:
        return PagedView(
            self.keys, self.values, self.table, self.lengths, None, Lengths(self.lengths), self.overflowed, self.block
        )

    def with_table(self, table: Any, lengths: Any = None) -> "PagedCache":
        """The cache with other pages for its sequences: additional ones, or those of new sequences.

        Args:
            table: int32 `[batch..., slots]`, from `PageAllocator.table`.
            lengths: the number of tokens of each sequence so far, int32 `[batch...]`: 0 for a new one that replaces
                another in the batch. By default unchanged. If given, it also resets which sequences have overflowed.

        Raises:
            ValueError: the table has another shape than before, is not of integers, or names pages that the pool does
                not have.
        """
        pages = self.pages
        _check_integers("table", table, self.table.shape)
        known = known_values(table)
        if known is not None and known.size and not -1 <= known.min() <= known.max() < pages:
            raise ValueError(
                f"`table` must hold pages from 0 to {pages - 1}, or -1 for none; got {known.min()} to {known.max()}."
            )
        after = dataclasses.replace(self, table=jnp.asarray(table, jnp.int32))
        if lengths is None:
            return after
        _check_integers("lengths", lengths, self.lengths.shape)
        lengths = jnp.asarray(lengths, jnp.int32)
        return dataclasses.replace(after, lengths=lengths, overflowed=jnp.zeros_like(self.overflowed))

    def with_copies(self, copies: Sequence[tuple[int, int]]) -> "PagedCache":
        """The cache after copying pages inside the pool, `(from, to)`, as requested by `PageAllocator.fork`."""
        pairs = as_array([] if dtype_of(copies) is None and not copies else copies)
        dtype, shape = dtype_of(pairs), getattr(pairs, "shape", ())
        if shape == (0,):
            return self
        if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or len(shape) != 2 or shape[1] != 2:
            raise ValueError(
                f"`copies` must be a list of pairs of pages, (from, to), as `PageAllocator.fork` returns it; got "
                f"{describe(copies)}."
            )
        known = known_values(pairs)
        if known is not None and not 0 <= known.min() <= known.max() < self.pages:
            raise ValueError(
                f"`copies` must hold pages from 0 to {self.pages - 1}; got {known.min()} to {known.max()}."
            )
        source, target = pairs.T
        keys, values = (pool.at[target].set(pool[source]) for pool in (self.keys, self.values))
        return dataclasses.replace(self, keys=keys, values=values)


def _check_integers(name: str, value: Any, shape: tuple[int, ...]) -> None:
    dtype = dtype_of(value)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer) or tuple(value.shape) != shape:
        raise ValueError(f"`{name}` must be integers of shape {shape}, as in the cache; got {describe(value)}.")


@dataclasses.dataclass(frozen=True)
class Paged(Spec):
    """Pages of a pool, allocated as sequences grow (PagedAttention, Kwon et al. 2023, arXiv:2309.06180).

    For many sequences whose lengths are not known beforehand: together they may have `pages * page_size` tokens,
    whereas a contiguous cache reserves the longest length for each. A `PageAllocator` on the host assigns pages to
    sequences between steps; the cache gets a table of them, and one table serves the caches of all layers. A new cache
    has no pages. Tokens without a page raise where lengths are known, and turn the outputs of their sequence into NaN
    where they are traced.

    Args:
        pages: number of pages in the pool.
        page_size: tokens per page.
        slots: the largest number of pages of a sequence: its length is at most `slots * page_size`.
        block: how many places attention gathers at once. It changes speed, never results.

    Raises:
        ValueError: a size is below 1.

    >>> import jax
    >>> from jattn.layers import caches
    >>> k = jax.random.normal(jax.random.key(0), (2, 5, 4, 8))
    >>> spec = caches.Paged(pages=8, page_size=4, slots=3)
    >>> pool = caches.PageAllocator(spec.pages, spec.page_size)
    >>> sequences = [pool.allocate(tokens) for tokens in (9, 5)]
    >>> cache = spec.create((2,), kv_heads=4, k_dim=8).with_table(pool.table(sequences, spec.slots))
    >>> view, cache = cache.append(k, k)
    >>> cache.keys.shape, view.key.shape
    ((8, 4, 4, 8), (2, 12, 4, 8))
    """

    pages: int
    page_size: int
    slots: int
    block: int = 512

    def __post_init__(self):
        check_positive(pages=self.pages, page_size=self.page_size, slots=self.slots, block=self.block)

    def create(
        self, batch: tuple[int, ...], kv_heads: int, k_dim: int, v_dim: int | None = None, dtype: Any = jnp.float32
    ) -> PagedCache:
        v_dim = check_sizes(batch, kv_heads, k_dim, v_dim, dtype)
        shape = (self.pages, self.page_size, kv_heads)
        return PagedCache(
            jnp.zeros((*shape, k_dim), dtype),
            jnp.zeros((*shape, v_dim), dtype),
            jnp.zeros(batch, jnp.int32),
            jnp.full((*batch, self.slots), -1, jnp.int32),
            jnp.zeros(batch, bool),
            self.pages,
            self.block,
        )
