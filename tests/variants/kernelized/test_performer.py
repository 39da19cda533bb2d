"""FAVOR+'s estimates: unbiased, with the predicted variance, from uniformly distributed rotations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from tiers import rows

from jattn.variants.kernelized import RandomFeatures, kernelized_attention, orthogonal_projection

DIM, DRAWS = 8, 20000


def vectors(seed, size=0.25):
    """x and y with |x|² = |y|² = `size`, as the kernel sees them (scaled by dim^-1/4)."""
    x, y = np.random.default_rng(seed).normal(size=(2, DIM))
    return [np.sqrt(size) * v / np.linalg.norm(v) for v in (x, y)]


def estimates(x, y, projections, kind):
    """φ(x)·φ(y) of each projection, stabilizers multiplied back."""

    def one(projection):
        features = RandomFeatures(projection, kind)
        x_, y_ = (jnp.asarray(v * DIM**0.25, jnp.float32)[None, None] for v in (x, y))
        product = (features.query(x_, None) * features.key(y_, None)).sum()
        return product * jnp.exp(features.log_scale(x_) + features.log_scale(y_)).sum()

    return np.asarray(jax.jit(jax.vmap(one))(projections), np.float64)


def moments(x, y, kind):
    """E[Zʳ], r = 0 to 4, of the estimate Z by one feature with a normal row w: sums of log-normal moments."""
    plus, minus, norms = ((x + y) ** 2).sum(), ((x - y) ** 2).sum(), x @ x + y @ y
    if kind == "positive":  # exp(w·(x+y) - norms/2)
        return [np.exp(r * r * plus / 2 - r * norms / 2) for r in range(5)]
    # cosh(w·(x+y)) exp(-norms/2), or cos(w·(x-y)) exp(norms/2), by the binomial theorem
    spread, norms = (plus, norms) if kind == "hyperbolic" else (-minus, -norms)
    terms = [[math.comb(r, i) * np.exp((r - 2 * i) ** 2 * spread / 2) for i in range(r + 1)] for r in range(5)]
    return [np.exp(-r * norms / 2) * sum(terms[r]) / 2**r for r in range(5)]


def variance_and_error(raw, m):
    """The variance of a mean of m independent features, and the standard error of its estimate from `DRAWS` means.

    The error is the exact one. Exponentials of normal numbers have tails so heavy (at |x|² = 1 the fourth moment is 160
    times the square of the second) that the error estimated from a sample is too small whenever the sample happens to
    hold no large value, and that is just when its variance is too small: a correct estimator then misses by 4 of them.
    """
    one, two, three, four = raw[1:]
    variance = two - one**2
    fourth = four - 4 * one * three + 6 * one**2 * two - 3 * one**4
    of_mean = (fourth + 3 * (m - 1) * variance**2) / m**3
    return variance / m, np.sqrt((of_mean - (variance / m) ** 2) / DRAWS)


@pytest.mark.parametrize("size", rows([0.25, 0.5, 1.0], ["0.5"]))
@pytest.mark.parametrize("seed", rows([0, 1], ["0"]))
def test_variance_of_lemma_2(seed, size):
    """Of independent rows, which the lemma is about; orthogonal ones have another variance, below."""
    x, y = vectors(seed, size)
    m, product, plus, minus = 4, x @ y, ((x + y) ** 2).sum(), ((x - y) ** 2).sum()
    kernel = np.exp(product)
    projections = jax.random.normal(jax.random.key(seed), (DRAWS, m, DIM))
    lemma = {
        "positive": np.exp(plus) * kernel**2 * (1 - np.exp(-plus)) / m,
        "hyperbolic": np.exp(plus) * kernel**2 * (1 - np.exp(-plus)) ** 2 / 2 / m,  # half, with another factor
        "trigonometric": np.exp(plus) / kernel**2 * (1 - np.exp(-minus)) ** 2 / 2 / m,
    }
    for kind, wanted in lemma.items():
        raw = moments(x, y, kind)
        variance, error = variance_and_error(raw, m)
        assert raw[1] == pytest.approx(kernel) and variance == pytest.approx(wanted), kind
        if kind == "trigonometric":
            got = _trigonometric(x, y, np.asarray(projections, np.float64))
        else:
            got = estimates(x, y, projections, kind)
        assert abs(got.mean() - kernel) < 3 * np.sqrt(wanted / DRAWS), kind
        assert abs(((got - kernel) ** 2).mean() - wanted) < 3 * error, kind


def _trigonometric(x, y, projections):
    """The older estimator of Lemma 2, which is not offered: large where the kernel is small."""
    return np.exp((x @ x + y @ y) / 2) * np.cos(projections @ (x - y)).mean(-1)


def shared(x, y):
    """The covariance of the estimates by two rows of one orthogonal block, of norms χ: a power series.

    Rows r₁u₁ and r₂u₂: the parts of u₁ and u₂ along any vector are distributed as two parts of one unit vector, so
    E[(r₁u₁)ᵃ (r₂u₂)ᵇ] is what independent normal rows have, times E[rᵃ] E[rᵇ] / E[rᵃ⁺ᵇ]. Odd powers vanish, thus the
    hyperbolic features have the same.
    """
    plus, norms = ((x + y) ** 2).sum(), x @ x + y @ y

    def chi(power):
        return power / 2 * math.log(2) + math.lgamma((DIM + power) / 2) - math.lgamma(DIM / 2)

    total = 0.0
    for a in range(0, 60, 2):
        for b in range(0, 60, 2):
            ratio = math.exp(chi(a) + chi(b) - chi(a + b))
            total += (plus / 2) ** ((a + b) // 2) / math.factorial(a // 2) / math.factorial(b // 2) * ratio
    return np.exp(-norms) * (total - np.exp(plus))


@pytest.mark.parametrize("size", rows([0.25, 1.0], ["1.0"]))
@pytest.mark.parametrize("kind", ["positive", "hyperbolic"])
def test_orthogonal_is_unbiased_and_better(kind, size):
    x, y = vectors(2, size)
    keys = jax.random.split(jax.random.key(3), DRAWS)
    projections = jax.jit(jax.vmap(lambda key: orthogonal_projection(key, DIM, DIM)))(keys)
    got = estimates(x, y, projections, kind)
    independent, error = variance_and_error(moments(x, y, kind), DIM)
    wanted = independent + (DIM - 1) / DIM * shared(x, y)
    assert wanted < independent
    assert abs(got.mean() - np.exp(x @ y)) < 3 * np.sqrt(wanted / DRAWS)
    assert abs(((got - np.exp(x @ y)) ** 2).mean() - wanted) < 3 * error


def largest_mean(rows):
    """Of the mean of any coordinate over the draws, the first axis, in standard errors of a standard normal."""
    return np.abs(rows.mean(0)).max() * np.sqrt(len(rows))


def test_projections_are_haar():
    """Each row a standard normal vector: no coordinate has a sign, and blocks are orthogonal."""
    keys = jax.random.split(jax.random.key(4), 4000)
    rows = np.asarray(jax.jit(jax.vmap(lambda key: orthogonal_projection(key, 7, 4)))(keys), np.float64)
    assert rows.shape == (4000, 7, 4)
    assert largest_mean(rows) < 4.5  # of 28
    assert np.abs((rows**2).mean(0) - 1).max() < 4.5 * np.sqrt(2 / 4000)
    gram = np.einsum("nid,njd->nij", rows, rows)
    assert np.abs(gram[:, :4, :4] * (1 - np.eye(4))).max() < 1e-4
    assert np.abs(gram[:, 4:, 4:] * (1 - np.eye(3))).max() < 1e-4
    assert np.abs(gram[:, :4, 4:]).max() > 1
    raw = np.linalg.qr(np.random.default_rng(4).normal(size=(4000, 4, 4)))[0]
    assert largest_mean(2 * raw) > 20  # as LAPACK leaves its signs


@pytest.mark.exhaustive
def test_estimates_softmax_attention_within_its_predicted_error():
    """At |x|² = 1, of a ratio of means: Σ_j a_j a_l Cov(K_j, K_l), a_j = (v_j - out) / Σ K, to first order."""
    query, key, value = normal(5, (20, 1, DIM), (20, 1, DIM), (20, 1, 3))
    query, key = (DIM**0.25 * x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (query, key))
    q, k, v = (x[:, 0].astype(np.float64) for x in (query / DIM**0.25, key / DIM**0.25, value))
    scores = np.exp(q @ k.T)
    exact = scores / scores.sum(-1, keepdims=True) @ v
    both = 2 * q[:, None, None] + k[None, :, None] + k[None, None, :]
    covariance = np.exp((both**2).sum(-1) / 2 - 2) - scores[:, :, None] * scores[:, None, :]  # of one feature
    slope = (v[None] - exact[:, None]) / scores.sum(-1)[:, None, None]
    m = 2304
    predicted = np.einsum("ijd,ild,ijl->", slope, slope, covariance) / m / exact.size

    def squared(projections):
        def one(projection):
            return kernelized_attention(query, key, value, RandomFeatures(projection))[0][:, 0]

        return ((np.asarray(jax.jit(jax.vmap(one))(projections)) - exact) ** 2).mean()

    keys = jax.random.split(jax.random.key(6), 50)
    independent = squared(jax.random.normal(jax.random.key(7), (50, m, DIM)))
    orthogonal = squared(jax.vmap(lambda at: orthogonal_projection(at, m, DIM))(keys))
    uniform = ((v.mean(0) - exact) ** 2).mean()
    assert 0.85 * predicted < independent < 1.15 * predicted
    assert orthogonal < 1.02 * predicted
    assert orthogonal < 0.25 * uniform


def test_another_key_is_another_projection():
    one, other = (orthogonal_projection(jax.random.key(seed), 5, 4) for seed in (0, 1))
    assert np.abs(one - other).max() > 0.1


def test_epsilon_is_added_behind_the_exponential():
    (x,), projection = normal(7, (3, 1, 4)), orthogonal_projection(jax.random.key(0), 6, 4)
    plain, more = (RandomFeatures(projection, epsilon=e).query(jnp.asarray(x), None) for e in (0.0, 0.5))
    np.testing.assert_allclose(more - plain, 0.5 / np.sqrt(6), rtol=1e-5)
    assert np.asarray(plain).max() == pytest.approx(1 / np.sqrt(6))


def test_bad_input_is_named():
    projection = jnp.ones((6, 4))
    with pytest.raises(ValueError, match="`kind` must be one of 'positive', 'hyperbolic', 'relu'"):
        RandomFeatures(projection, "cosine")
    with pytest.raises(ValueError, match="`epsilon` must be a number of at least 0"):
        RandomFeatures(projection, epsilon=-1.0)
    with pytest.raises(ValueError, match=r"`projection` must have shape \[features, dim\]"):
        RandomFeatures(jnp.ones(4))
    with pytest.raises(ValueError, match="`projection` must have the dim 5"):
        RandomFeatures(projection).query(jnp.ones((2, 1, 5)), None)
    with pytest.raises(ValueError, match="`features` must be a positive int"):
        orthogonal_projection(jax.random.key(0), 0, 4)
