"""The forward kernel: an online softmax over the tiles of a row of the plan, one unit behind the scores.

Scores lie as `[keys, queries]`, so that the maximum and the sum of a query are over sublanes and its statistics are a
row. With the scores s' of a tile as columns, m, l of a row, and a as `[features, queries]`:

    m' = max(m, max_j s'_j),    c = exp(m - m')
    [a'; l'] = c [a; l] + [v'ᵀ; 1] exp(s' - m')

While the matrix unit computes the scores of unit u, the vector units turn those of unit u - 1 into weights; they meet
through a buffer, also from one tile to the next. Row sums are a product with ones below the transposed values.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import feature_sums, keys
from . import fields as kinds
from .design import NN, NT, Design, Step, finite, infinities, interpreter
from .geometry import LOG2E, PACKED, SUBLANES
from .keys import KEYS, VALUES, Keys
from .tables import Inputs, Table
from .visits import Visits


def attend(
    design: Design,
    rows: jax.Array,
    flags: jax.Array,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    stored: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The streamed output `[batch, q_heads, q_len, v_dim]` with its padding, and the maximum and mass of each row.

    The maximum is that of the scores without `design.waiting`. Elementwise normalizers
    have the number of keys as mass.

    Args:
        design: the static part.
        rows: the lists of tiles, as in `lists.rows_of`.
        flags: which tiles of values are not finite, as in `arrays.nonfinite_tiles`.
        query: `[batch, q_heads, q_len, qk_dim]`, padded.
        key: `[batch, kv_heads, kv_len, qk_dim]`, padded.
        value: `[batch, kv_heads, kv_len, v_dim]`, padded.
        stored: the fields, as in `fields.store`.
    """
    cut = design.cut
    f32 = jnp.float32

    def place(b, h, i, *_):
        return b, h, i

    row_table, flag_table = Table.of(rows), Table.of(flags)
    row_block = pl.BlockSpec((None, None, cut.heads, cut.q_tile), lambda b, h, i, *_: (b, h, 0, i))
    row_shape = design.shape(cut.batch, cut.steps, cut.heads, cut.padded[0])
    copied = [design.fields[place] for place in design.copied]
    units, unit, tile = cut.units, cut.unit, cut.kv_tile
    values = cut.rows[1] + PACKED * _sums_by_product(design)
    scratch = [
        *keys.scratch(design, key, value),
        pltpu.VMEM((units, SUBLANES, unit), f32),  # maximum
        pltpu.VMEM((units, SUBLANES, unit), f32),  # mass
        *([pltpu.VMEM((units, SUBLANES, unit), f32)] if _sums_twice(design) else []),  # mass of rounded weights
        pltpu.VMEM((units, cut.rows[1], unit), f32),  # weighted values
        pltpu.VMEM((2, SUBLANES, unit), f32),  # maximum of a tile, or its number of keys
        pltpu.VMEM((cut.key_heads + 1, values, tile), value.dtype),  # transposed values; the last those of before
        pltpu.VMEM((2, tile, unit), f32),  # scores
        *([pltpu.VMEM((2, tile, unit), f32)] if design.lowered.drops else []),
        *([pltpu.VMEM((cut.heads, cut.rows[0], cut.q_tile), f32)] if design.sums else []),  # transposed queries
        *([pltpu.VMEM((cut.key_heads, cut.rows[0], tile), f32)] if design.sums else []),  # transposed keys
        *([pltpu.SemaphoreType.DMA((len(copied), 2))] if copied else []),
        *(kinds.buffer(field, cut) for field in copied),
    ]
    key_specs = keys.specs(design, lambda b, h, *_: (b, lax.div(h, cut.shares), 0))
    inputs = Inputs.of(
        [
            (row_table.stored(rows), row_table.spec(lambda b, h, i, *_: (b, h, 0, i))),
            (flag_table.stored(flags), flag_table.spec(lambda b, h, *_: (b, lax.div(h, cut.shares)))),
            (query, design.queries(place, cut.lanes[0])),
            *zip((key, value), key_specs, strict=True),
            *(
                (array, kinds.spec(field, array, cut, design.resident, place))
                for field, array in zip(design.fields, stored, strict=True)
            ),
        ]
    )
    out, top, mass = pl.pallas_call(
        functools.partial(_kernel, design, row_table, flag_table, inputs),
        name="jattn_forward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=inputs.tables,
            grid=(cut.batch, cut.steps, cut.q_tiles),
            in_specs=inputs.specs,
            out_specs=[design.queries(place, cut.lanes[1]), row_block, row_block],
            scratch_shapes=scratch,
        ),
        out_shape=[design.shape(*query.shape[:-1], cut.lanes[1]), row_shape, row_shape],
        compiler_params=pltpu.CompilerParams(dimension_semantics=design.order(2, 1), vmem_limit_bytes=design.vmem),
        interpret=interpreter(design.interpret, design.axes),
    )(*inputs.arrays)
    return out, top, mass


def _sums_by_product(design: Design) -> bool:
    """Whether the weights of a tile are added up by a product with ones: not if dropout comes between."""
    return design.softmax and not design.lowered.drops


def _sums_twice(design: Design) -> bool:
    """Whether the output is divided by the sum of the weights as rounded for the product, while the mass is exact.

    Weights that multiply the values then sum to 1, and so do those that the backward pass makes from the lse.
    """
    return _sums_by_product(design) and design.exact_lse


def _kernel(design: Design, row_table: Table, flag_table: Table, inputs: Inputs, *refs):
    cut = design.cut
    (row_ref, flag_ref, q_ref, k_ref, v_ref, *field_refs), refs = inputs.as_given(refs)
    o_ref, top_ref, mass_ref, *refs = refs
    used = 0 if design.resident else 3
    twice = _sums_twice(design)
    rounded_s = refs.pop(used + 2) if twice else None
    key_scratch, (top_s, mass_s, out_s, new_s, vt_s, s_buf, *rest) = refs[:used], refs[used:]
    factor_buf = rest.pop(0) if design.lowered.drops else None
    qt_s, kt_s = (rest.pop(0), rest.pop(0)) if design.sums else (None, None)
    field_semaphores = rest.pop(0) if rest else None
    place = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    step = Step(design, *place, field_refs, rest, field_semaphores)
    kept = Keys(design, step.batch, lax.div(step.step, cut.shares), (k_ref, v_ref), key_scratch)
    units, last, features = cut.units, cut.units - 1, cut.rows[1]
    before = cut.key_heads  # where the transposed values of the tile before are
    row = row_table.row(row_ref, step.batch, step.step, 0, step.q_index)
    flags = flag_table.row(flag_ref, kept.batch, kept.step)
    slope = LOG2E * design.waiting
    product_sums = _sums_by_product(design)

    def copies(place, slot):
        tile = visits.tile(place)
        return kept.copies(tile, slot) + step.copies(tile, slot)

    visits = Visits(design, row, copies)
    visits.start()

    def clear():
        """What a row of tiles begins with: the unit before the first one changes nothing."""
        top_s[...] = jnp.full(top_s.shape, -jnp.inf)
        mass_s[...] = jnp.zeros(mass_s.shape)
        if rounded_s is not None:
            rounded_s[...] = jnp.zeros(rounded_s.shape)
        out_s[...] = jnp.zeros(out_s.shape)
        vt_s[before] = jnp.zeros(vt_s.shape[1:], vt_s.dtype)
        empty = -jnp.inf if design.softmax else 0.0
        s_buf[last % 2] = jnp.full(s_buf.shape[1:], empty)
        new_s[last % 2] = jnp.full(new_s.shape[1:], empty)
        if factor_buf is not None:
            factor_buf[last % 2] = jnp.zeros(factor_buf.shape[1:])

    @pl.when(step.is_first)
    def _():
        clear()
        if product_sums:
            for n in range(cut.key_heads):
                vt_s[n, features:] = jnp.ones((PACKED, cut.kv_tile), vt_s.dtype)

    if qt_s is not None:
        for head in range(cut.heads):
            qt_s[head] = q_ref[head].T[: cut.rows[0]]

    def similarity(unit, tile, slot):
        """The numbers of the similarity of a unit."""
        if qt_s is not None and kt_s is not None:
            buffer = s_buf.at[unit % 2]
            feature_sums.add_up(step, unit, qt_s.at[cut.head_of(unit)], kt_s.at[cut.key_head_of(unit)], buffer)
            return buffer[...]
        some_keys = kept.of(KEYS, cut.key_head_of(unit), tile, slot)[:, : cut.rows[0]]
        queries = q_ref[cut.head_of(unit), cut.queries_of(unit), : cut.rows[0]]
        return design.product(some_keys, queries, NT)

    def score(unit, tile, slot, partial):
        """The scores of a unit, into the buffer."""
        scores = similarity(unit, tile, slot)
        seen: Any = None
        allowed = None
        if (
            design.lowered.scores_differ
            or design.lowered.drops
            or not design.softmax
            or (partial and design.lowered.masks)
        ):
            seen = step.seen(unit, tile, slot)
        if not design.folds:
            scores = scores if design.scale == 1.0 else scores * design.scale
            scores = seen.scores(scores) if design.lowered.scores_differ else scores
        if partial:
            allowed = step.allowed(seen, unit, tile)
        if design.softmax:
            scores = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
            new = scores.max(0, keepdims=True)
            if factor_buf is not None:
                factor_buf[unit % 2] = seen.dropout()
        else:
            scores = seen.activation(scores)
            new = jnp.full((1, cut.unit), float(cut.kv_tile))
            if allowed is not None:
                scores = jnp.where(allowed, scores, 0)
                number = jnp.where(jnp.broadcast_to(allowed, scores.shape), 1.0, 0.0)
                new = number.sum(0, keepdims=True)
            if design.lowered.drops:
                scores = scores * seen.dropout()
        s_buf[unit % 2] = scores
        new_s[unit % 2] = jnp.broadcast_to(new, new_s.shape[1:])

    def absorb(unit, values):
        """Weigh the values by the scores in the buffer."""
        if not design.softmax:
            mass_s[unit, :1] += new_s[unit % 2, :1]
            out_s[unit] += design.product(vt_s[values], s_buf[unit % 2].astype(vt_s.dtype), NN)
            return
        top = top_s[unit, :1]
        new_top = jnp.maximum(top, new_s[unit % 2, :1])
        safe = jnp.where(new_top == -jnp.inf, 0.0, new_top)
        shrink = jnp.exp2((top - safe) * slope)
        weights = jnp.exp2((s_buf[unit % 2] - safe) * slope)
        mass = weights.sum(0, keepdims=True) if twice or not product_sums else None
        if factor_buf is not None:
            weights = weights * factor_buf[unit % 2]
        summed = design.product(vt_s[values], weights.astype(vt_s.dtype), NN)
        if rounded_s is not None:
            rounded_s[unit, :1] = shrink * rounded_s[unit, :1] + summed[features : features + 1]
        mass = summed[features : features + 1] if mass is None else mass
        top_s[unit, :1] = new_top
        mass_s[unit, :1] = shrink * mass_s[unit, :1] + mass
        out_s[unit] = shrink * out_s[unit] + summed[:features]

    def visit(tile, slot, broken, partial):
        for n in range(cut.key_heads):
            if kt_s is not None:
                kt_s[n] = kept.of(KEYS, n, tile, slot).T[: cut.rows[0]]
            values = kept.of(VALUES, n, tile, slot)
            vt_s[n, :features] = (finite(values) if partial else values).T[:features]
            if partial:
                broken = broken | flags(n * cut.kv_tiles + tile)
        for unit in range(units):
            score(unit, tile, slot, partial)
            absorb((unit - 1) % units, cut.key_head_of(unit - 1) if unit else before)
        vt_s[before] = vt_s[cut.key_head_of(last)]
        return broken

    broken = visits.sweep(visit, jnp.int32(0))
    absorb(last, before)
    for unit in range(units):
        head, queries = cut.head_of(unit), cut.queries_of(unit)
        out, mass = out_s[unit], mass_s[unit, :1]
        if design.softmax:
            divisor = mass if rounded_s is None else rounded_s[unit, :1]
            out = out * (1.0 / jnp.where(divisor == 0, 1.0, divisor))
        o_ref[head, queries, :features] = out.T
        top_ref[head : head + 1, queries] = top_s[unit, :1]
        mass_ref[head : head + 1, queries] = mass
    clear()  # for the next row: here the stores find free slots

    def spread(place, _):
        """NaN and inf among the values of a partial tile reach the queries that may attend to them."""
        for copy in visits.copies(place, 0):
            copy.start()
            copy.wait()
        tile = visits.tile(place)
        for unit in range(units):
            values = kept.of(VALUES, cut.key_head_of(unit), tile, 0).astype(jnp.float32).T[:features]
            seen = step.seen(unit, tile, 0) if design.lowered.masks else None
            allowed = step.allowed(seen, unit, tile)
            reach = jnp.ones((cut.kv_tile, cut.unit)) if allowed is None else jnp.where(allowed, 1.0, 0.0)
            reach = jnp.broadcast_to(reach, (cut.kv_tile, cut.unit)).astype(jnp.bfloat16)
            out_s[unit] += infinities(values, functools.partial(design.product, b=reach, contract=NN))

    if design.partial and design.trips is None:

        @pl.when(broken > 0)
        def _():
            lax.fori_loop(visits.full, visits.count, spread, None)
            for unit in range(units):
                o_ref[cut.head_of(unit), cut.queries_of(unit), :features] += out_s[unit].T
                out_s[unit] = jnp.zeros(out_s.shape[1:])
