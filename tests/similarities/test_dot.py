"""Dot, ScaledDot, Cosine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from pairs import pair_numbers, per_query_head
from tiers import rows

import jattn
from jattn.similarities import Cosine, Dot, ScaledDot

Q, K = (2, 3, 4, 5), (2, 4, 2, 5)  # [batch, length, heads, dim]: grouped queries


def products(q, k):
    return np.einsum("bqhd,bkhd->bhqk", q, per_query_head(k, q.shape[2]))


def cosines(q, k):
    norms = [np.sqrt((x * x).sum(-1, keepdims=True)) for x in (q, k)]
    return products(q / norms[0], k / norms[1])


def test_dot_is_the_product_times_a_number():
    q, k = normal(0, Q, K)
    check(lambda q, k: pair_numbers(Dot(0.3), q, k), lambda q, k: 0.3 * products(q, k), q, k)
    assert Dot(2).prepare(jnp.asarray(q), jnp.asarray(k)).scale == 2.0
    assert not jax.tree.leaves(Dot(0.3))


def test_dot_learns_a_scale_of_each_head():
    q, k, scale = normal(1, Q, K, (4,))
    check(
        lambda q, k, scale: pair_numbers(Dot(scale), q, k),
        lambda q, k, scale: scale[:, None, None] * products(q, k),
        q,
        k,
        scale,
    )
    check(
        lambda q, k, scale: pair_numbers(Dot(scale), q, k),
        lambda q, k, scale: scale * products(q, k),
        q,
        k,
        np.array(0.7, np.float32),
    )


def test_scaled_dot_divides_by_the_root_of_the_features():
    q, k = normal(2, Q, K)
    check(lambda q, k: pair_numbers(ScaledDot(), q, k), lambda q, k: products(q, k) / np.sqrt(5), q, k)


@pytest.mark.parametrize("temperature", [0.5, "learned"])
def test_cosine(temperature):
    q, k, learned = normal(3, Q, K, (4,))
    if temperature == "learned":
        check(
            lambda q, k, t: pair_numbers(Cosine(t), q, k),
            lambda q, k, t: cosines(q, k) / t[:, None, None],
            q,
            k,
            np.abs(learned) + 0.5,
        )
    else:
        check(lambda q, k: pair_numbers(Cosine(0.5), q, k), lambda q, k: cosines(q, k) / 0.5, q, k)


@pytest.mark.parametrize("factor", [1e-3, 1e3, 1e25, 1e-25])
def test_cosine_does_not_see_lengths(factor):
    q, k = normal(4, Q, K)
    close(pair_numbers(Cosine(), q * np.float32(factor), k), cosines(q.astype(float), k.astype(float)), 1e-6)
    close(pair_numbers(Cosine(), q, k * np.float32(factor)), cosines(q.astype(float), k.astype(float)), 1e-6)


def test_cosine_of_zero_vectors_is_zero_with_finite_gradients():
    q, k = normal(5, Q, K)
    q[0, 0], k[1, 2] = 0, 0
    numbers, pull = jax.vjp(lambda q, k: pair_numbers(Cosine(0.1), q, k), q, k)
    d_query, d_key = pull(jnp.ones_like(numbers))
    assert not np.asarray(numbers)[0, :, 0].any()
    assert not np.asarray(d_query)[0, 0].any() and not np.asarray(d_key)[1, 2].any()
    assert np.isfinite(d_query).all() and np.isfinite(d_key).all()


@pytest.mark.parametrize("similarity", [Dot(0.3), ScaledDot(), Cosine(0.2)], ids=lambda one: type(one).__name__)
def test_bfloat16_numbers_are_float32(similarity):
    q, k = (jnp.asarray(x, jnp.bfloat16) for x in normal(6, Q, K))
    numbers = pair_numbers(similarity, q, k)
    assert numbers.dtype == jnp.float32
    wide = pair_numbers(similarity, q.astype(jnp.float32), k.astype(jnp.float32))
    close(numbers, wide, 1e-5)
    gradient = jax.grad(lambda q: pair_numbers(similarity, q, k).sum())(q)
    assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))
def test_learned_numbers_have_gradients_through_attention(implementation):
    q, k, v, scale = normal(7, (6, 4, 5), (6, 2, 5), (6, 2, 3), (4,))
    scale = np.abs(scale) + 0.5

    def weights(scores):
        exponentials = np.exp(scores - scores.max(-1, keepdims=True))
        return exponentials / exponentials.sum(-1, keepdims=True)

    def truth(q, k, v, scale):
        scores = cosines(q[None], k[None])[0] / scale[:, None, None]
        return np.einsum("hqk,khd->qhd", weights(scores), np.repeat(v, 2, axis=1))

    check(
        lambda q, k, v, scale: jattn.attention(q, k, v, similarity=Cosine(scale), implementation=implementation),
        truth,
        q,
        k,
        v,
        scale,
    )


@pytest.mark.parametrize("value", ["1", None, True, np.inf, np.ones(2, int), [[1, "a"]]])
def test_dot_refuses_what_is_no_number(value):
    with pytest.raises(ValueError, match="`scale`"):
        Dot(value)


@pytest.mark.parametrize("value", [0, -1.0, np.zeros(3, np.float32), np.nan])
def test_cosine_refuses_a_temperature_that_is_not_positive(value):
    with pytest.raises(ValueError, match="`temperature` must be a number above 0"):
        Cosine(value)
