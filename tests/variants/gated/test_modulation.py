"""Each form of modulation equals its equation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

from jattn.variants.gated import Modulation


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def truth(kind, y, c, kernel, bias):
    out = np.zeros_like(y)
    for i in range(len(y)):
        joined = np.concatenate([c[i], y[i]])
        if kind == "gate":
            out[i] = sigmoid(joined @ kernel + bias) * y[i]
        elif kind == "tanh":
            out[i] = np.tanh(joined @ kernel + bias)
        elif kind == "scalar":
            out[i] = sigmoid(c[i] @ kernel @ y[i] + bias) * y[i]
        else:
            out[i] = (1 + c[i] @ kernel[:, 0] + bias[0]) * y[i] + c[i] @ kernel[:, 1] + bias[1]
    return out


SHAPES = {"gate": ((5, 3), (3,)), "tanh": ((5, 3), (3,)), "scalar": ((2, 3), ()), "film": ((2, 2, 3), (2, 3))}


@pytest.mark.parametrize("kind", SHAPES)
def test_equation(kind):
    y, c, kernel, bias = normal(0, (4, 3), (4, 2), *SHAPES[kind])
    bias = np.asarray(bias, np.float32)

    def ours(y, c, kernel, bias):
        return Modulation(3, 2, kind)({"kernel": kernel, "bias": bias}, y, c)

    check(ours, lambda *arrays: truth(kind, *arrays), y, c, kernel, bias)


@pytest.mark.parametrize("kind", SHAPES)
def test_as_a_module(kind):
    y, c = normal(1, (2, 4, 3), (2, 4, 2))
    check_layer(Modulation(3, 2, kind), jnp.asarray(y), jnp.asarray(c))


def test_film_is_the_identity_at_first():
    y, c = normal(2, (4, 3), (4, 2))
    layer = Modulation(3, 2, "film")
    np.testing.assert_array_equal(layer(layer.init(jax.random.key(0)), jnp.asarray(y), jnp.asarray(c)), y)


def test_bfloat16_keeps_its_dtype():
    y, c, kernel, bias = normal(3, (4, 3), (4, 2), (5, 3), (3,))
    wide = Modulation(3, 2)({"kernel": kernel, "bias": bias}, jnp.asarray(y), jnp.asarray(c))
    out = Modulation(3, 2)({"kernel": kernel, "bias": bias}, jnp.asarray(y, jnp.bfloat16), jnp.asarray(c, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    close(out.astype(jnp.float32), wide, 2e-2)


def test_errors():
    with pytest.raises(ValueError, match=r"`kind` must be one of 'gate', 'scalar', 'tanh', 'film'; got 'bilinear'"):
        Modulation(3, 2, "bilinear")
    with pytest.raises(ValueError, match=r"`context_features` must be a positive int; got 0"):
        Modulation(3, 0)
    with pytest.raises(ValueError, match=r"`context` must have shape .* with batch axes = \(4,\), as in `outputs`"):
        Modulation(3, 2)({}, jnp.ones((4, 3)), jnp.ones((2,)))
