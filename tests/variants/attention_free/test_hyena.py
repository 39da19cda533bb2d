"""Hyena equals its equations by direct convolution, is causal, and decodes as it trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from variant_layers import check_layer

from jattn.variants.attention_free import Hyena


def convolve(inputs, filters):
    out = np.zeros(inputs.shape)
    for t in range(len(inputs)):
        for s in range(min(t + 1, len(filters))):
            out[t] += filters[s] * inputs[t - s]
    return out


def truth(layer, parameters, inputs):
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    d, n = layer.features, layer.order
    filters = np.zeros((n, layer.max_len, d))
    alpha = np.log(100) / np.linspace(layer.fast, layer.slow, d)
    for t in range(layer.max_len):
        x = t / layer.max_len
        h = [x] + [np.cos(2 * np.pi * b * x) for b in range(1, layer.bands + 1)]
        h = np.array(h + [np.sin(2 * np.pi * b * x) for b in range(1, layer.bands + 1)])
        for name in ("first", "second"):
            h = np.sin(p["filters"]["frequency"] * (h @ p["filters"][name]["kernel"] + p["filters"][name]["bias"]))
        filters[:, t] = (h @ p["filters"]["last"]["kernel"]).reshape(n, d) * np.exp(-alpha * x)
    made = convolve(inputs @ p["in"]["kernel"] + p["in"]["bias"], p["short"]["kernel"])
    z, *gates = np.split(made, n + 1, -1)
    for i, gate in enumerate(gates):
        z = gate * (convolve(z, filters[i]) + p["skip"][i] * z)
    return z @ p["out"]["kernel"] + p["out"]["bias"]


def made(layer, seed=0):
    parameters = jax.jit(layer.init)(jax.random.key(seed))
    leaves, tree = jax.tree.flatten(parameters)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [leaf + 0.2 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves])


@pytest.mark.parametrize(
    ("order", "length", "max_len"),
    [(2, 9, 16), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((1, 5, 5), (3, 13, 7)))],
)
def test_is_its_definition(order, length, max_len):
    layer = Hyena(3, max_len=max_len, order=order)
    parameters = made(layer)
    inputs = normal(1, (length, 3))[0]
    close(jax.jit(layer.__call__)(parameters, inputs), truth(layer, parameters, inputs.astype(np.float64)), 2e-5)


def test_gradients():
    """Of inputs and every parameter along a random direction, against float64 differences of the definition."""
    layer = Hyena(2, max_len=6, frequency=1.0)
    parameters, inputs = made(layer), normal(2, (6, 2))[0]
    leaves, tree = jax.tree.flatten((parameters, inputs))
    directions = normal(3, *(leaf.shape for leaf in leaves))
    weight = normal(4, (6, 2))[0]

    def wide(step):
        moved = [np.asarray(a, np.float64) + step * b for a, b in zip(leaves, directions, strict=True)]
        return (truth(layer, *jax.tree.unflatten(tree, moved)) * weight).sum()

    gradients = jax.tree.leaves(jax.jit(jax.grad(lambda *a: (layer(*a) * weight).sum(), (0, 1)))(parameters, inputs))
    ours = sum(float((a * b).sum()) for a, b in zip(gradients, directions, strict=True))
    close(ours, (wide(1e-5) - wide(-1e-5)) / 2e-5, 2e-4)


def test_is_causal():
    layer = Hyena(3, max_len=8)
    parameters, inputs = made(layer), normal(5, (8, 3))[0]
    jacobian = np.asarray(jax.jit(jax.jacobian(lambda x: layer(parameters, x)))(inputs))  # [8, 3, 8, 3]
    size = np.abs(jacobian).max((1, 3))
    assert np.abs(np.triu(size, 1)).max() < 1e-5 * size.max()
    assert (np.diag(size) > 1e-3).all()


def test_a_nan_of_the_future_does_not_reach_the_past():
    layer = Hyena(3, max_len=8)
    parameters, inputs = made(layer), normal(6, (2, 8, 3))[0]
    poisoned = inputs.copy()
    poisoned[0, 5, 1] = np.nan

    @jax.jit
    def run(parameters, inputs):
        """The output, and the gradients of the first five."""
        out, pull = jax.vjp(layer, parameters, inputs)
        return out, pull(jnp.zeros_like(out).at[:, :5].set(1))

    (want, _), (got, gradients) = run(parameters, inputs), run(parameters, poisoned)
    np.testing.assert_allclose(got[0, :5], want[0, :5], atol=1e-5)
    np.testing.assert_allclose(got[1], want[1], atol=1e-5)
    assert np.isnan(got[0, 5:]).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("length", "max_len"), [(9, 9), *(pytest.param(*one, marks=pytest.mark.exhaustive) for one in ((9, 20), (11, 4)))]
)
def test_step_is_the_call_at_every_split(length, max_len):
    layer = Hyena(3, max_len=max_len)
    parameters, inputs = made(layer), normal(7, (2, length, 3))[0]
    want = jax.jit(layer.__call__)(parameters, inputs)
    step = jax.jit(layer.step)
    starts = jax.jit(lambda p, x: [layer.prefill(p, x[:, :split]) for split in range(length)])(parameters, inputs)
    for split, (start, state) in enumerate(starts):
        got = [start]
        for t in range(split, length):
            out, state = step(parameters, inputs[:, t], state)
            got.append(out[:, None])
        close(np.concatenate(got, 1), want, 2e-5, f"split at {split}")


@pytest.mark.exhaustive
def test_a_prefix_is_the_prefix_of_the_output():
    layer = Hyena(4, max_len=64)
    parameters, inputs = made(layer), normal(8, (63, 4))[0]
    run = jax.jit(layer.__call__)
    close(run(parameters, inputs)[:20], run(parameters, inputs[:20]), 2e-5)


def test_as_a_module():
    check_layer(Hyena(4, max_len=16), jnp.asarray(normal(9, (2, 9, 4))[0]))


@pytest.mark.exhaustive
def test_bfloat16_and_vmap():
    layer = Hyena(4, max_len=16)
    parameters, inputs = layer.init(jax.random.key(0)), normal(10, (3, 9, 4))[0]
    run = jax.jit(layer.__call__)
    close(jax.jit(jax.vmap(lambda x: layer(parameters, x)))(inputs), run(parameters, inputs), 1e-5)
    half = run(jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), parameters), inputs.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    assert np.isfinite(np.asarray(half, np.float32)).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`max_len` must be a positive int; got 0"):
        Hyena(4, max_len=0)
    with pytest.raises(ValueError, match="`fast` must be positive and at most `slow`"):
        Hyena(4, max_len=4, fast=2.0, slow=1.0)
    layer = Hyena(4, max_len=8)
    parameters = layer.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"`inputs` must have shape .* features = 4"):
        layer(parameters, jnp.ones((5, 3)))
    with pytest.raises(ValueError, match=r"`state.past` must be float32 of shape"):
        layer.step(parameters, jnp.ones(4), Hyena(4, max_len=9).initial_state(parameters))


@pytest.mark.exhaustive
def test_nan_stays_when_it_has_left_the_filters():
    """By steps as in the whole, and behind a prefill."""
    layer = Hyena(4, max_len=4)
    parameters, (inputs,) = layer.init(jax.random.key(0)), normal(0, (2, 20, 4))
    inputs[0, 1] = np.nan
    whole, step, prefill = jax.jit(layer.__call__)(parameters, inputs), jax.jit(layer.step), jax.jit(layer.prefill)
    state, steps = layer.initial_state(parameters, (2,)), []
    for t in range(20):
        out, state = step(parameters, inputs[:, t], state)
        steps.append(out)
    np.testing.assert_allclose(np.stack(steps, 1), whole, atol=1e-5)
    assert np.isnan(whole[0, 1:]).all() and np.isfinite(whole[1]).all()
    _, state = prefill(parameters, inputs[:, :15])
    np.testing.assert_allclose(prefill(parameters, inputs[:, 15:], state)[0], whole[:, 15:], atol=1e-5)
