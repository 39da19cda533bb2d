"""The tiled implementation as `attention` sees it."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import is_static
from ....dispatch import Implementation
from ...call import Call
from ...partial import Partial
from ...plan import Plan
from ...reverse_mode import reverse_mode_only
from . import tiling
from .backward import is_float
from .forward import empty
from .tile import Pieces
from .transforms import Operands, Program, differentiable


@dataclasses.dataclass(frozen=True)
class Tiled(Implementation):
    """Attention a tile at a time (online softmax; the backward pass recomputes the weights).

    Tiles that the plan finds empty are never touched and full ones are not masked. Memory beside the inputs, the
    output and the gradients is a few tiles. First derivatives, reverse mode.

    The online softmax is that of Milakov & Gimelshein (arXiv:1805.02867) and Rabe & Staats (arXiv:2112.05682); the
    recomputing backward pass is FlashAttention's (arXiv:2205.14135).

    Args:
        q_tile: query rows of a tile; by default chosen for the device.
        k_tile: keys of a tile; likewise. Tile sizes never change the result beyond rounding.

    Raises:
        ValueError: a tile size below 1.
    """

    q_tile: int | None = None
    k_tile: int | None = None
    name = "tiled"

    def __post_init__(self):
        for field in ("q_tile", "k_tile"):
            size = getattr(self, field)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"`{field}` must be a positive int, or None to have it chosen; got {size!r}.")

    def refuses(self, call: Call) -> str | None:
        if not is_static(call.q_len, call.kv_len, call.q_heads, call.kv_heads):
            return "it cuts lengths into tiles, and here they are symbols (of `jax.export`)"
        if call.normalizer.streams_as is None:
            return f"{type(call.normalizer).__name__} cannot stream: {call.normalizer.refusal}"
        return None

    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        streamed = self._streamed(call, query, key, value)
        out = call.normalizer.rescale(streamed.out, streamed.lse, streamed.remainder)
        return dataclasses.replace(streamed, out=out.astype(value.dtype))

    def _streamed(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The result before the normalizer's `rescale`."""
        if 0 in (*call.batch, call.q_len, call.kv_len):
            return Partial(*empty(call, query, key, value))
        cut, plan = tiling.with_plan(call, self.q_tile, self.k_tile)
        traced = None if isinstance(plan.states, np.ndarray) else plan.states
        if traced is not None:
            plan = dataclasses.replace(plan, states=None)
        # Behind this, any derivative but the first in reverse mode is an error that says so.
        query, key, value, pieces = jax.tree.map(
            lambda leaf: reverse_mode_only(leaf) if is_float(leaf) else leaf, (query, key, value, Pieces.of(call))
        )
        operands = Operands(query, key, value, pieces, traced)
        return Partial(*differentiable(Program(cut, call.scale, plan), operands))

    def describe(self, call: Call) -> tuple[Plan | None, str]:
        if 0 in (call.q_len, call.kv_len):
            return None, "nothing"
        cut, plan = tiling.with_plan(call, self.q_tile, self.k_tile)
        examples = math.prod(size for size, whole in zip(cut.batch, cut.whole, strict=True) if whole)
        tile = 4 * examples * cut.q_heads * cut.q_tile * cut.k_tile / 2**20
        wide = cut.wider(plan.states)
        block = 4 * examples * cut.kv_heads * call.kv_len * (call.qk_dim + call.v_dim) / 2**20
        memory = (
            f"forward: about two tiles of scores ({_heads(wide.q_heads)} x {cut.q_tile} x {cut.k_tile}), "
            f"{2 * tile * wide.q_heads / cut.q_heads:,.1f} MiB; backward: about four of {_heads(cut.q_heads)}, and the "
            f"key and value gradients of {_heads(cut.kv_heads)}, {4 * tile + block:,.1f} MiB"
        )
        return _as_visited(plan, cut), memory


def _as_visited(plan: Plan, cut: tiling.Tiling) -> Plan:
    """A head's tiles are those of all heads that are computed with it."""
    folded = cut.fold.aligned(plan.states)
    joined = dataclasses.replace(plan, states=folded).coarse(cut.whole, cut.q_heads)
    xp = np if joined.known else jnp
    states = joined.states if folded.shape[-3] == 1 else xp.repeat(joined.states, cut.q_heads, axis=-3)
    if not cut.fold.trivial:
        states = xp.broadcast_to(states, folded.shape).reshape(plan.states.shape)
    return dataclasses.replace(joined, states=states)


def _heads(count: int) -> str:
    return "1 head" if count == 1 else f"{count} heads"
