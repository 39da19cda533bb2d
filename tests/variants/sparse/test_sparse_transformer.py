"""The Sparse Transformer's patterns, as masks and as calls that gather columns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from pattern_oracle import attend, dense, written_out
from tiers import rows

import jattn
from jattn import masks, scores
from jattn.masks import Summaries
from jattn.variants.sparse import fixed_attention, fixed_mask, positions_in_documents, strided_attention, strided_mask


def of_strided(stride):
    window = lambda i, j: 0 <= i - j < stride  # noqa: E731
    columns = lambda i, j: j <= i and (i - j) % stride == 0  # noqa: E731
    return window, columns


def of_fixed(stride, count):
    block = lambda i, j: j <= i and j // stride == i // stride  # noqa: E731
    columns = lambda i, j: j <= i and j % stride >= stride - count  # noqa: E731
    return block, columns


PATTERNS = {
    "strided": (of_strided(4), lambda **how: strided_mask(4, **how)),
    "fixed": (of_fixed(5, 2), lambda **how: fixed_mask(5, 2, **how)),
}


@pytest.mark.parametrize("length", [1, 17])
@pytest.mark.parametrize("name", PATTERNS)
def test_three_ways_of_giving_them_to_heads(name, length):
    (first, second), mask = PATTERNS[name]
    merged = written_out(length, 1, lambda h, i, j: first(i, j) or second(i, j))
    np.testing.assert_array_equal(dense(mask(), length), merged)
    split = written_out(length, 4, lambda h, i, j: (first, second)[h // 2](i, j))
    np.testing.assert_array_equal(dense(mask(how="split", q_heads=4), length, heads=4), split)
    for layer in range(4):
        part = (first, second)[layer % 2]
        want = written_out(length, 1, lambda h, i, j, part=part: part(i, j))
        np.testing.assert_array_equal(dense(mask(how="interleaved", layer=layer), length), want)


@pytest.mark.parametrize("name", PATTERNS)
def test_two_layers_reach_every_earlier_position(name):
    mask = PATTERNS[name][1]
    length = 33
    earlier = np.tril(np.ones((length, length), bool))
    near, far = (dense(mask(how="interleaved", layer=layer), length)[0] for layer in (0, 1))
    residual = np.eye(length, dtype=bool)
    reached = (far | residual).astype(int) @ (near | residual).astype(int) > 0
    np.testing.assert_array_equal(reached, earlier)
    both = dense(mask(), length)[0].astype(int)
    np.testing.assert_array_equal(both @ both > 0, earlier)


@pytest.mark.parametrize("layer", [1, 2])
@pytest.mark.parametrize("name", PATTERNS)
def test_one_part_alone_is_its_definition(name, layer):
    """Which the merged form, a row of the table of variants, is made of."""
    part = PATTERNS[name][0][layer % 2]
    run, size = (strided_attention, (4,)) if name == "strided" else (fixed_attention, (5, 2))
    allowed = written_out(11, 2, lambda h, i, j: part(i, j))
    arrays = normal(0, (11, 2, 3), (11, 2, 3), (11, 2, 2))
    got = jax.jit(lambda *qkv: run(*qkv, *size, "interleaved", layer=layer))(*arrays)
    np.testing.assert_allclose(got, attend(*arrays, allowed), atol=1e-5)


@pytest.mark.parametrize("name", PATTERNS)
@pytest.mark.parametrize("how", rows(["merged", "split"], ["merged"]))
def test_documents_padding_and_scores_ride_along(name, how):
    """Arrays that ride on queries, keys and heads follow where the call puts them."""
    run, mask = (strided_attention, strided_mask) if name == "strided" else (fixed_attention, fixed_mask)
    query, key, value = (jnp.asarray(one) for one in normal(1, (2, 29, 4, 8), (2, 29, 2, 8), (2, 29, 2, 8)))
    rng = np.random.default_rng(0)
    ids = np.sort(rng.integers(0, 3, (2, 29)), -1)
    extra = masks.SameSegment(ids) & masks.Lengths(np.array([29, 23]))
    extra = extra & masks.Dense(rng.random((2, 4, 29, 29)) < 0.8)
    pieces = (scores.Bias(normal(2, (4, 29, 29))[0][None]), scores.ALiBi(np.array([0.1, 0.2, 0.3, 0.4], np.float32)))
    way = {"how": how, "q_heads": 4} if how == "split" else {}
    want = jax.jit(lambda *qkv: jattn.attention(*qkv, mask=mask(4, **way) & extra, scores=pieces))(query, key, value)
    got = jax.jit(lambda *qkv: run(*qkv, 4, how=how, mask=extra, scores=pieces))(query, key, value)
    np.testing.assert_allclose(got, want, atol=2e-6)


def test_blocks_that_start_with_the_document():
    ids = np.array([3, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4])
    at = positions_in_documents(ids)
    query, key, value = (jnp.asarray(one) for one in normal(1, (11, 1, 4), (11, 1, 4), (11, 1, 4)))
    together = jattn.attention(
        query, key, value, mask=fixed_mask(4) & masks.SameSegment(ids), query_positions=at, key_positions=at
    )
    for part in (slice(0, 5), slice(5, 11)):
        alone = jattn.attention(query[part], key[part], value[part], mask=fixed_mask(4))
        np.testing.assert_allclose(together[part], alone, atol=1e-6)


def test_columns_skip_tiles_and_a_mask_alone_would_not():
    shape = jax.ShapeDtypeStruct((4096, 2, 8), "float32")
    dtypes = {"implementation": jattn.implementations.Tiled(64, 64)}
    causal = jattn.explain(shape, shape, shape, mask=masks.Causal(), **dtypes).plan.counts()[0]
    window, columns = jattn.explain_calls(lambda q, k, v: strided_attention(q, k, v, 64, **dtypes), shape, shape, shape)
    assert window.plan.counts()[0] == 127 and columns.plan.counts()[0] == 64 < causal / 30
    heads = jattn.explain(shape, shape, shape, mask=strided_mask(64, "split", q_heads=2), **dtypes).plan
    per_head = (heads.states != 0).sum((-1, -2))
    assert per_head[0] == 127 and per_head[1] == causal


def test_bad_input_is_refused():
    rows = jnp.ones((8, 3, 4))
    with pytest.raises(ValueError, match="`stride` must be a positive int; got 0"):
        strided_mask(0)
    with pytest.raises(ValueError, match="`count` must be an integer of at least 0"):
        Summaries(4, -1)
    with pytest.raises(ValueError, match="`summaries` must be at most `stride`, 4; got 5"):
        fixed_mask(4, 5)
    with pytest.raises(ValueError, match="`how` must be one of 'merged', 'split', 'interleaved'; got 'both'"):
        strided_mask(4, "both")
    with pytest.raises(ValueError, match="`q_heads` is for `how='split'` and needed there; got q_heads None"):
        strided_mask(4, "split")
    with pytest.raises(ValueError, match="`layer` is for `how='interleaved'`"):
        fixed_attention(rows, rows, rows, 4, layer=1)
    with pytest.raises(ValueError, match="`layer` must be an int of at least 0; got -1"):
        strided_mask(4, "interleaved", layer=-1)
    with pytest.raises(ValueError, match="`q_heads` must be a multiple of the 2 patterns to split them; got 3"):
        strided_mask(4, "split", q_heads=3)
    with pytest.raises(ValueError, match="even number of heads"):
        strided_attention(rows, rows, rows, 4, "split")
    with pytest.raises(ValueError, match=r"`key` must have shape .* with length = 8"):
        strided_attention(rows, rows[:7], rows[:7], 4)
    with pytest.raises(ValueError, match=r"the options are .*; got .*dropout"):
        strided_attention(rows, rows, rows, 4, dropout=None)


@pytest.mark.parametrize("run", [strided_attention, fixed_attention])
@pytest.mark.parametrize("way", [{"how": "split"}, {"how": "interleaved", "layer": 1}], ids=["split", "interleaved"])
@pytest.mark.parametrize(
    ("pieces", "name"),
    [
        ({"scores": scores.ALiBi(jnp.ones(3))}, "ALiBi.slopes"),
        ({"scores": [scores.SoftCap(5.0), scores.ALiBi(np.ones(6, np.float32))]}, "ALiBi.slopes"),
        ({"scores": scores.Bias(jnp.zeros((1, 7, 5)))}, "Bias.values"),
        ({"mask": masks.Dense(np.ones((1, 1, 9), bool))}, "Dense.array"),
        ({"mask": masks.SameSegment(jnp.zeros(5, int))}, "SameSegment.query_ids"),
    ],
)
def test_pieces_of_another_size_are_refused_as_by_attention(run, way, pieces, name):
    """Where rows are taken out of an array, an index beyond it would be NaN, and what is too much cut off."""
    rows = jnp.ones((7, 4, 8))
    with pytest.raises(ValueError, match=f"`{name}` of shape"):
        run(rows, rows, rows, 3, **way, **pieces)
