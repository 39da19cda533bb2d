"""The Gaussian score, by its terms and by identities of its softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from pairs import pair_numbers, per_query_head
from tiers import rows

import jattn
from jattn import normalizers, scores
from jattn.similarities import Gaussian

Q, K = (2, 3, 4, 5), (2, 4, 2, 5)
BOTH = pytest.mark.parametrize("implementation", rows(["reference", "tiled"], ["tiled"]))


def distances(q, k):
    k = per_query_head(k, q.shape[-2])
    return ((q[:, :, None] - k[:, None]) ** 2).sum(-1).transpose(0, 3, 1, 2)


@pytest.mark.parametrize("gamma", [0.0, 0.4])
def test_the_score_is_minus_gamma_times_the_squared_distance(gamma):
    q, k = normal(0, Q, K)
    check(lambda q, k: pair_numbers(Gaussian(gamma), q, k), lambda q, k: -gamma * distances(q, k), q, k)


@pytest.mark.parametrize("shape", [(), (4,)])
def test_gamma_is_learned(shape):
    q, k, gamma = normal(1, Q, K, shape)
    check(
        lambda q, k, gamma: pair_numbers(Gaussian(gamma), q, k),
        lambda q, k, gamma: -np.broadcast_to(gamma, (4,))[:, None, None] * distances(q, k),
        q,
        k,
        np.abs(np.asarray(gamma, np.float32)),
    )


@BOTH
def test_scores_are_exact_for_what_comes_after(implementation):
    q, k, v, gamma = normal(2, Q, K, K, (4,))
    gamma = np.abs(gamma)

    def truth(q, k, v, gamma):
        capped = 2 * np.tanh(-gamma[:, None, None] * distances(q, k) / 2)
        weights = 1 / (1 + np.exp(-capped))
        return np.einsum("bhqk,bkhd->bqhd", weights, per_query_head(v, 4))

    def ours(q, k, v, gamma):
        return jattn.attention(
            q,
            k,
            v,
            similarity=Gaussian(gamma),
            scores=scores.SoftCap(2.0),
            normalizer=normalizers.Sigmoid(),
            implementation=implementation,
        )

    check(ours, truth, q, k, v, gamma)


@BOTH
def test_gamma_0_is_the_mean_of_the_values(implementation):
    q, k, v = normal(3, Q, K, K)
    out = jattn.attention(q, k, v, similarity=Gaussian(0.0), implementation=implementation)
    close(out, np.broadcast_to(per_query_head(v, 4).mean(1, keepdims=True), Q), 1e-6)


@BOTH
def test_unit_norm_keys_give_the_scaled_dot_product(implementation):
    q, k, v = normal(4, Q, K, K)
    k /= np.linalg.norm(k, axis=-1, keepdims=True)
    out = jattn.attention(q, k, v, similarity=Gaussian(1 / (2 * np.sqrt(5))), implementation=implementation)
    close(out, jattn.attention(q, k, v, implementation=implementation), 1e-6)


def test_a_large_gamma_takes_the_nearest_key():
    q, k = normal(5, (1, 3, 1, 5), (1, 4, 1, 5))
    weights = jattn.attention_weights(q, k, similarity=Gaussian(1e3))
    np.testing.assert_array_equal(weights.argmax(-1), distances(q, k).argmin(-1))
    close(weights.max(-1), np.ones((1, 1, 3)), 1e-5)


@pytest.mark.exhaustive
def test_it_is_a_kernel_regression_whose_best_width_can_be_learned():
    rng = np.random.default_rng(6)
    x = np.sort(rng.uniform(0, 5, 60)).astype(np.float32)
    y = (2 * np.sin(x) + x + rng.normal(0, 0.5, 60)).astype(np.float32)
    grid = np.linspace(0.2, 4.8, 40).astype(np.float32)
    target = 2 * np.sin(grid) + grid

    def error(log_gamma):
        shaped = [jnp.asarray(array)[:, None, None] for array in (grid, x, y)]
        out = jattn.attention(*shaped, similarity=Gaussian(jnp.exp(log_gamma)))
        return ((out[:, 0, 0] - target) ** 2).mean()

    left, middle, right = (float(error(jnp.log(gamma))) for gamma in (0.01, 5.0, 1e5))
    assert middle < left and middle < right
    step = jax.jit(jax.value_and_grad(error))
    log_gamma = jnp.log(0.1)
    for _ in range(150):
        log_gamma = log_gamma - 2.0 * step(log_gamma)[1]
    assert float(error(log_gamma)) < 1.1 * min(float(error(jnp.log(g))) for g in (1.0, 2.0, 4.0, 8.0, 16.0))


def test_bfloat16_norms_are_float32():
    q, k = (jnp.asarray(x, jnp.bfloat16) for x in normal(7, Q, K))
    numbers = pair_numbers(Gaussian(0.4), q, k)
    assert numbers.dtype == jnp.float32
    close(numbers, -0.4 * distances(*(np.asarray(x, np.float64) for x in (q, k))), 1e-5)


@pytest.mark.parametrize("gamma", [-0.1, np.array([0.1, -0.1], np.float32), jnp.array(-1.0), np.inf, "1", True, None])
def test_gamma_must_be_at_least_0(gamma):
    with pytest.raises(ValueError, match="`gamma` must be a number of at least 0"):
        Gaussian(gamma)
