"""Nyström attention equals its equations, and converges to softmax attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from variant_layers import check_layer

import jattn
from jattn import masks
from jattn.variants.low_rank import Nystromformer, nystrom_attention, pseudo_inverse


@pytest.mark.exhaustive
def test_tends_to_softmax_attention():
    query, key, value = normal(1, (2, 12, 2, 4), (2, 12, 2, 4), (2, 12, 2, 4))
    want = jattn.attention(query, key, value)
    run = jax.jit(nystrom_attention, static_argnums=3, static_argnames="iterations")
    errors = [float(abs(run(query, key, value, 12, iterations=n) - want).max()) for n in (2, 6, 12, 20)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 5e-3, errors


@pytest.mark.exhaustive
def test_pseudo_inverse_meets_the_conditions():
    matrix = jax.nn.softmax(2 * jax.random.normal(jax.random.key(0), (3, 4, 4)))
    found = pseudo_inverse(matrix, 20)
    np.testing.assert_allclose(found, np.linalg.pinv(matrix), atol=1e-3, rtol=1e-3)
    assert not pseudo_inverse(jnp.zeros((2, 2))).any()


def test_padding_alone_is_zeros():
    query, key, value = normal(2, (2, 10, 1, 3), (2, 10, 1, 3), (2, 10, 1, 3))
    none = jax.jit(lambda *qkv: nystrom_attention(*qkv, 5, lengths=jnp.array([0, 0])))(query, key, value)
    assert not none.any()


@pytest.mark.exhaustive
def test_batch_does_not_change_an_element():
    query, key, value = normal(3, (2, 9, 2, 4), (2, 9, 2, 4), (2, 9, 2, 4))
    query[1] *= 9
    run = jax.jit(lambda *qkv: nystrom_attention(*qkv, 4))
    np.testing.assert_allclose(run(query, key, value)[0], run(query[0], key[0], value[0]), atol=2e-5)


def test_as_a_module():
    layer = Nystromformer(4, heads=2, landmarks=3, convolution=3, iterations=2)
    declared = layer.parameters()
    assert declared["convolution"]["kernel"].shape == (3, 2)
    layer = Nystromformer(4, heads=2, landmarks=3, convolution=3, iterations=2, use_bias=False)
    check_layer(layer, jnp.asarray(normal(0, (2, 7, 4))[0]))


def test_bad_input_is_refused():
    rows = jnp.ones((8, 2, 4))
    with pytest.raises(ValueError, match="`iterations` must be an int of at least 0; got 'many'"):
        pseudo_inverse(jnp.ones((2, 2)), "many")
    with pytest.raises(ValueError, match="`matrix` must have rows and columns"):
        pseudo_inverse(jnp.ones((2, 0)))
    with pytest.raises(jattn.Unsupported, match=r"not causal: each landmark is the mean of a segment.*`lengths`"):
        nystrom_attention(rows, rows, rows, 2, mask=masks.Causal())
    with pytest.raises(ValueError, match="`landmarks` must be at most the length, 8; got 9"):
        nystrom_attention(rows, rows, rows, 9)
    with pytest.raises(ValueError, match="`iterations` must be an int of at least 0; got -1"):
        nystrom_attention(rows, rows, rows, 2, iterations=-1)
    with pytest.raises(ValueError, match="`convolution` must have an odd width"):
        nystrom_attention(rows, rows, rows, 2, convolution=jnp.ones((2, 4)))
    with pytest.raises(ValueError, match=r"`key` must have shape .* with heads = 2"):
        nystrom_attention(rows, rows[:, :1], rows, 2)
    with pytest.raises(ValueError, match="`convolution` must be odd"):
        Nystromformer(4, heads=2, landmarks=2, convolution=2)
    with pytest.raises(ValueError, match="`features` must be a multiple"):
        Nystromformer(5, heads=2, landmarks=2)
