"""Every piece of the library, lowered: tiles and gradients equal those of `tile.py`, or it is refused by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES
from lowered_tiles import whole
from measure import draw, keywords
from tiers import rows

from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower, offset_of
from jattn.ops.attention.tile import allowed_pairs, dropout_factor, floats_of, for_normalizer, scores_vjp

REFUSED = {
    "a table of the offsets in a grid": "`RelativeGrid` needs `gather` of a query and a key at once, in a table of 117"
}
"""What the library has and Mosaic cannot evaluate in a tile."""

ALWAYS = {
    "a where of two masks",
    "a function over an array",
    "block diffusion",
    "table of blocks",
    "keys chosen by each query",
    "dense",
    "flags of queries and keys, and of heads that see summaries",
    "neighborhood",
    "fixed, in documents",
    "dot, a scale per head",
    "bias of queries and of keys",
    "relative buckets",
    "relative logits of queries",
    "relative logits from a table, of coordinates",
    "a table of the offsets in a grid",
    "bias, then soft cap, then alibi, causal",
    "sigmoid",
}


def prepared(case, seed=0):
    inputs = draw(case, seed)
    arrays = {name: jnp.asarray(array) for name, array in inputs.arrays.items()}
    given = keywords(case, arrays)
    call, *_ = prepare(*map(jnp.asarray, (inputs.query, inputs.key, inputs.value)), Pieces(**given))
    return call


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
                part = raw[rows, columns].T
                found = tile.scores(part, allowed) if lowered.scores_differ else part
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


@pytest.mark.parametrize("case", rows(CASES, ALWAYS, lambda case: case.name))
def test_tiles_equal_the_whole(case):
    call = prepared(case)
    if case.name in REFUSED:
        refusal = lower(call, MOSAIC, offset=offset_of(call)).refusal
        assert refusal is not None and REFUSED[case.name] in refusal
        return
    check(call)
