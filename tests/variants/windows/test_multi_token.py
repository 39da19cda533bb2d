"""Multi-token attention equals its sums, block by block, and sees nothing of the future."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal

import jattn
from jattn import masks, similarities
from jattn.variants.windows import multi_token

MODULE = importlib.import_module("jattn.variants.windows.multi_token")
CAUSAL = masks.Causal()


def test_a_window_of_one_pair_is_attention():
    q, k, v = normal(1, (2, 6, 4, 3), (2, 9, 2, 3), (2, 9, 2, 2))
    window = np.zeros((4, 3, 5), np.float32)
    window[:, 0, 2] = 1
    pieces = {"similarity": similarities.Cosine(0.5), "mask": masks.Lengths(np.array([9, 4]))}
    close(multi_token(q, k, v, window, **pieces), jattn.attention(q, k, v, **pieces), 1e-5)


def test_the_future_is_not_seen():
    q, k, v, window = normal(2, (6, 2, 3), (6, 2, 3), (6, 2, 2), (2, 3, 5))
    for array in (k, v):
        gradient = jax.jacobian(
            lambda x, a=array: multi_token(q, x if a is k else k, x if a is v else v, window, mask=CAUSAL)[3]
        )(array)
        assert not np.asarray(gradient)[..., 4:, :, :].any() and np.asarray(gradient)[..., :4, :, :].any()
    seen = jax.jacobian(lambda x: multi_token(x, k, v, window, mask=CAUSAL)[3])(q)
    assert not np.asarray(seen)[..., 4:, :, :].any() and not np.asarray(seen)[..., :1, :, :].any()
    assert np.asarray(seen)[..., 1, :, :].any()


def test_memory_is_not_quadratic():
    def temporaries(length):
        arrays = [jax.ShapeDtypeStruct((length, 1, 4), jnp.float32)] * 3
        loss = lambda q, k, v: multi_token(q, k, v, jnp.ones((1, 2, 3)), mask=CAUSAL).sum()  # noqa: E731
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*arrays).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4096) < 2.5 * temporaries(2048)


def test_what_cannot_be():
    q = jnp.ones((3, 4, 2))
    with pytest.raises(ValueError, match=r"`window` must have shape \[heads, queries, keys\] with heads = 4"):
        multi_token(q, q, q, jnp.ones((2, 2, 3)))
    with pytest.raises(ValueError, match=r"`before` of shape \(1, 2, 2\) must mix groups \* size = 4 heads"):
        multi_token(q, q, q, jnp.ones((4, 2, 3)), before=jnp.ones((1, 2, 2)))
    with pytest.raises(ValueError, match="`window` must span"):
        multi_token(q, q, q, jnp.ones((4, 0, 3)))
