"""The kernel that stands for splash in the estimates computes attention, forward and backward."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.benchmarks.tpu import splash_like

HEADS, KV_HEADS, LENGTH, DIM, TILE = 4, 2, 256, 128, 128


@pytest.mark.exhaustive
def test_values_and_gradients():
    random = np.random.default_rng(0)
    query, d_out = random.standard_normal((2, HEADS, LENGTH, DIM)) / 4
    key, value = random.standard_normal((2, KV_HEADS, LENGTH, DIM)) / 4
    grouped = query.reshape(KV_HEADS, -1, LENGTH, DIM)
    weights = np.exp(np.einsum("hgqd,hkd->hgqk", grouped, key))
    mass = weights.sum(-1, keepdims=True)
    weights /= mass
    out = np.einsum("hgqk,hkd->hgqd", weights, value)
    split = d_out.reshape(grouped.shape)
    d_sum = (split * out).sum(-1)
    d_weights = weights * (np.einsum("hgqd,hkd->hgqk", split, value) - d_sum[..., None])
    wanted = (
        np.einsum("hgqk,hkd->hgqd", d_weights, key).reshape(query.shape),
        np.einsum("hgqk,hgqd->hkd", d_weights, grouped),
        np.einsum("hgqk,hgqd->hkd", weights, split),
    )

    @jax.jit
    def run(query, key, value, d_out, d_sum):
        out, lse = splash_like.forward(query, key, value, tile=TILE, interpret=True)
        lse = lse[:, None, :, 0]
        return out, lse, splash_like.backward(query, key, value, lse, d_out, d_sum, tile=TILE, interpret=True)

    single = (np.asarray(array, np.float32) for array in (query, key, value, d_out, d_sum.reshape(HEADS, 1, LENGTH)))
    found, lse, (d_query, *rest) = run(*single)
    np.testing.assert_allclose(found, out.reshape(query.shape), atol=1e-5)
    np.testing.assert_allclose(lse, np.log(mass).reshape(lse.shape), atol=1e-5)
    assert d_query.shape == (LENGTH // TILE, HEADS, LENGTH, DIM)
    for gradient, expected in zip((jnp.sum(d_query, 0), *rest), wanted, strict=True):
        np.testing.assert_allclose(gradient, expected, atol=1e-5)
