"""Location attention does not depend on its sources, and says how many there may be."""

import jax
import jax.numpy as jnp
import pytest
from differences import close, normal
from variant_layers import check_layer

from jattn import similarities
from jattn.variants.seq2seq import Location


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
