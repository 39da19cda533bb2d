"""The additive score."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from pairs import pair_numbers, per_query_head

import jattn
from jattn.ops.attention.implementations import Tiled
from jattn.similarities import Additive

Q, K = (2, 3, 4, 3), (2, 4, 2, 3)


def additive(q, k, w, u, v, b: Any = 0.0):
    k = per_query_head(k, q.shape[-2])
    w, u, v, b = (np.asarray(x) for x in (w, u, v, b))
    w, u = (np.broadcast_to(x, (q.shape[-2], *x.shape[-2:])) for x in (w, u))
    hidden = np.einsum("bqhd,hda->bqha", q, w)[:, :, None] + np.einsum("bkhd,hda->bkha", k, u)[:, None] + b
    return (np.tanh(hidden) * v).sum(-1).transpose(0, 3, 1, 2)


def test_additive():
    arrays = normal(0, Q, K, (3, 5), (3, 5), (5,), (5,))
    check(lambda q, k, *rest: pair_numbers(Additive(*rest), q, k), additive, *arrays)
    check(lambda q, k, *rest: pair_numbers(Additive(*rest), q, k), additive, *arrays[:-1])


def test_additive_with_weights_of_each_head():
    q, k, w, u, v, b = normal(1, Q, K, (4, 3, 5), (3, 5), (4, 5), (4, 5))
    check(lambda q, k, *rest: pair_numbers(Additive(*rest), q, k), additive, q, k, w, u, v, b)


def test_concat_is_additive_with_its_matrix_split():
    q, k, matrix, v = normal(2, (1, 3, 1, 3), (1, 4, 1, 3), (6, 5), (5,))
    joined = np.concatenate([np.repeat(q, 4, 1).reshape(3, 4, 3), np.tile(k, (3, 1, 1, 1)).reshape(3, 4, 3)], -1)
    expected = np.tanh(joined @ matrix) @ v
    close(pair_numbers(Additive(matrix[:3], matrix[3:], v), q, k)[0, 0], expected, 1e-5)


def test_it_streams_with_all_gradients():
    q, k, value, w, u, v, b = normal(3, (5, 2, 3), (7, 1, 3), (7, 1, 2), (3, 4), (3, 4), (4,), (4,))

    def truth(q, k, value, w, u, v, b):
        scores = additive(q[None], k[None], w, u, v, b)[0]
        weights = np.exp(scores)
        weights /= weights.sum(-1, keepdims=True)
        return np.einsum("hqk,khd->qhd", weights, per_query_head(value, 2))

    def ours(q, k, value, *rest):
        return jattn.attention(q, k, value, similarity=Additive(*rest), implementation=Tiled(2, 3))

    check(ours, truth, q, k, value, w, u, v, b)


@pytest.mark.exhaustive
def test_bfloat16_is_projected_in_float32():
    arrays = [jnp.asarray(x, jnp.bfloat16) for x in normal(4, Q, K, (3, 5), (3, 5), (5,))]
    numbers = pair_numbers(Additive(*arrays[2:]), *arrays[:2])
    assert numbers.dtype == jnp.float32
    close(numbers, additive(*(np.asarray(x, np.float64) for x in arrays)), 1e-5)
    gradients = jax.grad(lambda *a: pair_numbers(Additive(*a[2:]), *a[:2]).sum(), argnums=tuple(range(5)))(*arrays)
    assert all(gradient.dtype == jnp.bfloat16 for gradient in gradients)


def test_features_must_agree():
    w, u, v = normal(5, (3, 5), (3, 5), (4,))
    with pytest.raises(ValueError, match="equally many features"):
        Additive(w, u, v)
    with pytest.raises(ValueError, match="`bias`"):
        Additive(w, u, np.ones(5, np.float32), np.ones(5, int))
    with pytest.raises(ValueError, match="`query_weight`"):
        Additive(np.ones(3, np.float32), u, np.ones(5, np.float32))


def test_dims_must_fit_the_arrays():
    q, k, u, v = normal(6, Q, K, (3, 5), (5,))
    with pytest.raises(ValueError, match="`query_weight` of shape"):
        jattn.attention(q, k, k, similarity=Additive(np.ones((2, 5), np.float32), u, v))
    with pytest.raises(ValueError, match="`key_weight` of shape"):
        jattn.attention(q, k, k, similarity=Additive(u, np.ones((2, 5), np.float32), v))
