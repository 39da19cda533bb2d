"""Evaluate lowered pieces tile by tile in plain JAX, for one batch element and head, as a kernel would."""

import jax
import jax.numpy as jnp
import numpy as np

from jattn.ops.attention.implementations.lowering import MOSAIC, lower, offset_of
from jattn.ops.attention.tile import allowed_pairs, dropout_factor, floats_of, for_normalizer, scores_vjp


def tiles(call, size):
    """The slices of the queries and keys of each tile."""
    q_tile, k_tile = size
    for first in range(0, call.q_len, q_tile):
        for start in range(0, call.kv_len, k_tile):
            yield slice(first, min(first + q_tile, call.q_len)), slice(start, min(start + k_tile, call.kv_len))


def of_pair(array, at):
    """An aligned array for one batch element and head, the indices `at`."""
    for index in at:
        array = array[0 if array.shape[0] == 1 else index]
    return array


def field_of_tile(field, kind, at, rows, columns, kv_len):
    """The part of a field that the tile of queries `rows` and keys `columns` sees."""
    field = of_pair(field, at)
    if kind == "distance":
        first = rows.start - columns.stop + kv_len
        return field[0, :, first : first + rows.stop - rows.start + columns.stop - columns.start]
    if kind in ("query", "pair"):
        field = field[rows]
    if kind in ("key", "pair"):
        field = field[:, columns]
    return field.T


def whole(lowered, call, fields, at, size, function):
    """`function(tile, rows, columns)` of all tiles `[k, q]`, put together as `[q_len, kv_len]`."""
    query, key = (of_pair(one, at) for one in (call.pieces.query_positions, call.pieces.key_positions))
    lines = {}
    for rows, columns in tiles(call, size):
        seen = [
            field_of_tile(one, kind, at, rows, columns, call.kv_len)
            for one, kind in zip(fields, lowered.kinds, strict=True)
        ]
        tile = lowered.tile(seen, jnp.asarray(query)[rows].T, jnp.asarray(key)[:, columns].T)
        shape = columns.stop - columns.start, rows.stop - rows.start
        lines.setdefault(rows.start, []).append(jnp.broadcast_to(function(tile, rows, columns), shape).T)
    return jnp.concatenate([jnp.concatenate(line, 1) for line in lines.values()], 0)


def both(call, size=(16, 24), offset=None):
    """(lowered, direct): functions of raw scores, pieces and cotangents to (allowed, results and gradients)."""
    lowered = lower(call, MOSAIC, offset=offset)
    assert lowered.refusal is None, lowered.refusal
    at = (*(batch - 1 for batch in call.batch), call.q_heads - 1)
    _, rebuild = floats_of(call.pieces)
    elementwise = call.pieces.normalizer.streams_as == "elementwise"

    def by_tiles(raw, floats, cotangent):
        def scores(raw, floats):
            fields = lowered.fields(rebuild(floats))

            def one(tile, rows, columns):
                allowed = tile.allowed() if lowered.masks else None
                part = raw[rows, columns].T * lowered.before
                found = tile.scores(part, allowed) * lowered.after if lowered.scores_differ else part
                return tile.activation(found, allowed) if elementwise else found

            return whole(lowered, call, fields, at, size, one)

        found, pull = jax.vjp(scores, raw, floats)
        fields = lowered.fields(call.pieces)
        allowed = whole(lowered, call, fields, at, size, lambda tile, *_: tile.allowed()) if lowered.masks else np.True_
        factor = whole(lowered, call, fields, at, size, lambda tile, *_: tile.dropout()) if lowered.drops else 1.0
        return allowed, factor, found, pull(cotangent)

    def directly(raw, floats, cotangent):
        pieces = rebuild(floats)
        shape = (*call.batch, call.q_heads, call.q_len, call.kv_len)
        allowed = allowed_pairs(pieces)
        spread = jnp.broadcast_to(raw, shape)
        given = jnp.zeros(shape).at[at].set(cotangent)
        scores, pull = scores_vjp(pieces, spread, 1.0, allowed)
        d_floats = [jnp.zeros(jnp.shape(one)) for one in floats]
        if elementwise:

            def weigh(scores, floats):
                normalizer, scores = for_normalizer(rebuild(floats).normalizer, scores, allowed)
                return normalizer.activation(scores)

            scores, pull_weights = jax.vjp(weigh, scores, floats)
            given, d_floats = pull_weights(given)
        d_raw, more = pull(given)
        factor = dropout_factor(pieces)
        return (
            np.True_ if allowed is None else jnp.broadcast_to(allowed, shape)[at],
            1.0 if factor is None else jnp.broadcast_to(factor, shape)[at],
            scores[at],
            (d_raw[at], [one + other for one, other in zip(d_floats, more, strict=True)]),
        )

    return by_tiles, directly


def check(call, size=(16, 24)):
    rng = np.random.default_rng(0)
    raw = jnp.asarray(rng.normal(size=(call.q_len, call.kv_len)), jnp.float32)
    cotangent = jnp.asarray(rng.normal(size=raw.shape), jnp.float32)
    by_tiles, directly = both(call, size, offset_of(call))
    floats, _ = floats_of(call.pieces)
    allowed, *_ = directly(raw, floats, cotangent)
    cotangent = jnp.where(allowed, cotangent, 0)
    want = jax.jit(directly)(raw, floats, cotangent)
    have = jax.jit(by_tiles)(jnp.where(allowed, raw, np.nan), floats, cotangent)
    for mine, theirs in zip(have[:2], want[:2], strict=True):
        assert (np.asarray(mine) == np.asarray(theirs)).all()
    scores = [np.where(want[0], one[2], 0) for one in (have, want)]
    for mine, theirs in zip(
        (scores[0], *jax.tree.leaves(have[3])), (scores[1], *jax.tree.leaves(want[3])), strict=True
    ):
        largest = max(1.0, float(np.abs(theirs).max(initial=0)))
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-5 * largest)
