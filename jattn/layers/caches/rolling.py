"""A cache of the last tokens and optionally the first few: what a window sees, however long the sequence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_counts, check_positive
from ...foundation.arrays import of_rank
from ...foundation.pieces import piece
from ...masks import Mask
from ...masks.base import restricted
from .base import ArrayView, Cache, RealQueries, Spec, check_sizes, exportable, put_rows


@piece
class Kept(Mask):
    """What a query sees in a rolling cache: `0 <= k`, and `q - k < window` or `k < sinks`. Empty places are at -1."""

    window: int
    sinks: int

    def allows(self, query, key):
        return (key >= 0) & ((query - key < self.window) | (key < self.sinks))


@exportable
@dataclasses.dataclass(frozen=True)
class RollingCache(Cache):
    """Token t is at index t if it is a sink, else at `sinks + (t - sinks) mod window`, until it is overwritten.

    keys: `[batch..., sinks + window, kv_heads, k_dim]`, and values likewise.
    """

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array
    window: int = dataclasses.field(metadata={"static": True})
    sinks: int = dataclasses.field(metadata={"static": True})

    @property
    def kept_positions(self) -> jax.Array:
        """The position of the token in each place, int32 `[batch..., sinks + window]`; -1 while it is empty."""
        last = self.lengths[..., None] - 1
        place = of_rank(jnp.arange(self.sinks + self.window, dtype=jnp.int32), last.ndim)
        first, later = place[..., : self.sinks], place[..., self.sinks :]
        ring = last - (last - later) % self.window
        first = jnp.where(first <= last, first, -1)
        return jnp.concatenate([first, jnp.where(ring >= self.sinks, ring, -1)], -1)

    def append(self, key, value, *, valid=None):
        valid = self._checked(key, value, valid)
        before, key, value = self._beside(key, value)
        positions = before.positions(key.shape[-3], valid)
        real = True if valid is None else valid
        lengths = before.lengths + (key.shape[-3] if valid is None else valid.sum(-1, dtype=jnp.int32))
        # If there are more tokens than places, keep only those that the next one sees.
        stays = real & ((positions < self.sinks) | (positions >= lengths[..., None] - self.window))
        place = jnp.where(positions < self.sinks, positions, self.sinks + (positions - self.sinks) % self.window)
        place = jnp.where(stays, place, before.keys.shape[-3])
        keys, values = put_rows(before.keys, key, place), put_rows(before.values, value, place)
        after = dataclasses.replace(self, keys=keys, values=values, lengths=lengths)
        if key.shape[-3] == 1:  # a single token does not see the one that it overwrites
            view = after.view()
        else:
            view = ArrayView(
                jnp.concatenate([before.keys, key.astype(before.keys.dtype)], -3),
                jnp.concatenate([before.values, value.astype(before.values.dtype)], -3),
                jnp.concatenate([before.kept_positions, jnp.where(real, positions, -1)], -1),
                None,
                Kept(self.window, self.sinks),
            )
        mask = view.mask if valid is None else restricted(view.mask, RealQueries(valid))
        return dataclasses.replace(view, query_positions=positions, mask=mask), after

    def view(self):
        return ArrayView(self.keys, self.values, self.kept_positions, None, Kept(self.window, self.sinks))


@dataclasses.dataclass(frozen=True)
class Rolling(Spec):
    """The last `window` tokens of each sequence, and its first `sinks`: every step costs the same.

    A token sees itself, the `window - 1` tokens before it and the sinks, even if the mask of the attention allows more.
    A call on the whole sequence therefore needs the mask `SlidingWindow(window - 1, None) | Sinks(sinks)` in addition
    to others. Sequences may have as many tokens as int32 positions can count. Sink tokens are those of StreamingLLM
    (Xiao et al. 2024, arXiv:2309.17453); there, positions are counted inside the cache, here tokens keep their own.

    Args:
        window: how many tokens are kept, the newest included.
        sinks: how many of the first tokens are kept in addition.

    Raises:
        ValueError: `window` is below 1, or `sinks` is negative.

    >>> import jax
    >>> from jattn.layers import caches
    >>> k = jax.random.normal(jax.random.key(0), (7, 4, 8))
    >>> cache = caches.Rolling(3, sinks=1).create((), kv_heads=4, k_dim=8)
    >>> view, cache = cache.append(k, k)
    >>> cache.kept_positions
    Array([0, 4, 5, 6], dtype=int32)
    """

    window: int
    sinks: int = 0

    def __post_init__(self):
        check_positive(window=self.window)
        check_counts(sinks=self.sinks)

    def create(
        self, batch: tuple[int, ...], kv_heads: int, k_dim: int, v_dim: int | None = None, dtype: Any = jnp.float32
    ) -> RollingCache:
        v_dim = check_sizes(batch, kv_heads, k_dim, v_dim, dtype)
        shape = (*batch, self.sinks + self.window, kv_heads)
        return RollingCache(
            jnp.zeros((*shape, k_dim), dtype),
            jnp.zeros((*shape, v_dim), dtype),
            jnp.zeros(batch, jnp.int32),
            self.window,
            self.sinks,
        )
