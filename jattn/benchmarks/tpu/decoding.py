"""jattn's decoding kernel on tiles that are all full, or all partial: then the bounds of its loops are constants."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ... import masks
from ...foundation.target import as_target
from ...ops.attention.call import Call, Pieces, prepare
from ...ops.attention.implementations.lowering import lower, mosaic
from ...ops.attention.implementations.pallas_tpu import decode


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of decoding: one new token for each sequence, with a causal mask.

    Attributes:
        q_heads, kv_heads, dim: of the queries and the cache.
        page: places of a page; None if the cache is contiguous.
        latent: whether the keys are also the values.
        dtype: of all arrays.
        partial: whether all tiles are partial, so that the mask is evaluated everywhere.
    """

    q_heads: int
    kv_heads: int
    dim: int
    page: int | None = None
    latent: bool = False
    dtype: str = "bfloat16"
    partial: bool = False

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return "jattn_decode" if self.page is None else "jattn_decode_pages"

    def tile(self, target: str) -> int:
        """The keys of a tile."""
        return decode.sizes_of(self._call(target, 1, 2**16)[0], page=self.page).tile

    def cores(self, target: str) -> int:
        """The cores that tiles are dealt out to."""
        return decode.sizes_of(self._call(target, 1, 2**16)[0], page=self.page).parts

    def tile_bytes(self, target: str) -> int:
        """The bytes of the keys and values of a tile."""
        features = self.dim * (1 if self.latent else 2)
        return self.tile(target) * self.kv_heads * features * jnp.dtype(self.dtype).itemsize

    def program(self, tiles: int, target: str) -> tuple[Any, tuple[Any, ...]]:
        """A program of `tiles` sequences that visits as many tiles of each.

        Returns:
            The function and the shapes of its arguments.
        """
        _, arguments = self._call(target, tiles, tiles * self.tile(target))

        def run(query, key, value, positions, table):
            call = self._prepared(target, query, key, value, positions)
            pool = (key, value) if self.page is None else (self._pool(key), self._pool(value))
            return decode.attend(
                call,
                lower(call, mosaic(call.target), offset=None),
                False,
                query,
                *pool,
                table=None if self.page is None else table,
                trips=(0 if self.partial else tiles, tiles),
            )

        return run, arguments

    def _pool(self, array: jax.Array) -> jax.Array:
        return array.reshape(-1, self.page or 0, *array.shape[2:])

    def _call(self, target: str, batch: int, length: int) -> tuple[Call, tuple[Any, ...]]:
        """A call, as far as its shapes tell, and the arguments of `run` in `program`."""
        query = jax.ShapeDtypeStruct((batch, 1, self.q_heads, self.dim), self.dtype)
        key = jax.ShapeDtypeStruct((batch, length, self.kv_heads, self.dim), self.dtype)
        positions = jax.ShapeDtypeStruct((batch, 1), jnp.int32)
        table = jax.ShapeDtypeStruct((batch, length // (self.page or length)), jnp.int32)
        found = []
        jax.eval_shape(lambda *given: found.append(self._prepared(target, *given)), query, key, key, positions)
        return found[0], (query, key, key, positions, table)

    def _prepared(self, target: str, query: Any, key: Any, value: Any, positions: Any) -> Call:
        pieces = Pieces(mask=masks.Causal(), query_positions=positions)
        call, _, _ = prepare(query, key, key if self.latent else value, pieces)
        return dataclasses.replace(call, target=as_target(target))
