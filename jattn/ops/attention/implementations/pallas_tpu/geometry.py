"""How a call is cut for the kernels: tiles, heads per step, padding, and the grid."""

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl

from .....foundation.target import Target, expected_target
from ...call import Call
from ...plan import EMPTY, Plan

LOG2E = math.log2(math.e)
LANES, SUBLANES, PACKED = 128, 8, 16
"""A vector register holds 8 sublanes x 128 lanes of 32 bits; 16-bit numbers are packed in pairs of sublanes."""

UNIT = 512
"""Queries of a unit, and keys of a tile. Smaller ones fill the matrix unit badly, larger ones gain nothing."""

UNITS = 4
"""Units per step that are aimed at: more share the transposed values, but make the program longer."""

ENTRIES = (6, 45)
"""Entries of tables in a tile above which it is halved, to keep the loop below 10,000 bundles: in the backward pass
each entry takes about 1.5 for a register of scores, beside some 10."""

JOINED = 1.1
"""Heads with different plans share a step if that visits at most 10% more tiles."""

LONG = ("v5e", "v5p")
"""Generations whose loops are the longest: a product of 512 x 512 x 128 takes them twice as many instructions."""

MEGABYTE = 2**20
VMEM = {"v4": 16, "v5e": 128, "v5p": 64, "v6e": 128, "7x": 64}
"""Vector memory of a core, in MiB."""

CORES = {"v4": 2, "v5p": 2}
"""Cores of one device, of generations that have more than one."""

RESIDENT = {"forward": 3 / 8, "backward": 1 / 8, "gradients": 3 / 8}
"""The share of vector memory that all keys and values of a step may take, and that their gradients may."""


def rounded(size: int, multiple: int) -> int:
    """`size`, rounded up to a multiple."""
    return -(-size // multiple) * multiple


def vmem_of(target: Target | None) -> int:
    """Bytes of vector memory of a core. An unknown generation is taken to have what most have."""
    generation = target.generation if target is not None else None
    return VMEM.get(generation or "", 64) * MEGABYTE


def cores_of(target: Target | None) -> int:
    """Cores of one device; of an unknown generation, more than one."""
    generation = target.generation if target is not None else None
    return 2 if generation is None else CORES.get(generation, 1)


@dataclasses.dataclass(frozen=True)
class Cut:
    """The static sizes of the kernels.

    A *step* of the grid is `heads` query heads of one batch element and one tile of their queries. A *unit* is what a
    step computes at once with a tile of keys: one head, and of its queries one of `parts` equal parts.

    Attributes:
        axes: the batch axes of the call. The kernels see one, of `batch` elements.
        q_heads, kv_heads, q_len, kv_len, qk_dim, v_dim: as in the call.
        heads: query heads of a step: a divisor of those of a key head, or all those of several key heads.
        parts: parts of the queries of a step.
        q_tile: queries of a step.
        kv_tile: keys of a tile.
        blocked: for the compiler's estimates, which cannot follow copies with strides: the queries of a step, and their
            results, are together in memory, `[batch, steps, q_tiles, heads, q_tile, features]`.
        chunks: the backward pass visits the keys in this many chunks, whose gradients stay in vector memory.
    """

    axes: tuple[int, ...]
    q_heads: int
    kv_heads: int
    q_len: int
    kv_len: int
    qk_dim: int
    v_dim: int
    heads: int
    parts: int
    q_tile: int
    kv_tile: int
    blocked: bool = False
    chunks: int = 1

    @property
    def batch(self) -> int:
        return math.prod(self.axes)

    def folded(self, array: Any) -> Any:
        """`[batch..., ...]` with one batch axis: of size 1 if the array is the same for all elements."""
        rank = len(self.axes)
        rest = array.shape[rank:]
        if set(array.shape[:rank]) <= {1}:
            return array.reshape(1, *rest)
        backend: Any = np if isinstance(array, np.ndarray) else jnp
        return backend.broadcast_to(array, (*self.axes, *rest)).reshape(self.batch, *rest)

    @property
    def group(self) -> int:
        """Query heads per key head."""
        return self.q_heads // self.kv_heads

    @property
    def key_heads(self) -> int:
        """Key heads of a step."""
        return max(self.heads // self.group, 1)

    @property
    def shares(self) -> int:
        """Steps whose queries share a key head."""
        return max(self.group // self.heads, 1)

    @property
    def steps(self) -> int:
        """Steps of a query tile, over all heads."""
        return self.q_heads // self.heads

    @property
    def units(self) -> int:
        return self.heads * self.parts

    @property
    def unit(self) -> int:
        """Queries of a unit."""
        return self.q_tile // self.parts

    @property
    def q_tiles(self) -> int:
        return -(-self.q_len // self.q_tile)

    @property
    def kv_tiles(self) -> int:
        """Key tiles, in all chunks."""
        return rounded(-(-self.kv_len // self.kv_tile), self.chunks)

    @property
    def chunk_tiles(self) -> int:
        """Key tiles of a chunk."""
        return self.kv_tiles // self.chunks

    @property
    def padded(self) -> tuple[int, int]:
        """Queries and keys with those of the padding."""
        return self.q_tiles * self.q_tile, self.kv_tiles * self.kv_tile

    @property
    def ragged(self) -> tuple[bool, bool]:
        """Whether there is padding among the queries, and among the keys."""
        return self.padded[0] != self.q_len, self.padded[1] != self.kv_len

    @property
    def lanes(self) -> tuple[int, int]:
        """Features of a query and of a value in memory: whole lanes, also of values without features."""
        return rounded(self.qk_dim, LANES), rounded(max(self.v_dim, 1), LANES)

    @property
    def rows(self) -> tuple[int, int]:
        """Features of a query and of a value that are computed with: whole sublanes."""
        return rounded(self.qk_dim, PACKED), rounded(max(self.v_dim, 1), PACKED)

    def head_of(self, unit: int) -> int:
        """The head of a unit, counted in its step."""
        return unit // self.parts

    def key_head_of(self, unit: int) -> int:
        """The key head of a unit, counted in its step."""
        return self.head_of(unit) // self.group if self.heads > self.group else 0

    def queries_of(self, unit: int) -> slice:
        """The queries of a unit, counted in its step."""
        part = unit % self.parts
        return slice(part * self.unit, (part + 1) * self.unit)

    def keys(self, tile: Any) -> Any:
        """The slice of the keys of a tile."""
        return pl.ds(pl.multiple_of(tile * self.kv_tile, self.kv_tile), self.kv_tile)

    def tile_sizes(self) -> str:
        """In words."""
        heads = "1 query head" if self.heads == 1 else f"{self.heads} query heads"
        return f"{heads} x {self.q_tile} queries x {self.kv_tile} keys a step"


def cut_of(call: Call, q_tile: int | None, kv_tile: int | None, heads: int | None, entries: int = 0) -> Cut:
    """The cut of a call, with the caller's sizes where given.

    A step has an even number of units, because the scores of one unit are computed while the weights of the one before
    are used, from two buffers that take turns. Where the vector memory does not suffice, it has fewer heads, and then
    smaller tiles.

    Args:
        call: its target may be unknown.
        q_tile: queries of a unit.
        kv_tile: keys of a tile.
        heads: query heads of a step.
        entries: of tables with which a tile compares an index (`Lowered.entries`).
    """
    group, itemsize = call.q_heads // call.kv_heads, itemsize_of(call)
    numbers = UNITS // 2 if is_wide(call) or entries else UNITS
    several = [_heads(group, call.kv_heads, numbers >> half) for half in range(numbers.bit_length())]
    plain = call.pieces.mask is None and not is_long(call)
    halvings = sum(entries > few for few in ENTRIES)

    def cut(heads: int, halvings: int) -> Cut:
        queries, keys = (max(size >> halvings, LANES) for size in _most(call))
        # More than two parts cost less; a single head has them if larger tiles add no pairs.
        padded = {rounded(call.q_len, parts * (q_tile or queries)) for parts in (2, numbers)}
        parts = 1 if heads % 2 == 0 else numbers if heads == 1 and plain and len(padded) == 1 else 2
        unit = q_tile or min(queries, rounded(-(-call.q_len // parts), LANES))
        return Cut(
            axes=call.batch,
            q_heads=call.q_heads,
            kv_heads=call.kv_heads,
            q_len=call.q_len,
            kv_len=call.kv_len,
            qk_dim=call.qk_dim,
            v_dim=call.v_dim,
            heads=heads,
            parts=parts,
            q_tile=parts * unit,
            kv_tile=kv_tile or min(keys, rounded(call.kv_len, LANES)),
        )

    choices = [*several, 1] if heads is None else [heads]
    cuts = [cut(one, halvings + more) for more in range(3) for one in choices]
    target = call.target or expected_target()
    return next((one for one in cuts if working_set(one, itemsize) <= room_of(one, target)), cuts[-1])


def _most(call: Call) -> tuple[int, int]:
    """Queries of a unit and keys of a tile that are aimed at."""
    target = call.target or expected_target()
    dim, wide = max(call.qk_dim, call.v_dim), is_wide(call)
    most = UNIT // 2 if vmem_of(target) <= 16 * MEGABYTE or dim > 2 * LANES or wide else UNIT
    if not wide:
        return most, most
    many = dim > 2 * LANES
    fewer = many or (target.generation in ("v4", *LONG) and (dim > LANES or call.pieces.dropout is not None))
    return most // 2 if many else most, most // 2 if fewer else most


def is_wide(call: Call) -> bool:
    """Whether the numbers of a call are float32: a product is then six, and the program must stay short enough.

    Sums over features are of float32, and float16 is computed as float32.
    """
    return not {"float32", "float16"}.isdisjoint(call.dtypes) or not call.pieces.similarity.is_dot


def itemsize_of(call: Call) -> int:
    """Bytes of a number of the arrays, at most."""
    return 4 if is_wide(call) else max(jnp.dtype(dtype).itemsize for dtype in call.dtypes)


def _heads(group: int, kv_heads: int, wanted: int) -> int:
    """Query heads of a step: an even number of about as many as wanted, of one key head or of several; or else 1."""
    of_one = [size for size in range(2, group + 1, 2) if group % size == 0 and size <= 2 * wanted]
    if of_one:
        return max((size for size in of_one if size <= wanted), default=min(of_one))
    of_many = [group * size for size in range(1, kv_heads + 1) if kv_heads % size == 0 and group * size % 2 == 0]
    fitting = [size for size in of_many if size <= 2 * wanted]
    return max((size for size in fitting if size <= wanted), default=min(fitting, default=1))


def joins_well(cut: Cut, plan: Plan | None) -> bool:
    """Whether the heads of a step visit few tiles for one another, by a known plan."""
    if plan is None or cut.heads == 1 or plan.states.shape[-3] == 1:
        return True
    seen = plan.states != EMPTY
    joined = seen.reshape(*seen.shape[:-3], cut.steps, cut.heads, *seen.shape[-2:]).any(-3)
    return int(joined.sum()) * cut.heads <= JOINED * int(seen.sum())


def vmem_limit(target: Target | None) -> int:
    """Bytes of vector memory that a kernel may take. XLA keeps arrays in the rest."""
    return vmem_of(target) * 3 // 4


def room_of(cut: Cut, target: Target | None) -> int:
    """Bytes of vector memory that the working set of a step may take, beside keys and the gradients of one tile."""
    return min(vmem_limit(target) * 5 // 8, _beside_keys(target) - _of_gradients(cut))


def _beside_keys(target: Target | None) -> int:
    """Bytes of vector memory beside resident keys of the backward pass and what the compiler adds."""
    return vmem_limit(target) * 7 // 8 - int(RESIDENT["backward"] * vmem_of(target))


def _of_gradients(cut: Cut) -> int:
    """Bytes of the gradients of a tile of keys and values, of two steps."""
    return 2 * cut.key_heads * cut.kv_tile * sum(cut.rows) * 4


def keys_fit(cut: Cut, itemsizes: tuple[int, int], target: Target | None, sweep: str) -> bool:
    """Whether all keys and values of a step (of a chunk) stay in vector memory, of which the pipeline holds two steps.

    They are then fetched once for all query tiles, otherwise once for each that visits them.

    Args:
        cut: the sizes.
        itemsizes: bytes of a number of keys and of values.
        target: what the program is for.
        sweep: "forward" or "backward".
    """
    return _of_keys(cut, itemsizes) <= RESIDENT[sweep] * vmem_of(target)


def _of_keys(cut: Cut, itemsizes: tuple[int, int]) -> int:
    """Bytes of all keys and values of two steps."""
    row = sum(width * size for width, size in zip(cut.lanes, itemsizes, strict=True))
    return 2 * cut.key_heads * cut.chunk_tiles * cut.kv_tile * row


def is_long(call: Call) -> bool:
    """Whether the backward loop would have more than 10,000 bundles on a generation whose loops are long."""
    pieces = call.pieces
    plain = not pieces.scores and pieces.dropout is None and pieces.normalizer.streams_as == "softmax"
    always = call.target is not None and call.target.generation == "v5p"
    return always or not plain or max(call.qk_dim, call.v_dim) > LANES


def for_backward(cut: Cut, target: Target | None, itemsize: int, *, long: bool = False) -> Cut:
    """The cut of the backward pass: as many chunks of the keys as their gradients need to stay in vector memory.

    Args:
        cut: that of the forward pass.
        target: what the program is for.
        itemsize: bytes of a number of the arrays, at most.
        long: whether to halve the heads of a step on generations whose loops are long (`is_long`).
    """
    if long and target is not None and target.generation in LONG and cut.heads % 4 == 0:
        cut = dataclasses.replace(cut, heads=cut.heads // 2)
    tile, whole = _of_gradients(cut), vmem_of(target)
    share = RESIDENT["gradients"] * (1 / 2 if whole <= 16 * MEGABYTE else 1)  # little memory has much else to hold
    spare = _beside_keys(target) - working_set(cut, itemsize)
    most = max(min(int(share * whole), spare) // tile, 1)
    return dataclasses.replace(cut, chunks=-(-cut.kv_tiles // most))


def working_set(cut: Cut, itemsize: int) -> int:
    """Bytes of vector memory of a step of the backward pass, beside keys and their gradients and fields.

    Args:
        cut: the sizes.
        itemsize: bytes of a number of the query and of the value.
    """
    features = sum(cut.lanes)
    queries = cut.heads * cut.q_tile * features * (3 * itemsize + 4)  # blocks, transposed copies, the gradient
    keys = (3 * cut.key_heads + 1) * cut.kv_tile * features * itemsize
    return queries + keys + 2 * cut.kv_tile * cut.unit * (4 + 2 * itemsize)


def in_words(cut: Cut, forward: Cut, itemsizes: tuple[int, int], target: Target | None, *, long: bool = False) -> str:
    """The sizes of a step and its vector memory, without that of fields. `long` is as in `for_backward`."""

    def of_sweep(cut: Cut, sweep: str) -> str:
        if keys_fit(cut, itemsizes, target, sweep):
            return f"keys and values whole ({_of_keys(cut, itemsizes) / MEGABYTE:.1f} MiB)"
        return "keys and values tile by tile"

    back = for_backward(cut, target, max(itemsizes), long=long)
    chunks = "all keys" if back.chunks == 1 else f"{back.chunks} chunks of the keys"
    gradients = back.chunk_tiles * _of_gradients(back) / MEGABYTE
    more = f"{forward.heads} heads a step, " if forward.heads != cut.heads else ""
    return (
        f"{cut.tile_sizes()}, about {working_set(cut, max(itemsizes)) / MEGABYTE:.1f} MiB of vector memory; forward: "
        f"{more}{of_sweep(forward, 'forward')}; backward: {of_sweep(back, 'backward')}, and the gradients of {chunks} "
        f"({gradients:.1f} MiB)"
    )


def refusal(cut: Cut, target: Target | None, itemsize: int) -> str | None:
    """Why these sizes cannot be computed with; the caller may have given them."""
    if cut.q_heads % cut.heads or (cut.group % cut.heads and cut.heads % cut.group):
        return (
            f"`heads` must divide the {cut.group} query heads of a key head, or be a multiple of them that divides the "
            f"{cut.q_heads} query heads; got {cut.heads}"
        )
    need, limit = working_set(cut, itemsize), room_of(cut, target)
    if need > limit:
        least = cut.units == 2 and cut.unit == cut.kv_tile == LANES
        remedy = "no step is smaller" if least else "choose a smaller `q_tile`, `kv_tile` or `heads`"
        return (
            f"{cut.tile_sizes()} with {cut.qk_dim} and {cut.v_dim} features take about {need / MEGABYTE:.0f} MiB of "
            f"vector memory, and there are {limit / MEGABYTE:.0f}: {remedy}"
        )
    if cut.unit % LANES or cut.kv_tile % LANES:
        return f"tiles must be multiples of {LANES}; got `q_tile` {cut.unit} and `kv_tile` {cut.kv_tile}"
    return None
