"""Forgetting attention equals its equation in float64 NumPy; generation is tested with all other layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recurrences
from differences import normal
from generative_layers import FEATURES, LAYERS, random_parameters
from variant_layers import check_layer

from jattn.layers import CausalAttention

NAME = "FoX, grouped"


def truth(layer, p, x):
    """`[length, features]`, float64."""
    query, key, value = (np.einsum("tf,fhd->htd", x, p[name]["kernel"]) for name in ("query", "key", "value"))
    gates = np.log(1 / (1 + np.exp(-(x @ p["forget"]["kernel"] + p["forget"]["bias"]))))
    out = np.zeros((len(x), layer.heads, layer.head_dim))
    for h in range(layer.heads):
        of = h * layer.kv_heads // layer.heads
        for t in range(len(x)):
            kept = np.array([gates[s + 1 : t + 1, h].sum() for s in range(t + 1)])
            weights = np.exp(query[h, t] @ key[of, : t + 1].T / np.sqrt(layer.head_dim) + kept)
            out[t, h] = weights @ value[of, : t + 1] / weights.sum()
    return np.einsum("thd,hdf->tf", out, p["out"]["kernel"])


def test_is_its_equation_and_a_module():
    layer, (x,) = LAYERS[NAME], normal(0, (2, 7, FEATURES))
    parameters = random_parameters(layer)
    double = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    out = jax.jit(layer.__call__)(parameters, x)
    for i in range(2):
        assert recurrences.relative_error(out[i], truth(layer, double, x[i].astype(np.float64))) < 1e-5
    check_layer(layer, jnp.asarray(x))


def test_gates_of_one_are_causal_attention():
    layer, (x,) = LAYERS[NAME], normal(1, (5, FEATURES))
    parameters = random_parameters(layer)
    open_gates = {"kernel": 0 * parameters["forget"]["kernel"], "bias": jnp.full(layer.heads, 100.0)}
    plain = CausalAttention(FEATURES, 4, max_len=8, kv_heads=2, head_dim=4, rotary=False)
    want = jax.jit(plain.__call__)({name: parameters[name] for name in plain.parameters()}, x)
    got = jax.jit(layer.__call__)({**parameters, "forget": open_gates}, x)
    np.testing.assert_allclose(got, want, atol=1e-6)


def test_too_many_tokens_are_named():
    layer = LAYERS[NAME]
    with pytest.raises(ValueError, match="`inputs` must end before position `max_len` = 8"):
        layer(layer.init(jax.random.key(0)), jnp.ones((9, FEATURES)))
