"""jattn inside Flax's own modules: equal to Flax where both mean the same, and no argument ignored."""

import functools
import warnings
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from measure import random
from tiers import rows

import jattn.linen
import jattn.nnx
from jattn import masks, normalizers, scores
from jattn.layers import attention_fn as make_attention_fn

# Which implementation runs inside is tested elsewhere; this one is quick without `jit`.
attention_fn = functools.partial(make_attention_fn, implementation="reference")

BATCH, LENGTH, HEADS, FEATURES = 2, 6, 4, 16
X, Y = random((BATCH, LENGTH, FEATURES), (BATCH, LENGTH + 3, FEATURES))


def nnx_layer(function=None, **arguments):
    own = {} if function is None else {"attention_fn": function}
    return nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, rngs=nnx.Rngs(0), **own, **arguments)


def linen_layer(function=None, **arguments) -> Any:
    own = {} if function is None else {"attention_fn": function}
    return nn.MultiHeadAttention(HEADS, **own, **arguments)


def linen_variables(**arguments):
    return linen_layer(**arguments).init(jax.random.key(0), X)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


MASKS = {
    "none": None,
    "causal in float32, as Flax makes it": np.float32(np.tril(np.ones((BATCH, 1, LENGTH, LENGTH)))),
    "causal in booleans": np.tril(np.ones((BATCH, 1, LENGTH, LENGTH), bool)),
    "a matrix": np.tril(np.ones((LENGTH, LENGTH), bool)),
    "lengths": (np.arange(LENGTH) < np.array([[4], [6]]))[:, None, None, :],
    "for each head": np.arange(LENGTH) <= np.arange(LENGTH)[:, None] + np.arange(HEADS)[:, None, None],
}


@pytest.mark.parametrize("name", rows(MASKS, ["lengths"]))
def test_nnx_equals_flax_in_value_and_gradients(name):
    mask = MASKS[name]

    def value_and_gradients(function):
        layer = nnx_layer(function)

        def loss(layer, x):
            out = layer(x, mask=mask)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        (_, out), gradients = nnx.jit(nnx.value_and_grad(loss, argnums=(0, 1), has_aux=True))(layer, X)
        return out, jax.tree.leaves(gradients)

    close(value_and_gradients(attention_fn()), value_and_gradients(None))


@pytest.mark.parametrize("name", rows(MASKS, ["for each head"]))
def test_linen_equals_flax_in_value_and_gradients(name):
    mask = MASKS[name]

    def value_and_gradients(function):
        def loss(variables, x):
            out = linen_layer(function).apply(variables, x, mask=mask)
            return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum(), out

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(linen_variables(), X)

    close(value_and_gradients(attention_fn()), value_and_gradients(None))


@pytest.mark.exhaustive
def test_cross_attention_grouped_heads_and_several_batch_axes():
    run = nnx.jit(lambda layer, x, y: layer(x, y))
    grouped = dict(num_kv_heads=2)
    close(run(nnx_layer(attention_fn(), **grouped), X[None], Y[None]), run(nnx_layer(**grouped), X[None], Y[None]))

    @jax.jit
    def in_linen(x, y):
        variables = linen_variables()
        return [linen_layer(function).apply(variables, x, y) for function in (attention_fn(), None)]

    close(*in_linen(X[0], Y[0]))


@pytest.mark.exhaustive
def test_own_pieces_join_what_flax_passes():
    padding = (jnp.arange(LENGTH) < jnp.array([[4], [6]]))[:, None, None, :]
    got = nnx_layer(attention_fn(mask=masks.Causal()))(X, mask=padding)
    both = nn.combine_masks(nn.make_causal_mask(X[..., 0]), padding)
    close(got, nnx_layer()(X, mask=both))
    window = attention_fn(mask=lambda q, k: (k <= q) & (q - k < 3), scores=scores.ALiBi.standard(HEADS))
    assert float(jnp.abs(nnx_layer(window)(X) - nnx_layer(attention_fn(mask=masks.Causal()))(X)).max()) > 1e-3


def test_is_causal_is_by_index():
    assert_causal = nnx_layer()(X, mask=nn.make_causal_mask(X[..., 0]))
    close(nnx_layer(attention_fn())(X, is_causal=True), assert_causal)
    # Positions that begin again do not change what Flax's flag means.
    restarted = attention_fn(query_positions=np.arange(LENGTH) % 3, key_positions=np.arange(LENGTH) % 3)
    close(nnx_layer(restarted)(X, is_causal=True), assert_causal)
    query, key = X.reshape(BATCH, LENGTH, HEADS, 4), Y.reshape(BATCH, LENGTH + 3, HEADS, 4)
    for part, mask in ((query, None), (query, np.ones((1, 1, LENGTH, LENGTH + 3), bool)), (query[:, :1], None)):
        with pytest.raises(ValueError, match=r"`is_causal` with q_len .* leaves open where the queries are"):
            attention_fn()(part, key, key, mask=mask, is_causal=True)


def test_flax_decodes_with_is_causal():
    """A token at a time with Flax's cache, whatever its version passes on, equals the whole sequence."""
    layer = nnx_layer(attention_fn())
    whole = layer(X, mask=nn.make_causal_mask(X[..., 0]))
    layer.init_cache(X.shape)
    tokens = [layer(X[:, i : i + 1], decode=True, is_causal=True) for i in range(LENGTH)]
    close(jnp.concatenate(tokens, axis=1), whole)


def test_bias_is_added_before_the_scores():
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    bias = jax.random.normal(jax.random.key(3), (HEADS, LENGTH, LENGTH))
    close(
        attention_fn()(query, query, query, bias=bias), nnx.dot_product_attention(query, query, query, bias=bias[None])
    )
    capped = attention_fn(scores=scores.SoftCap(2.0))(query, query, query, bias=bias)
    close(capped, jattn.attention(query, query, query, scores=(scores.Bias(bias), scores.SoftCap(2.0))))


def test_dropout():
    layer = nnx_layer(attention_fn(), dropout_rate=0.5, broadcast_dropout=False, deterministic=False)
    first, second = layer(X), layer(X)
    assert float(jnp.abs(first - second).max()) > 1e-3
    close(layer(X, deterministic=True), nnx_layer()(X))
    query, ones = X.reshape(BATCH, LENGTH, HEADS, 4), jnp.ones((BATCH, LENGTH, HEADS, 4))
    call = dict(dropout_rng=jax.random.key(5), dropout_rate=0.5)
    shared = attention_fn()(0 * query, query, ones, **call)
    assert float(jnp.abs(shared - shared[:1, :, :1]).max()) == 0
    assert 0 < float(shared.min() + shared.std()) < 2
    own = attention_fn()(0 * query, query, ones, **call, broadcast_dropout=False)
    assert float(jnp.abs(own - own[:1, :, :1]).max()) > 0
    variables = linen_variables()
    drop = linen_layer(attention_fn(), dropout_rate=0.5, deterministic=False)
    out = drop.apply(variables, X, rngs={"dropout": jax.random.key(0)})
    assert float(jnp.abs(out - linen_layer().apply(variables, X)).max()) > 1e-3
    close(drop.clone(deterministic=True).apply(variables, X), linen_layer().apply(variables, X))


def test_weights_are_sown():
    layer, flax_layer = nnx_layer(attention_fn(mask=masks.Causal())), nnx_layer()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Flax prefers `nnx.capture`, which older has not
        layer(X, sow_weights=True)
        flax_layer(X, sow_weights=True, mask=nn.make_causal_mask(X[..., 0]))
    close(*(jax.tree.leaves(nnx.pop(one, nnx.Intermediate)) for one in (layer, flax_layer)))
    variables = linen_variables()
    both = [
        jax.tree.leaves(linen_layer(function).apply(variables, X, sow_weights=True, mutable="intermediates")[1])
        for function in (attention_fn(), None)
    ]
    close(*both)


DECODING = {
    "no pieces": {},
    "a window": dict(mask=masks.SlidingWindow(2, 0)),
    "a function": dict(mask=lambda q, k: (k <= q) & ((q - k < 3) | (k == 0))),
    "ALiBi, a sink": dict(
        mask=masks.Causal(),
        scores=scores.ALiBi.standard(HEADS),
        normalizer=normalizers.Softmax(jnp.linspace(-1, 1, HEADS)),
    ),
    "places of their own": dict(mask=masks.SlidingWindow(2, 0), key_positions=np.arange(LENGTH) // 2 * 3),
}


@pytest.mark.parametrize("name", rows(DECODING, ["ALiBi, a sink"]))
def test_decoding_with_the_cache_of_flax(name):
    """Step by step as the whole call, in nnx and linen: the query is the last token that the mask of Flax shows."""
    pieces = DECODING[name]
    function = attention_fn(**pieces, implementation="reference")
    causal = nn.make_causal_mask(X[..., 0])
    layer = nnx.MultiHeadAttention(HEADS, FEATURES, attention_fn=function, decode=True, rngs=nnx.Rngs(0))
    layer.init_cache(X.shape)
    twin: Any = nn.MultiHeadAttention(HEADS, attention_fn=function, decode=True)
    whole = nn.MultiHeadAttention(HEADS, attention_fn=function)
    start = twin.init(jax.random.key(0), X)

    @nnx.jit
    def run(layer, start, x):
        outs, twins, variables = [], [], start
        for t in range(LENGTH):
            outs.append(layer(x[:, t : t + 1]))
            out, changed = twin.apply(variables, x[:, t : t + 1], mutable="cache")
            variables = {**start, **changed}
            twins.append(out)
        return (
            jnp.concatenate(outs, 1),
            jnp.concatenate(twins, 1),
            whole.apply({"params": start["params"]}, x, mask=causal),
        )

    out, in_linen, want_in_linen = run(layer, start, X)
    close(in_linen, want_in_linen)
    layer.decode = False
    close(out, layer(X, mask=causal))


def test_dtypes():
    layer = nnx_layer(attention_fn(), dtype=jnp.bfloat16)
    assert layer(X).dtype == jnp.bfloat16
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    assert attention_fn()(query, query, query, dtype=jnp.float16).dtype == jnp.float16
    promote = lambda arrays, dtype: tuple(a.astype(jnp.bfloat16) for a in arrays)  # noqa: E731
    assert attention_fn()(query, query, query, promote_dtype=promote).dtype == jnp.bfloat16
    close(linen_layer(attention_fn(), force_fp32_for_softmax=True).apply(linen_variables(), X), nnx_like())


def nnx_like():
    return linen_layer().apply(linen_variables(), X)


def test_input_positions():
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    at = jnp.array([3, 1, 2, 0, 5, 4])
    got = attention_fn(mask=masks.Causal())(query, query, query, input_positions=at)
    close(got, jattn.attention(query, query, query, mask=masks.Causal(), query_positions=at, key_positions=at))
    key = Y.reshape(BATCH, LENGTH + 3, HEADS, 4)
    with pytest.raises(ValueError, match="`input_positions` are of queries and keys both"):
        attention_fn()(query, key, key, input_positions=at)
    with pytest.raises(ValueError, match="`input_positions` is given at the call"):
        attention_fn(query_positions=at)(query, query, query, input_positions=at)


def test_a_query_with_nothing_to_attend_gets_zero():
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    out = attention_fn()(query, query, query, mask=jnp.zeros((1, 1, LENGTH, LENGTH)))
    assert float(jnp.abs(out).max()) == 0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("precision", jax.lax.Precision.HIGHEST),
        ("precision", "float32"),
        ("einsum_dot_general", jax.lax.dot_general),
        ("qk_attn_weights_einsum", jnp.einsum),
        ("attn_weights_value_einsum", jnp.einsum),
    ],
)
def test_what_cannot_be_honored_is_refused_by_name(name, value):
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    with pytest.raises(ValueError, match=f"`{name}` is not supported"):
        attention_fn()(query, query, query, **{name: value})


def test_refusals_reach_through_the_modules():
    with pytest.raises(ValueError, match="`precision` is not supported"):
        nnx_layer(attention_fn(), precision="highest")(X)
    with pytest.raises(ValueError, match="`precision` is not supported"):
        linen_layer(attention_fn(), precision="highest").apply(linen_variables(), X)
    einsums = dict(qk_attn_weights_einsum_cls=lambda: jnp.einsum, attn_weights_value_einsum_cls=lambda: jnp.einsum)
    with pytest.raises(ValueError, match="`qk_attn_weights_einsum` is not supported"):
        linen_layer(attention_fn(), **einsums).apply(linen_variables(), X)
    with pytest.raises(ValueError, match="`scores"):
        attention_fn(scores=[masks.Causal()])
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    with pytest.raises(ValueError, match="`dropout_rng` must be a random key"):
        attention_fn()(query, query, query, dropout_rate=0.5)
    for rate in (2.0, "a"):
        with pytest.raises(ValueError, match="`dropout_rate` must be a probability"):
            attention_fn()(query, query, query, dropout_rate=rate)
    with pytest.raises(ValueError, match="`mask` must be an array that broadcasts"):
        attention_fn()(query, query, query, mask=True)
    default = jax.lax.Precision.DEFAULT
    close(attention_fn()(query, query, query, precision=(default, None)), attention_fn()(query, query, query))


def test_it_is_exported_beside_the_layers():
    assert jattn.nnx.attention_fn is jattn.linen.attention_fn is make_attention_fn


def test_a_normalizer_of_its_own():
    query = X.reshape(BATCH, LENGTH, HEADS, 4)
    got = make_attention_fn(normalizer=normalizers.Sparsemax())(query, query, query)
    close(got, jattn.attention(query, query, query, normalizer=normalizers.Sparsemax()))
