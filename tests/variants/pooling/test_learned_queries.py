"""Attention pooling equals its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

from jattn import masks
from jattn.variants.pooling import AttentionPooling


def softmax(scores):
    mass = np.exp(scores - scores.max(-1, keepdims=True))
    return mass / mass.sum(-1, keepdims=True)


def test_pooling_without_a_hidden_layer_is_its_definition():
    inputs, query = normal(3, (5, 4), (1, 4))
    check(lambda x, q: AttentionPooling(4)({"query": q}, x), lambda x, q: softmax(q @ x.T) @ x, inputs, query)


def test_pooling_as_a_module_does_not_see_order_or_padding():
    (inputs,) = normal(4, (2, 6, 4))
    layer = AttentionPooling(4, hidden=8, queries=3)
    out = check_layer(layer, jnp.asarray(inputs))
    assert out.shape == (2, 3, 4)
    parameters = layer.init(jax.random.key(0))
    run = jax.jit(layer.__call__)
    close(run(parameters, inputs[:, ::-1]), run(parameters, inputs), 1e-5)
    padded = np.concatenate([inputs, np.full((2, 2, 4), np.nan, np.float32)], 1)
    close(run(parameters, padded, mask=masks.Lengths(6)), run(parameters, inputs), 1e-5)


def test_pooling_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="`queries` must be a positive int"):
        AttentionPooling(4, queries=0)
    with pytest.raises(ValueError, match="`hidden` must be a positive int"):
        AttentionPooling(4, hidden=0)
    with pytest.raises(ValueError, match="`inputs` must have shape"):
        AttentionPooling(4)({}, jnp.ones((2, 3, 5)))
