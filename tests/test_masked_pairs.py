"""Masked pairs influence nothing, forward or backward, whatever a function returns for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import masks, normalizers, scores, similarities
from jattn.foundation.pieces import array, number, piece
from jattn.normalizers import Normalizer
from jattn.ops.attention.implementations import Tiled
from jattn.scores import Score
from jattn.similarities import Similarity
from jattn.similarities.dot import Prepared

LENGTH, HEADS, DIM = 7, 2, 3
AT = np.arange(LENGTH)
AWAY = AT[:, None] - AT  # query - key
SIGN = np.array([1, -1], np.float32)
UNKNOWN = np.where(AWAY > 0, np.float32(0.5) * AT, np.float32(np.nan))
STRICT = masks.of(lambda q, k: q > k)
EITHER_WAY = masks.of(lambda b, h, q, k: jnp.asarray(SIGN)[h] * (q - k) > 0)


@piece
class PerKey(Score):
    """Scores times a number for each key."""

    weights: jax.Array = array("key")

    def modify(self, scores, query, key):
        return scores * self.weights


@piece
class Distance(Similarity):
    """-gain ‖q - k‖, which has no slope where they are equal."""

    gain: jax.Array = array("head")
    is_dot = False
    rewrites_key = False

    def prepare(self, query, key):
        return Prepared(query, key)

    def pair(self, query, key):
        key = jnp.repeat(key, query.shape[-3] // key.shape[-3], axis=-3)
        return -self.gain * jnp.sqrt(((query[..., :, None, :] - key[..., None, :, :]) ** 2).sum(-1))


@piece
class Root(Normalizer):
    """gain √score."""

    gain: jax.Array = number("head")
    streams_as = "elementwise"

    def weights(self, scores, allowed):
        return jnp.where(allowed, self.activation(scores), 0)

    def activation(self, scores):
        return self.gain * jnp.sqrt(scores)


def distance(q, k):
    return -np.sqrt(((q[:, :, None] - k[:, None]) ** 2).sum(-1))


def away(q, k):
    return (q - k).astype(jnp.float32)


# The call, with a learned number p; which pairs may attend; and the scores by definition, of scores s and distances d.
CASES = {
    "root": (
        lambda p: {"scores": scores.of(lambda s, q, k: s - p * jnp.sqrt(away(q, k)))},
        lambda s, d, p: s - p * d**0.5,
    ),
    "logarithm, -inf on the diagonal": (
        lambda p: {"scores": scores.of(lambda s, q, k: s + p * jnp.log(away(q, k)))},
        lambda s, d, p: s + p * np.log(d),
    ),
    "quotient": (
        lambda p: {"scores": scores.of(lambda s, q, k: p * s / (q - k)), "mask": STRICT},
        lambda s, d, p: p * s / d,
    ),
    "power": (
        lambda p: {"scores": scores.of(lambda s, q, k: s - (1 + away(q, k)) ** p)},
        lambda s, d, p: s - (1 + d) ** p,
    ),
    "exponential": (
        lambda p: {"scores": scores.of(lambda s, q, k: s * jnp.exp(-40 * p * (q - k)))},
        lambda s, d, p: s * np.exp(-40 * p * d),
    ),
    "a chain": (
        lambda p: {
            "scores": (
                scores.Bias(jnp.asarray(UNKNOWN)[None]),
                scores.Scale(p[None]),
                scores.of(lambda s, q, k: s - p * jnp.log(away(q, k))),
                scores.SoftCap(2 * p[None]),
                scores.Bias(jnp.asarray(UNKNOWN)[None]),
            ),
            "mask": STRICT,
        },
        lambda s, d, p: 2 * p * np.tanh(((s + UNKNOWN) * p - p * np.log(d)) / (2 * p)) + UNKNOWN,
    ),
    "heads that look either way": (
        lambda p: {
            "scores": scores.of(lambda s, b, h, q, k: s + p * jnp.log(jnp.asarray(SIGN)[h] * (q - k))),
            "mask": EITHER_WAY,
        },
        lambda s, d, p: s + p * np.log(SIGN[:, None, None] * d),
    ),
    "keys that nobody sees": (
        lambda p: {"scores": PerKey(jnp.where(AT < 5, p * (1.0 + AT), jnp.nan)), "mask": masks.Lengths(5)},
        lambda s, d, p: s * p * np.where(AT < 5, 1.0 + AT, np.nan),
    ),
    "similarity": (
        lambda p: {"similarity": Distance(p[None]), "mask": masks.of(lambda q, k: q != k)},
        lambda s, d, p: p * s,
    ),
    "Gaussian, a key whose square overflows": (
        lambda p: {"similarity": similarities.Gaussian(p[None]), "mask": masks.Lengths(5)},
        lambda s, d, p: -p * s**2,
    ),
    "normalizer": (
        lambda p: {"scores": scores.of(lambda s, q, k: s + 9 * (q - k + 1)), "normalizer": Root(p[None])},
        lambda s, d, p: s + 9 * (d + 1),
    ),
    "sigmoid": (
        lambda p: {
            "scores": scores.of(lambda s, q, k: s - p * jnp.sqrt(away(q, k))),
            "normalizer": normalizers.Sigmoid(),
        },
        lambda s, d, p: s - p * np.sqrt(d),
    ),
    "sparsemax": (
        lambda p: {
            "scores": scores.of(lambda s, q, k: s - p * jnp.sqrt(away(q, k))),
            "normalizer": normalizers.Sparsemax(),
        },
        lambda s, d, p: s - p * np.sqrt(d),
    ),
    "nothing at all": (
        lambda p: {"scores": scores.of(lambda s, q, k: s - p * jnp.sqrt(away(q, k) - 99)), "mask": masks.Lengths(0)},
        lambda s, d, p: s,
    ),
}


ALWAYS = {
    "quotient",
    "a chain",
    "heads that look either way",
    "keys that nobody sees",
    "Gaussian, a key whose square overflows",
    "sigmoid",
    "nothing at all",
}


def given(name, p):
    return {"mask": masks.Causal(), **CASES[name][0](p)}


def by_definition(name, p, query, key, value):
    """The sum of squares of the output, in float64."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        q, k, v = (np.moveaxis(one, -2, 0) for one in (query, key, value))
        s = distance(q, k) if name[:3] in ("sim", "Gau") else np.einsum("hqd,hkd->hqk", q, k) / DIM**0.5
        s = CASES[name][1](s, AWAY, p)
    allowed = np.asarray(masks.create(given(name, jnp.float32(1))["mask"], LENGTH, LENGTH, heads=HEADS))
    s = np.where(allowed, s, -np.inf)
    if name == "normalizer":
        w = p * np.sqrt(np.where(allowed, s, 0))
    elif name == "sigmoid":
        w = 1 / (1 + np.exp(-s))
    elif name == "sparsemax":
        ranked = -np.sort(-s, -1)
        total = np.cumsum(np.where(np.isinf(ranked), 0, ranked), -1)
        support = (1 + (1 + AT) * ranked > total).sum(-1, keepdims=True)
        w = np.maximum(s - (np.take_along_axis(total, support - 1, -1) - 1) / support, 0)
    else:
        top = s.max(-1, keepdims=True)
        w = np.exp(s - np.where(np.isinf(top), 0, top))
        w = w / np.maximum(w.sum(-1, keepdims=True), 1e-300)
    return ((w @ v) ** 2).sum()


@pytest.mark.parametrize("name", rows(CASES, ALWAYS))
@pytest.mark.parametrize("how", rows(["reference", "tiled", "weights"], ["tiled"]))
def test_masked_pairs_reach_nothing(name, how):
    if name == "sparsemax" and how == "tiled":
        pytest.skip("sparsemax does not stream")
    rng = np.random.default_rng(1)
    arrays = [np.float32(0.7), *(rng.normal(size=(LENGTH, HEADS, DIM)).astype(np.float32) for _ in range(3))]
    if name.startswith("Gaussian"):
        arrays[2][5:] = 1e25
    if name == "similarity":
        arrays[2] = arrays[1].copy()  # the distance of a query from its own key is 0

    @jax.jit
    @jax.value_and_grad
    def graded(arrays):
        p, query, key, value = arrays
        if how == "weights":
            weights = jattn.attention_weights(query, key, **given(name, p))
            return (jnp.einsum("hqk,khd->qhd", weights, value) ** 2).sum()
        tiles = Tiled(3, 2) if how == "tiled" else how
        return (jattn.attention(query, key, value, **given(name, p), implementation=tiles) ** 2).sum()

    value, gradients = graded([jnp.asarray(one) for one in arrays])
    truth = [one.astype(np.float64) for one in arrays]
    np.testing.assert_allclose(value, by_definition(name, *truth), rtol=1e-5)
    direction = [rng.normal(size=one.shape) for one in arrays]
    ahead, behind = (
        by_definition(name, *(one + step * way for one, way in zip(truth, direction, strict=True)))
        for step in (1e-6, -1e-6)
    )
    slope = sum((np.asarray(one, np.float64) * way).sum() for one, way in zip(gradients, direction, strict=True))
    np.testing.assert_allclose(slope, (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-4)


OF_A_LENGTH = {"a chain", "keys that nobody sees", "heads that look either way"}  # or of a batch


@pytest.mark.parametrize("name", rows([one for one in CASES if one not in OF_A_LENGTH], {"quotient", "similarity"}))
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0)], ids=["no queries", "no examples"])
def test_no_pairs_at_all(name, sizes):
    length, batch = sizes
    array = jnp.ones((batch, length, HEADS, DIM))

    def total(p, query):
        pieces = {**given(name, p), "query_positions": np.arange(length), "key_positions": np.arange(length)}
        return jattn.attention(query, query, query, **pieces, implementation="reference").sum()

    for gradient in jax.jit(jax.grad(total, (0, 1)))(jnp.float32(1), array):
        assert (gradient == 0).all()


NORMALIZERS = {"softmax": normalizers.Softmax(), "sigmoid": normalizers.Sigmoid(), "relu": normalizers.ReLU()}
SIMILARITIES = {"dot": None, "gaussian": similarities.Gaussian(0.5)}


@pytest.mark.parametrize(
    "normalizer, similarity", [("softmax", "dot"), ("sigmoid", "dot"), ("relu", "dot"), ("sigmoid", "gaussian")]
)
def test_nan_of_a_query_reaches_the_gradients_of_its_own_pairs(normalizer, similarity):
    """By `tiled` as by `reference`: of its row, and of the keys and values that it may attend to."""
    rng = np.random.default_rng(2)
    query, key, value = (rng.normal(size=(LENGTH, HEADS, DIM)).astype(np.float32) for _ in range(3))
    query[4, 0, 1] = np.nan
    chosen = {"normalizer": NORMALIZERS[normalizer], "similarity": SIMILARITIES[similarity]}

    def lost(implementation):
        def total(*arrays):
            return jattn.attention(*arrays, mask=masks.Causal(), **chosen, implementation=implementation).sum()

        return [np.isnan(one).any((1, 2)) for one in jax.jit(jax.grad(total, (0, 1, 2)))(query, key, value)]

    own = np.arange(LENGTH) == 4
    attended = np.arange(LENGTH) <= 4
    d_query, d_key, d_value = lost(Tiled(3, 2))
    flat = normalizer == "relu"  # the derivative of max(x, 0) is 0 at NaN
    np.testing.assert_array_equal(d_query, own & (not flat))
    np.testing.assert_array_equal(d_key, attended & (not flat))
    np.testing.assert_array_equal(d_value, attended)
    if normalizer != "softmax":
        for ours, theirs in zip((d_query, d_key, d_value), lost("reference"), strict=True):
            np.testing.assert_array_equal(ours, theirs)
