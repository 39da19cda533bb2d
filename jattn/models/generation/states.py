"""Rows of states: those of beams, copied and reordered, whatever the cache."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...layers.caches import Cache, ContiguousCache, PageAllocator, PagedCache, RollingCache
from ...layers.decoding import Memory


def with_pages(state: Any, table: jax.Array) -> Any:
    """A state whose paged caches have the pages of this table, int32 `[batch, slots]`."""
    return _map(state, lambda one: one.with_table(table) if isinstance(one, PagedCache) else one)


def table_of(tokens: np.ndarray, page_size: int, pages: int, slots: int) -> np.ndarray:
    """The table of pages for sequences of these many tokens, int32 `[batch, slots]`.

    Raises:
        ValueError: the pool has not so many pages.
    """
    pool = PageAllocator(pages, page_size)
    return pool.table([pool.allocate(int(one)) for one in tokens], slots)


def repeat_rows(state: Any, times: int) -> Any:
    """A state with each row several times, adjacent. Paged caches have no room for that: repeat their prompts."""

    def rows(one: Any) -> Any:
        if isinstance(one, Memory):
            return Memory(rows(one.cache), rows(one.lengths))
        _check(one)
        return jax.tree.map(lambda leaf: jnp.repeat(leaf, times, 0), one)

    return _map(state, rows)


def reorder_rows(state: Any, rows: jax.Array) -> Any:
    """A state whose row i is row `rows[i]`, a beam of the same example.

    The keys of cross-attention, which all beams of an example share, stay where they are. A sequence in a paged cache
    keeps its own pages, and the contents are copied.

    Raises:
        ValueError: there is a cache of another kind than those of `jattn.layers.caches`.
    """

    def reorder(one: Any) -> Any:
        if isinstance(one, Memory):
            return dataclasses.replace(one, lengths=one.lengths[rows])
        if isinstance(one, PagedCache):
            return _copied_pages(one, rows)
        _check(one)
        return jax.tree.map(lambda leaf: leaf[rows], one)

    return _map(state, reorder)


def _copied_pages(cache: PagedCache, rows: jax.Array) -> PagedCache:
    source, target = cache.table[rows], cache.table
    real = (source >= 0) & (target >= 0)
    place = jnp.where(real, target, cache.pages)

    def copied(pool: jax.Array) -> jax.Array:
        return pool.at[place].set(pool[jnp.where(real, source, 0)], mode="drop")

    return dataclasses.replace(
        cache,
        keys=copied(cache.keys),
        values=copied(cache.values),
        lengths=cache.lengths[rows],
        overflowed=cache.overflowed[rows],
    )


def _check(one: Any) -> None:
    """Check that this is no cache, or one whose arrays all begin with the batch.

    Raises:
        ValueError: it is another cache.
    """
    if isinstance(one, Cache) and not isinstance(one, ContiguousCache | RollingCache):
        raise ValueError(
            f"`cache` must be contiguous, rolling or paged for beam search, which copies sequences; got a "
            f"{type(one).__name__}."
        )


def _map(state: Any, function: Callable[[Any], Any]) -> Any:
    return jax.tree.map(function, state, is_leaf=lambda one: isinstance(one, Cache | Memory))
