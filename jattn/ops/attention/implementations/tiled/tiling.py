"""How a call is divided into blocks (batch elements and heads that are computed together) and tiles.

Splits batch and heads into (major, minor) parts and computes major parts at once, so that XLA can shard them.

A dynamic slice along an axis that is split over an Auto mesh axis makes XLA gather the whole array, and whether an axis
is split over Auto axes is not visible at trace time. So the loop slices only the minor parts, one after another, and
computes all major parts in one step; splits then fall on the major parts. On one device, and where array types show no
Auto mesh, nothing is folded. All devices take the same steps: a tile is visited if any major part needs it. If that is
not known at trace time, devices communicate it.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import of_rank, quotient
from .....foundation.sharding import major_size
from .....foundation.target import expected_target
from ...call import Call
from ...plan import EMPTY, FULL, PARTIAL, Lists, Plan, make_plan

CPU_TILE = 512  # large enough for matrix products to reach most of a CPU's speed
CPU_ROWS = 1024  # query rows per step over all its heads, enough for one head's tile on each of a few cores
WIDER = 2  # The forward pass processes this many times more heads per step: it keeps fewer tiles live.
ACCELERATOR_TILE = 512
CUDA_TILE = 1024  # An H100 takes 10% to 30% less time than with 512, but in a narrow window 4% more.
CUDA_SCORES = 1 << 27  # numbers in a tile of all heads and examples: beyond that, memory matters more
PAIRWISE_TILE = 128  # for similarities that hold [q, k, features] in memory
JOINED = 1.1  # Group heads with different plans if this visits at most 10% more tiles.


@dataclasses.dataclass(frozen=True)
class Fold:
    """How the batch axes and heads of a call become those of the loops.

    The loops see `sizes` as their batch axes. A batch axis of b elements on n devices becomes two, of gcd(b, n) and the
    remaining factor. The major part of the heads is one more axis after them.

    Args:
        batch: the batch axes of the call.
        looped: whether a step computes one batch element; otherwise it computes all, and no batch axis is folded.
        devices: the number of devices over which an axis may be split, as far as is known.
        heads: the major part of the key heads.
    """

    batch: tuple[int, ...]
    looped: bool
    devices: int = 1
    heads: int = 1

    @functools.cached_property
    def majors(self) -> tuple[int, ...]:
        """The major part of each batch axis; 1 if it is not folded."""
        return tuple(major_size(size, self.devices) if self.looped else 1 for size in self.batch)

    @property
    def trivial(self) -> bool:
        """Whether nothing is folded."""
        return self.heads == 1 and set(self.majors) <= {1}

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """The batch axes that the loops see."""
        return self._folded(self.batch) + ((self.heads,) if self.heads > 1 else ())

    @functools.cached_property
    def whole(self) -> tuple[bool, ...]:
        """Which of `sizes` are computed at once."""
        parts = ((True, False) if major > 1 else (not self.looped,) for major in self.majors)
        return sum(parts, ()) + ((True,) if self.heads > 1 else ())

    def _folded(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """The folded sizes of an array's batch axes, each of which is 1 or the call's."""
        parts = (
            (min(size, major), max(size // major, 1)) if major > 1 else (size,)
            for size, major in zip(batch, self.majors, strict=True)
        )
        return sum(parts, ())

    def rows(self, array: Any) -> Any:
        """Fold an array `[batch..., length, heads, ...]` for the loops."""
        if self.trivial:
            return array
        rank = len(self.batch)
        *_, length, heads = array.shape[: rank + 2]
        batch = self._folded(self.batch)
        folded = array.reshape(*batch, length, self.heads, heads // self.heads, *array.shape[rank + 2 :])
        axis = len(batch)
        return jnp.moveaxis(folded, axis + 1, axis) if self.heads > 1 else folded.reshape(*batch, *array.shape[rank:])

    def unfolded_rows(self, array: Any) -> Any:
        """The inverse of `rows`."""
        if self.trivial:
            return array
        axis = len(self._folded(self.batch))
        if self.heads > 1:
            array = jnp.moveaxis(array, axis, axis + 1)
            array = array.reshape(*array.shape[: axis + 1], -1, *array.shape[axis + 3 :])
        return array.reshape(*self.batch, *array.shape[axis:])

    def aligned(self, array: Any) -> Any:
        """Fold an aligned array `[batch..., head, ...]`, with size 1 on shared axes, for the loops."""
        if self.trivial:
            return array
        rank, shape = len(self.batch), np.shape(array)
        heads = shape[rank]
        head_axes = (min(heads, self.heads), max(heads // self.heads, 1)) if self.heads > 1 else (heads,)
        return array.reshape(*self._folded(shape[:rank]), *head_axes, *shape[rank + 1 :])

    def apart(self, array: Any) -> Any:
        """Fold an aligned array, with one copy for each major part that shares it.

        Gradients of the copies are summed once, by `together`, instead of by all devices in every tile.
        """
        folded = self.aligned(array)
        if self.trivial:
            return folded
        shape = [
            size if whole and have == 1 else have
            for have, size, whole in zip(folded.shape, self.sizes, self.whole, strict=False)
        ]
        return jnp.broadcast_to(folded, (*shape, *folded.shape[len(shape) :]))

    def together(self, gradient: jax.Array, array: Any) -> jax.Array:
        """The gradient of an array, from the gradient of `apart(array)`."""
        if self.trivial:
            return gradient
        shape = np.shape(self.aligned(array))
        shared = tuple(i for i, (have, want) in enumerate(zip(gradient.shape, shape, strict=True)) if have != want)
        return gradient.sum(shared).reshape(np.shape(array))


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static sizes of the tile loop.

    A *block* is computed in one step: `kv_heads` key heads with `group` query heads each, of one batch element (on axes
    that are `whole`, of all elements). All query heads of a key head are in one block, or, to visit fewer tiles, in
    `shares` blocks of a single key head each. Batch axes and heads are those of the folded arrays (see `folding`).

    Attributes:
        fold: how batch axes and heads are folded.
        q_len, kv_len: the numbers of queries and keys.
        total_kv_heads: the number of key heads.
        group: query heads per key head in a block.
        q_tile, k_tile: queries and keys per tile.
        kv_heads: key heads per block.
        shares: the number of blocks that share a key head.
        rounds: whether weights are rounded to the dtype of the array that they multiply. A CPU has no matrix units that
            would gain from it, so it keeps the precision.
    """

    fold: Fold
    q_len: int
    kv_len: int
    total_kv_heads: int
    group: int
    q_tile: int
    k_tile: int
    kv_heads: int
    shares: int = 1
    rounds: bool = True

    @property
    def batch(self) -> tuple[int, ...]:
        """The batch axes of the folded arrays."""
        return self.fold.sizes

    @property
    def whole(self) -> tuple[bool, ...]:
        """Which batch axes are computed at once instead of in a loop."""
        return self.fold.whole

    @property
    def rank(self) -> int:
        """The number of batch axes."""
        return len(self.batch)

    @property
    def q_heads(self) -> int:
        return self.kv_heads * self.group

    @property
    def head_blocks(self) -> int:
        return self.total_kv_heads // self.kv_heads * self.shares

    @property
    def blocks(self) -> int:
        looped = (size for size, whole in zip(self.batch, self.whole, strict=True) if not whole)
        return self.head_blocks * math.prod(looped)

    @property
    def q_tiles(self) -> int:
        return -(-self.q_len // self.q_tile)

    @property
    def ragged(self) -> tuple[bool, bool]:
        """Whether the last query tile and the last key tile overlap the previous one."""
        return self.q_len % self.q_tile != 0, self.kv_len % self.k_tile != 0

    def by_plan(self, states: Any) -> "Tiling":
        """A tiling with fewer heads per block, if the heads of a block would otherwise visit each other's tiles.

        Devices with many cores compute all heads at once and are left as they are.

        Args:
            states: the plan's states; the head axis has size 1 if all heads are the same.
        """
        states = self.fold.aligned(states)
        if not self.fold.looped or states.shape[-3] == 1:
            return self
        choices = [dataclasses.replace(self, kv_heads=size) for size in _divisors(self.kv_heads)]
        one = choices[-1]
        if self.group_may_part:
            shares = _divisors(self.group)
            choices += [dataclasses.replace(one, group=size, shares=self.group // size) for size in shares]
        apart = choices[-1]
        if not isinstance(states, np.ndarray):
            return apart  # the tiles of each head are not known yet
        least = apart.visits(states)
        return next(choice for choice in choices if choice.visits(states) <= JOINED * least)

    def wider(self, states: Any) -> "Tiling":
        """A tiling with `WIDER` times as many key heads per step, if that visits no more tiles.

        The heads of a step share their lists of tiles.

        Args:
            states: as in `by_plan`.
        """
        states = self.fold.aligned(states)
        if not self.fold.looped or self.shares > 1 or self.total_kv_heads % (WIDER * self.kv_heads):
            return self
        wide = dataclasses.replace(self, kv_heads=WIDER * self.kv_heads)
        if states.shape[-3] == 1:
            return wide
        known = isinstance(states, np.ndarray)
        return wide if known and wide.visits(states) == self.visits(states) else self

    @property
    def group_may_part(self) -> bool:
        """Whether the query heads of a key head may be in several blocks. Not if devices may divide them."""
        heads = self.total_kv_heads * self.group * self.shares * self.fold.heads
        return major_size(heads, self.fold.devices) == self.fold.heads

    def visits(self, states: np.ndarray) -> int:
        """The number of tiles that are computed, summed over heads: each tile that any head of a block visits."""
        seen = states != EMPTY
        seen = seen.any(tuple(axis for axis, whole in enumerate(self.whole) if whole), keepdims=True)
        seen = seen.reshape(*seen.shape[:-3], -1, self.q_heads, *seen.shape[-2:])
        return self.q_heads * int(seen.any(-3).sum())

    def key_head(self, starts: dict[int, Any]) -> Any:
        """The first key head of a block, from its `starts`."""
        return quotient(starts[self.rank], self.group * self.shares)[0]

    def starts(self, block: Any, q_index: Any) -> dict[int, Any]:
        """Where aligned arrays (`[batch..., head, query, key]`) are sliced for the first tile of a row of a block.

        If the length is not a multiple of the tile, the last tile starts early, so that it is complete and overlaps the
        previous one.
        """
        # With 64-bit types enabled, loop counters are int64 but the plan's lists are int32. A slice needs one dtype.
        block, q_index = jnp.asarray(block, int), jnp.asarray(q_index, int)
        starts: dict[int, Any] = {}
        block, head_block = quotient(block, self.head_blocks)
        for axis in reversed(range(self.rank)):
            if not self.whole[axis]:
                block, starts[axis] = quotient(block, self.batch[axis])
        starts[self.rank] = head_block * self.q_heads
        starts[self.rank + 1] = self.q_start(q_index)
        starts[self.rank + 2] = 0
        return starts

    def at_keys(self, starts: dict[int, Any], k_index: Any) -> dict[int, Any]:
        """`starts` of the row, at a key tile."""
        return {**starts, self.rank + 2: self.k_start(jnp.asarray(k_index, int))}

    def q_start(self, q_index: Any) -> Any:
        start = q_index * self.q_tile
        return jnp.minimum(start, self.q_len - self.q_tile) if self.ragged[0] else start

    def k_start(self, k_index: Any) -> Any:
        start = k_index * self.k_tile
        return jnp.minimum(start, self.kv_len - self.k_tile) if self.ragged[1] else start

    def sizes(self) -> dict[int, int]:
        """The sizes of the slices at `starts`."""
        batch = {axis: self.batch[axis] if whole else 1 for axis, whole in enumerate(self.whole)}
        return {**batch, self.rank: self.q_heads, self.rank + 1: self.q_tile, self.rank + 2: self.k_tile}


def choose(call: Call, q_tile: int | None, k_tile: int | None) -> Tiling:
    """Choose tile and block sizes for the target of a call."""
    platform = (call.target or expected_target()).platform
    on_cpu = platform == "cpu"
    group = call.q_heads // call.kv_heads
    pairwise = not call.pieces.similarity.is_dot
    tile = PAIRWISE_TILE if pairwise else (CPU_TILE if on_cpu else ACCELERATOR_TILE)
    if platform == "cuda" and not pairwise and math.prod(call.batch) * call.q_heads * CUDA_TILE**2 <= CUDA_SCORES:
        tile = CUDA_TILE
    heads = major_size(call.kv_heads, call.devices) if on_cpu else 1
    fold = Fold(call.batch, looped=on_cpu, devices=call.devices, heads=heads)
    # How much of the folded axes is on each device if they are split over all devices.
    at_once = max(1, math.prod(fold.majors) * heads // call.devices)
    if q_tile is None:
        q_tile = max(tile // (max(group // 2, 1) * at_once if on_cpu else 1), 64)
    q_tile = min(q_tile, call.q_len)
    k_tile = min(k_tile or tile, call.kv_len)
    kv_heads = call.kv_heads // heads
    if on_cpu:
        wanted = max(1, CPU_ROWS // (q_tile * group * at_once)) if not pairwise else 1
        kv_heads = max(size for size in range(1, wanted + 1) if kv_heads % size == 0)
    return Tiling(
        fold=fold,
        q_len=call.q_len,
        kv_len=call.kv_len,
        total_kv_heads=call.kv_heads // heads,
        group=group,
        q_tile=q_tile,
        k_tile=k_tile,
        kv_heads=kv_heads,
        rounds=not on_cpu,
    )


def _divisors(number: int) -> list[int]:
    """The divisors of a number, in descending order."""
    return [size for size in range(number, 0, -1) if number % size == 0]


def schedule(call: Call, q_tile: int | None, k_tile: int | None) -> "Schedule":
    """How to divide a call, and the tiles to visit."""
    tiling, pieces = choose(call, q_tile, k_tile), call.pieces
    plan = make_plan(pieces.mask, pieces.query_positions, pieces.key_positions, tiling.q_tile, tiling.k_tile)
    return Schedule(tiling.by_plan(plan.states), plan)


@dataclasses.dataclass(frozen=True, eq=False)
class Schedule:
    """The tiling and the plan of a call. Two known schedules are equal if they visit the same tiles."""

    tiling: Tiling
    plan: Plan

    @functools.cached_property
    def _identity(self) -> tuple:
        return self.tiling, *self.plan.identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def lists(self) -> Lists:
        """The tiles of each block, as lists."""
        states = self.tiling.fold.aligned(with_ragged_partial(self.plan.states, self.tiling))
        plan = dataclasses.replace(self.plan, states=states)
        return plan.coarse(self.tiling.whole, self.tiling.q_heads).lists("query")

    def wider(self) -> "Schedule":
        """The schedule of the forward pass."""
        return dataclasses.replace(self, tiling=self.tiling.wider(self.plan.states))

    def on(self, batch: tuple[int, ...]) -> "Schedule":
        """The schedule for these batch axes: those of one device, or with axes of `vmap`."""
        if self.tiling.fold.batch == batch:
            return self
        fold = dataclasses.replace(self.tiling.fold, batch=batch)
        return dataclasses.replace(self, tiling=dataclasses.replace(self.tiling, fold=fold))

    def batched(self) -> "Schedule":
        """The schedule with one more leading batch axis, of size 1, in the plan."""
        return dataclasses.replace(self, plan=self.plan.batched())


def with_ragged_partial(states: Any, tiling: Tiling) -> Any:
    """Mark overlapping full tiles as partial, so that pairs of the previous tile are masked."""
    rows, columns = states.shape[-2:]
    ragged_q, ragged_k = tiling.ragged
    last = np.zeros((rows, columns), bool)
    last[-1:] |= ragged_q
    last[:, -1:] |= ragged_k
    backend = np if isinstance(states, np.ndarray) else jax.numpy
    return backend.where(of_rank(last, states.ndim) & (states == FULL), np.uint8(PARTIAL), states)
