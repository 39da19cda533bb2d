"""Mistakes that were measured in published attention libraries; each is a test here, by its number in the list.

19 to 21 (caches, sharding, recurrences) belong to layers with tests of their own.
"""

import functools

import graph
import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from measure import exact, near, random
from temporaries import gradient_temporaries

import jattn
from jattn import masks, normalizers, scores, similarities

TILES = jattn.implementations.Tiled(q_tile=8, k_tile=8)
BOTH = pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), TILES], ids=["reference", "tiled"]
)


def attend(*arrays, implementation, **given):
    return jax.jit(lambda *a: jattn.partial_attention(*a, **given, implementation=implementation))(*arrays)


def squared(implementation, **given):
    """The compiled gradient of Σ out² in query, key and value."""

    def loss(query, key, value):
        out = jattn.attention(query, key, value, **given, implementation=implementation)
        return (out.astype(jnp.float32) ** 2).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))


# Masks and alignment


def test_trap_01_fully_masked_row():
    """Not the mean of V, over the row or over the live tile; nothing depends on the tile; no gradient into V."""
    query, key, value = random((32, 1, 4), (32, 1, 4), (32, 1, 4))
    mask = masks.of(lambda q, k: (k <= q) & ((q < 8) | (q > 16)))  # a whole tile of 8 queries and one row more
    kinds = ("reference", *(jattn.implementations.Tiled(size, size) for size in (4, 8, 32)))

    @jax.jit
    def every(*arrays):
        return [jattn.partial_attention(*arrays, mask=mask, implementation=kind) for kind in kinds]

    for out, lse in every(query, key, value):
        assert (out[8:17] == 0).all() and np.isneginf(lse[8:17]).all()
        assert np.isfinite(out).all() and np.isfinite(lse[17:]).all()

    def loss_of_empty_rows(value):
        return jattn.attention(query, key, value, mask=mask, implementation=TILES)[8:17].sum()

    assert (jax.jit(jax.grad(loss_of_empty_rows))(value) == 0).all()


@BOTH
def test_trap_02_rows_of_minus_infinity_in_a_bias(implementation):
    query, key, value = random((20, 2, 4), (20, 2, 4), (20, 2, 4))
    lowest = float(np.finfo(np.float32).min)
    row = (np.arange(20) == 9)[None, :, None]

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1, 2, 3), has_aux=True)
    def graded(query, key, value, biases):
        out, lse = jattn.partial_attention(
            query, key, value, scores=[scores.Bias(bias) for bias in biases], implementation=implementation
        )
        return (out.at[9].set(0) ** 2).sum(), (out, lse)  # the loss ignores the row

    for name, biases in {
        "-inf": [np.where(row, -np.inf, 0)],
        "two float minima": [np.where(row, lowest, 0)] * 2,
        "all but one key": [np.where(row & (np.arange(20) != 4), -np.inf, 0)],
    }.items():
        arrays = [np.asarray(bias, "float32") for bias in biases]
        gradients, (out, lse) = graded(query, key, value, arrays)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients)), name
        assert np.isfinite(out).all(), name
        if name == "all but one key":
            near(out[9], value[4])
        else:
            assert (out[9] == 0).all() and np.isneginf(lse[9]).all(), name


@BOTH
def test_trap_03_nan_in_padding(implementation):
    """NaN in padded V stays out of the output, NaN in padded K out of every gradient."""
    query, key, value = random((2, 20, 2, 4), (2, 20, 2, 4), (2, 20, 2, 4))
    ids = jnp.asarray([[1] * 13 + [0] * 7, [1] * 6 + [2] * 10 + [0] * 4])
    pad = np.asarray(ids) == 0
    key, value = key.at[pad].set(np.nan), value.at[pad].set(np.nan)

    @jax.jit
    @functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
    def graded(query, key, value, mask):
        return (jattn.attention(query, key, value, mask=mask, implementation=implementation) ** 2).sum()

    for mask in (masks.SameSegment(ids, padding_id=0), masks.Lengths(jnp.asarray([13, 16]))):
        for one in jax.tree.leaves(graded(query, key, value, mask)):
            assert np.isfinite(one).all()


@BOTH
def test_trap_04_no_keys(implementation):
    query, key, value = random((20, 2, 4), (0, 2, 4), (0, 2, 4))
    out, lse = attend(query, key, value, implementation=implementation)
    assert (out == 0).all() and np.isneginf(lse).all()


@BOTH
def test_trap_05_where_the_queries_stand(implementation):
    query, key, value = random((1, 2, 4), (20, 2, 4), (20, 2, 4))
    with pytest.raises(ValueError, match="query_positions"):
        jattn.attention(query, key, value, mask=masks.Causal(), implementation=implementation)
    step = attend(query, key, value, mask=masks.Causal(), query_positions=np.array([19]), implementation=implementation)
    near(step.out, exact(query, key, value).out)  # all the cache
    first = attend(query, key, value, mask=masks.Causal(), query_positions=np.array([0]), implementation=implementation)
    near(first.out, value[:1])
    none = attend(query, key, value, mask=masks.Causal(), query_positions=np.array([-1]), implementation=implementation)
    assert (none.out == 0).all()


@BOTH
def test_trap_06_three_axes_of_a_mask_are_never_the_batch(implementation):
    query, key, value = random((2, 10, 2, 4), (2, 10, 2, 4), (2, 10, 2, 4))
    array = np.random.default_rng(0).random((2, 10, 10)) < 0.5  # batch and heads are both 2
    with pytest.raises(ValueError, match=r"`Dense\.array`.*batch or the heads"):
        jattn.attention(query, key, value, mask=masks.Dense(array))
    for shaped in (array[None], array[:, None]):  # by head, by sequence
        got = attend(query, key, value, mask=masks.Dense(shaped), implementation=implementation)
        near(got.out, exact(query, key, value, mask=lambda q, k, shaped=shaped: shaped).out)
    with pytest.raises(ValueError, match="`array`"):
        masks.Dense(array[0])
    with pytest.raises(ValueError, match=r"Dense\.array"):
        jattn.attention(*(a[:, :, :1] for a in (query, key, value)), mask=masks.Dense(array))


@BOTH
def test_trap_07_or_and_and_of_masks(implementation):
    query, key, value = random((2, 20, 1, 4), (2, 20, 1, 4), (2, 20, 1, 4))
    ids = np.sort(np.random.default_rng(0).integers(0, 3, (2, 20)))
    other = np.tile(np.arange(20) // 7, (2, 1))

    def same(ids):
        return ids[:, None, :, None] == ids[:, None, None, :]

    for mask, allows in (
        (masks.Causal() | masks.Sinks(2), lambda q, k: (k <= q) | (k < 2)),
        (masks.Sinks(2) | masks.Causal(), lambda q, k: (k <= q) | (k < 2)),
        (masks.Causal() & (masks.Sinks(2) | masks.SlidingWindow(3)), lambda q, k: (k <= q) & ((k < 2) | (q - k <= 3))),
        (masks.SameSegment(ids) & masks.SameSegment(other), lambda q, k: same(ids) & same(other)),
        (masks.Causal() & masks.SameSegment(jnp.asarray(ids)), lambda q, k: (k <= q) & same(ids)),
        (masks.SameSegment(jnp.asarray(ids)) | masks.Causal(), lambda q, k: (k <= q) | same(ids)),
    ):
        got = attend(query, key, value, mask=mask, implementation=implementation)
        near(got.out, exact(query, key, value, mask=allows).out)


@BOTH
def test_trap_08_padding_ids_that_are_equal(implementation):
    query, key, value = random((20, 1, 4), (20, 1, 4), (20, 1, 4))
    ids = np.r_[[1] * 12, [0] * 8]
    padded = attend(query, key, value, mask=masks.SameSegment(ids, padding_id=0), implementation=implementation)
    assert (padded.out[12:] == 0).all() and np.isneginf(padded.lse[12:]).all()
    segment = attend(query, key, value, mask=masks.SameSegment(ids), implementation=implementation)
    near(segment.out[12:], exact(query[12:], key[12:], value[12:]).out)
    near(segment.out[:12], padded.out[:12])


OPTIONS = {
    "mask": {"mask": masks.Causal()},
    "window": {"mask": masks.SlidingWindow(1, 1)},
    "scale": {"similarity": similarities.Dot(2.0)},
    "packing": {"mask": masks.SameSegment(np.array([0, 0, 1, 1, 1]))},
    "bias": {"scores": scores.Bias(np.linspace(-2, 2, 25, dtype=np.float32).reshape(1, 5, 5))},
    "soft cap": {"scores": scores.SoftCap(0.5)},
    "sink": {"normalizer": normalizers.Softmax(jnp.ones(1))},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_trap_09_options_are_never_lost(name):
    """Below the tile size, with dropout, when weights are asked for, or whichever implementation runs."""
    query, key, value = random((5, 1, 4), (5, 1, 4), (5, 1, 4))
    value = jnp.eye(5)[:, None]  # the output is the weights
    dropout, option = jattn.Dropout(0.5, jax.random.key(0)), OPTIONS[name]

    @jax.jit
    def every(query, key, value):
        def attend(**given):
            return jattn.attention(query, key, value, **given)

        kinds = (None, "tiled", jattn.implementations.Tiled(2, 2))
        return (
            attend(implementation="reference"),
            attend(**option, implementation="reference"),
            [attend(**option, implementation=one) for one in kinds],
            [attend(**option, dropout=dropout, implementation=one) for one in ("reference", "tiled")],
            jattn.attention_weights(query, key, **option)[0],
        )

    plain, want, alike, dropped, weights = jax.tree.map(np.asarray, every(query, key, value))
    assert np.abs(want - plain).max() > 0.05
    for out in alike:
        near(out, want)
    near(weights, want[:, 0])
    for out in dropped:
        near(np.where(out == 0, 0, want * 2), out)


def test_trap_09_a_mask_is_never_converted():
    query, key, value = random((5, 1, 4), (5, 1, 4), (5, 1, 4))
    additive = np.where(np.tril(np.ones((1, 5, 5), bool)), 0.0, -1e9).astype(np.float32)
    with pytest.raises(ValueError, match=r"boolean.*`jattn\.scores\.Bias"):
        masks.Dense(additive)
    with pytest.raises(ValueError, match="Dense"):
        jattn.attention(query, key, value, mask=additive)


@BOTH
def test_trap_10_a_window_to_the_left_sees_no_future(implementation):
    query, key, value = random((20, 1, 4), (20, 1, 4), (20, 1, 4))
    got = attend(query, key, value, mask=masks.SlidingWindow(4, 0), implementation=implementation)
    near(got.out, exact(query, key, value, mask=lambda q, k: (k <= q) & (q - k <= 4)).out)
    changed = attend(
        query, key.at[11:].add(1), value.at[11:].add(1), mask=masks.SlidingWindow(4, 0), implementation=implementation
    )
    assert np.array_equal(changed.out[:11], got.out[:11])


# Gradients that are silently wrong


@BOTH
@pytest.mark.parametrize("which", ["bias", "sink", "soft cap", "lse"])
def test_trap_11_gradients_of_bias_sink_soft_cap_and_lse(which, implementation):
    arrays = random((20, 2, 4), (20, 2, 4), (20, 2, 4), (20, 2, 4), (20, 2))
    (query, key, value, out_cotangent, lse_cotangent) = arrays
    extra = {"bias": random((2, 20, 20)), "sink": random((2,))}.get(which, [])

    def run(query, key, value, *extra):
        given = {
            "bias": lambda: {"scores": scores.Bias(extra[0])},
            "sink": lambda: {"normalizer": normalizers.Softmax(extra[0])},
            "soft cap": lambda: {"scores": scores.SoftCap(0.7)},
            "lse": lambda: {},
        }[which]()
        if which == "lse":
            return jattn.partial_attention(query, key, value, **given, implementation=implementation).lse
        return jattn.attention(query, key, value, **given, implementation=implementation)

    cotangent = lse_cotangent if which == "lse" else out_cotangent
    got = jax.jit(lambda *a: jax.vjp(run, *a)[1](cotangent))(query, key, value, *extra)
    leaves = [oracle.Num(np.asarray(array, np.float64)) for array in (query, key, value, *extra)]
    given = {
        "bias": lambda: {"scores": [oracle.bias(leaves[3])]},
        "sink": lambda: {"normalizer": oracle.softmax(leaves[3])},
        "soft cap": lambda: {"scores": [oracle.soft_cap(0.7)]},
        "lse": lambda: {},
    }[which]()
    truth = oracle.attention(*leaves[:3], **given)
    want = graph.gradients([(truth.lse if which == "lse" else truth.out, np.asarray(cotangent, np.float64))], leaves)
    for have, wish in zip(got, want, strict=True):
        near(have, wish)
    assert np.abs(want[0]).max() > 0.01 and all(np.abs(item).max() > 0.01 for item in want[3:])


@BOTH
@pytest.mark.parametrize(
    "axes",
    [
        (None, 2, 0),
        *(pytest.param(one, marks=pytest.mark.exhaustive) for one in ((0, 0, 0), (1, None, -1), (3, 1, None))),
    ],
)
def test_trap_12_vmap_of_the_backward_pass(axes, implementation):
    """With a batch inside, every axis in turn, and head dims of V that differ from those of K."""
    lanes = [random((2, 10, 4, 3), (2, 10, 2, 3), (2, 10, 2, 5), seed=seed) for seed in range(3)]
    stacked = [
        lanes[0][i] if axis is None else jnp.stack([lane[i] for lane in lanes], axis if axis >= 0 else 4)
        for i, axis in enumerate(axes)
    ]
    gradient = squared(implementation, mask=masks.Causal(), scores=scores.ALiBi(jnp.asarray([0.1, 0.2, 0.3, 0.4])))
    got = jax.jit(jax.vmap(gradient, axes))(*stacked)
    for n in range(3):
        want = gradient(*(lanes[0 if axis is None else n][i] for i, axis in enumerate(axes)))
        for have, wish in zip(got, want, strict=True):
            near(have[n], wish)


@BOTH
def test_trap_13_dtypes_of_gradients(implementation):
    query, key, value = random((20, 2, 4), (20, 2, 4), (20, 2, 4))
    gradients = squared(implementation, mask=masks.Causal())(
        query.astype("bfloat16"), key.astype("float16"), value.astype("float32")
    )
    assert [gradient.dtype for gradient in gradients] == ["bfloat16", "float16", "float32"]


# Online softmax


@pytest.mark.parametrize("k_tile", [1, 4, 16, 64])
def test_trap_14_a_sink_is_counted_once_a_row(k_tile):
    query, key, value = random((64, 2, 4), (64, 2, 4), (64, 2, 4))
    sink = jnp.asarray([1.0, 3.0])
    got = jattn.attention(
        query,
        key,
        value,
        normalizer=normalizers.Softmax(sink),
        implementation=jattn.implementations.Tiled(q_tile=64, k_tile=k_tile),
    )
    near(got, exact(query, key, value, normalizer=oracle.softmax(np.asarray(sink, np.float64))).out)


@pytest.mark.parametrize("dropout", [False, True])
def test_trap_15_bfloat16_inputs_are_accumulated_in_float32(dropout):
    """Over 128 tiles of keys an accumulator in bfloat16 drifts; a tile more must not cost accuracy."""
    query, key, value = (array.astype("bfloat16") for array in random((4, 1, 8), (1024, 1, 8), (1024, 1, 8)))
    value = value + 1
    given, factor = {}, None
    if dropout:
        given["dropout"] = jattn.Dropout(0.5, jax.random.key(0))
        indexed = jattn.foundation.pieces.align(
            given["dropout"].indexed((), 1), (), {"head": 1, "query": 4, "key": 1024}
        )
        factor = np.asarray(indexed.factor(jnp.arange(4)[:, None], jnp.arange(1024)[None]))[None]
    want = exact(query, key, value, dropout=factor)
    got = attend(query, key, value, **given, implementation=jattn.implementations.Tiled(4, 8))
    near(got.lse, want.lse, 2e-6)
    near(got.out, want.out, 0.006)  # rounding of the weights and of the output itself


@BOTH
def test_trap_16_a_bias_is_added_after_the_scale_whole_and_where_it_belongs(implementation):
    query, key, value, bias = random((20, 2, 4), (20, 2, 4), (20, 2, 4), (2, 20, 20))
    bias = 3 * jnp.abs(bias)  # positive, and different for every query tile
    for mask, allows in ((None, None), (masks.Causal(), lambda q, k: k <= q)):
        got = attend(query, key, value, mask=mask, scores=scores.Bias(bias), implementation=implementation)
        near(got.out, exact(query, key, value, mask=allows, scores=[oracle.bias(np.asarray(bias))]).out)


def test_trap_17_the_gradient_is_linear_in_memory_too():
    """As test_memory.py at more lengths: quadrupling the length may not take 16 times the memory."""
    at = {n: gradient_temporaries(n, heads=2, dim=16, mask=masks.Causal()) for n in (1024, 4096)}
    assert at[4096] < 4.5 * at[1024], at


# Dropout


def test_trap_18_dropout():
    query, key, value = random((2, 30, 2, 4), (2, 30, 2, 4), (2, 30, 2, 4))
    value = jnp.broadcast_to(jnp.eye(30)[:, None], (2, 30, 2, 30))
    traces = []

    @jax.jit
    def run(dropout):
        traces.append(None)
        return jattn.attention(query, key, value, mask=masks.Causal(), dropout=dropout, implementation=TILES)

    weights = [np.moveaxis(np.asarray(run(jattn.Dropout(0.5, jax.random.key(seed)))), 2, 1) for seed in range(3)]
    assert len(traces) == 1, "a new key is no reason to compile again"
    assert not np.array_equal(weights[0], weights[1])
    for kept in weights:
        future = np.triu(np.ones((30, 30), bool), 1)
        assert (kept[..., future] == 0).all(), "what is dropped never brings the future back"
        bits = (kept > 0).reshape(4, 30, 30)
        assert len({head.tobytes() for head in bits}) == 4, "one mask for every head and sequence"
        assert len({row.tobytes() for row in bits[0, 20:, :20]}) == 10, "one mask for every row"
