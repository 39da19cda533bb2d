"""Bilinear and SharedBilinear."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from pairs import pair_numbers, per_query_head
from tiers import rows

import jattn
from jattn.similarities import Bilinear, Dot, SharedBilinear

Q, K = (2, 3, 4, 5), (2, 4, 2, 5)


def bilinear(q, k, w):
    w = np.broadcast_to(w, (4, *w.shape[-2:]))
    return np.einsum("bqhd,hde,bkhe->bhqk", q, w, per_query_head(k, 4))


def shared(q, k, w):
    w = np.broadcast_to(w, (4, *w.shape[-2:]))
    return np.einsum(
        "bqhr,bkhr->bhqk", np.einsum("bqhd,hdr->bqhr", q, w), np.einsum("bkhd,hdr->bkhr", per_query_head(k, 4), w)
    )


@pytest.mark.parametrize("shape", [(5, 5), (4, 5, 5), (1, 5, 5)])
def test_bilinear(shape):
    q, k, w = normal(0, Q, K, shape)
    check(lambda q, k, w: pair_numbers(Bilinear(w), q, k), bilinear, q, k, w)


def test_bilinear_with_a_weight_for_each_batch_element():
    q, k, w = normal(1, Q, K, (2, 4, 5, 5))
    expected = np.stack([bilinear(q[i : i + 1].astype(float), k[i : i + 1], w[i])[0] for i in range(2)])
    close(pair_numbers(Bilinear(w), q, k), expected, 1e-5)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_the_bias_of_a_bilinear_form(shape):
    q, k, w, b = normal(2, Q, K, (5, 5), shape)
    b = np.asarray(b, np.float32)
    check(
        lambda q, k, w, b: pair_numbers(Bilinear(w, b), q, k),
        lambda q, k, w, b: bilinear(q, k, w) + np.broadcast_to(b, (4,))[:, None, None],
        q,
        k,
        w,
        b,
    )
    close(pair_numbers(Bilinear(w, 0.25), q, k), bilinear(q.astype(float), k, w) + 0.25, 1e-5)


@pytest.mark.parametrize("shape", [(5, 3), (4, 5, 3)])
def test_shared_bilinear(shape):
    q, k, w = normal(3, Q, K, shape)
    check(lambda q, k, w: pair_numbers(SharedBilinear(w), q, k), shared, q, k, w)


def test_shared_bilinear_is_positive_semidefinite():
    (x, w) = normal(4, (1, 8, 1, 5), (5, 3))
    matrix = np.asarray(pair_numbers(SharedBilinear(w), x, x))[0, 0]
    np.testing.assert_allclose(matrix, matrix.T, atol=1e-4)
    assert np.linalg.eigvalsh(matrix).min() > -1e-3


@pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))
def test_the_identity_is_the_dot_product(implementation):
    q, k, v = normal(5, Q, K, K)
    eye = np.eye(5, dtype=np.float32)
    plain = jattn.attention(q, k, v, similarity=Dot(), implementation=implementation)
    for similarity in (Bilinear(eye), SharedBilinear(eye)):
        close(jattn.attention(q, k, v, similarity=similarity, implementation=implementation), plain, 1e-6)


@pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))
def test_a_scalar_bias_cancels_in_the_softmax_and_a_bias_per_key_does_not(implementation):
    q, k, v, w, per_key = normal(6, Q, K, K, (5, 5), (1, 1, 4))

    def attend(bias, scores=()):
        return jattn.attention(q, k, v, similarity=Bilinear(w, bias), scores=scores, implementation=implementation)

    plain = attend(None)
    close(attend(3.0), plain, 1e-5)
    gradient = jax.grad(lambda bias: (attend(bias) ** 2).sum())(jnp.array(0.5))
    assert abs(float(gradient)) < 1e-4
    assert np.abs(attend(None, jattn.scores.Bias(per_key)) - plain).max() > 0.01


def test_bfloat16_queries_are_projected_in_float32():
    q, k, w = (jnp.asarray(x, jnp.bfloat16) for x in normal(7, Q, K, (5, 5)))
    numbers = pair_numbers(Bilinear(w), q, k)
    assert numbers.dtype == jnp.float32
    close(numbers, bilinear(*(np.asarray(x, np.float64) for x in (q, k, w))), 1e-5)
    gradients = jax.grad(lambda q, k, w: pair_numbers(Bilinear(w), q, k).sum(), argnums=(0, 1, 2))(q, k, w)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


@pytest.mark.parametrize("kind", [Bilinear, SharedBilinear])
@pytest.mark.parametrize(
    "weight", [np.ones(5, np.float32), np.ones((5, 5), int), np.ones((5, 5), bool), "weight", None]
)
def test_a_weight_must_be_a_floating_point_matrix(kind, weight):
    with pytest.raises(ValueError, match="`weight`"):
        kind(weight)


@pytest.mark.parametrize("kind", [Bilinear, SharedBilinear])
@pytest.mark.parametrize("shape", [(4, 5), (3, 5, 5), (2, 5, 5)])
def test_a_weight_must_fit(kind, shape):
    q, k = normal(8, Q, K)
    with pytest.raises(ValueError, match="weight"):
        jattn.attention(q, k, k, similarity=kind(np.ones(shape, np.float32)))
