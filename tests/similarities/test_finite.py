"""NaN and inf in a masked query or key reach neither the output nor gradients of a similarity's arrays."""

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


def attending(implementation):
    """A function of similarity, query, key and value: the output and the gradients of all arrays, compiled once."""

    def attend(q, k, v, similarity):
        out = jattn.attention(q, k, v, similarity=similarity, mask=MASK, implementation=implementation)
        return out.sum(), out

    graded = jax.jit(jax.value_and_grad(attend, argnums=(0, 1, 2, 3), has_aux=True))

    def run(similarity, q, k, v):
        (_, out), gradients = graded(q, k, v, similarity)
        return [np.asarray(x) for x in (out, *jax.tree.leaves(gradients))]

    return run


@EVERY
@pytest.mark.parametrize("implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), "tiled"])
def test_what_does_not_attend_and_is_not_attended_reaches_nothing(similarity, implementation):
    q, k, v = normal(1, (5, 2, 4), (5, 1, 4), (5, 1, 3))
    q[0], k[1] = 0, 0
    run = attending(implementation)
    clean = run(similarity, q, k, v)
    for hole in (np.nan, np.inf):
        q[0], k[1, 0, 2] = hole, hole
        for ours, expected in zip(run(similarity, q, k, v), clean, strict=True):
            np.testing.assert_allclose(ours, expected, atol=1e-5, err_msg=str(hole))


@EVERY
def test_a_broken_query_that_attends_is_not_hidden(similarity):
    q, k, v = normal(2, (5, 2, 4), (5, 1, 4), (5, 1, 3))
    q[2, 0, 1] = np.nan
    out = jattn.attention(q, k, v, similarity=similarity, mask=MASK)
    assert np.isnan(out[2, 0]).all() and np.isfinite(out[2, 1]).all() and np.isfinite(out[3]).all()
