"""What every implementation must compute: one test for each row of the table, named after it."""

import graph
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from measure import exact, near, random
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities

TILES = jattn.implementations.Tiled(q_tile=8, k_tile=8)
WIDE = pytest.mark.exhaustive
BOTH = pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=WIDE), TILES], ids=["reference", "tiled"]
)


def graded(run, *arrays):
    """Results, and the gradients of Σ out² + Σ lse over rows that attend something."""

    return compiled(run, len(arrays))(*arrays)


def compiled(run, count):
    """The same, as a function of `count` arrays that is compiled once."""

    def loss(*arrays):
        out, lse = run(*arrays)
        return (out.astype(jnp.float32) ** 2).sum() + jnp.where(jnp.isfinite(lse), lse, 0).sum(), (out, lse)

    @jax.jit
    def both(*arrays):
        gradients, results = jax.grad(loss, tuple(range(count)), has_aux=True)(*arrays)
        return results, gradients

    return both


# A query that may attend to nothing: out 0, lse -inf, zero gradients everywhere.

NOTHING = {
    "a row": lambda q, k: (k <= q) & (q != 5),
    "a tile": lambda q, k: (k <= q) & ((q < 8) | (q >= 16)),
    "the call": lambda q, k: k < 0,
    "all keys but those no row sees": lambda q, k: (q == 3) & (k == 20),
}


@BOTH
@pytest.mark.parametrize("what", rows(NOTHING, ["a tile", "the call"]))
def test_a_query_that_may_attend_to_nothing(what, implementation):
    query, key, value, bias = random((2, 21, 2, 4), (2, 21, 2, 4), (2, 21, 2, 3), (1, 2, 21, 21))
    allows = NOTHING[what]
    empty = ~np.broadcast_to(allows(np.arange(21)[:, None], np.arange(21)), (21, 21)).any(-1)

    def run(query, key, value, bias):
        return jattn.partial_attention(
            query, key, value, mask=allows, scores=scores.Bias(bias), implementation=implementation
        )

    (out, lse), (d_query, d_key, d_value, d_bias) = graded(run, query, key, value, bias)
    assert empty.any()
    assert (np.asarray(out)[:, empty] == 0).all()
    assert np.isneginf(np.asarray(lse)[:, empty]).all() and np.isfinite(np.asarray(lse)[:, ~empty]).all()
    assert (np.asarray(d_query)[:, empty] == 0).all()
    assert (np.asarray(d_bias)[..., empty, :] == 0).all()
    seen = np.broadcast_to(allows(np.arange(21)[:, None], np.arange(21)), (21, 21)).any(0)
    for gradient in (d_key, d_value):
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[:, ~seen] == 0).all()


@BOTH
@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.Softmax(jnp.zeros(2)),
        pytest.param(normalizers.Sigmoid(), marks=WIDE),
        pytest.param(normalizers.ReLU(), marks=WIDE),
    ],
    ids=["sink", "sigmoid", "relu"],
)
def test_a_query_that_may_attend_to_nothing_under_other_normalizers(normalizer, implementation):
    query, key, value = random((21, 2, 4), (21, 2, 4), (21, 2, 3))

    def loss(query, key, value, normalizer):
        out = jattn.attention(
            query, key, value, mask=NOTHING["a tile"], normalizer=normalizer, implementation=implementation
        )
        return (out**2).sum(), out

    gradients, out = jax.jit(jax.grad(loss, (0, 1, 2, 3), has_aux=True))(query, key, value, normalizer)
    assert (np.asarray(out)[8:16] == 0).all()
    assert (np.asarray(gradients[0])[8:16] == 0).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@BOTH
@pytest.mark.parametrize("score", [(), lambda s, q, k: s / (q - k + 0.5)], ids=["plain", "a function"])
@pytest.mark.parametrize(
    "mask", [None, masks.Causal(), masks.OnHeads(np.arange(4) > 0)], ids=["all", "causal", "heads"]
)
def test_no_keys_at_all(mask, score, implementation):
    query, key, value = random((2, 5, 4, 3), (2, 0, 2, 3), (2, 0, 2, 6))
    pieces = {"mask": mask, "scores": score, "query_positions": np.arange(5)}

    def run(query, key, value):
        return jattn.partial_attention(query, key, value, **pieces, implementation=implementation)

    (out, lse), gradients = graded(run, query, key, value)
    assert out.shape == (2, 5, 4, 6) and (out == 0).all()
    assert lse.shape == (2, 5, 4) and np.isneginf(lse).all()
    assert [item.shape for item in gradients] == [query.shape, key.shape, value.shape]
    assert (gradients[0] == 0).all()


# NaN or inf in a masked-out key or value: never reaches the output nor any gradient.


@BOTH
@pytest.mark.parametrize(
    "similarity",
    [
        None,
        # Every run has these in similarities/test_finite.py.
        pytest.param(similarities.Gaussian(0.3), marks=WIDE),
        pytest.param(similarities.Cosine(), marks=WIDE),
    ],
    ids=str,
)
def test_nan_or_inf_in_a_masked_out_key_or_value(similarity, implementation):
    query, key, value = random((2, 21, 4, 4), (2, 21, 2, 4), (2, 21, 2, 3))
    dead = np.r_[3, 17:21]  # inside a tile that is visited, and to the end
    mask = masks.of(lambda q, k: (k != 3) & (k < 17))

    def run(query, key, value):
        return jattn.partial_attention(
            query, key, value, mask=mask, similarity=similarity, implementation=implementation
        )

    both = compiled(run, 3)
    clean, clean_gradients = both(query, key, value)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt, spoilt_gradients = both(query, key.at[:, dead].set(bad), value.at[:, dead].set(bad))
        for have, want in zip((*spoilt, *spoilt_gradients), (*clean, *clean_gradients), strict=True):
            assert np.isfinite(want).all()
            near(have, want, 1e-6)
        for gradient in spoilt_gradients[1:]:
            assert (np.asarray(gradient)[:, dead] == 0).all(), bad


@BOTH
def test_nan_that_is_attended_is_not_hidden(implementation):
    query, key, value = random((21, 1, 4), (21, 1, 4), (21, 1, 3))
    run = jax.jit(lambda *a: jattn.partial_attention(*a, mask=masks.Causal(), implementation=implementation))
    out, lse = run(query, key.at[12].set(np.nan), value)
    assert np.isnan(out[12:]).all() and np.isnan(lse[12:]).all() and np.isfinite(out[:12]).all()
    out, lse = run(query, key, value.at[12, 0, 1].set(np.nan))
    assert np.isnan(out[12:, 0, 1]).all() and np.isfinite(out[:, 0, 0]).all() and np.isfinite(lse).all()


# Precision: float32 inside (float64 in float64); output in the value's dtype, each gradient in its input's.


@BOTH
@pytest.mark.parametrize("dtype", rows(["bfloat16", "float16"], ["bfloat16"]))
def test_precision(dtype, implementation):
    query, key, value = random((1, 300, 2, 8), (1, 300, 2, 8), (1, 300, 2, 4))
    query, key, value = query.astype(dtype), key.astype(dtype) * 3, value.astype("float32")
    slopes = jnp.asarray([0.01, 0.1])

    def run(query, key, value, slopes):
        return jattn.partial_attention(query, key, value, scores=scores.ALiBi(slopes), implementation=implementation)

    (out, lse), gradients = graded(run, query, key, value, slopes)
    assert out.dtype == "float32" and lse.dtype == "float32"
    assert [gradient.dtype for gradient in gradients] == [dtype, dtype, "float32", "float32"]
    want = exact(query, key, value, scores=[oracle.alibi(np.asarray(slopes))])
    near(lse, want.lse, 1e-5)  # of scores of 20 and more: float16 or bfloat16 scores would be off by .01 to .1
    near(out, want.out, 1e-5)


@WIDE
@BOTH
def test_precision_of_float64(implementation):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        query, key, value = (jnp.asarray(rng.normal(size=(9, 2, 4))) for _ in range(3))
        run = jax.jit(lambda *a: jattn.partial_attention(*a, mask=masks.Causal(), implementation=implementation))
        out, lse = run(query, key, value)
        gradient = jax.jit(jax.grad(lambda q: run(q, key, value).out.sum()))(query)
        want = exact(query, key, value, mask=lambda q, k: k <= q)
        assert out.dtype == lse.dtype == gradient.dtype == "float64"
        near(out, want.out, 1e-13)
        near(lse, want.lse, 1e-13)


# q_len != kv_len with a mask or score that looks at positions, and no positions given.


@pytest.mark.parametrize(
    "given",
    [{"mask": masks.Causal()}, {"mask": lambda q, k: k <= q}, {"scores": scores.ALiBi(jnp.ones(2))}],
    ids=["mask", "function", "score"],
)
def test_unequal_lengths_without_positions(given):
    query, key, value = random((3, 2, 4), (7, 2, 4), (7, 2, 4))
    for call in (jattn.attention, jattn.partial_attention, jattn.explain):
        with pytest.raises(ValueError, match="`query_positions`") as caught:
            call(query, key, value, **given)
        message = str(caught.value)
        assert "top-left" in message.lower() and "bottom-right" in message.lower()
        assert "arange(4, 7)" in message and "arange(3)" in message
    jattn.attention(query, key, value, **given, query_positions=np.arange(4, 7))


def test_unequal_lengths_where_no_position_is_looked_at():
    query, key, value = random((3, 2, 4), (7, 2, 4), (7, 2, 4))
    jattn.attention(query, key, value)
    jattn.attention(query, key, value, mask=masks.Lengths(5))
    jattn.attention(query, key, value, mask=masks.Dense(np.ones((1, 3, 7), bool)))


# Lengths and head dims that are no multiple of a tile.


@pytest.mark.parametrize(
    ("q_tile", "k_tile"),
    [
        (5, 3),
        *(pytest.param(*one, marks=WIDE) for one in ((1, 1), (20, 20), (8, 64), (64, 8), (21, 21))),
    ],
)
def test_lengths_and_head_dims_that_are_no_multiple_of_a_tile(q_tile, k_tile):
    query, key, value = random((21, 3, 5), (21, 3, 5), (21, 3, 7))
    mask = masks.SlidingWindow(6, 3)

    def run(implementation):
        return graded(
            lambda *a: jattn.partial_attention(*a, mask=mask, implementation=implementation), query, key, value
        )

    got, want = run(jattn.implementations.Tiled(q_tile, k_tile)), run("reference")
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        near(have, wish)


# Positions: absolute token indices.


@BOTH
def test_positions_are_absolute(implementation):
    """The same mask and score serve a whole sequence, a decoding step and a shard of the keys."""
    query, key, value = random((24, 2, 4), (24, 2, 4), (24, 2, 4))
    pieces = {"mask": masks.Causal() & masks.SlidingWindow(9), "scores": scores.ALiBi(jnp.asarray([0.1, 0.5]))}
    pieces["implementation"] = implementation

    @jax.jit
    def run(query, key, value):
        shards = [
            jattn.partial_attention(
                query,
                key[part],
                value[part],
                **pieces,
                query_positions=np.arange(24),
                key_positions=np.arange(24)[part],
            )
            for part in (slice(0, 10), slice(10, 24))
        ]
        moved = jattn.attention(
            query, key, value, **pieces, query_positions=np.arange(100, 124), key_positions=np.arange(100, 124)
        )
        return jattn.attention(query, key, value, **pieces), jattn.merge(*shards).out, moved

    @jax.jit
    def step(query, position):
        return jattn.attention(query, key, value, **pieces, query_positions=position)

    whole, merged, moved = run(query, key, value)
    for at in (0, 7, 23):
        near(step(query[at : at + 1], np.array([at])), whole[at : at + 1])
    near(merged, whole)
    near(moved, whole)


# Dropout: a counter-based function of the global (batch, head, query, key) index.


def test_dropout():
    query, key, value = random((2, 40, 2, 4), (2, 40, 2, 4), (2, 40, 2, 40))
    value = jnp.broadcast_to(jnp.eye(40)[:, None], value.shape)  # the output is the weights
    dropout = jattn.Dropout(0.3, jax.random.key(1))
    mask = masks.of(lambda q, k: (k <= q) & (q != 11))

    @jax.jit
    def every(query, key, value):
        def run(implementation, rows=slice(None)):
            return jattn.attention(
                query[:, rows],
                key,
                value,
                mask=mask,
                dropout=dropout,
                query_positions=np.arange(40)[rows],
                key_positions=np.arange(40),
                implementation=implementation,
            )

        tiled = [run(jattn.implementations.Tiled(*sizes)) for sizes in ((8, 16), (7, 5), (None, None))]
        full = jattn.attention(query, key, value, mask=mask)
        return run("reference"), tiled, run(TILES, rows=slice(20, 40)), full

    out, tiled, part, full = jax.tree.map(np.asarray, every(query, key, value))
    for one in tiled:
        near(one, out)
    near(part, out[:, 20:])
    dropped = (out == 0) & (full > 0)
    near(np.where(dropped, 0, full / 0.7), out, 2e-5)
    assert abs(dropped.sum() / (full > 0).sum() - 0.3) < 0.03
    assert (out[:, 11] == 0).all()
    assert not np.array_equal(dropped[0], dropped[1]) and not np.array_equal(dropped[:, :, 0], dropped[:, :, 1])
    rows = {dropped[0, row, 0, :20].tobytes() for row in range(20, 40)}
    assert len(rows) == 20, "every row is dropped by its own bits"


@BOTH
def test_dropout_gradients(implementation):
    query, key, value, cotangent = random((2, 19, 4, 3), (2, 19, 2, 3), (2, 19, 2, 5), (2, 19, 4, 5))
    dropout = jattn.Dropout(0.4, jax.random.key(3))
    run = jax.jit(
        lambda *a: jax.vjp(
            lambda q, k, v: jattn.attention(
                q, k, v, mask=masks.Causal(), dropout=dropout, implementation=implementation
            ),
            *a,
        )[1](cotangent)
    )
    positions = np.arange(19)
    indexed = jattn.foundation.pieces.align(dropout.indexed((2,), 4), (2,), {"head": 4, "query": 19, "key": 19})
    factor = np.asarray(indexed.factor(jnp.asarray(positions)[:, None], jnp.asarray(positions)[None]))
    leaves = [oracle.Num(np.asarray(array, np.float64)) for array in (query, key, value)]
    want = oracle.attention(*leaves, mask=lambda q, k: k <= q, dropout=factor)
    gradients = graph.gradients([(want.out, np.asarray(cotangent, np.float64))], leaves)
    for have, wish in zip(run(query, key, value), gradients, strict=True):
        near(have, wish)


# Gradients: to query, key, value and to every array inside every piece. None is silently zero.

FULL_OF_ARRAYS = {
    "dot": ("similarity", lambda a: similarities.Dot(a(2))),
    "cosine": ("similarity", lambda a: similarities.Cosine(abs(a(2)) + 0.5)),
    "bilinear": ("similarity", lambda a: similarities.Bilinear(a(2, 4, 4))),
    "shared bilinear": ("similarity", lambda a: similarities.SharedBilinear(a(4, 4))),
    "gaussian": ("similarity", lambda a: similarities.Gaussian(abs(a(2)) + 0.1)),
    "additive": ("similarity", lambda a: similarities.Additive(a(4, 3), a(4, 3), a(3))),
    "bias": ("scores", lambda a: scores.Bias(a(2, 2, 13, 13))),
    "alibi": ("scores", lambda a: scores.ALiBi(abs(a(2)))),
    "relative buckets": ("scores", lambda a: scores.RelativeBuckets(a(8, 2))),
    "soft cap": ("scores", lambda a: scores.SoftCap(abs(a(2)) + 1)),
    "sink": ("normalizer", lambda a: normalizers.Softmax(a(2))),
    "sigmoid": ("normalizer", lambda a: normalizers.Sigmoid(a(2))),
}


@pytest.mark.parametrize("implementation", [TILES, pytest.param("reference", marks=WIDE)], ids=["tiled", "reference"])
@pytest.mark.parametrize("name", rows(FULL_OF_ARRAYS, ["sink"]))
def test_gradients_reach_every_array(name, implementation):
    kind, make = FULL_OF_ARRAYS[name]
    query, key, value = random((2, 13, 2, 4), (2, 13, 2, 4), (2, 13, 2, 4))
    piece = make(lambda *shape: random(shape, seed=len(shape))[0])

    def loss(query, key, value, piece):
        out = jattn.attention(query, key, value, **{kind: piece}, mask=masks.Causal(), implementation=implementation)
        return (out**3).sum()

    gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)))(query, key, value, piece)
    leaves = jax.tree.leaves(gradients)
    assert len(leaves) >= 4
    assert all(np.isfinite(leaf).all() and np.abs(leaf).max() > 1e-6 for leaf in leaves)


# Bad input: the cases are in ops/attention/test_api.py; here is the form.


def test_bad_input_names_the_argument_what_came_and_the_remedy():
    query, key, value = random((2, 7, 3, 4), (2, 7, 2, 4), (2, 7, 2, 4))
    with pytest.raises(ValueError) as caught:
        jattn.attention(query, key, value)
    message = str(caught.value)
    assert "`query`" in message and "`key`" in message and str(query.shape) in message and str(key.shape) in message
