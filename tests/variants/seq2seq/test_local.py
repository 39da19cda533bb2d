"""Luong's local attention, around the query's position and around a predicted one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from variant_layers import check_layer

import jattn
from jattn import masks
from jattn.variants.seq2seq import LuongGlobal, LuongLocal, local_m, local_p

CENTERS = np.float32([0.3, 2.6, 4.0])


def test_a_very_wide_window_is_global_attention():
    q, k, v = normal(2, (3, 1, 4), (7, 1, 4), (7, 1, 2))
    close(jax.jit(lambda *a: local_p(*a, CENTERS, 1e5))(q, k, v), jax.jit(jattn.attention)(q, k, v), 1e-5)


def test_local_m_refuses():
    q, k, v = normal(5, (7, 1, 4), (7, 1, 4), (7, 1, 2))
    with pytest.raises(ValueError, match="query_positions"):
        local_m(q[:3], k, v, 2)
    with pytest.raises(ValueError, match="`left`"):
        local_m(q, k, v, -1)


def test_the_layer():
    states, sources = normal(6, (2, 3, 4), (2, 6, 4))
    layer = LuongLocal(4, hidden=5)
    check_layer(LuongLocal(4), jnp.asarray(states), jnp.asarray(sources), 2.3, lengths=np.array([6, 4]))
    wide = layer.init(jax.random.key(0))
    same = jax.jit(LuongGlobal(4).__call__)({"out": wide["out"]}, states, sources)
    close(jax.jit(lambda *a: layer(*a, 1e5))(wide, states, sources), same, 1e-5)


def test_the_window_ends_with_what_is_as_far_as_it_reaches():
    centers = np.float32([2, 5])
    places = np.eye(7, dtype=np.float32)[:, None]
    out = local_p(np.zeros((2, 1, 3), np.float32), np.zeros((7, 1, 3), np.float32), places, centers, 2.0)[:, 0]
    away = np.arange(7) - centers[:, None]
    inside = np.abs(away) <= 2  # 0 to 4, and 3 to 6
    close(out, inside / inside.sum(-1, keepdims=True) * np.exp(-(away**2) / 2), 1e-6)


@pytest.mark.exhaustive
def test_the_layer_with_padding_and_a_mask():
    states, sources = (jnp.asarray(x) for x in normal(8, (2, 3, 4), (2, 6, 4)))
    layer = LuongLocal(4)
    parameters = layer.init(jax.random.key(0))
    run = jax.jit(lambda sources, **options: layer(parameters, states, sources, 9.0, **options))
    close(run(sources), run(sources, lengths=jnp.array([6, 6])), 1e-6)
    without = masks.of(lambda q, k: k != 1)
    broken = sources.at[:, 4:].set(jnp.nan).at[:, 1].set(jnp.inf)
    both = jax.jit(lambda sources: layer(parameters, states, sources, 9.0, lengths=4, mask=without))
    np.testing.assert_array_equal(both(broken), both(sources))
    assert np.abs(both(sources) - run(sources, lengths=jnp.array([4, 4]))).max() > 1e-3
    low = [jnp.asarray(x, jnp.bfloat16) for x in (states, sources)]
    assert layer.centers(jax.tree.map(lambda x: x.astype(jnp.bfloat16), parameters), low[0], 1000).dtype == jnp.float32
    with pytest.raises(ValueError, match="`lengths` must be at most 6, the length of the arrays; got 7"):
        layer(parameters, states, sources, 9.0, lengths=np.array([6, 7]))
    with pytest.raises(ValueError, match=r"`lengths` must be .* of shape \(2,\) like the batch axes; got shape \(3,\)"):
        layer(parameters, states, sources, 9.0, lengths=np.array([6, 5, 4]))


def test_a_traced_distance_of_0_reaches_nothing():
    q = jax.random.normal(jax.random.key(0), (3, 1, 4))
    both = jax.jit(jax.value_and_grad(lambda distance: local_p(q, q, q, CENTERS, distance).sum()))
    np.testing.assert_array_equal(both(0.0), 0)
    assert both(1.0)[0] != 0


def test_what_cannot_be():
    for sizes in ((0,), (4, 0)):
        with pytest.raises(ValueError, match="must be a positive int; got 0"):
            LuongLocal(*sizes)
    q = jnp.ones((3, 1, 4))
    with pytest.raises(ValueError, match="`distance` must be a number above 0"):
        local_p(q, q, q, CENTERS, 0.0)
    with pytest.raises(ValueError, match="`centers` must be a floating-point array"):
        local_p(q, q, q, np.arange(3), 1.0)
    with pytest.raises(ValueError, match=r"`Near\.centers` of shape"):
        local_p(q, q, q, CENTERS[:2], 1.0)
    with pytest.raises(ValueError, match="`normalizer` must be left out"):
        local_p(q, q, q, CENTERS, 1.0, normalizer=jattn.normalizers.Sigmoid())
    with pytest.raises(ValueError, match=r"`sources` must have shape \[..., kv_len, features\]"):
        LuongLocal(4)({}, jnp.ones((2, 3, 4)), jnp.ones((2, 3, 5)), 1.0)


def test_local_p_without_scores():
    q, k, v = normal(5, (7, 1, 4), (7, 1, 4), (7, 1, 2))
    centers = np.linspace(0, 6, 7, dtype=np.float32)
    run = jax.jit(lambda **options: local_p(q, k, v, centers, 2.0, **options))
    np.testing.assert_array_equal(run(scores=None), run())
