"""Linformer equals its equation, is softmax attention for E = F = I, and refuses masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from pattern_oracle import attend
from tiers import rows
from variant_layers import check_layer

import jattn
from jattn import masks
from jattn.variants.low_rank import Linformer, convolution_projection, linformer_attention, pooling_projection


def truth(query, key, value, e, f):
    def mixed(projection, array):
        per_head = np.broadcast_to(projection, (array.shape[1], *projection.shape[-2:]))
        return np.einsum("hpk,khd->phd", per_head[..., : len(array)], array)

    return attend(query, mixed(e, key), mixed(f, value), True)


def test_a_projection_for_all_heads_is_its_definition():
    arrays = normal(0, (7, 2, 3), (5, 2, 3), (5, 2, 2), (4, 6))  # one key fewer than columns
    check(linformer_attention, lambda q, k, v, e: truth(q, k, v, e, e), *arrays)


def test_exact_if_projections_are_the_identity():
    query, key, value = normal(1, (2, 9, 4, 5), (2, 9, 2, 5), (2, 9, 2, 3))
    got = linformer_attention(query, key, value, np.eye(9, dtype=np.float32))
    np.testing.assert_allclose(got, jattn.attention(query, key, value), atol=1e-6)


def test_low_rank_product_is_kept():
    """Theorem 1's form: P RᵀR V is near P V as the rows of R grow in number, for random R."""
    rng = np.random.default_rng(0)
    weights = jax.nn.softmax(jnp.asarray(rng.normal(size=(64, 256))))
    value = rng.normal(size=(256, 8))
    errors = []
    for size in (16, 64, 256, 1024):
        r = rng.normal(size=(size, 256)) / np.sqrt(size)
        errors.append(np.linalg.norm(weights @ (r.T @ (r @ value)) - weights @ value) / np.linalg.norm(weights @ value))
    assert errors == sorted(errors, reverse=True) and errors[-1] < errors[0] / 4


def test_projections_by_pooling():
    np.testing.assert_allclose(pooling_projection(7, 3) @ np.arange(7), [1, 3.5, 5.5])
    (weights,) = normal(0, (2, 3))
    matrix = convolution_projection(weights, 7)
    (row,) = normal(1, (7,))
    padded = np.pad(row, (0, 2)).reshape(3, 3)
    np.testing.assert_allclose(matrix @ row, np.einsum("hw,pw->hp", weights, padded), atol=1e-6)


SHARED = {"none": (2, True), "heads": (0, True), "kv": (0, False), "layers": (None, False)}


@pytest.mark.exhaustive
@pytest.mark.parametrize("pooling", rows(["linear", "convolution", "mean"], ["convolution"]))
@pytest.mark.parametrize("sharing", rows(SHARED, ("none", "heads")))
def test_as_a_module(sharing, pooling):
    layer = Linformer(4, heads=2, longest=6, projected=3, sharing=sharing, pooling=pooling, use_bias=False)
    declared = layer.parameters()
    heads, two = SHARED[sharing]
    learned = pooling != "mean" and heads is not None
    assert ("key_projection" in declared) == learned and ("value_projection" in declared) == (learned and two)
    own = (3, 6) if pooling == "linear" else (2,)
    if learned:
        assert declared["key_projection"].shape == ((2, *own) if heads else own)
    (inputs,) = normal(0, (2, 5, 4))
    options = {}
    if sharing == "layers" and pooling != "mean":
        options["projection"] = jnp.asarray(normal(3, own)[0])
    if pooling == "linear":
        check_layer(layer, jnp.asarray(inputs), **options)
    parameters = layer.init(jax.random.key(0))
    got = np.asarray(jax.jit(layer.__call__)(parameters, inputs, **options))
    q, k, v = (np.einsum("bnf,fhd->bnhd", inputs, parameters[name]["kernel"]) for name in ("query", "key", "value"))
    first = parameters.get("key_projection", options.get("projection"))
    pair = [first, parameters.get("value_projection", first)]
    if pooling == "mean":
        pair = [pooling_projection(6, 3)] * 2
    if pooling == "convolution":
        pair = [convolution_projection(one, 6) for one in pair]
    for index in range(2):
        heads_out = truth(q[index], k[index], v[index], *(np.asarray(one) for one in pair))
        np.testing.assert_allclose(
            got[index], np.einsum("qhd,hdf->qf", heads_out, parameters["out"]["kernel"]), atol=1e-5
        )


def test_bad_input_is_refused():
    rows, e = jnp.ones((8, 2, 4)), np.ones((3, 8), np.float32)
    with pytest.raises(jattn.Unsupported, match=r"not causal: each projected key mixes all positions.*`lengths`"):
        linformer_attention(rows, rows, rows, e, mask=masks.Causal())
    with pytest.raises(ValueError, match="`key_projection` must have a column for each of the 8 keys"):
        linformer_attention(rows, rows, rows, e[:, :7])
    with pytest.raises(ValueError, match="`value_projection` must have shape"):
        linformer_attention(rows, rows, rows, e, e[None, None])
    with pytest.raises(ValueError, match=r"`key_projection` must have shape .* kv_heads = 2"):
        linformer_attention(rows, rows, rows, np.ones((3, 3, 8), np.float32))
    with pytest.raises(ValueError, match="must have equally many rows; got 3 and 2"):
        linformer_attention(rows, rows, rows, e, e[:2])
    with pytest.raises(ValueError, match="Projected keys have no positions"):
        linformer_attention(rows, rows, rows, e, scores=())
    with pytest.raises(ValueError, match=r"`lengths` must be one integer, or one for each example, of shape \(\)"):
        linformer_attention(rows, rows, rows, e, lengths=jnp.array([3]))
    with pytest.raises(ValueError, match="`lengths` must be at most 8, the length of the arrays; got 9"):
        linformer_attention(rows, rows, rows, e, lengths=9)
    with pytest.raises(ValueError, match="`projected` must be at most `longest`, 4; got 5"):
        Linformer(4, heads=2, longest=4, projected=5)
    with pytest.raises(ValueError, match="`sharing` must be one of"):
        Linformer(4, heads=2, longest=4, projected=2, sharing="all")
    layer = Linformer(4, heads=2, longest=8, projected=2, sharing="layers")
    with pytest.raises(ValueError, match="`projection` is for layers that share it"):
        layer(layer.init(jax.random.key(0)), jnp.ones((8, 4)))
    with pytest.raises(ValueError, match=r"`key_projection` must have shape \(2, 8\); got \(3, 8\)"):
        layer(layer.init(jax.random.key(0)), jnp.ones((8, 4)), projection=e)
    with pytest.raises(jattn.Unsupported, match="Linformer cannot keep a `mask`"):
        layer(layer.init(jax.random.key(0)), jnp.ones((8, 4)), projection=e[:2], mask=masks.Causal())


def test_a_convolution_makes_as_many_mixtures_as_asked_for():
    with pytest.raises(ValueError, match="got 7: a width of 2 makes 5, one of 1 makes 10"):
        Linformer(16, heads=2, longest=10, projected=7, pooling="convolution")
    with pytest.raises(ValueError, match="`weights` must hold a number"):
        convolution_projection(np.zeros(0, np.float32), 3)
    layer = Linformer(16, heads=2, longest=10, projected=5, pooling="convolution")
    assert layer(layer.init(jax.random.key(0)), jnp.ones((2, 9, 16))).shape == (2, 9, 16)
