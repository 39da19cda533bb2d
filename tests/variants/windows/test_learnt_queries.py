"""Location attention and attention pooling equal their equations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

from jattn import masks, similarities
from jattn.variants.windows import AttentionPooling, Location


def softmax(scores):
    mass = np.exp(scores - scores.max(-1, keepdims=True))
    return mass / mass.sum(-1, keepdims=True)


def test_location_does_not_see_its_sources():
    states, sources = normal(1, (2, 3, 4), (2, 9, 2))
    layer = Location(4, 9)
    parameters = layer.init(jax.random.key(0))
    assert parameters["kernel"].shape == (4, 9)
    one = layer(parameters, states, sources)
    close(layer(parameters, states, 2 * sources + 1), 2 * one + 1, 1e-5)
    check_layer(layer, jnp.asarray(states), jnp.asarray(sources))


def test_location_has_a_longest_length():
    layer = Location(4, 5)
    with pytest.raises(ValueError, match="`max_length` = 5 only: truncate it, or make the layer with a larger"):
        layer(layer.init(jax.random.key(0)), jnp.ones((3, 4)), jnp.ones((6, 2)))
    with pytest.raises(ValueError, match="`similarity` must be left out: places are chosen by dot products"):
        layer(layer.init(jax.random.key(0)), jnp.ones((3, 4)), jnp.ones((5, 2)), similarity=similarities.Cosine())
    with pytest.raises(ValueError, match="`max_length` must be a positive int"):
        Location(4, 0)
    with pytest.raises(ValueError, match="`states` must have shape"):
        layer({}, jnp.ones((3, 3)), jnp.ones((5, 2)))


def test_pooling_without_a_hidden_layer_is_its_definition():
    inputs, query = normal(3, (5, 4), (1, 4))
    check(lambda x, q: AttentionPooling(4)({"query": q}, x), lambda x, q: softmax(q @ x.T) @ x, inputs, query)


def test_pooling_as_a_module_does_not_see_order_or_padding():
    (inputs,) = normal(4, (2, 6, 4))
    layer = AttentionPooling(4, hidden=8, queries=3)
    out = check_layer(layer, jnp.asarray(inputs))
    assert out.shape == (2, 3, 4)
    parameters = layer.init(jax.random.key(0))
    close(layer(parameters, inputs[:, ::-1]), layer(parameters, inputs), 1e-5)
    padded = np.concatenate([inputs, np.full((2, 2, 4), np.nan, np.float32)], 1)
    close(layer(parameters, padded, mask=masks.Lengths(6)), layer(parameters, inputs), 1e-5)


def test_pooling_sizes_that_cannot_be():
    with pytest.raises(ValueError, match="`queries` must be a positive int"):
        AttentionPooling(4, queries=0)
    with pytest.raises(ValueError, match="`hidden` must be a positive int"):
        AttentionPooling(4, hidden=0)
    with pytest.raises(ValueError, match="`inputs` must have shape"):
        AttentionPooling(4)({}, jnp.ones((2, 3, 5)))
