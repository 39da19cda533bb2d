"""Token shift equals its equation in float64 NumPy, within its segment, and continues from its past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from variant_layers import check_layer

from jattn.variants.recurrent.token_shift import TokenShift

LAYER = TokenShift(3, ("key", "value"), rank=2)
IDS = np.array([[0, 0, 0, 2, 2, 2], [1, 2, 3, 3, 3, 4]])


def made():
    leaves, tree = jax.tree.flatten(LAYER.init(jax.random.key(0)))
    noise = normal(0, *(leaf.shape for leaf in leaves))
    return jax.tree.unflatten(tree, [leaf + one for leaf, one in zip(leaves, noise, strict=True)])


@pytest.mark.parametrize("packed", [False, True])
def test_is_its_equation(packed):
    parameters, (x, past) = made(), normal(1, (2, 6, 3), (2, 1, 3))
    got, last = jax.jit(lambda *a: LAYER(*a, IDS if packed else None))(parameters, x, past)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    for b, t in np.ndindex(2, 6):
        before = past[b, 0] if t == 0 else x[b, t - 1]
        if packed and t and IDS[b, t] != IDS[b, t - 1]:
            before = np.zeros(3)
        y = x[b, t] + (before - x[b, t]) * p["shared"]
        for name in LAYER.names:
            share = p[name]["bias"] + np.tanh(y @ p[name]["down"]) @ p[name]["up"]
            np.testing.assert_allclose(got[name][b, t], x[b, t] + (before - x[b, t]) * share, atol=1e-5)
    np.testing.assert_array_equal(last[:, 0], x[:, -1])


@pytest.mark.exhaustive
def test_goes_on_at_every_split():
    parameters, (x,) = made(), normal(2, (2, 6, 3))
    run = jax.jit(LAYER.__call__)
    whole, last = run(parameters, x)
    for split in range(7):
        head, past = run(parameters, x[:, :split])
        tail, end = run(parameters, x[:, split:], past)
        for name in LAYER.names:
            np.testing.assert_allclose(np.concatenate([head[name], tail[name]], 1), whole[name], atol=1e-6)
        np.testing.assert_array_equal(end, last)


def test_nan_is_seen_by_its_token_and_the_next_alone():
    parameters, (x,) = made(), normal(3, (1, 6, 3))
    spoiled = x.copy()
    spoiled[0, 2, 1] = np.nan
    run = jax.jit(lambda p, x: LAYER(p, x)[0]["key"])
    clean, got = (run(parameters, one) for one in (x, spoiled))
    assert np.isnan(got[0, 2:4]).all()
    np.testing.assert_array_equal(np.delete(got, [2, 3], 1), np.delete(clean, [2, 3], 1))
    gradient = jax.jit(jax.grad(lambda p, x: run(p, x)[:, :2].sum(), (0, 1)))(parameters, spoiled)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))


def test_as_a_module():
    check_layer(LAYER, jnp.asarray(normal(4, (2, 5, 3))[0]))


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match="`rank` must be a positive int; got 0"):
        TokenShift(3, ("key",), rank=0)
