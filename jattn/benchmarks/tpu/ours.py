"""jattn's kernel on tiles that are all full, or all partial: then the bounds of its loops are constants."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ... import masks, scores
from ...foundation.target import as_target
from ...ops.attention.call import Call, Pieces, prepare
from ...ops.attention.implementations.pallas_tpu import PallasTPU
from ...ops.attention.implementations.pallas_tpu.doubled import GENERATIONS as DOUBLED
from ...ops.attention.implementations.pallas_tpu.geometry import LANES, for_backward, is_long, itemsize_of
from ...ops.attention.partial import Partial
from ...ops.attention.plan import FULL, PARTIAL, Plan

FORWARD, BACKWARD = "jattn_forward", "jattn_backward"
"""The names of the kernels."""


@dataclasses.dataclass(frozen=True)
class Alike(PallasTPU):
    """`PallasTPU` that visits all tiles of every row, each in one state.

    Args:
        state: FULL, so that no mask is evaluated, or PARTIAL, so that it is evaluated everywhere.
    """

    state: int = FULL

    def _plan(self, call: Call, cut: Any, known: Any) -> Plan:
        states = np.full((*[1] * (len(call.batch) + 1), cut.q_tiles, cut.kv_tiles), self.state, np.uint8)
        return Plan(states, cut.q_tile, cut.kv_tile, cut.q_len, cut.kv_len)

    def _made(self, call: Call, *arrays: Any) -> Any:
        made = super()._made(call, *arrays)
        tiles = made.design.cut.kv_tiles
        full = tiles if self.state == FULL else 0
        return made._replace(design=dataclasses.replace(made.design, trips=(full, tiles)))


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a kernel computes.

    Attributes:
        group: query heads of a key head.
        state: of all tiles.
        scored: with ALiBi, a soft cap and segments, the slopes differentiated, instead of a causal mask.
        backward: the backward pass instead of the forward pass.
        dim: features of a query and of a value.
        dtype: of query, key and value.
    """

    group: int
    state: int = FULL
    scored: bool = False
    backward: bool = False
    dim: int = 128
    dtype: str = "bfloat16"

    @property
    def name(self) -> str:
        """The name of the kernel."""
        return BACKWARD if self.backward else FORWARD

    def heads(self, few: int, target: str) -> int:
        """The query heads of a program: few, or twice as many where a step of the forward pass has so many."""
        narrow = not self.backward and self.dtype == "bfloat16" and self.dim <= LANES
        return 2 * few if narrow and as_target(target).generation in DOUBLED else few

    def program(self, tiles: int, target: str, tile: int, q_heads: int) -> tuple[Any, tuple[Any, ...], float]:
        """A program that visits `tiles` x `tiles` tiles of `tile` queries and keys in each head.

        Every tile of queries is a batch element, because the estimate knows no copies from the middle of an array.
        Positions are traced where the mask is evaluated: with the index of the tile, 0, it would be evaluated earlier.

        Returns:
            The function, the shapes of its arguments, and the tiles of one head that its loop computes at once.
        """
        call, _ = self._call(target, 1, tile, tiles * tile, q_heads)
        kernel, known = Alike(state=self.state), Alike().plan(call)
        cut = kernel._cut(call)
        if self.backward:
            cut = for_backward(cut, call.target, itemsize_of(call), long=is_long(call))
        else:
            cut = kernel._forward(call, cut, kernel._plan(call, cut, known), known)
        queries, keys = cut.q_tile, tiles * tile
        _, arguments = self._call(target, tiles * tile // queries, queries, keys, q_heads)

        def run(query, key, value, slopes, ids, saved):
            call, query, key = self._prepared(target, query, key, value, slopes, ids)
            kernel = Alike(state=self.state)
            return (
                kernel.gradients(call, query, key, value, *saved)
                if self.backward
                else kernel.stream(call, query, key, value)
            )

        return run, arguments, cut.heads * cut.q_tile * cut.kv_tile / tile**2

    def _call(self, target: str, batch: int, queries: int, keys: int, q_heads: int) -> tuple[Call, Any]:
        """A call, as far as its shapes tell, and the arguments of `run` in `program`."""
        shaped, f32, dim = jax.ShapeDtypeStruct, jnp.float32, self.dim
        query = shaped((batch, queries, q_heads, dim), self.dtype)
        key = shaped((batch, keys, q_heads // self.group, dim), self.dtype)
        ids = shaped((batch, queries), jnp.int32), shaped((batch, keys), jnp.int32)
        row: Any = shaped((batch, queries, q_heads), f32)
        out: Any = shaped(query.shape, f32)
        results = Partial(out, row, row)
        arguments = (query, key, key, shaped((q_heads,), f32), ids, (results, results))
        found = []
        jax.eval_shape(lambda *given: found.append(self._prepared(target, *given)[0]), *arguments[:-1])
        return found[0], arguments

    def _prepared(self, target: str, query: Any, key: Any, value: Any, slopes: Any, ids: Any) -> Any:
        rows = ids[0] if self.state == PARTIAL else np.arange(query.shape[1], dtype=np.int32)
        pieces = Pieces(mask=masks.Causal(), query_positions=rows)
        if self.scored:
            pieces = dataclasses.replace(
                pieces, mask=masks.SameSegment(*ids), scores=(scores.ALiBi(slopes), scores.SoftCap(30.0))
            )
        call, query, key = prepare(query, key, value, pieces)
        return dataclasses.replace(call, target=as_target(target), exact_lse=False), query, key
