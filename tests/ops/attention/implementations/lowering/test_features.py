"""Which similarities are sums over features: read off the function of a pair, or refused by what it does."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.foundation.pieces import array, piece
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower
from jattn.similarities import Similarity
from jattn.similarities.dot import Prepared

FEATURES = 6


@piece
class Of(Similarity):
    """`function(q, k, weight)` of the features of a pair."""

    weight: jax.Array = array("feature")
    function: object = None
    is_dot = False
    rewrites_key = False

    def prepare(self, query, key):
        return Prepared(query, key)

    def pair(self, query, key):
        return self.function(query[..., :, None, :], key[..., None, :, :], self.weight)


def lowered(function):
    one = jnp.ones((3, 1, FEATURES))
    call, _, _ = prepare(one, one, one, Pieces(similarity=Of(jnp.arange(1.0, 1 + FEATURES), function)))
    return lower(call, MOSAIC)


SUMS = {
    "distance": lambda q, k, w: -jnp.abs(q - k).sum(-1),
    "weighted": lambda q, k, w: (w * jnp.minimum(q, k)).sum(-1),
    "product of weights": lambda q, k, w: jnp.einsum("...f,...f->...", jnp.tanh(q + k), w),
    "mean": lambda q, k, w: ((q - k) ** 2).mean(-1),
    "norm": lambda q, k, w: jnp.exp(-jnp.linalg.norm(q - k, axis=-1)),
}

REFUSED = {
    "most": (lambda q, k, w: jnp.abs(q - k).max(-1), "an operation over the features of a pair other than one sum"),
    "two sums": (lambda q, k, w: (q * k).sum(-1) / (q * q).sum(-1), "other than one sum"),
    "mixes features": (lambda q, k, w: jnp.cumsum(q - k, -1).sum(-1), "`cumsum` for each feature"),
    "one feature more": (lambda q, k, w: (q * k).sum(-1) + q[..., 0], "features .* outside of a sum"),
    "own derivative": (lambda q, k, w: jax.nn.relu(q + k).sum(-1), "`custom_jvp_call` for each feature"),
    "constants": (lambda q, k, w: (q * k * np.arange(6.0, dtype=np.float32)).sum(-1), "an array .* for each feature"),
}


@pytest.mark.parametrize("name", SUMS)
def test_sums_are_added_up(name):
    function = SUMS[name]
    found = lowered(function)
    assert found.refusal is None, found.refusal
    query, key = (jnp.asarray(np.random.default_rng(seed).normal(size=(FEATURES, 4)), jnp.float32) for seed in (0, 1))
    weight = jnp.arange(1.0, 1 + FEATURES)
    parameters = [weight[:, None, None]] * len(found.sum.parameters)
    terms = [
        found.sum.number(query[one : one + 1], key[one : one + 1].T, [each[one] for each in parameters])
        for one in range(FEATURES)
    ]
    tile = found.tile(
        [jnp.zeros((1, 1))] * len(found.kinds), jnp.zeros((1, 4), jnp.int32), jnp.zeros((4, 1), jnp.int32)
    )
    want = function(query.T[None, :, :], key.T[:, None, :], weight)
    np.testing.assert_allclose(tile.scores(sum(terms)), want, rtol=1e-5)


@pytest.mark.parametrize("name", REFUSED)
def test_other_similarities_are_refused(name):
    function, reason = REFUSED[name]
    refusal = lowered(function).refusal
    assert refusal is not None and re.search(reason, refusal), refusal
