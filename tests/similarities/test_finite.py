"""NaN and inf in a query or key reach nothing they may not: neither the output nor the arrays of a similarity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal

import jattn
from jattn.similarities import Additive, Bilinear, Cosine, Dot, Gaussian, SharedBilinear

W, A, HEADS = *normal(0, (4, 4), (4,)), jnp.ones(2)
SIMILARITIES = [
    Dot(HEADS),
    Cosine(HEADS),
    Gaussian(HEADS),
    Bilinear(W, HEADS),
    SharedBilinear(W),
    Additive(W, W, A, A),
]
EVERY = pytest.mark.parametrize("similarity", SIMILARITIES, ids=lambda one: type(one).__name__)
MASK = jattn.masks.of(lambda q, k: (q > 0) & (k <= q) & (k != 1))  # query 0 attends to nothing, nobody to key 1


def run(similarity, q, k, v, implementation):
    def attend(q, k, v, similarity):
        out = jattn.attention(q, k, v, similarity=similarity, mask=MASK, implementation=implementation)
        return out.sum(), out

    (_, out), gradients = jax.jit(jax.value_and_grad(attend, argnums=(0, 1, 2, 3), has_aux=True))(q, k, v, similarity)
    return [np.asarray(x) for x in (out, *jax.tree.leaves(gradients))]


@EVERY
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
@pytest.mark.parametrize("hole", [np.nan, np.inf])
def test_what_does_not_attend_and_is_not_attended_reaches_nothing(similarity, implementation, hole):
    q, k, v = normal(1, (5, 2, 4), (5, 1, 4), (5, 1, 3))
    q[0], k[1] = 0, 0
    clean = run(similarity, q, k, v, implementation)
    q[0], k[1, 0, 2] = hole, hole
    for ours, expected in zip(run(similarity, q, k, v, implementation), clean, strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-5)


@EVERY
def test_a_broken_query_that_attends_is_not_hidden(similarity):
    q, k, v = normal(2, (5, 2, 4), (5, 1, 4), (5, 1, 3))
    q[2, 0, 1] = np.nan
    out = jattn.attention(q, k, v, similarity=similarity, mask=MASK)
    assert np.isnan(out[2, 0]).all() and np.isfinite(out[2, 1]).all() and np.isfinite(out[3]).all()
