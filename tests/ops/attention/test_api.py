"""The public functions: bad input is rejected with a helpful error; other entry points agree with `attention`."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measure import exact, near, random

import jattn
from jattn import masks, normalizers, scores, similarities

QUERY, KEY, VALUE = random((2, 7, 4, 3), (2, 7, 2, 3), (2, 7, 2, 5))


def refused(*words, query=QUERY, key=KEY, value=VALUE, error=ValueError, call=jattn.attention, **given):
    """The message of the error, which must hold all the words."""
    with pytest.raises(error) as caught:
        call(query, key, value, **given)
    for word in words:
        assert word in str(caught.value), f"{word!r} is not in: {caught.value}"


# Bad input


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_wrong_rank(name):
    arrays = {"query": QUERY, "key": KEY, "value": VALUE}
    flat = {**arrays, name: arrays[name][0, :, 0]}
    refused(f"`{name}`", "at least 3 axes", "(7, ", "[..., None, :]", **flat)
    refused("`query`, `key` and `value`", "batch axes", **{**arrays, name: arrays[name][0]})
    refused("`query`, `key` and `value`", "batch axes", **{**arrays, name: arrays[name][:1]})


def test_no_array():
    refused("`key`", "list", key=[[[1.0]]])
    refused("`query`", "NoneType", query=None)


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_integer_inputs(name):
    arrays = {"query": QUERY, "key": KEY, "value": VALUE}
    refused(f"`{name}`", "floating-point", "int32", "astype", **{**arrays, name: arrays[name].astype("int32")})


def test_heads_that_are_not_divisible():
    refused("`query`", "`key`", "multiple", "3 query heads", "2 key heads", "swapped", query=QUERY[:, :, :3])
    refused("1 query heads", query=QUERY[:, :, :1])


def test_mismatched_lengths():
    refused("`key`", "`value`", "(2, 6, 2, 3)", "(2, 7, 2, 5)", key=KEY[:, :6])
    refused("`key`", "`value`", "kv_heads", value=VALUE[:, :, :1])
    refused("`query`", "`key`", "qk_dim", "(2, 7, 4, 2)", "(2, 7, 2, 3)", query=QUERY[..., :2])


def test_heads_and_length_swapped_is_refused_where_it_can_be_told():
    """Queries of 7 rows and 4 heads, keys of 9 rows and 2 heads: swapped, 7 "heads" are no multiple of 9."""
    longer = random((2, 2, 9, 3), (2, 2, 9, 5))
    refused("swapped", "7 query heads", "9 key heads", query=QUERY.swapaxes(1, 2), key=longer[0], value=longer[1])


@pytest.mark.parametrize("shape", [(3, 7, 7), (2, 2, 7, 7), (4, 7, 6), (4, 6, 7), (3, 1, 7, 7), (2, 2, 4, 7, 7)])
def test_a_mask_array_of_the_wrong_shape(shape):
    refused("`Dense.array`", str(shape), mask=masks.Dense(np.ones(shape, bool)))
    refused("`Bias.", str(shape), scores=scores.Bias(np.ones(shape, np.float32)))


def test_mask_arrays_are_never_guessed():
    for shape in ((7, 7), (7,)):
        with pytest.raises(ValueError, match="axes"):
            masks.Dense(np.ones(shape, bool))
    refused("`mask`", "Dense", mask=np.ones((2, 4, 7, 7), bool))
    refused("`mask`", "str", mask="causal")
    refused("`Lengths.key_lengths`", "(3,)", mask=masks.Lengths(np.array([1, 2, 3])))
    refused("`SlidingWindow.left`", "(3,)", mask=masks.SlidingWindow(np.array([1, 2, 3])))
    refused("`SameSegment.query_ids`", "(2, 6)", mask=masks.SameSegment(np.ones((2, 6), int)))


def test_negative_windows():
    for window in (functools.partial(masks.SlidingWindow, -3), functools.partial(masks.SlidingWindow, 2, -3)):
        with pytest.raises(ValueError, match=r"`(left|right)`.*-3"):
            window()
    with pytest.raises(ValueError, match=r"`left`.*-2"):
        masks.SlidingWindow(np.array([3, -2]))


def test_a_mask_function_that_returns_numbers():
    refused("`function`", "boolean", "scores", mask=lambda q, k: q - k)
    refused("`function`", "boolean", mask=lambda q, k: jnp.zeros(3, bool))


def test_unknown_implementation_lists_the_known_ones():
    refused("`implementation`", "'typo'", "'tiled'", "'reference'", implementation="typo")
    refused("`implementation`", "'tiled'", implementation=7)


@pytest.mark.parametrize("normalizer", [normalizers.Sparsemax(), normalizers.Entmax15()], ids=["sparsemax", "entmax"])
def test_a_named_implementation_that_refuses_says_why_and_what_the_others_say(normalizer):
    refused(
        "`tiled`",
        "sorting all of its scores",
        "`reference` accepts",
        error=jattn.Unsupported,
        normalizer=normalizer,
        implementation="tiled",
    )
    assert issubclass(jattn.Unsupported, ValueError)
    jattn.attention(QUERY, KEY, VALUE, normalizer=normalizer)


def test_unequal_lengths_without_positions():
    refused("`mask`", "q_len 3", "kv_len 7", "`query_positions`", query=QUERY[:, :3], mask=masks.Causal())
    refused("`scores`", "q_len 3", query=QUERY[:, :3], scores=scores.ALiBi(jnp.ones(4)))


def test_positions():
    refused("`query_positions`", "integers", "float", query_positions=np.linspace(0, 1, 7))
    refused("`query_positions`", "[7]", "(6,)", query_positions=np.arange(6))
    refused("`key_positions`", "(3, 7)", key_positions=np.zeros((3, 7), int))
    refused("`key_positions`", "()", key_positions=np.array(3))


def test_pieces_in_the_wrong_place():
    refused("`similarity`", "Similarity", similarity=masks.Causal())
    refused("`normalizer`", "Normalizer", normalizer="softmax")
    refused("`scores[1]`", "Score", "`mask=`", scores=[scores.SoftCap(2.0), masks.Causal()])
    refused("`dropout`", "Dropout", dropout=0.1)


def test_partial_attention_of_what_does_not_merge():
    for normalizer in (normalizers.Softmax(jnp.zeros(4)), normalizers.Sigmoid()):
        refused("`normalizer`", "merge", call=jattn.partial_attention, normalizer=normalizer)


def test_dropout_rate():
    with pytest.raises(ValueError, match=r"`rate`.*1\.5"):
        jattn.Dropout(1.5, jax.random.key(0))


def test_dropout_key():
    for key in (0, None, jnp.zeros(2), jax.random.split(jax.random.key(0))):
        with pytest.raises(ValueError, match=r"`key` must be one random key, such as `jax.random.key\(0\)`; got"):
            jattn.Dropout(0.5, key)


def test_tile_sizes():
    with pytest.raises(ValueError, match=r"`q_tile`.*0"):
        jattn.implementations.Tiled(q_tile=0)


# The other entrances


def test_partial_attention_out_is_attention():
    given = {"mask": masks.Causal(), "scores": [scores.SoftCap(2.0)]}
    out, lse = jattn.partial_attention(QUERY, KEY, VALUE, **given)
    near(out, jattn.attention(QUERY, KEY, VALUE, **given), 1e-7)
    assert lse.shape == (2, 7, 4)


def test_one_score_or_several():
    one = jattn.attention(QUERY, KEY, VALUE, scores=scores.SoftCap(2.0))
    near(jattn.attention(QUERY, KEY, VALUE, scores=[scores.SoftCap(2.0)]), one, 1e-7)


def test_attention_weights():
    slopes = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
    bias = random((4, 7, 7))[0]
    given = {"mask": masks.SlidingWindow(3, 1), "scores": [scores.ALiBi(slopes), scores.Bias(bias)]}
    weights = jattn.attention_weights(QUERY, KEY, **given)
    import oracle

    want = exact(
        QUERY,
        KEY,
        VALUE,
        mask=lambda q, k: (q - k <= 3) & (k - q <= 1),
        scores=[oracle.alibi(slopes), oracle.bias(np.asarray(bias))],
    ).weights
    assert weights.shape == (2, 4, 7, 7) and weights.dtype == "float32"
    near(weights, want)
    some = jattn.attention_weights(QUERY, KEY, **given, heads=[3, 1], queries=[-1, 2, 5])
    near(some, np.asarray(weights)[:, [3, 1]][:, :, [-1, 2, 5]])
    with pytest.raises(ValueError, match=r"`heads`.*0 and 3"):
        jattn.attention_weights(QUERY, KEY, heads=[4])
    with pytest.raises(ValueError, match=r"`queries`"):
        jattn.attention_weights(QUERY, KEY, queries=[0.5])


def test_weights_of_other_normalizers():
    for normalizer in (normalizers.Sigmoid(), normalizers.Sparsemax(), normalizers.Softmax(jnp.ones(4))):
        weights = jattn.attention_weights(QUERY, KEY, normalizer=normalizer, mask=masks.Causal())
        values = jnp.broadcast_to(jnp.eye(7)[:, None], (2, 7, 2, 7))
        out = jattn.attention(QUERY, KEY, values, normalizer=normalizer, mask=masks.Causal())
        near(np.moveaxis(np.asarray(out), 2, 1), weights)


def test_explain():
    shape = jax.ShapeDtypeStruct
    arrays = (
        shape((1, 4096, 4, 16), "float32"),
        shape((1, 4096, 2, 16), "float32"),
        shape((1, 4096, 2, 16), "float32"),
    )
    explained = jattn.explain(*arrays, mask=masks.SlidingWindow(1500, 0))
    text = str(explained)
    assert explained.implementation == "tiled" and "reference" in explained.reasons
    assert "runs: tiled" in text and "MiB" in text and "not reference" in text
    visited, full, total = explained.plan.counts()
    assert 0 < full < visited < total
    assert str(visited) in text and str(total) in text
    refusing = jattn.explain(*arrays, normalizer=normalizers.Sparsemax())
    assert refusing.implementation == "reference" and "sorting all of its scores" in refusing.reasons["tiled"]
    with pytest.raises(ValueError, match=re.escape("`query_positions`")):
        jattn.explain(shape((5, 2, 4), "float32"), *[shape((9, 2, 4), "float32")] * 2, mask=masks.Causal())
    with pytest.raises(ValueError, match="maks"):
        jattn.explain(*arrays, maks=masks.Causal())


def test_explain_of_segment_ids():
    shape = jax.ShapeDtypeStruct((2, 1024, 2, 8), "float32")
    ids = jnp.asarray(np.repeat(np.arange(4), 256)[None].repeat(2, 0))
    known = jattn.explain(shape, shape, shape, mask=masks.SameSegment(ids))
    assert known.plan.counts()[0] < known.plan.counts()[2]
    traced = jattn.explain(shape, shape, shape, mask=masks.SameSegment(jax.ShapeDtypeStruct((2, 1024), "int32")))
    assert "run time" in str(traced)


def test_explain_calls_lists_every_attention_within():
    array = jax.ShapeDtypeStruct((64, 2, 8), "float32")

    def model(query, key, value, ids, *, twice):
        out = jattn.attention(query, key, value, mask=masks.Causal())
        part = jattn.partial_attention(out, key, value, mask=masks.SameSegment(ids), implementation="tiled").out
        return part if twice else out

    causal, packed = jattn.explain_calls(model, array, array, array, jax.ShapeDtypeStruct((64,), "int32"), twice=True)
    assert causal.plan.counts() == jattn.explain(array, array, array, mask=masks.Causal()).plan.counts()
    assert causal.shapes == jattn.explain(array, array, array, mask=masks.Causal()).shapes
    assert "run time" in str(packed) and "was asked for" in packed.reasons["reference"]
    with pytest.raises(ValueError, match=re.escape("`key`")):
        jattn.explain_calls(lambda query, key: jattn.attention(query, key, key), array, 3)
    assert len(jattn.explain_calls(lambda q: jattn.attention(q, q, q), array)) == 1, "an error left a watcher behind"
    with pytest.raises(ValueError, match=re.escape("`jattn.explain`")):
        jattn.explain_calls(array, array, array)


def test_no_scores():
    want = jattn.attention(QUERY, KEY, VALUE)
    np.testing.assert_array_equal(jattn.attention(QUERY, KEY, VALUE, scores=None), want)


def test_explain_under_jit():
    @jax.jit
    def run(query, key, value, ids):
        assert jattn.explain(query, key, value, mask=masks.SameSegment(ids)).implementation == "tiled"
        return jattn.attention(query, key, value, mask=masks.SameSegment(ids))

    run(QUERY, KEY, VALUE, jnp.zeros((2, 7), int))


# The signature of jax.nn


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"local_window_size": 2},
        {"local_window_size": (1, 3), "is_causal": True},
        {"key_value_seq_lengths": jnp.array([5, 7])},
        {"bias": random((1, 4, 7, 7))[0]},
        {"mask": jnp.asarray(np.tril(np.ones((2, 1, 7, 7), bool)))},
        {"bias": random((2, 1, 7, 7))[0], "is_causal": True, "scale": 1.5},
    ],
    ids=lambda given: "+".join(given) or "plain",
)
def test_dot_product_attention_is_that_of_jax_nn(given):
    value = VALUE[..., :3]
    got = jattn.dot_product_attention(QUERY, KEY, value, **given)
    near(got, jax.nn.dot_product_attention(QUERY, KEY, value, **given), 1e-5)


def test_dot_product_attention_where_jax_nn_differs():
    lengths = jnp.array([0, 4])
    out, lse = jattn.dot_product_attention(
        QUERY, KEY, VALUE, query_seq_lengths=lengths, key_value_seq_lengths=lengths, return_residual=True
    )
    assert (out[0] == 0).all() and (out[1, 4:] == 0).all() and np.isneginf(lse[0]).all()
    near(out[1, :4], exact(QUERY[1, :4], KEY[1, :4], VALUE[1, :4]).out)
    top_left = jattn.dot_product_attention(QUERY[:, :3], KEY, VALUE, is_causal=True)
    near(top_left, jattn.attention(QUERY[:, :3], KEY[:, :3], VALUE[:, :3], mask=masks.Causal()))
    half = [jnp.asarray(array, jnp.bfloat16) for array in (QUERY, KEY, KEY)]
    for attend in (jattn.dot_product_attention, jax.nn.dot_product_attention):
        _, lse = jax.eval_shape(functools.partial(attend, return_residual=True), *half)
        assert lse.dtype == jnp.bfloat16
    unbatched = jattn.dot_product_attention(QUERY[0], KEY[0], VALUE[0])
    near(unbatched, jattn.attention(QUERY, KEY, VALUE)[0])


def test_similarity_by_default_is_the_scaled_dot():
    near(jattn.attention(QUERY, KEY, VALUE, similarity=similarities.Dot(3**-0.5)), jattn.attention(QUERY, KEY, VALUE))
