"""`jattn.record(keep=...)`: the query and key whose products are the scores, of every way to attend."""

import dataclasses

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from recordings import CAUSAL, FEATURES, LAYER, LENGTH, MODEL, PARAMETERS, X, attend, heads

import jattn
from jattn.parallel import Heads
from jattn.variants.heads import Differential
from jattn.variants.sparse import strided_attention

KEEP = ("weights", "query", "key")
GROUPED = jattn.layers.MultiHeadAttention(FEATURES, 4, kv_heads=2, head_dim=4, rotary=True, qk_norm=True, mask=CAUSAL)
GROUPED_PARAMETERS = GROUPED.init(jax.random.key(1))


def pieces(**given):
    return lambda x: jattn.attention(heads(x), heads(x)[..., :1, :], heads(x)[..., :1, :], **given)


WAYS = {
    "function": (attend, ()),
    "scale": (pieces(similarity=jattn.similarities.Dot(0.3)), ()),
    "bfloat16": (lambda x: attend(jax.numpy.asarray(x, jax.numpy.bfloat16)), ()),
    "model": (MODEL, ()),
    "grouped, rotary": (lambda x: LAYER(PARAMETERS, x), ()),
    "grouped, rotary, qk-norm": (lambda x: GROUPED(GROUPED_PARAMETERS, x), ()),
    "cosine": (pieces(similarity=jattn.similarities.Cosine(), mask=lambda q, k: k < 3), ()),
    "masks of heads": (pieces(mask=lambda b, h, q, k: k <= q + h), ()),
    "differential": (lambda x: Differential(FEATURES, 2, depth=1)(DIFFERENTIAL, x), ()),
    "merged parts": (lambda x: strided_attention(heads(x), heads(x), heads(x), 2), ()),
    "gaussian": (pieces(similarity=jattn.similarities.Gaussian(0.1)), ("Gaussian",)),
    "soft cap": (pieces(scores=jattn.scores.SoftCap(2.0)), ("SoftCap",)),
    "sink": (pieces(normalizer=jattn.normalizers.Softmax.off_by_one()), ("Softmax with a sink",)),
    "sigmoid": (pieces(normalizer=jattn.normalizers.Sigmoid()), ("Sigmoid",)),
    "dropout": (pieces(dropout=jattn.Dropout(0.5, jax.random.key(3))), ("Dropout",)),
}
DIFFERENTIAL = Differential(FEATURES, 2, depth=1).init(jax.random.key(0))


def softmax_of(record):
    """The weights that the query, key and mask of a record give."""
    query, key = np.asarray(record.query), np.asarray(record.key)
    scores = np.einsum("...qd,...kd->...qk", query, key.repeat(query.shape[-3] // key.shape[-3], -3))
    allowed = True if record.mask is None else np.asarray(record.mask)
    exponentials = np.where(allowed, np.exp(scores - np.where(allowed, scores, -np.inf).max(-1, keepdims=True)), 0)
    return exponentials / exponentials.sum(-1, keepdims=True)


@pytest.mark.parametrize("way", WAYS)
def test_softmax_of_what_is_kept_is_the_weights(way):
    function, besides = WAYS[way]
    _, seen = jax.jit(jattn.recorded(function, keep=KEEP))(X)
    assert seen.records
    for record in seen.records.values():
        off = np.abs(softmax_of(record) - record.weights).max()
        assert (off > 1e-3) if besides else (off < 1e-5)
        assert record.besides == besides


def test_what_is_chosen():
    """Heads have their own keys then; rows of queries, and of the mask; without weights, the rest is the same."""
    run = jax.jit(jattn.recorded(GROUPED, keep=KEEP, heads=[3, 0], queries=[-1, 1]))
    every = jax.jit(jattn.recorded(GROUPED, keep=KEEP))(GROUPED_PARAMETERS, X)[1].record("attention.0")
    assert every.key.shape == (2, 2, LENGTH, 4) and every.allowed.shape == (2, 1, LENGTH, 1)
    few = run(GROUPED_PARAMETERS, X)[1].record("attention.0")
    np.testing.assert_allclose(few.query, every.query[:, [3, 0]][:, :, [-1, 1]], rtol=1e-6)
    np.testing.assert_allclose(few.key, every.key[:, [1, 0]], rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(few.mask)[0, 0], CAUSAL_ROWS[[-1, 1]])
    np.testing.assert_allclose(softmax_of(few), few.weights, atol=1e-6)
    _, seen = jax.jit(jattn.recorded(GROUPED, keep=("key", "query"), layers="attention.0"))(GROUPED_PARAMETERS, X)
    alone = seen.record("attention.0")
    assert alone.weights is None and alone.shape == seen.shapes["attention.0"] == (2, 4, LENGTH, LENGTH)
    np.testing.assert_allclose(softmax_of(alone), every.weights, atol=1e-6)
    assert "attention.0" in seen and "weights" not in repr(seen)
    assert "float32[2, 4, 5, 4]  float32[2, 2, 5, 4]  all 4" in repr(seen)
    with pytest.raises(ValueError, match=r"weights of 'attention.0' were not kept: `keep="):
        seen["attention.0"]


CAUSAL_ROWS = np.tril(np.ones((LENGTH, LENGTH), bool))


def test_weights_are_not_computed_where_they_are_not_kept():
    def traced(keep):
        return str(jax.make_jaxpr(jattn.recorded(lambda x: attend(x), keep=keep))(X))

    assert "applied_weights" in traced("weights") and "applied_weights" not in traced(["query", "key"])


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind, kv_heads", [(AxisType.Explicit, 2), (AxisType.Explicit, 4), (AxisType.Auto, 2)])
def test_split_heads(kind, kv_heads):
    """Over four devices, also where two of them have parts of one key head's queries."""
    layer = dataclasses.replace(GROUPED, kv_heads=kv_heads)
    parameters = layer.init(jax.random.key(0))
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind,) * 2)
    split = dataclasses.replace(layer, parallel=Heads("model", batch="data", mesh=mesh))
    want = jattn.recorded(layer, keep=KEEP)(parameters, X)[1].record("attention.0")
    with jax.set_mesh(mesh):
        inputs = jax.device_put(X, NamedSharding(mesh, PartitionSpec("data")))
        got = jax.jit(jattn.recorded(split, keep=KEEP))(parameters, inputs)[1].record("attention.0")
        few = jattn.recorded(split, keep=KEEP, heads=2)(parameters, inputs)[1].record("attention.0")
    np.testing.assert_allclose(got.query, want.query, atol=1e-5)
    np.testing.assert_allclose(softmax_of(got), want.weights, atol=1e-5)
    np.testing.assert_allclose(softmax_of(few), want.weights[:, [2]], atol=1e-5)


def test_devices_with_parts_of_a_key_head():
    """Four devices, each with two of eight query heads, and two key heads: then there is a key for each query head."""
    query, key = (np.random.default_rng(count).normal(size=(2, LENGTH, count, 4)) for count in (8, 2))
    call = jattn.recorded(lambda q, k: jattn.attention(q, k, k, mask=CAUSAL), keep=KEEP)
    want = call(query, key)[1].record("attention.0")
    mesh = jax.make_mesh((4,), ("model",), axis_types=(AxisType.Explicit,))
    with jax.set_mesh(mesh):
        placed = jax.device_put(query, NamedSharding(mesh, PartitionSpec(None, None, "model")))
        got = call(placed, jax.device_put(key, NamedSharding(mesh, PartitionSpec())))[1].record("attention.0")
    assert want.key.shape == (2, 2, LENGTH, 4) and got.key.shape == (2, 8, LENGTH, 4)
    np.testing.assert_allclose(got.key, np.repeat(want.key, 4, 1), atol=1e-6)
    np.testing.assert_allclose(softmax_of(got), want.weights, atol=1e-5)


@pytest.mark.parametrize("keep", [(), "values", ["weights", "value"], 3])
def test_bad_choices(keep):
    with pytest.raises(ValueError, match=r"`keep` must be some of 'weights', 'query', 'key'; got "):
        jattn.record(keep=keep)
    with pytest.raises(ValueError, match=r"`keep` must have 'weights' for their `gradients`"):
        jattn.recorded(attend, gradients=True, keep=["query", "key"])
    with pytest.raises(ValueError, match=r"would take 320 .* `keep="), jattn.record(keep="query", limit=300):
        attend(X)
