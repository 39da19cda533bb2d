"""Co-attention equals its equations, each stream reading the other's inputs through the other's projections."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from variant_layers import check_layer

import jattn
from jattn.variants.vision import CoAttention

LAYER = CoAttention(4, 3, heads=2, head_dim=2, first_hidden=3, second_hidden=2)


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def stream(x, y, own, other):
    out = np.zeros_like(x)
    for i in range(len(x)):
        total = own["out"]["bias"].copy()
        for h in range(2):
            q = x[i] @ own["query"]["kernel"][:, h] + own["query"]["bias"][h]
            k = y @ other["key"]["kernel"][:, h] + other["key"]["bias"][h]
            v = y @ other["value"]["kernel"][:, h] + other["value"]["bias"][h]
            scores = k @ q / np.sqrt(2)
            weights = np.exp(scores) / np.exp(scores).sum()
            total = total + weights @ v @ own["out"]["kernel"][h]
        middle = norm(x[i] + total, own["attention_norm"])
        hidden = middle @ own["up"]["kernel"] + own["up"]["bias"]
        hidden = np.array([u * (1 + math.erf(u / math.sqrt(2))) / 2 for u in hidden])
        out[i] = norm(middle + hidden @ own["down"]["kernel"] + own["down"]["bias"], own["out_norm"])
    return out


def given(seed=0):
    x, y = normal(seed, (3, 4), (2, 3))
    keys = LAYER.init(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(keys)
    noise = normal(seed + 1, *(leaf.shape for leaf in leaves), spread=0.3)
    leaves = [np.asarray(leaf) + extra for leaf, extra in zip(leaves, noise, strict=True)]
    return x, y, leaves, tree


def test_equations():
    x, y, leaves, tree = given()

    def ours(x, y, *leaves):
        out = LAYER(jax.tree.unflatten(tree, leaves), x, y)
        return jnp.concatenate([part.ravel() for part in out])

    def truth(x, y, *leaves):
        p = jax.tree.unflatten(tree, leaves)
        one, other = p["first"], p["second"]
        return np.concatenate([stream(x, y, one, other).ravel(), stream(y, x, other, one).ravel()])

    check(ours, truth, x, y, *leaves)


@pytest.mark.exhaustive
def test_as_a_module():
    first, second = normal(1, (2, 5, 4), (2, 3, 3))
    check_layer(LAYER, jnp.asarray(first), jnp.asarray(second))


def test_padding_of_one_stream_reaches_only_its_own_rows():
    x, y, leaves, tree = given(2)
    parameters = jax.tree.unflatten(tree, leaves)
    padded = np.concatenate([y, np.full((2, 3), np.nan, np.float32)])
    mask = jattn.masks.Lengths(key_lengths=jnp.array(2))
    first, second = LAYER(parameters, x, padded, first_mask=mask)
    want = LAYER(parameters, x, y)
    np.testing.assert_allclose(first, want[0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(second[:2], want[1], rtol=1e-5, atol=1e-6)


@pytest.mark.exhaustive
def test_swapping_the_streams_swaps_the_outputs():
    layer = CoAttention(3, 3, heads=1, head_dim=2, first_hidden=4, second_hidden=4)
    parameters = layer.init(jax.random.key(0))
    x, y = map(jnp.asarray, normal(3, (4, 3), (5, 3)))
    swapped = layer({"first": parameters["second"], "second": parameters["first"]}, y, x)
    for got, want in zip(swapped[::-1], layer(parameters, x, y), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_bfloat16():
    x, y, leaves, tree = given(4)
    parameters = jax.tree.unflatten(tree, leaves)
    for got, want in zip(
        LAYER(parameters, jnp.asarray(x, jnp.bfloat16), jnp.asarray(y, jnp.bfloat16)),
        LAYER(parameters, x, y),
        strict=True,
    ):
        assert got.dtype == jnp.bfloat16
        np.testing.assert_allclose(got.astype(np.float32), want, atol=0.1)


def test_errors():
    with pytest.raises(ValueError, match=r"`second` must have shape .* with second_features = 3; got \(2, 4\)"):
        LAYER({}, jnp.ones((3, 4)), jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`second` must have shape .* with batch axes = \(2,\), as in `first`"):
        LAYER({}, jnp.ones((2, 3, 4)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"`heads` must be a positive int; got 0"):
        CoAttention(4, 3, heads=0, head_dim=2, first_hidden=3, second_hidden=2)
