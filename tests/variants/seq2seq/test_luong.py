"""Luong global attention equals its equation."""

import jax.numpy as jnp
import pytest
from differences import normal
from variant_layers import check_layer

from jattn.variants.seq2seq import LuongGlobal


def test_as_a_module():
    states, sources = normal(1, (2, 3, 4), (2, 5, 4))
    check_layer(LuongGlobal(4), jnp.asarray(states), jnp.asarray(sources))


def test_wrong_features_are_named():
    with pytest.raises(ValueError, match="`features` must be a positive int; got 0"):
        LuongGlobal(0)
    layer = LuongGlobal(4)
    with pytest.raises(ValueError, match=r"`sources` must have shape \[..., kv_len, features\] with features = 4"):
        layer({}, jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)))
