"""The kernel for a few queries over a long cache: see `decode`."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .....foundation.sharding import varying_shape
from ..lowering import Lowered
from .design import infinities, interpreter
from .storage import LANES, Storage

ROWS = 64
"""Rows of scores that are computed at once: as many as fit in registers beside the tiles."""

PAGES = 32
"""Pages whose copies are started without a loop around them, which takes a quarter of the time."""


@dataclasses.dataclass(frozen=True)
class RowField:
    """What the pieces read of an array `[batch or 1, rows or 1, keys or 1]`.

    by_batch: whether batch elements differ.
    by_row: whether rows differ.
    by_key: whether keys differ. Then it is copied tile by tile, with the keys.
    dtype: of 32 bits.
    """

    by_batch: bool
    by_row: bool
    by_key: bool
    dtype: str


@dataclasses.dataclass(frozen=True)
class Decoding:
    """The static part of a decoding kernel.

    Attributes:
        axes: the batch axes of the call. The kernel sees one, of `batch` elements.
        batch: their product.
        q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim: as in the call.
        rows: rows of a key head: its query heads times their queries, rounded up.
        tile: keys of a tile.
        parts: how many parts the tiles are dealt out to, each for a core.
        buffers: tiles in vector memory: one is computed with, the others are on their way.
        key, value: how they lie in memory.
        keys_as_values: whether the tiles of keys are those of the values.
        page: places of a page; None if the cache is in one piece.
        slots: pages of a sequence.
        lowered: how a tile is computed.
        fields: what it reads, in the order of `Lowered.fields`; then the positions of queries, and of keys if given.
        given: whether the positions of keys are a field.
        scale: the factor on the products, with `Lowered.before`.
        softmax: whether the normalizer is a softmax, or elementwise.
        interpret: whether the kernel is interpreted on the machine at hand.
        vmem: the limit on vector memory, in bytes.
        trips: for the compiler's estimates, which cannot see bounds that are read at run time: the numbers of full and
            of visited tiles of every example, in place of those of the lists. Such a kernel does not wait for its
            copies, which the estimates would count one after the other, and starts some past its last tile.
    """

    axes: tuple[int, ...]
    batch: int
    q_len: int
    kv_len: int
    q_heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int
    rows: int
    tile: int
    parts: int
    buffers: int
    key: Storage
    value: Storage
    keys_as_values: bool
    page: int | None
    slots: int
    lowered: Lowered
    fields: tuple[RowField, ...]
    given: bool
    scale: float
    softmax: bool
    interpret: bool
    vmem: int
    trips: tuple[int, int] | None = None

    @property
    def all_rows(self) -> int:
        """Rows of all key heads."""
        return self.kv_heads * self.rows

    @property
    def tiles(self) -> int:
        """Tiles of a sequence."""
        return -(-self.kv_len // self.tile)

    @property
    def tail(self) -> int:
        """Keys of the last tile, if it is not whole; else 0."""
        return self.kv_len % self.tile

    @property
    def pages(self) -> int:
        """Pages of a tile."""
        return self.tile // self.page if self.page else 0


def call(
    design: Decoding,
    axes: tuple[str, ...],
    scalars: Sequence[jax.Array],
    query: jax.Array,
    sides: Sequence[jax.Array],
    stored: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array]:
    """Run the kernel.

    Args:
        design: the static part.
        axes: the mesh axes over which the results vary.
        scalars: bounds `[parts * batch * 3]`, the order of tiles and the batch element of each; for pages, also the
            table `[batch * slots]`.
        query: `[batch, kv_heads, rows, qk_dim]`.
        sides: keys and values as `Storage.stored` returns them; only keys if they are the values.
        stored: the fields.

    Returns:
        The output `[parts, batch, kv_heads * rows, v_dim]`, and its top and mass in the first two lanes of an array
        `[parts, batch, kv_heads * rows, LANES]`.
    """
    rows, width = design.all_rows, design.v_dim

    def by_batch(sizes: tuple[int, ...], differs: bool = True) -> pl.BlockSpec:
        return pl.BlockSpec((None, *sizes), lambda part, batch, *_: (batch if differs else 0, *[0] * len(sizes)))

    def spec(field: RowField) -> pl.BlockSpec:
        if field.by_key:
            return pl.BlockSpec(memory_space=pl.ANY)
        return by_batch((rows if field.by_row else 1, 1), field.by_batch)

    whole = pl.BlockSpec(memory_space=pl.ANY)
    copied = [field for field in design.fields if field.by_key]
    result = [
        pl.BlockSpec((None, None, rows, size), lambda part, batch, *_: (part, batch, 0, 0)) for size in (width, LANES)
    ]
    scratch = [
        design.key.buffers(design.buffers),
        *([] if design.keys_as_values else [design.value.buffers(design.buffers)]),
        *(pltpu.VMEM((design.buffers, rows if one.by_row else 1, design.tile), jnp.dtype(one.dtype)) for one in copied),
        pltpu.SemaphoreType.DMA((design.buffers,)),
        pltpu.VMEM((rows, LANES), jnp.float32),  # the maximum, in every lane
        pltpu.VMEM((rows, LANES), jnp.float32),  # the mass, the sum of all lanes
        pltpu.VMEM((rows, width), jnp.float32),
    ]
    return pl.pallas_call(
        functools.partial(_kernel, design),
        name="jattn_decode" if design.page is None else "jattn_decode_pages",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=len(scalars),
            grid=(design.parts, design.batch),
            in_specs=[
                by_batch((design.kv_heads, design.rows, design.qk_dim)),
                *[whole for _ in sides],
                *map(spec, design.fields),
            ],
            out_specs=result,
            scratch_shapes=scratch,
        ),
        out_shape=[
            varying_shape((design.parts, design.batch, rows, size), jnp.float32, axes) for size in (width, LANES)
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=design.vmem
        ),
        interpret=interpreter(design.interpret, axes),
    )(*scalars, query, *sides, *stored)  # fmt: skip


def _kernel(design: Decoding, bounds, order, owner, *refs):
    paged = design.page is not None
    table, refs = (refs[0], refs[1:]) if paged else (owner, refs)
    many = 1 if design.keys_as_values else 2
    query, wholes, refs = refs[0], refs[1 : 1 + many], refs[1 + many :]
    count = len(design.fields)
    field_refs, (out_ref, row_ref), refs = refs[:count], refs[count : count + 2], refs[count + 2 :]
    copied = [place for place, field in enumerate(design.fields) if field.by_key]
    tiles, refs = refs[:many], refs[many:]
    key_buffer, value_buffer = tiles[0], tiles[-1]
    field_buffers, refs = dict(zip(copied, refs, strict=False)), refs[len(copied) :]
    semaphores, top_s, mass_s, out_s = refs
    part, batch = pl.program_id(0), pl.program_id(1)
    row = (part * design.batch + batch) * 3
    start, full_stop, stop = bounds[row], bounds[row + 1], bounds[row + 2]
    first = bounds[part * design.batch * 3]
    last = bounds[((part + 1) * design.batch - 1) * 3 + 2]
    sides = list(zip((design.key, design.value), wholes, tiles, strict=False))

    def when(condition: Any, do: Callable[[], None]) -> None:
        do() if design.trips is not None else pl.when(condition)(do)

    def each_copy(item: Any, slot: Any, *, start: bool) -> None:
        """Start the copies of a tile, or wait for them."""
        example, tile = owner[item], order[item]

        def copy(source: Any, target: Any) -> None:
            one = pltpu.make_async_copy(source, target, semaphores.at[slot])
            one.start() if start else one.wait()

        def places(first: Any, to: Any, length: int, index: Any) -> None:
            for storage, ref, buffer in sides:
                some = -(-length // storage.multiple) * storage.multiple
                for source, target in storage.parts(ref, buffer.at[slot], index, first, to, some):
                    copy(source, target)

        def every_page() -> None:
            if start:
                _in_blocks(design.pages, lambda index: places(0, index * size, size, jnp.maximum(page(index), 0)))
            else:  # a semaphore counts bytes
                for buffer in tiles:
                    copy(buffer.at[slot], buffer.at[slot])

        def some_pages() -> None:
            def one_page(index: Any, _: None) -> None:
                pl.when(page(index) >= 0)(lambda: places(0, index * size, size, page(index)))

            lax.fori_loop(0, design.pages, one_page, None)

        for place, buffer in field_buffers.items():
            copy(field_refs[place].at[example if design.fields[place].by_batch else 0, tile], buffer.at[slot])
        if paged:
            size = design.page or 0

            def page(index: Any) -> Any:
                return table[example * design.slots + tile * design.pages + index]

            whole = page(design.pages - 1) >= 0  # so no page is tested by itself
            when(whole, every_page)
            if design.trips is None:
                pl.when(~whole)(some_pages)
        elif not design.tail:
            places(tile * design.tile, 0, design.tile, example)
        else:
            ends = tile == design.tiles - 1
            pl.when(ends)(lambda: places(tile * design.tile, 0, design.tail, example))
            if design.tiles > 1:
                pl.when(~ends)(lambda: places(tile * design.tile, 0, design.tile, example))

    def start_copies(item: Any, slot: Any) -> None:
        when(item < last, lambda: each_copy(item, slot, start=True))

    @pl.when(batch == 0)
    def _():
        for slot in range(design.buffers):
            start_copies(first + slot, slot)

    top_s[...] = jnp.full(top_s.shape, -jnp.inf)
    mass_s[...] = jnp.zeros(mass_s.shape)
    out_s[...] = jnp.zeros(out_s.shape)

    def seen(rows: slice, slot: Any, tile: Any) -> Any:
        """A tile of some rows."""
        values = []
        for place, field in enumerate(design.fields):
            some = rows if field.by_row else slice(None)
            values.append(field_buffers[place][slot, some, :] if field.by_key else field_refs[place][some, :])
        at = values.pop() if design.given else _keys(design, tile)
        *values, queries = values
        return design.lowered.tile(values, queries, at)

    def visit(index: Any, _: None, partial: bool) -> None:
        item = start + index
        slot, tile = lax.rem(item - first, design.buffers), order[item]
        if design.trips is None:
            each_copy(item, slot, start=False)
        keys = design.key.tiles_of_heads(key_buffer.at[slot])
        values = design.value.tiles_of_heads(value_buffer.at[slot])
        at_once = _divisor(design.kv_heads, max(ROWS // design.rows, 1))
        broken = []
        for begin in range(0, design.kv_heads, at_once):
            heads = range(begin, begin + at_once)
            rows = slice(begin * design.rows, (begin + at_once) * design.rows)
            raw = [design.key.scores(query[head], next(keys), interpret=design.interpret) for head in heads]
            pieces = functools.partial(seen, rows, slot, tile)
            broken += _absorb(design, rows, raw, values, pieces, tile, partial, top_s, mass_s, out_s)
        if partial:

            @pl.when(jnp.max(functools.reduce(jnp.maximum, broken)) > 0)
            def _():
                rows = slice(0, design.all_rows)
                allowed = _allowed(design, seen(rows, slot, tile) if design.lowered.masks else None, tile)
                values = design.value.tiles_of_heads(value_buffer.at[slot])
                for head, one in enumerate(values):
                    _spread(design, one, allowed, slice(head * design.rows, (head + 1) * design.rows), out_s)

        start_copies(item + design.buffers, slot)

    full, visited = design.trips or (full_stop - start, stop - start)
    lax.fori_loop(0, full, functools.partial(visit, partial=False), None)
    lax.fori_loop(full, visited, functools.partial(visit, partial=True), None)
    mass = mass_s[...].sum(1, keepdims=True)
    out = out_s[...]
    out_ref[...] = out / jnp.where(mass == 0, 1.0, mass) if design.softmax else out
    lane = lax.broadcasted_iota(jnp.int32, row_ref.shape, 1)
    row_ref[...] = jnp.where(lane == 0, top_s[...], jnp.where(lane == 1, mass, 0.0))


def _absorb(design, rows, raw, values, seen, tile, partial, top_s, mass_s, out_s):
    """Update the rows of some heads by a tile of scores: the online softmax of `Streaming`.

    Returns:
        Of a partial tile, for each head the row of its values with 1 where NaN or inf were replaced by 0.
    """
    scores = jnp.concatenate(raw, 0)
    scores = scores if design.scale == 1.0 else scores * design.scale
    lowered = design.lowered
    needed = lowered.scores_differ or lowered.drops or not design.softmax or (partial and lowered.masks)
    pieces: Any = seen() if needed else None
    scores = pieces.scores(scores) if lowered.scores_differ else scores
    scores = scores if lowered.after == 1.0 else scores * lowered.after
    allowed = _allowed(design, pieces, tile) if partial else None
    if design.softmax:
        scores = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
        top = top_s[rows, :1]
        new_top = jnp.maximum(top, scores.max(1, keepdims=True))
        safe = jnp.where(new_top == -jnp.inf, 0.0, new_top)
        shrink = jnp.exp(top - safe)
        weights = counted = jnp.exp(scores - safe)
        top_s[rows, :] = jnp.broadcast_to(new_top, (weights.shape[0], LANES))
    else:
        shrink = jnp.ones((scores.shape[0], 1))
        weights, counted = pieces.activation(scores), jnp.ones_like(scores)
        if allowed is not None:
            weights = jnp.where(allowed, weights, 0.0)
            counted = jnp.where(allowed, counted, 0.0)
    lanes = [counted[:, lane : lane + LANES] for lane in range(0, design.tile, LANES)]
    mass_s[rows, :] = shrink * mass_s[rows, :] + sum(lanes[1:], lanes[0])
    weights = weights * pieces.dropout() if lowered.drops else weights
    weights = weights.astype(jnp.dtype(design.value.dtype))
    broken = []
    for count in range(len(raw)):
        own = slice(count * design.rows, (count + 1) * design.rows)
        into = slice(rows.start + own.start, rows.start + own.stop)
        tile_of_head = next(values)
        if partial:
            finite = jnp.isfinite(tile_of_head.astype(jnp.float32))
            broken.append(jnp.where(finite, 0.0, 1.0).max(0, keepdims=True))
            tile_of_head = jnp.where(finite, tile_of_head, jnp.zeros_like(tile_of_head))
        found = design.value.weighted(weights[own], tile_of_head, interpret=design.interpret)
        out_s[into, :] = shrink[own] * out_s[into, :] + found
    return broken


def _spread(design, values, allowed, rows, out_s):
    """NaN and inf among the values of a head reach its rows that may attend to them."""
    shape = (design.rows, design.tile)
    reach = jnp.ones(shape) if allowed is None else jnp.where(allowed, 1.0, 0.0)
    reach = reach[rows] if reach.shape[0] > 1 else reach
    reach = jnp.broadcast_to(reach, shape).astype(jnp.bfloat16)
    product = functools.partial(design.value.weighted, reach, interpret=design.interpret)
    out_s[rows, :] += infinities(values, product)


def _allowed(design: Decoding, pieces: Any, tile: Any) -> jax.Array | None:
    """Which pairs may attend, without places after the last key."""
    found = pieces.allowed() if design.lowered.masks else None
    if design.tail:
        real = _keys(design, tile) < design.kv_len
        found = real if found is None else found & real
    return found


def _keys(design: Decoding, tile: Any) -> jax.Array:
    """The indices of the keys of a tile, `[1, tile]`."""
    return lax.broadcasted_iota(jnp.int32, (1, design.tile), 1) + tile * design.tile


def _in_blocks(number: int, do: Callable[[Any], None]) -> None:
    """`do(0) ... do(number - 1)`, in a loop over blocks of at most `PAGES`."""
    size = _divisor(number, PAGES)

    def block(index: Any, _: None) -> None:
        for one in range(size):
            do(index * size + one)

    block(0, None) if size == number else lax.fori_loop(0, number // size, block, None)


def _divisor(number: int, most: int) -> int:
    """The largest divisor of a number that is at most `most`."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(most, 1))
