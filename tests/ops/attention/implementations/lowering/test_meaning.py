"""What users write, lowered: look-ups, tables of distances, infinite slopes, dtypes, positions, indices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from lowered_tiles import check
from tiers import rows

import jattn
from jattn import masks, scores
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower, offset_of
from jattn.ops.attention.implementations.lowering.distances import diagonals, diagonals_by_groups

LENGTH, HEADS = 21, 2
RNG = np.random.default_rng(0)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def called(batch=(2,), q_len=LENGTH, kv_len=LENGTH, **pieces):
    query = jnp.zeros((*batch, q_len, HEADS, 2))
    key = jnp.zeros((*batch, kv_len, HEADS, 2))
    return prepare(query, key, key, Pieces(**pieces))[0]


TABLE, GATES = normal(LENGTH), jnp.arange(LENGTH) % 3 * 1.0
BY_HEAD = normal(HEADS, 2 * LENGTH)
DOCUMENT = jnp.asarray(RNG.integers(0, 3, (2, LENGTH)))
DEAD = jnp.where(jnp.arange(LENGTH) > 15, jnp.nan, 1.0)
MIXED = RNG.permutation(LENGTH)

CALLS = {
    "the README's mask": {
        "mask": masks.of(lambda q, k: jnp.where(q < 9, k <= q, q - k < 5) & (k >= 0)),
    },
    "a table of documents by batch index": {
        "mask": masks.of(lambda b, h, q, k: (DOCUMENT[b, q] == DOCUMENT[b, k]) & (k <= q + h)),
    },
    "an embedding of keys, and of queries of each head": {
        "scores": scores.of(lambda s, b, h, q, k: s * TABLE[k] + BY_HEAD[h, q] * s),
    },
    "a learned table of distances": {
        "scores": scores.of(lambda s, b, h, q, k: s + BY_HEAD[h, q - k + LENGTH] * TABLE[k]),
        "mask": masks.Causal(),
    },
    "what is lacking, of a distance": {
        "scores": (
            scores.of(lambda s, q, k: s + jax.lax.lgamma(abs(q - k) + 1.0) - jnp.cbrt(-(k - q) * 1.0)),
            scores.ALiBi(normal(HEADS)),
        ),
        "query_positions": 2**25 + np.arange(LENGTH),  # past those that float32 holds exactly
        "key_positions": 2**25 + np.arange(LENGTH),
    },
    "a learned table, at permuted positions": {
        "scores": scores.of(lambda s, b, h, q, k: s + BY_HEAD[h, q - k + LENGTH] * TABLE[k]),
        "query_positions": MIXED,
        "key_positions": jnp.asarray(np.stack([MIXED, MIXED[::-1]])),
    },
    "T5 at permuted positions": {
        "scores": scores.RelativeBuckets(normal(12, HEADS), max_distance=20),
        "query_positions": jnp.asarray(MIXED),
        "key_positions": MIXED,
    },
    "slopes that are infinite where masked": {
        "scores": scores.of(lambda s, q, k: s * jnp.sqrt(q - k - 1.0) * TABLE[0] + jnp.sqrt(GATES[k]) * TABLE[q]),
        "mask": masks.of(lambda q, k: (k < q - 1) & (k % 3 > 0)),
    },
    "NaN in masked entries of arrays": {
        "scores": scores.of(lambda s, q, k: s * DEAD[k] * TABLE[q]),
        "mask": masks.of(lambda q, k: k < 16),
    },
    "a bias of NaN before a cap": {
        "scores": (scores.Bias(DEAD[None, None]), scores.SoftCap(2.0), scores.Bias(normal(1, HEADS, LENGTH, 1))),
        "mask": masks.of(lambda q, k: k < 16),
    },
    "arrays of 16 and 8 bits": {
        "scores": (
            scores.Bias(normal(1, HEADS, LENGTH, LENGTH, dtype=jnp.bfloat16)),
            scores.Bias(normal(1, LENGTH, LENGTH, dtype=jnp.float16)),
            scores.Bias(normal(2, HEADS, 1, LENGTH, dtype=jnp.float16)),
            scores.ALiBi(normal(HEADS, dtype=jnp.bfloat16)),
        ),
        "mask": masks.SameSegment(DOCUMENT.astype(jnp.int8)),
    },
    "dropout, a rate and indices that are traced": {
        "dropout": jattn.Dropout(jnp.float32(0.3), jax.random.key(1), heads=np.array([4, 7])),
        "mask": masks.Flagged(DOCUMENT > 0, DOCUMENT < 2),
    },
    "one query": {
        "q_len": 1,
        "query_positions": np.array([LENGTH - 1]),
        "scores": (scores.RelativeBuckets(normal(12, HEADS), max_distance=20), scores.ALiBi(normal(HEADS))),
        "mask": masks.SlidingWindow(9, 0) & masks.Blocks(RNG.random((1, 3, 5)) < 0.5, (8, 5)),
    },
    "no batch, more keys": {
        "batch": (),
        "kv_len": 30,
        "query_positions": np.arange(9, 30),
        "scores": scores.RelativeBuckets(normal(12, HEADS), max_distance=20),
        "mask": masks.Causal() & ~masks.Chunked(4),
    },
}


ALWAYS = {
    "a table of documents by batch index",
    "NaN in masked entries of arrays",
}


@pytest.mark.parametrize("name", rows(CALLS, ALWAYS))
def test_tiles_of_calls(name):
    # Looking up an entry by comparisons makes long programs.
    check(called(**CALLS[name]), (LENGTH, LENGTH) if "permuted" in name else (8, 16))


def test_only_what_a_tile_reads_is_a_field():
    low = lower(called(mask=masks.Causal(), scores=scores.ALiBi(normal(HEADS))), MOSAIC)
    assert low.kinds == ("head",) and low.differentiable == (True,)
    low = lower(called(mask=masks.SameSegment(DOCUMENT), scores=scores.Bias(normal(1, 1, LENGTH))), MOSAIC)
    assert low.kinds == ("query", "key", "key") and low.differentiable == (False, False, True)
    call = called(scores=scores.RelativeBuckets(normal(12, HEADS), max_distance=20))
    assert lower(call, MOSAIC, offset=offset_of(call)).kinds == ("distance",)
    assert lower(call, MOSAIC).kinds == ("head",) * 12
    assert lower(call, MOSAIC) is lower(
        called(scores=scores.RelativeBuckets(normal(12, HEADS), max_distance=20)), MOSAIC
    )


def test_choices_are_compared_one_by_one():
    """A search of n choices would look up log2(n) entries, each with n comparisons; a namesake is what it says."""
    low = lower(called(mask=masks.Selected(RNG.integers(0, LENGTH, (1, 1, LENGTH, 5)))), MOSAIC)
    assert low.refusal is None and low.kinds.count("query") == 5 + 1  # and whether the query has a list

    @jax.jit
    def row_holds(table, row, number):
        return table[row, 0] > number

    table = jnp.asarray(RNG.integers(0, LENGTH, (LENGTH, 2)))
    check(called(mask=masks.of(lambda q, k: row_holds(table, q, k))), (LENGTH, LENGTH))


def test_gradients_return_to_the_pieces():
    """`pull` is the derivative of `fields`."""
    call = called(scores=scores.of(lambda s, q, k: s + TABLE[k] ** 2 * TABLE[q]), mask=masks.SameSegment(DOCUMENT))
    low = lower(call, MOSAIC)
    fields = low.fields(call.pieces)
    given = [jnp.ones(one.shape) if wanted else None for one, wanted in zip(fields, low.differentiable, strict=True)]
    (gradient,) = jax.tree.leaves(low.pull(call.pieces, given))
    np.testing.assert_allclose(gradient.reshape(-1), 2 * TABLE + 1, rtol=1e-5)


@pytest.mark.parametrize("make", [diagonals, diagonals_by_groups])
def test_diagonals_of_a_window(make):
    """The tile of a window of distances, and its gradient, of tiles of whole registers and of others."""
    for keys, queries in ((16, 24), (5, 7)):
        window, cotangent = normal(1, keys + queries), normal(keys, queries)
        places = keys + np.arange(queries) - np.arange(keys)[:, None]
        have, pull = jax.vjp(jax.jit(lambda window, k=keys, q=queries: make(window, k, q)), window)
        np.testing.assert_array_equal(have, window[0][places])
        want = np.zeros(keys + queries)
        np.add.at(want, places, cotangent)
        np.testing.assert_allclose(jax.jit(pull)(cotangent)[0][0], want, rtol=1e-5, atol=1e-5)


def test_positions_that_are_consecutive():
    assert offset_of(called()) == 0
    assert offset_of(called(kv_len=30, query_positions=np.arange(9, 30))) == 9
    assert offset_of(called(query_positions=MIXED, key_positions=MIXED)) is None
    assert offset_of(called(query_positions=jnp.arange(LENGTH), key_positions=jnp.arange(LENGTH))) is None
