"""How cached keys and values lie in memory, and how a decoding kernel copies a tile of them.

A cache is `[batch, places, heads, features]`. XLA stores it on a TPU so that the tiles of the last two axes need the
least padding. A kernel must read it in that order, because a copy of the cache would cost more than the attention:

    TOKENS     `[places, heads, features]`   features fill whole lanes, heads fill whole tiles (2, 4, 8, 16, 24, ...)
    HEADS      `[heads, places, features]`   features fill whole lanes, heads do not fill tiles
    FEATURES   `[heads, features, places]`   other numbers of features, such as 64 or 576

`Storage.stored` transposes the array to its order, which XLA does without a copy. If an array lies otherwise, XLA
copies it, and the result is the same.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES, SUBLANES = 128, 8
TOKENS, HEADS, FEATURES = "tokens", "heads", "features"
NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))


@dataclasses.dataclass(frozen=True)
class Storage:
    """Keys or values as they lie in memory.

    Attributes:
        order: `TOKENS`, `HEADS` or `FEATURES`.
        heads, dim: sizes.
        dtype: "bfloat16" or "float32".
        length: the places of a sequence; of a pool, those of a page.
        tile: the keys of a tile.
    """

    order: str
    heads: int
    dim: int
    dtype: str
    length: int
    tile: int

    @classmethod
    def of(cls, array: Any, tile: int) -> "Storage":
        """That of an array `[..., places, heads, features]`."""
        length, heads, dim = array.shape[-3:]
        dtype = jnp.dtype(array.dtype).name
        return cls(order_of(heads, dim), heads, dim, dtype, length, tile)

    @property
    def packed(self) -> bool:
        """Whether 32 bits hold two numbers."""
        return self.dtype == "bfloat16"

    @property
    def multiple(self) -> int:
        """What the first place of a copy, and their number, must be a multiple of."""
        return {TOKENS: 1, HEADS: SUBLANES * (2 if self.packed else 1), FEATURES: LANES}[self.order]

    def stored(self, array: jax.Array) -> jax.Array:
        """`[batch, places, heads, features]` in this order, its places padded with zeros to `multiple`."""
        array = jnp.pad(array, ((0, 0), (0, -array.shape[1] % self.multiple), (0, 0), (0, 0)))
        axes = {TOKENS: (0, 1, 2, 3), HEADS: (0, 2, 1, 3), FEATURES: (0, 2, 3, 1)}[self.order]
        return array.transpose(axes)

    def buffers(self, count: int) -> Any:
        """The scratch for some tiles."""
        tile, heads, dim = self.tile, self.heads, self.dim
        shapes = {
            TOKENS: (-(-dim // LANES), tile, heads, LANES),
            HEADS: (heads, tile, dim),
            FEATURES: (heads, dim, tile),
        }
        return pltpu.VMEM((count, *shapes[self.order]), jnp.dtype(self.dtype))

    def parts(self, ref: Any, buffer: Any, example: Any, start: Any, to: Any, count: int) -> Iterator[tuple[Any, Any]]:
        """The parts of a copy of consecutive places, as (source, destination).

        Args:
            ref: what `stored` returned, in memory.
            buffer: of one tile.
            example: the batch element, or the page.
            start: the first place.
            to: where it goes in the tile.
            count: the number of places.
        """
        source, target = (pl.ds(_hint(one, self.multiple), count) for one in (start, to))
        if self.order == TOKENS:
            for block in range(self.dim // LANES):
                lanes = pl.ds(block * LANES, LANES)
                yield ref.at[example, source, :, lanes], buffer.at[block, target]
        elif self.order == HEADS:
            yield ref.at[example, :, source, :], buffer.at[:, target, :]
        else:
            yield ref.at[example, :, :, source], buffer.at[:, :, target]

    def tiles_of_heads(self, buffer: Any) -> Iterator[jax.Array]:
        """For each head, the tile `[keys, features]`, or `[features, keys]` in the order `FEATURES`.

        In the order `TOKENS`, the rows of a head are `heads` rows apart, and 32 bits hold numbers of two heads.
        """
        if self.order != TOKENS:
            yield from (buffer[head] for head in range(self.heads))
        elif self.packed:
            rows, apart = self.tile * self.heads // 2, self.heads // 2
            for pair in range(apart):
                halves = []
                for block in range(self.dim // LANES):
                    words = buffer.at[block].bitcast(jnp.uint32).reshape(rows, LANES)[pair::apart, :]
                    halves.append((words << 16, words & jnp.uint32(0xFFFF0000)))
                for half in zip(*halves, strict=True):
                    wide = [pltpu.bitcast(one, jnp.float32).astype(jnp.bfloat16) for one in half]
                    yield jnp.concatenate(wide, -1)
        else:
            for head in range(self.heads):
                blocks = (buffer.at[block].reshape(-1, LANES) for block in range(self.dim // LANES))
                yield jnp.concatenate([block[head :: self.heads, :] for block in blocks], -1)

    def scores(self, query: jax.Array, keys: jax.Array, *, interpret: bool) -> jax.Array:
        """Products of queries `[rows, features]` and a head's tile: `[rows, keys]`."""
        return product(query, keys, NN if self.order == FEATURES else NT, interpret=interpret)

    def weighted(self, weights: jax.Array, values: jax.Array, *, interpret: bool) -> jax.Array:
        """Weights `[rows, keys]` times a head's tile: `[rows, features]`."""
        return product(weights, values, NT if self.order == FEATURES else NN, interpret=interpret)


def order_of(heads: int, dim: int) -> str:
    """The order in which XLA stores an array `[..., places, heads, features]` on a TPU.

    >>> order_of(8, 128), order_of(1, 128), order_of(8, 64)
    ('tokens', 'heads', 'features')
    """
    if dim % LANES:
        return FEATURES
    return TOKENS if heads in (2, 4) or heads % SUBLANES == 0 else HEADS


def product(left: jax.Array, right: jax.Array, contract: Any, *, interpret: bool) -> jax.Array:
    """A matrix product, summed in float32."""
    dtype = jnp.promote_types(left.dtype, right.dtype)
    if interpret:  # a CPU has no product of bfloat16 numbers in a loop
        dtype = jnp.dtype(jnp.float32)
    left, right = left.astype(dtype), right.astype(dtype)
    exact = lax.Precision.HIGHEST if dtype == jnp.float32 else None
    return lax.dot_general(left, right, contract, precision=exact, preferred_element_type=jnp.float32)


def _hint(start: Any, multiple: int) -> Any:
    return start if isinstance(start, int) or multiple == 1 else pl.multiple_of(start, multiple)
