"""The backward kernel: one sweep over the tiles of the plan, the same lists as forward, for all gradients.

Scores lie as `[keys, queries]`. With p_ij = exp(s_ij - lse_i) recomputed, the cotangents dout and dlse, and the dropout
factor d_ij (see `streaming.gradients`), a unit is two stages:

    1.  s = K Qᵀ,  dp = d (V dOᵀ),  p,  ds = p (dp + shift),  pulled back through the scores (`jax.vjp`)
    2.  dVᵀ += dOᵀ (p d),   dKᵀ += Qᵀ ds,   dQᵀ += Kᵀ ds

Stage 2 of a unit runs beside stage 1 of the next one, also from one tile to the next. Gradients of the keys and values
of a chunk of the keys stay in vector memory; that of a query tile is complete after its row, or, with several chunks,
is added up in memory.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from . import collected, feature_sums, keys
from . import fields as kinds
from .collected import Collector
from .design import NN, NT, Design, Step, finite, interpreter
from .geometry import LOG2E
from .keys import KEYS, VALUES, Keys
from .tables import Inputs, Table
from .visits import Visits


class Rows(NamedTuple):
    """Numbers of the queries, float32 `[batch, steps, heads of a step, q_len]`, padded with zeros.

    lse, remainder: as `stream` returns them; 0 for a query that attends to nothing.
    shift: dlse_i - dout_i · out_i, for a softmax.
    """

    lse: jax.Array
    remainder: jax.Array
    shift: jax.Array


def gradients(
    design: Design,
    rows: jax.Array,
    query: jax.Array,
    cotangent: jax.Array,
    numbers: Rows,
    key: jax.Array,
    value: jax.Array,
    stored: Sequence[jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array, list[jax.Array]]:
    """Gradients as the kernel leaves them.

    Args:
        design: the static part.
        rows: the lists of tiles, as in `lists.rows_of`.
        query: `[batch, q_heads, q_len, qk_dim]`, padded, finite where pairs are masked.
        cotangent: of the output, `[batch, q_heads, q_len, v_dim]`, padded, in the dtype of the values; 0 for a query
            that attends to nothing.
        numbers: of the queries.
        key: `[batch, kv_heads, kv_len, qk_dim]`, padded.
        value: `[batch, kv_heads, kv_len, v_dim]`, padded.
        stored: the fields, as in `fields.store`.

    Returns:
        The gradient of the query without its scale, in its layout, or, with several chunks, float32 `[batch, steps,
        q_tiles, units, qk_dim, queries of a unit]`. Those of key (without the scale) and value, float32 `[batch,
        kv_heads, kv_tiles, features, kv_tile]`. Those of the differentiated fields, as in `collected`.
    """
    cut = design.cut
    f32 = jnp.float32

    def place(b, h, c, s, i, *_):
        return b, h * cut.shares + s, i

    def numbers_place(*grid):
        batch, step, tile = place(*grid)
        return batch, step, 0, tile

    row_table = Table.of(rows)
    row_block = pl.BlockSpec((None, None, cut.heads, cut.q_tile), numbers_place)
    wanted = [field for field in design.fields if field.differentiated]
    copied = [design.fields[number] for number in design.copied]
    inputs = Inputs.of(
        [
            (row_table.stored(rows), row_table.spec(lambda b, h, c, s, i, *_: (b, h * cut.shares + s, c, i))),
            (query, design.queries(place, cut.lanes[0])),
            (cotangent, design.queries(place, cut.lanes[1])),
            *((array, row_block) for array in numbers),
            *zip((key, value), keys.specs(design, lambda b, h, c, *_: (b, h, c)), strict=True),
            *(
                (array, kinds.spec(field, array, cut, design.resident, place))
                for field, array in zip(design.fields, stored, strict=True)
            ),
            *(
                (design.zeros(collected.shape(field, design)), collected.IN_MEMORY)
                for field in wanted
                if field.kind == kinds.PAIR
            ),
        ]
    )
    gradient = [
        pl.BlockSpec((None, cut.key_heads, cut.chunk_tiles, features, cut.kv_tile), lambda b, h, c, *_: (b, h, c, 0, 0))
        for features in cut.rows
    ]
    shapes = [design.shape(cut.batch, cut.kv_heads, cut.kv_tiles, features, cut.kv_tile) for features in cut.rows]
    if cut.chunks == 1:
        gradient.insert(0, design.queries(place, cut.lanes[0]))
        shapes.insert(0, design.shape(*query.shape, dtype=query.dtype))
    else:
        gradient.insert(0, pl.BlockSpec(memory_space=pltpu.HBM))
        shapes.insert(0, design.shape(cut.batch, cut.steps, cut.q_tiles, cut.units, cut.rows[0], cut.unit))
    out_shapes = [*shapes, *(collected.shape(field, design) for field in wanted)]
    out_specs = [*gradient, *(collected.spec(field, cut, place) for field in wanted)]
    pair_outputs = [3 + place for place, field in enumerate(wanted) if field.kind == kinds.PAIR]
    first_pair = len(inputs.arrays) - len(pair_outputs)
    scratch = [
        *keys.scratch(design, key, value),
        pltpu.VMEM((cut.heads, cut.rows[0], cut.q_tile), query.dtype),  # transposed queries
        pltpu.VMEM((cut.heads, cut.rows[1], cut.q_tile), cotangent.dtype),  # transposed cotangents
        pltpu.VMEM((cut.key_heads + 1, cut.rows[0], cut.kv_tile), key.dtype),  # transposed keys; last those of before
        pltpu.VMEM((cut.units, cut.rows[0], cut.unit), f32),  # query gradient
        pltpu.VMEM((2, cut.kv_tile, cut.unit), value.dtype),  # weights
        pltpu.VMEM((2, cut.kv_tile, cut.unit), key.dtype),  # gradient of the scores
        *([pltpu.VMEM((cut.key_heads, cut.kv_tile, cut.lanes[1]), value.dtype)] if design.partial else []),
        *([pltpu.VMEM((cut.kv_tile, cut.unit), f32)] if design.sums else []),  # sums over features, then their gradient
        *([pltpu.SemaphoreType.DMA((2,)), pltpu.VMEM((cut.units, cut.rows[0], cut.unit), f32)] * (cut.chunks > 1)),
        *([pltpu.SemaphoreType.DMA((len(copied), 2))] if copied else []),
        *(kinds.buffer(field, cut) for field in copied),
        *collected.scratch(wanted, cut),
    ]
    free = 0 if pair_outputs else 2  # cores must not add to one gradient in memory at once
    d_query, d_key, d_value, *d_fields = pl.pallas_call(
        functools.partial(_kernel, design, row_table, inputs),
        name="jattn_backward",
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=inputs.tables,
            grid=(cut.batch, cut.steps // cut.shares, cut.chunks, cut.shares, cut.q_tiles),
            in_specs=inputs.specs,
            out_specs=out_specs,
            scratch_shapes=scratch,
        ),
        out_shape=out_shapes,
        input_output_aliases={first_pair + number: place for number, place in enumerate(pair_outputs)},
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=design.order(free, 5 - free),
            vmem_limit_bytes=design.vmem,
        ),
        interpret=interpreter(design.interpret, design.axes),
    )(*inputs.arrays)
    return d_query, d_key, d_value, d_fields


def _kernel(design: Design, row_table: Table, inputs: Inputs, *refs):
    cut, lowered = design.cut, design.lowered
    wanted = [number for number, field in enumerate(design.fields) if field.differentiated]
    pairs = sum(design.fields[number].kind == kinds.PAIR for number in wanted)
    given, refs = inputs.as_given(refs)
    row_ref, q_ref, do_ref, lse_ref, remainder_ref, shift_ref, k_ref, v_ref, *field_refs = given[: len(given) - pairs]
    dq_ref, dk_ref, dv_ref, *refs = refs
    df_refs, refs = refs[: len(wanted)], refs[len(wanted) :]
    used = 0 if design.resident else 3
    key_scratch, (qt_s, dot_s, kt_s, dq_s, p_buf, ds_buf, *rest) = refs[:used], refs[used:]
    clean_s: Any = rest.pop(0) if design.partial else None
    sums_s: Any = rest.pop(0) if design.sums else None
    dq_semaphores, dq_old = (rest.pop(0), rest.pop(0)) if cut.chunks > 1 else (None, None)
    copied = len(design.copied)
    field_semaphores = rest.pop(0) if copied else None
    field_buffers, collector_scratch = rest[:copied], rest[copied:]

    batch, key_step, chunk, share, q_index = (pl.program_id(axis) for axis in range(5))
    step = Step(design, batch, key_step * cut.shares + share, q_index, field_refs, field_buffers, field_semaphores)
    first = chunk * cut.chunk_tiles
    kept = Keys(design, batch, key_step, (k_ref, v_ref), key_scratch, first)
    collector = Collector(design, step.place, first, wanted, df_refs, collector_scratch)
    units, last = cut.units, cut.units - 1
    row = row_table.row(row_ref, batch, step.step, chunk, q_index)
    qk_rows, v_rows = cut.rows

    def copies(place, slot):
        tile = visits.tile(place) + first
        return kept.copies(tile, slot) + step.copies(tile, slot)

    visits = Visits(design, row, copies)
    visits.start()

    @pl.when((share == 0) & (q_index == 0))
    def _():
        dk_ref[...] = jnp.zeros(dk_ref.shape)
        dv_ref[...] = jnp.zeros(dv_ref.shape)

    def clear():
        """What a row of tiles begins with: the unit before the first one changes nothing."""
        dq_s[...] = jnp.zeros(dq_s.shape)
        kt_s[cut.key_heads] = jnp.zeros(kt_s.shape[1:], kt_s.dtype)
        p_buf[last % 2] = jnp.zeros(p_buf.shape[1:], p_buf.dtype)
        ds_buf[last % 2] = jnp.zeros(ds_buf.shape[1:], ds_buf.dtype)

    pl.when(step.is_first)(clear)
    collector.start()
    for head in range(cut.heads):
        qt_s[head] = q_ref[head].T[:qk_rows]
        dot_s[head] = do_ref[head].T[:v_rows]

    def differentiate(unit, tile, slot, partial):
        """Stage 1: the weights of a unit and the gradients of its scores, into the buffers."""
        head, key_head, queries = cut.head_of(unit), cut.key_head_of(unit), cut.queries_of(unit)
        values = clean_s[key_head] if partial else kept.of(VALUES, key_head, tile, slot)
        if sums_s is None:
            raw = design.product(kept.of(KEYS, key_head, tile, slot)[:, :qk_rows], q_ref[head, queries, :qk_rows], NT)
        else:
            feature_sums.add_up(step, unit, qt_s.at[head], kt_s.at[key_head], sums_s)
            raw = sums_s[...]
        d_weights = design.product(values[:, :v_rows], do_ref[head, queries, :v_rows], NT)
        scores = raw if design.folds or design.scale == 1.0 else raw * design.scale
        fields: list[jax.Array] = []
        seen: Any = None
        if lowered.scores_differ or lowered.drops or not design.softmax or (partial and lowered.masks):
            fields = step.read(unit, tile, slot)
            seen = step.tile(fields, unit, tile)
        allowed = step.allowed(seen, unit, tile, queries=True) if partial else None

        def with_fields(floats):
            return step.tile(collector.replaced(fields, floats), unit, tile)

        floats = collector.floats(fields)
        if lowered.scores_differ:
            scores, pull = jax.vjp(lambda raw, floats: with_fields(floats).scores(raw, allowed), scores, floats)
        if lowered.drops:
            factor = seen.dropout()
            d_weights = d_weights * factor
        if design.softmax:
            lse, remainder, shift = (ref[head : head + 1, queries] for ref in (lse_ref, remainder_ref, shift_ref))
            if design.folds or lowered.after != 1.0:
                exponent = scores * (LOG2E * design.waiting) - (lse + remainder) * LOG2E
            else:  # scores may be huge: subtract the lse first, and then its rounding error
                exponent = (scores - lse) * LOG2E - remainder * LOG2E
            if allowed is not None:
                exponent = jnp.where(allowed, exponent, -jnp.inf)
            weights = jnp.exp2(exponent)
            d_scores = weights * (d_weights + shift)
        else:
            weights, pull_weights = jax.vjp(
                lambda scores, floats: with_fields(floats).activation(scores, allowed), scores, floats
            )
            if allowed is not None:
                weights, d_weights = jnp.where(allowed, weights, 0), jnp.where(allowed, d_weights, 0)
            d_scores, d_floats = pull_weights(d_weights)
            collector.add(d_floats, unit, tile)
        if lowered.scores_differ:
            d_scores, d_floats = pull(d_scores)
            collector.add(d_floats, unit, tile)
        if lowered.drops:
            weights = weights * factor
        p_buf[unit % 2] = weights.astype(p_buf.dtype)
        if sums_s is None:
            ds_buf[unit % 2] = d_scores.astype(ds_buf.dtype)
            return
        sums_s[...] = d_scores
        sides = qt_s.at[head], kt_s.at[key_head]
        results = dq_s.at[unit], dk_ref.at[key_head, tile - first], collector.of_features(unit)
        feature_sums.differentiate(step, unit, *sides, sums_s, *results)

    def accumulate(unit, tile, keys_at):
        """Stage 2: the products with the weights and gradients in the buffers.

        Args:
            unit: the unit.
            tile: its key tile, counted from the first of the chunk.
            keys_at: where its transposed keys are.
        """
        head, key_head, queries = cut.head_of(unit), cut.key_head_of(unit), cut.queries_of(unit)
        weights, d_scores = p_buf[unit % 2], ds_buf[unit % 2]
        dv_ref[key_head, tile] += design.product(dot_s[head, :, queries], weights, NT)
        if design.sums:
            return
        dq_s[unit] += design.product(kt_s[keys_at], d_scores, NN)
        dk_ref[key_head, tile] += design.product(qt_s[head, :, queries], d_scores, NT)

    def visit(inside, slot, before, partial):
        tile = inside + first
        for head in range(cut.key_heads):
            some_keys = kept.of(KEYS, head, tile, slot)
            if partial:  # NaN of a masked key must not meet a gradient of 0
                some_keys = some_keys if design.sums else finite(some_keys)
                clean_s[head] = finite(kept.of(VALUES, head, tile, slot))
            kt_s[head] = some_keys.T[:qk_rows]
        collector.fetch(tile)
        for unit in range(units):
            differentiate(unit, tile, slot, partial)
            accumulate(
                (unit - 1) % units, inside if unit else before, cut.key_head_of(unit - 1) if unit else cut.key_heads
            )
        collector.flush(tile)
        kt_s[cut.key_heads] = kt_s[cut.key_head_of(last)]
        return inside

    before = visits.sweep(visit, jnp.int32(0))
    accumulate(last, before, cut.key_heads)
    if cut.chunks > 1:
        whole = dq_ref.at[step.batch, step.step, step.q_index]
        _add_in_memory(whole, dq_s, dq_old, dq_semaphores, chunk, visits.count)
    else:
        for unit in range(units):
            gradient = dq_s[unit].T.astype(dq_ref.dtype)
            dq_ref[cut.head_of(unit), cut.queries_of(unit), :qk_rows] = gradient
    clear()  # for the next row: here the stores find free slots


def _add_in_memory(whole: Any, part: Any, old: Any, semaphores: Any, chunk: Any, visited: Any) -> None:
    """Add the gradient of a chunk to those of the chunks before."""

    @pl.when((chunk > 0) & (visited > 0))
    def _():
        read = pltpu.make_async_copy(whole, old, semaphores.at[0])
        read.start()
        read.wait()
        part[...] += old[...]

    @pl.when((chunk == 0) | (visited > 0))
    def _():
        write = pltpu.make_async_copy(part, whole, semaphores.at[1])
        write.start()
        write.wait()
