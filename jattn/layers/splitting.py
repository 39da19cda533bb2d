"""How a layer with `parallel` splits tokens and states while it generates: by examples, keys and values by heads."""

import dataclasses
from typing import Any

import jax
from jax.sharding import PartitionSpec

from ..ops.attention.call import renamed
from ..parallel import Heads
from ..parallel.heads import place
from .caches import PagedCache


class Splitting:
    """Splits arrays of one call as its batch and heads are; without `parallel`, leaves them as they are.

    Between calls an array may have been split otherwise, by the caller or by XLA. Sequences share the pages of a paged
    cache, so there the batch is whole.

    Args:
        parallel: how heads are split across devices, or None.
        cache: the cache of the call.
        q_heads: the number of query heads.

    Raises:
        ValueError: the mesh does not divide the batch or the heads.
    """

    def __init__(self, parallel: Heads | None, cache: Any, q_heads: int):
        self.parallel = parallel
        if parallel is None:
            return
        axes = cache.lengths.ndim
        with renamed(query="inputs"):
            self.mesh = parallel.check(tuple(cache.lengths.shape), q_heads)
        self.batch = (None,) * axes if isinstance(cache, PagedCache) else parallel.batch_axes(axes)
        self.heads = parallel.key_axis(cache.keys.shape[-2])

    def by_example(self, array: jax.Array) -> jax.Array:
        """An array `[batch..., any...]`."""
        if self.parallel is None:
            return array
        return place(array, self.mesh, PartitionSpec(*self.batch, *[None] * (array.ndim - len(self.batch))))

    def by_head(self, array: jax.Array) -> jax.Array:
        """Keys or values `[batch..., length, kv_heads, dim]`, or pages of them `[pages, page_size, kv_heads, dim]`."""
        if self.parallel is None:
            return array
        batch = self.batch if array.ndim == len(self.batch) + 3 else (None,)
        return place(array, self.mesh, PartitionSpec(*batch, None, self.heads, None))

    def cache(self, cache: Any) -> Any:
        """All arrays of a cache."""
        if self.parallel is None:
            return cache
        arrays = {field.name: getattr(cache, field.name) for field in dataclasses.fields(cache)}
        split = {
            name: self.by_head(array) if name in ("keys", "values") else self.by_example(array)
            for name, array in arrays.items()
            if not isinstance(array, int)
        }
        return dataclasses.replace(cache, **split)
