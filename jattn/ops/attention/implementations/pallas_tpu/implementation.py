"""The Pallas kernel for TPUs: its contract with `attention`."""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.arrays import iota, is_static
from .....foundation.numerics import inner
from .....foundation.sharding import vary, varying_axes
from .....foundation.target import expected_target
from .....similarities.dot import folded_scale
from ...call import Call, Pieces
from ...partial import Partial, log_of_sum
from ...plan import FULL, PARTIAL, Plan, make_plan
from ...streaming import SYMBOLS, Gradients, Streaming
from ...tile import is_float
from ..lowering import Lowered, lower, mosaic, offset_of
from . import arrays, backward, collected, decode, forward, geometry, lists
from . import fields as kinds
from .design import Design, finite, positions_given
from .doubled import doubled
from .estimate import estimate
from .fields import Field
from .geometry import Cut

DTYPES = ("bfloat16", "float32", "float16")
"""Mosaic loads no float16, on any generation; XLA converts such arrays to float32 before the kernels."""


@dataclasses.dataclass(frozen=True)
class PallasTPU(Streaming):
    """Flash attention as a Mosaic kernel: forward, and one fused backward pass. For TPUs; any mask and score.

    Tiles that the plan finds empty cost nothing, and full ones evaluate no mask. Memory beside the inputs, the output
    and the gradients is linear in the lengths. First derivatives in reverse mode only. See the README beside this file.

    Args:
        q_tile: queries of a unit of work, a multiple of 128; by default chosen for the target.
        kv_tile: keys of a tile, likewise.
        heads: query heads of a step: a divisor of the query heads of a key head, or a multiple of them.
        interpret: run the kernel on the machine at hand, by Pallas's interpreter. Slow; to check values without a TPU.

    Raises:
        ValueError: a size is not a positive integer, or a tile no multiple of 128; `interpret` is no bool.

    Source: FlashAttention, Dao et al. 2022 (arXiv:2205.14135).
    """

    q_tile: int | None = None
    kv_tile: int | None = None
    heads: int | None = None
    interpret: bool = False
    name = "pallas_tpu"

    def __post_init__(self):
        for field, multiple in (("q_tile", geometry.LANES), ("kv_tile", geometry.LANES), ("heads", 1)):
            size = getattr(self, field)
            whole = isinstance(size, int) and not isinstance(size, bool)
            if size is not None and (not whole or size < 1 or size % multiple):
                wanted = "a positive int" if multiple == 1 else f"a positive multiple of {multiple}"
                raise ValueError(f"`{field}` must be {wanted}, or None to have it chosen; got {size!r}.")
        if not isinstance(self.interpret, bool):
            raise ValueError(f"`interpret` must be True or False; got {self.interpret!r}.")

    def refuses(self, call: Call) -> str | None:
        reason = super().refuses(call) if is_static(*call.batch) else SYMBOLS
        if reason is not None:
            return reason
        unknown = [dtype for dtype in call.dtypes if dtype not in DTYPES]
        if unknown:
            return f"it computes {' and '.join(DTYPES)}, and the arrays are {' and '.join(dict.fromkeys(unknown))}"
        generation = None if call.target is None else call.target.generation
        if call.target is not None and call.target.platform == "tpu" and generation not in (None, *geometry.VMEM):
            return f"it knows the TPU generations {', '.join(geometry.VMEM)}; the target is {call.target}"
        devices = max(call.devices, 1 if call.target is None else call.target.auto_devices)
        if devices > 1 and not self.interpret:
            return (
                f"XLA divides this program over {devices} devices by itself (Auto mesh axes), and cannot divide a "
                "kernel: use Explicit axes, name the axes with `jattn.parallel.Heads`, or attend inside of "
                "`jax.shard_map`"
            )
        if call.target is not None and call.target.platform != "tpu" and not self.interpret:
            return (
                f"it is for TPUs, and the program is for {call.target.platform}. To compile for a TPU that is not "
                "here, trace under `jattn.compiled_for('tpu v6e')`; to check values without one, use "
                "`PallasTPU(interpret=True)`"
            )
        if "float16" in call.dtypes and self._decodes(call):
            return (
                f"it computes float16 as float32, and would convert all {call.kv_len} keys and values for a few "
                "queries: keep them in bfloat16 or float32"
            )
        return (
            geometry.refusal(self._cut(call), call.target or expected_target(), geometry.itemsize_of(call))
            or _lowered(call, offset_of(call)).refusal
        )

    def plan(self, call: Call) -> "Known":
        pieces, known = call.pieces, Known(positions_given(call), offset_of(call))
        deciding = jax.tree.leaves((pieces.mask, pieces.query_positions, pieces.key_positions))
        if pieces.mask is not None and not all(isinstance(leaf, np.ndarray) for leaf in deciding):
            alone = self.heads is None and reads_heads(pieces.mask, len(call.batch))
            return dataclasses.replace(known, heads=1 if alone else None)
        cut = self._cut(call)
        known = dataclasses.replace(known, plan=self._plan(call, cut, known))
        if self.heads is not None or geometry.joins_well(cut, known.plan):
            return known
        known = dataclasses.replace(known, plan=None, heads=1)
        return dataclasses.replace(known, plan=self._plan(call, self._cut(call, known), known))

    def _cut(self, call: Call, known: "Known | None" = None) -> Cut:
        """The cut of a call. Heads that visit different tiles are computed alone."""
        entries = _lowered(call, known.offset if known else offset_of(call)).entries
        return geometry.cut_of(call, self.q_tile, self.kv_tile, (known and known.heads) or self.heads, entries)

    def _forward(self, call: Call, cut: Cut, plan: Plan, known: "Known") -> Cut:
        entries = _lowered(call, known.offset).entries
        return cut if self.heads else doubled(cut, call, plan, _itemsizes(call), entries)

    def _plan(self, call: Call, cut: Cut, known: "Known") -> Plan:
        if known.plan is not None:
            return known.plan
        pieces, lead = call.pieces, (1,) * (len(call.batch) + 1)
        positions = (pieces.query_positions, pieces.key_positions)
        shapes = (*lead, call.q_len, 1), (*lead, 1, call.kv_len)
        query, key = (
            array if given else iota(math.prod(shape)).reshape(shape)
            for array, given, shape in zip(positions, known.given, shapes, strict=True)
        )
        return make_plan(pieces.mask, query, key, cut.q_tile, cut.kv_tile)

    def stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        call = arrays.narrowed(call)
        with jax.enable_x64(False):
            return self._stream(call, query, key, value)

    def _stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        if self._decodes(call):
            known = call.plan or self.plan(call)
            axes = varying_axes(query, key, value, call.pieces)
            options: Any = dict(tile=self.kv_tile, interpret=self.interpret, axes=axes)
            return decode.attend(call, _lowered(call, None), known.given[1], query, key, value, **options)
        query, key, value = arrays.widened(query, key, value)
        made = self._made(call, query, key, value, False)
        design, cut = made.design, made.design.cut
        out, top, mass = forward.attend(design, made.rows, made.flags, *made.arrays, made.stored)
        out = arrays.queries_last(out, cut, cut.v_dim)
        top, mass = (arrays.rows_last(one, cut) for one in (top, mass))
        if not design.softmax:
            return Partial(out, jnp.log(mass), jnp.zeros_like(mass))
        return Partial(out, *log_of_sum(top * design.waiting, mass))

    def _decodes(self, call: Call, page: int | None = None) -> bool:
        """Whether the kernel for a few queries runs the forward pass."""
        alone = self.q_tile is None and self.heads is None and call.pieces.similarity.is_dot
        return alone and decode.serves(call, _lowered(call, None), self.kv_tile, page)

    def refuses_pages(self, call: Call, pool: jax.Array) -> str | None:
        """Why `stream_pages` cannot run a call on all places of a table, or None.

        Args:
            call: prepared.
            pool: `[pages, page_size, kv_heads, qk_dim]`.
        """
        refused = self.refuses(call)
        if refused is None and not self._decodes(call, pool.shape[1]):
            return "it reads pages for a few queries, whose features fill whole lanes and whose table is not too large"
        return refused

    def stream_pages(
        self, call: Call, query: jax.Array, keys: jax.Array, values: jax.Array, table: jax.Array
    ) -> Partial:
        """`stream` of a call on all places of a table. It copies the pages that the table has.

        Args:
            call: prepared; its keys are at 0, 1, ...
            query: `[batch..., q_len, q_heads, qk_dim]`.
            keys: the pool, `[pages, page_size, kv_heads, qk_dim]`.
            values: likewise.
            table: int32 `[batch..., slots]`; -1 for none.
        """
        call = arrays.narrowed(call)
        with jax.enable_x64(False):
            axes = varying_axes(query, keys, values, table, call.pieces)
            options: Any = dict(table=table, tile=self.kv_tile, interpret=self.interpret, axes=axes)
            return decode.attend(call, _lowered(call, None), False, query, keys, values, **options)

    def _made(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array, backward: bool) -> "_Made":
        """What both kernels need of a call."""
        known, pieces = call.plan or self.plan(call), call.pieces
        cut = self._cut(call, known)
        if backward:
            long = self.heads is None and geometry.is_long(call)
            cut = geometry.for_backward(cut, call.target, geometry.itemsize_of(call), long=long)
        given, lowered = known.given, _lowered(call, known.offset)
        plan = self._plan(call, cut, known)
        if not backward:
            cut = self._forward(call, cut, plan, known)
        states = lists.states_of(plan, cut)
        if lowered.sum is not None:
            states = lists.in_one_loop(states)
        decided = isinstance(states, np.ndarray)
        read = lowered.fields(pieces)
        positions = (pieces.query_positions, pieces.key_positions)
        read += [array for array, one in zip(positions, given, strict=True) if one]
        wanted = (*lowered.differentiable, *[False] * sum(given))
        parameters = (*(kind == "feature" for kind in lowered.kinds), *[False] * sum(given))
        fields = tuple(Field.of(array, cut, *one) for array, *one in zip(read, wanted, parameters, strict=True))
        axes = varying_axes(query, key, value, pieces)
        if lowered.sum is None:
            dtype = jnp.promote_types(query.dtype, key.dtype)
            query, scale = folded_scale(pieces.similarity, query.astype(dtype), call.scale)
        else:  # its scale is part of the scores
            dtype, scale = jnp.dtype(jnp.float32), 1.0
            query = query.astype(dtype)
        design = Design(
            cut=cut,
            lowered=lowered,
            fields=fields,
            given=given,
            scale=scale * lowered.before,
            softmax=pieces.normalizer.streams_as == "softmax",
            full=bool((states == FULL).any()) if decided else lowered.sum is None,
            partial=not decided or bool((states == PARTIAL).any()),
            resident=geometry.keys_fit(
                cut, (dtype.itemsize, value.dtype.itemsize), call.target, "backward" if backward else "forward"
            ),
            interpret=self.interpret,
            vmem=geometry.vmem_limit(call.target),
            axes=axes,
            exact_lse=call.exact_lse and value.dtype != jnp.float32,
            cores=geometry.cores_of(call.target),
        )
        keys = cut.padded[1]
        heads_first = (
            arrays.queries_first(query, cut),
            arrays.heads_first(key.astype(dtype), cut, keys),
            arrays.heads_first(value, cut, keys),
        )
        flags = arrays.nonfinite_tiles(heads_first[2], cut) if design.partial and not backward else arrays.no_flags(cut)
        stored = [kinds.store(field, array, cut) for field, array in zip(fields, read, strict=True)]
        rows = jnp.asarray(lists.rows_of(states, cut))
        rows, flags, heads_first, stored = vary((rows, flags, heads_first, stored), axes)
        return _Made(design, rows, flags, heads_first, stored, read)

    def gradients(  # type: ignore[override]
        self,
        call: Call,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        results: Partial,
        cotangents: Partial,
    ) -> Gradients:
        narrow = arrays.narrowed(call)
        with jax.enable_x64(False):
            found = self._gradients(narrow, query, key, value, results, cotangents)
        pieces = jax.tree.map(lambda gradient, leaf: gradient.astype(leaf.dtype), found.pieces, _floats(call.pieces))
        return found._replace(pieces=pieces)

    def _gradients(
        self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array, results: Partial, cotangents: Partial
    ) -> Gradients:
        dtypes = [one.dtype for one in (query, key, value)]
        query, key, value = arrays.widened(query, key, value)
        made = self._made(call, query, key, value, True)
        design, cut, lowered = made.design, made.design.cut, made.design.lowered
        dead = jnp.isneginf(results.lse)
        cotangent = jnp.where(dead[..., None], 0, cotangents.out)
        shift = jnp.where(dead, 0, cotangents.lse - inner(cotangent, results.out))
        lse = jnp.where(dead, 0, results.lse)
        # NaN of a row must reach the pairs that attend, and no masked ones of a tile, where it would meet a 0.
        broken = ~(jnp.isfinite(lse) & jnp.isfinite(shift))
        if design.softmax:  # by the weights
            lse, shift = jnp.where(broken, jnp.nan, lse), jnp.where(broken, 0, shift)
            cotangent = jnp.where(broken[..., None], 0, cotangent)
        else:  # NaN and inf of a query, which are repaired below
            broken &= ~jnp.isfinite(query).all(-1)
            cotangent = jnp.where(broken[..., None], jnp.nan, cotangent)
        numbers = (lse, results.remainder, shift)
        cotangent = vary(arrays.queries_first(cotangent.astype(value.dtype), cut), design.axes)
        numbers = vary(backward.Rows(*(arrays.rows_first(one, cut) for one in numbers)), design.axes)
        query, key, value = made.arrays
        if design.partial:
            query = finite(query)
        d_query, d_key, d_value, found = backward.gradients(
            design, made.rows, query, cotangent, numbers, key, value, made.stored
        )
        if cut.chunks == 1:
            d_query = arrays.queries_last(d_query, cut, call.qk_dim)
        else:
            d_query = arrays.from_units(d_query, cut, call.qk_dim)
        d_key = arrays.from_tiles(d_key, cut, call.qk_dim) * (design.scale * lowered.after)
        d_value = arrays.from_tiles(d_value, cut, call.v_dim)
        scale = call.scale * lowered.before if lowered.sum is None else 1.0
        grads = d_query * (scale * lowered.after), d_key, d_value
        d_query, d_key, d_value = (one.astype(dtype) for one, dtype in zip(grads, dtypes, strict=True))
        return Gradients(d_query, d_key, d_value, made.pulled(call.pieces, found))

    def describe(self, call: Call) -> tuple[Plan | None, str]:
        if 0 in (call.q_len, call.kv_len):
            return None, "nothing"
        if self._decodes(call):
            return decode.describe(call, positions_given(call)[1], self.kv_tile)
        known = self.plan(call)
        cut = self._cut(call, known)
        plan = self._plan(call, cut, known)
        target = call.target or expected_target()
        forward = self._forward(call, cut, plan, known)
        cost = estimate(call, plan, target, doubled=forward.heads > cut.heads)
        wide = "float16" in call.dtypes or not call.pieces.similarity.is_dot
        long = self.heads is None and geometry.is_long(call)
        words = geometry.in_words(cut, forward, (4, 4) if wide else _itemsizes(call), target, long=long)
        if wide:
            words += "; computed in float32"
        return plan, f"{words}; {cost}"


def reads_heads(mask: Any, rank: int) -> bool:
    """Whether an aligned mask may differ between heads."""
    return any(jnp.shape(leaf)[rank] > 1 for leaf in jax.tree.leaves(mask))


def _itemsizes(call: Call) -> tuple[int, int]:
    """Bytes of a number of keys and of values."""
    query, key, value = (jnp.dtype(dtype) for dtype in call.dtypes)
    return jnp.promote_types(query, key).itemsize, value.itemsize


def _floats(pieces: Pieces) -> Pieces:
    """The floating-point arrays of the pieces; None for others."""
    return jax.tree.map(lambda leaf: leaf if is_float(leaf) else None, pieces)


def _lowered(call: Call, offset: int | None) -> Lowered:
    return lower(call, mosaic(call.target), offset=offset)


class _Made(NamedTuple):
    """What both kernels need of a call.

    design: the static part.
    rows: as in `lists.rows_of`.
    flags: which tiles of values are not finite.
    arrays: query, key and value, heads first.
    stored: the fields.
    read: the fields, aligned.
    """

    design: Design
    rows: jax.Array
    flags: jax.Array
    arrays: tuple[jax.Array, jax.Array, jax.Array]
    stored: list[jax.Array]
    read: list[jax.Array]

    def pulled(self, pieces: Pieces, found: list[jax.Array]) -> Pieces:
        """The gradients of the pieces' arrays, from the backward kernel's outputs for the differentiated fields."""
        rest, design = iter(found), self.design
        gradients = [
            collected.gradient_of(field, next(rest), array, design.cut) if field.differentiated else None
            for field, array in zip(design.fields, self.read, strict=True)
        ]
        return design.lowered.pull(pieces, gradients[: len(design.lowered.kinds)])


@dataclasses.dataclass(frozen=True, eq=False)
class Known:
    """What is known of a call at trace time. Two are equal if they visit the same tiles.

    Attributes:
        given: whether the positions of queries and of keys are other than 0, 1, ...
        offset: as in `lowering.offset_of`.
        plan: the tiles to visit, or None if that is decided at run time.
        heads: query heads of a step, if the plan decides it.
    """

    given: tuple[bool, bool]
    offset: int | None
    plan: Plan | None = None
    heads: int | None = None

    @functools.cached_property
    def _identity(self) -> tuple:
        return self.given, self.offset, self.heads, self.plan and self.plan.identity

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Known) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def batched(self) -> "Known":
        """The same with one more leading batch axis, of size 1."""
        return dataclasses.replace(self, plan=self.plan and self.plan.batched())
