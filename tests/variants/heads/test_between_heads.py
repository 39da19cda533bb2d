"""Talking heads and differential attention equal their equations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from variant_layers import check_layer

import jattn
from jattn import masks
from jattn.variants.heads import Differential, TalkingHeads, differential, talking_heads

CAUSAL = np.tri(5, dtype=bool)


def softmax(scores, allowed: np.ndarray = CAUSAL):
    mass = np.where(allowed, np.exp(scores), 0)
    return mass / mass.sum(-1, keepdims=True)


def test_identities_leave_heads_alone():
    q, k, v = normal(1, (2, 5, 3, 4), (2, 6, 3, 4), (2, 6, 3, 2))
    eye = np.eye(3, dtype=np.float32)
    close(talking_heads(q, k, v, eye, eye), jattn.attention(q, k, v), 1e-5)
    close(talking_heads(q, k, v, eye, eye, scale=0.3), talking_heads(q * np.float32(0.6), k, v, eye, eye), 1e-5)


def test_what_talking_heads_refuses():
    q, k, v, after = normal(2, (5, 2, 4), (5, 2, 4), (5, 2, 4), (2, 2))
    with pytest.raises(ValueError, match=r"`before` must have shape \[qk_heads, softmax_heads\] with qk_heads = 2"):
        talking_heads(q, k, v, np.ones((3, 2), np.float32), after)


def test_the_talking_heads_layer():
    layer = TalkingHeads(6, heads=2, softmax_heads=3, use_bias=True)
    (x,) = normal(6, (2, 5, 6))
    p = jax.tree.map(lambda one: np.asarray(one, np.float64), layer.init(jax.random.key(1)))
    q, k, v = (np.einsum("blf,fhd->blhd", x, p[name]["kernel"]) + p[name]["bias"] for name in ("query", "key", "value"))
    weights = softmax(np.einsum("bqid,bkid,ih->bhqk", q, k, p["before"]) / np.sqrt(3))
    heads = np.einsum("bhqk,hj,bkjd->bqjd", weights, p["after"], v)
    want = np.einsum("bqhd,hdf->bqf", heads, p["out"]["kernel"]) + p["out"]["bias"]
    close(jax.jit(layer.__call__)(layer.init(jax.random.key(1)), x, mask=masks.Causal()), want, 1e-5)
    assert check_layer(TalkingHeads(6, heads=2), jnp.asarray(x), mask=masks.Causal()).shape == (2, 5, 6)
    with pytest.raises(ValueError, match="`similarity` must be left out: only dot products mix"):
        layer(layer.init(jax.random.key(1)), jnp.asarray(x), similarity=jattn.similarities.Cosine())
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads`"):
        TalkingHeads(6, heads=4)
    with pytest.raises(ValueError, match="`softmax_heads` must be a positive int; got 0"):
        TalkingHeads(6, heads=2, softmax_heads=0)
    with pytest.raises(ValueError, match=r"`inputs` must have shape .* with features = 6"):
        layer({}, jnp.ones((5, 4)))


def test_differential_identities():
    q, k, v = normal(4, (2, 5, 4, 3), (2, 5, 4, 3), (2, 5, 2, 6))
    close(differential(q, k, v, 0.0), jattn.attention(q[..., ::2, :], k[..., ::2, :], v), 1e-6)
    same = [np.repeat(x[..., ::2, :], 2, -2) for x in (q, k)]
    close(differential(*same, v, 1.0), np.zeros(v.shape), 1e-6)
    rows = differential(q, k, np.ones_like(v), 0.3)
    close(rows, np.full(rows.shape, 0.7), 1e-5)


def test_the_differential_layer():
    layer = Differential(8, heads=2, depth=3)
    (x,) = normal(5, (2, 5, 8))
    out = check_layer(layer, jnp.asarray(x), mask=masks.Causal())
    assert out.shape == (2, 5, 8)
    assert layer.initial_amount == pytest.approx(0.8 - 0.6 * math.exp(-0.6))
    p = jax.tree.map(lambda one: np.asarray(one, np.float64), layer.init(jax.random.key(1)))
    vectors = p["amount"]
    amount = math.exp(vectors["query1"] @ vectors["key1"]) - math.exp(vectors["query2"] @ vectors["key2"])
    amount += layer.initial_amount
    q, k, v = (np.einsum("blf,fhd->blhd", x, p[name]["kernel"]) for name in ("query", "key", "value"))
    weights = softmax(np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(2))
    heads = np.einsum("bhqk,bkhd->bqhd", weights[:, 0::2] - amount * weights[:, 1::2], v)
    heads *= (1 - layer.initial_amount) / np.sqrt((heads**2).mean(-1, keepdims=True) + 1e-5)
    want = np.einsum("bqhd,hdf->bqf", heads, p["out"]["kernel"])
    parameters = layer.init(jax.random.key(1))
    run = jax.jit(lambda x: layer(parameters, x, mask=masks.Causal()))
    close(run(x), want, 1e-5)
    jacobian = jax.jit(jax.jacobian(lambda x: run(x)[2]))(x[0])
    assert not np.asarray(jacobian)[:, 3:].any() and np.asarray(jacobian)[:, :3].any()


def test_what_differential_refuses():
    q, v = jnp.ones((3, 4, 2)), jnp.ones((3, 2, 2))
    with pytest.raises(ValueError, match="`query` must have an even number of heads"):
        differential(q[:, :3], q, v, 0.5)
    with pytest.raises(ValueError, match="`value` must have half the heads"):
        differential(q, q, q, 0.5)
    with pytest.raises(ValueError, match=r"`amount` must be a number or an array of numbers \[heads\] with heads = 2"):
        differential(q, q, v, jnp.ones(3))
    with pytest.raises(ValueError, match=r"`amount` must be a number.*; got 'a' \(str\)"):
        differential(q, q, v, "a")
    with pytest.raises(ValueError, match="`dropout` must be left out"):
        differential(q, q, v, 0.5, dropout=jattn.Dropout(0.1, jax.random.key(0)))
    with pytest.raises(ValueError, match=r"`features` must be a multiple of `2 \* heads`"):
        Differential(10, heads=2, depth=1)
    with pytest.raises(ValueError, match="`depth` must be a positive int"):
        Differential(8, heads=2, depth=0)
