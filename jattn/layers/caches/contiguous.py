"""A cache with a place for every token of the longest sequence, in order."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_positive
from ...masks import Lengths
from ...masks.base import restricted
from .base import ArrayView, Cache, RealQueries, Spec, check_room, check_sizes, exportable, put_block, put_rows


@exportable
@dataclasses.dataclass(frozen=True)
class ContiguousCache(Cache):
    """Token t of a sequence is at index t: `keys [batch..., places, kv_heads, k_dim]`, and `values` likewise."""

    keys: jax.Array
    values: jax.Array
    lengths: jax.Array

    @property
    def places(self) -> int:
        """The capacity of each sequence."""
        return self.keys.shape[-3]

    def append(self, key, value, *, valid=None):
        valid = self._checked(key, value, valid)
        new = key.shape[-3]
        check_room(self.lengths, new, valid, self.places, "Make it with a larger `Contiguous(length)`.")
        before, key, value = self._beside(key, value)
        positions = before.positions(new, valid)
        if valid is None and new <= self.places:  # one block for each sequence, copied as a whole
            keys, values = (
                put_block(kept, rows, before.lengths) for kept, rows in ((before.keys, key), (before.values, value))
            )
            lengths = before.lengths + new
        else:
            places = positions if valid is None else jnp.where(valid, positions, self.places)
            keys, values = put_rows(before.keys, key, places), put_rows(before.values, value, places)
            lengths = before.lengths + (new if valid is None else valid.sum(-1, dtype=jnp.int32))
        after = ContiguousCache(keys, values, lengths)
        view = dataclasses.replace(after.view(), query_positions=positions)
        if valid is not None:
            view = dataclasses.replace(view, mask=restricted(view.mask, RealQueries(valid)))
        return view, after

    def view(self):
        return ArrayView(
            self.keys, self.values, np.arange(self.places, dtype=np.int32), None, Lengths(self.lengths),
            self.lengths > self.places,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Contiguous(Spec):
    """Room for `length` tokens of each sequence, allocated up front; the time of a step grows with the tokens so far.

    The first choice if the longest length is known and most sequences are nearly that long. Tokens beyond `length`
    raise where lengths are known, and turn the outputs of their sequence into NaN where they are traced.

    Args:
        length: the capacity per sequence, for the prompt and everything generated.

    Raises:
        ValueError: `length` is below 1.

    >>> import jax
    >>> from jattn import masks
    >>> from jattn.layers import caches
    >>> def decode(cache, query, key, value):
    ...     view, cache = cache.append(key, value)
    ...     return view.attend(query, mask=masks.Causal()), cache
    >>> decode = jax.jit(decode, donate_argnums=0)
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 6, 4, 8)) for i in range(3))
    >>> cache = caches.Contiguous(16).create((2,), kv_heads=4, k_dim=8)
    >>> prompt, cache = decode(cache, q[:, :5], k[:, :5], v[:, :5])
    >>> step, cache = decode(cache, q[:, 5:], k[:, 5:], v[:, 5:])
    >>> step.shape, cache.lengths.tolist()
    ((2, 1, 4, 8), [6, 6])
    """

    length: int

    def __post_init__(self):
        check_positive(length=self.length)

    def create(
        self, batch: tuple[int, ...], kv_heads: int, k_dim: int, v_dim: int | None = None, dtype: Any = jnp.float32
    ) -> ContiguousCache:
        v_dim = check_sizes(batch, kv_heads, k_dim, v_dim, dtype)
        shape = (*batch, self.length, kv_heads)
        return ContiguousCache(
            jnp.zeros((*shape, k_dim), dtype), jnp.zeros((*shape, v_dim), dtype), jnp.zeros(batch, jnp.int32)
        )
