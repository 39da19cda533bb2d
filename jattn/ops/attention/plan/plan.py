"""The plan of a call: which tiles of (queries, keys) to visit, and which of them need the mask."""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ....masks.base import Mask
from . import refine
from .intervals import Question, ask, is_known

EMPTY, PARTIAL, FULL = 0, 1, 2


class Lists(NamedTuple):
    """The tiles to visit per row: `order[start:full_stop]` are full, `order[full_stop:stop]` partial.

    order: int32, one-dimensional, for all rows; ascending in each part.
    bounds: int32 `[batch..., head, rows, 3]`: start, full_stop and stop of each row.
    """

    order: Any
    bounds: Any


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """The state of every tile.

    Attributes:
        states: uint8 `[batch..., head, query tiles, key tiles]`, each EMPTY, PARTIAL or FULL; size 1 on axes where all
            entries are the same. A NumPy array if known at trace time, otherwise traced.
        q_tile: queries per tile; the last tile may have fewer.
        k_tile: keys per tile, likewise.
        q_len: the number of queries.
        kv_len: the number of keys.
    """

    states: Any
    q_tile: int
    k_tile: int
    q_len: int
    kv_len: int

    @property
    def known(self) -> bool:
        """Whether the states are known at trace time."""
        return isinstance(self.states, np.ndarray)

    @functools.cached_property
    def identity(self) -> tuple:
        """Equal for known plans that visit the same tiles."""
        return self.q_tile, self.k_tile, self.states.shape, self.states.tobytes()

    def batched(self) -> "Plan":
        """The plan with one more leading batch axis, of size 1."""
        return dataclasses.replace(self, states=self.states[None])

    def counts(self) -> tuple[int, int, int]:
        """(visited, full, all) tiles of a known plan, summed over the batch elements and heads that differ."""
        if not self.known:
            raise ValueError("`counts` needs a plan that is known while tracing; this one is decided at run time.")
        return int((self.states != EMPTY).sum()), int((self.states == FULL).sum()), self.states.size

    def coarse(self, whole: Sequence[bool], head_group: int) -> "Plan":
        """Merge the plans of each `head_group` consecutive heads, and of all elements of batch axes that are `whole`.

        A tile is visited if any of them visits it, and full if it is full for all.
        """
        states, xp = self.states, np if self.known else jnp
        low = high = states
        heads = states.shape[-3]
        if heads > 1 and head_group > 1:
            if heads % head_group:
                raise ValueError(f"`head_group` must divide the {heads} heads of the plan; got {head_group}.")
            grouped = states.reshape(*states.shape[:-3], heads // head_group, head_group, *states.shape[-2:])
            low, high = grouped.min(-3), grouped.max(-3)
        axes = tuple(axis for axis, together in enumerate(whole) if together and states.shape[axis] > 1)
        if axes:
            low, high = low.min(axes, keepdims=True), high.max(axes, keepdims=True)
        if low is states:
            return self
        merged = xp.where(low == high, low, np.uint8(PARTIAL))
        return dataclasses.replace(self, states=merged)

    def lists(self, by: Literal["query", "key"] = "query") -> Lists:
        """The tiles to visit for each query tile (`by="query"`), or for each key tile (`by="key"`).

        The `order` of a known plan is as short as its visited tiles (at least 1). That of a traced plan has room for
        all tiles.
        """
        if by not in ("query", "key"):
            raise ValueError(f"`by` must be 'query' or 'key'; got {by!r}.")
        states = self.states if by == "query" else self.states.swapaxes(-1, -2)
        xp = np if self.known else jnp
        *shape, columns = states.shape
        flat = states.reshape(math.prod(shape), columns)
        full, partial = flat == FULL, flat == PARTIAL
        n_full, n_partial = full.sum(1, dtype=np.int32), partial.sum(1, dtype=np.int32)
        stop = xp.cumsum(n_full + n_partial, dtype=np.int32)
        full_stop = stop - n_partial
        start = full_stop - n_full
        if self.known:
            order = np.zeros(max(int(stop[-1]) if stop.size else 0, 1), np.int32)
            for chosen, count, first in ((full, n_full, start), (partial, n_partial, full_stop)):
                tiles = np.flatnonzero(chosen)
                rows, column = tiles // max(columns, 1), tiles % max(columns, 1)
                before = np.cumsum(count, dtype=np.int32) - count
                order[np.arange(tiles.size) - before[rows] + first[rows]] = column
        else:
            beyond = flat.size
            place = jnp.where(full, start[:, None] + jnp.cumsum(full, 1, dtype=np.int32) - 1, beyond)
            place = jnp.where(partial, full_stop[:, None] + jnp.cumsum(partial, 1, dtype=np.int32) - 1, place)
            column = jnp.broadcast_to(jnp.arange(columns, dtype=np.int32), flat.shape)
            # Empty tiles have an index out of bounds and are dropped.
            order = jnp.zeros(max(beyond, 1), np.int32).at[place.reshape(-1)].set(column.reshape(-1), mode="drop")
        bounds = xp.stack([start, full_stop, stop], -1).reshape((*shape, 3))
        return Lists(order, bounds)


jax.tree_util.register_dataclass(Plan, data_fields=["states"], meta_fields=["q_tile", "k_tile", "q_len", "kv_len"])


def make_plan(mask: Mask | None, query_positions: Any, key_positions: Any, q_tile: int, k_tile: int) -> Plan:
    """The plan of an aligned mask. None allows every pair.

    The plan is known at trace time if the mask's arrays and the positions are NumPy arrays. Otherwise it is computed on
    the device, in O(length + tiles).

    Args:
        mask: aligned to the call, or None.
        query_positions: `[batch..., 1, q_len, 1]`, NumPy or JAX; batch axes have size 1 where shared.
        key_positions: `[batch..., 1, 1, kv_len]`, likewise.
        q_tile: queries per tile.
        k_tile: keys per tile.

    >>> import numpy as np, jattn
    >>> q, k = np.arange(6, dtype=np.int32).reshape(1, 6, 1), np.arange(6, dtype=np.int32).reshape(1, 1, 6)
    >>> print(make_plan(jattn.masks.Causal(), q, k, 2, 2).states[0])
    [[1 0 0]
     [2 1 0]
     [2 2 1]]
    """
    if q_tile < 1 or k_tile < 1:
        raise ValueError(f"`q_tile` and `k_tile` must be at least 1; got {q_tile} and {k_tile}.")
    q_len, kv_len = query_positions.shape[-2], key_positions.shape[-1]
    tiles = -(-q_len // q_tile), -(-kv_len // k_tile)
    lead = (1,) * (query_positions.ndim - 2)
    if mask is None or 0 in tiles:
        states = np.full((*lead, *tiles), FULL, np.uint8)
        return Plan(states, q_tile, k_tile, q_len, kv_len)
    states = states_of(ask(mask, query_positions, key_positions), q_tile, k_tile)
    xp = np if is_known(states) else jnp
    shape = np.broadcast_shapes(states.shape, (*lead, *tiles))
    return Plan(xp.broadcast_to(states, shape), q_tile, k_tile, q_len, kv_len)


def states_of(question: Question, q_tile: int, k_tile: int) -> Any:
    """The states of all tiles, `[batch..., head, query tiles, key tiles]`; size 1 where all entries are the same.

    Answers to the last few known questions are cached, because each layer of a model asks the same one.
    """
    key = (question.identity, q_tile, k_tile, refine.BUDGET) if question.known and question.size <= KEPT else None
    found = None if key is None else _ANSWERS.pop(key, None)
    if found is None:
        found = _states(question, q_tile, k_tile)
    if key is not None:
        found.setflags(write=False)
        _ANSWERS[key] = found
        while len(_ANSWERS) > ANSWERS:
            _ANSWERS.pop(next(iter(_ANSWERS)), None)
    return found


KEPT, ANSWERS = 2**20, 32
"""The most elements that a question may have for its answer to be cached, and the number of cached answers."""
_ANSWERS: dict[Any, np.ndarray] = {}


def _states(question: Question, q_tile: int, k_tile: int) -> Any:
    every, any_ = question.allowed(q_tile, k_tile)
    if not question.known:
        return any_.astype(np.uint8) + (every & any_).astype(np.uint8)
    tiles = [-(-length // tile) for length, tile in zip(question.lengths, (q_tile, k_tile), strict=True)]
    states = any_.view(np.uint8) + (every & any_).view(np.uint8)
    states = np.broadcast_to(states, (*states.shape[:-2], *tiles))
    return refine.refined(question, states, q_tile, k_tile)
