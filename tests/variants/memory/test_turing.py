"""Turing machine memory equals its equations, and a head set by hand copies."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, close, normal
from variant_layers import check_layer

from jattn.variants.memory import Addressing, TuringMemory, address, read_slots, sharpen, write_slots


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def truth(memory, previous, key, strength, gate, shifts, sharpness):
    """Head by head, slot by slot."""
    gate, shifts = 1 / (1 + np.exp(-gate)), softmax(shifts)
    strength, sharpness = np.log1p(np.exp(strength)), 1 + np.log1p(np.exp(sharpness))
    heads, slots = previous.shape
    reach = shifts.shape[-1] // 2
    out = np.zeros((heads, slots))
    for h in range(heads):
        cosine = memory @ key[h] / (np.linalg.norm(memory, axis=-1) * np.linalg.norm(key[h]))
        gated = gate[h] * softmax(strength[h] * cosine) + (1 - gate[h]) * previous[h]
        for i in range(slots):
            out[h, i] = sum(gated[(i - s) % slots] * shifts[h, s + reach] for s in range(-reach, reach + 1))
        out[h] = out[h] ** sharpness[h] / (out[h] ** sharpness[h]).sum()
    return out


def ours(memory, previous, key, strength, gate, shifts, sharpness):
    strength, sharpness = jax.nn.softplus(strength), 1 + jax.nn.softplus(sharpness)
    return address(memory, previous, Addressing(key, strength, jax.nn.sigmoid(gate), jax.nn.softmax(shifts), sharpness))


@pytest.mark.parametrize("shifts", [3, *(pytest.param(one, marks=pytest.mark.exhaustive) for one in (1, 5))])
def test_address_is_its_definition(shifts):
    memory, key, strength, gate, steps, sharpness = normal(0, (5, 3), (2, 3), (2,), (2,), (2, shifts), (2,))
    previous = np.random.default_rng(0).dirichlet(np.ones(5), 2).astype(np.float32)
    check(ours, truth, memory, previous, key, strength, gate, steps, sharpness)


def test_read_and_write_are_their_definitions():
    memory, weights, erase, add = normal(1, (5, 3), (2, 5), (2, 3), (2, 3))
    check(read_slots, lambda m, w: w @ m, memory, weights)

    def written(m, w, e, a):
        for h in range(2):
            m = m * (1 - np.outer(w[h], e[h]))
        return m + sum(np.outer(w[h], a[h]) for h in range(2))

    check(write_slots, written, memory, weights, erase, add)


def test_memory_of_zeros_and_exact_heads_have_finite_gradients():
    one_slot = jnp.zeros((1, 6)).at[0, 2].set(1)
    ones = jnp.ones(1)

    def loss(memory, key, strength, gate, previous, shifts, sharpness):
        return jnp.sin(address(memory, previous, Addressing(key, strength, gate, shifts, sharpness))).sum()

    step = jnp.array([[0.0, 0.0, 1.0]])
    graded = jax.jit(jax.grad(loss, tuple(range(7))))
    for sharpness in (1.0, 3.0, 200.0):
        for gate in (0.0, 1.0):
            given = (jnp.zeros((6, 4)), jnp.ones((1, 4)), ones, gate * ones, one_slot, step, sharpness * ones)
            for gradient in graded(*given):
                assert np.isfinite(gradient).all()
    given = (jnp.zeros((6, 4)), jnp.zeros((1, 4)), 0 * ones, ones, one_slot, step, ones)
    for gradient in graded(*given):
        assert np.isfinite(gradient).all()


@pytest.mark.exhaustive
def test_sharpening_keeps_order_and_does_not_vanish():
    weights = jnp.array([1e-3, 9e-4, 0.0])
    sharp = sharpen(weights, jnp.array(60.0))
    want = np.array([1.0, 0.9**60, 0]) / (1 + 0.9**60)
    close(sharp, want, 1e-5)
    np.testing.assert_array_equal(sharpen(jnp.zeros(3), jnp.array(2.0)), 0)
    gradient = jax.jacobian(lambda w: sharpen(w, jnp.array(1.0)))(jnp.array([0.5, 0.5, 0.0]))
    close(gradient, np.eye(3) - np.array([0.5, 0.5, 0.0])[:, None], 1e-6)


def test_a_head_set_by_hand_copies_exactly():
    """Gate 0, one step on: written slot by slot, and read back from the start, the sequence is itself."""
    (sequence,) = normal(2, (7, 3))
    ones, slots = jnp.ones(1), 9
    addressing = Addressing(jnp.zeros((1, 3)), ones, 0 * ones, jnp.array([[0.0, 0.0, 1.0]]), ones)
    start = jnp.zeros((1, slots)).at[0, slots - 1].set(1)

    def write(state, row):
        memory, weights = state
        weights = address(memory, weights, addressing)
        return (write_slots(memory, weights, jnp.ones((1, 3)), row[None]), weights), None

    (memory, _), _ = jax.lax.scan(write, (jnp.full((slots, 3), 5.0), start), jnp.asarray(sequence))

    def read(weights, _):
        weights = address(memory, weights, addressing)
        return weights, read_slots(memory, weights)[0]

    _, copied = jax.lax.scan(read, start, None, length=7)
    np.testing.assert_array_equal(copied, sequence)
    np.testing.assert_array_equal(memory[7:], 5)


@pytest.mark.exhaustive
def test_looking_by_content_finds_the_slot():
    (memory,) = normal(3, (8, 16))
    ones = jnp.ones(1)
    addressing = Addressing(3 * jnp.asarray(memory[5:6]), 100 * ones, ones, jnp.array([[0.0, 1.0, 0.0]]), ones)
    weights = address(jnp.asarray(memory), jnp.full((1, 8), 1 / 8), addressing)
    np.testing.assert_allclose(read_slots(memory, weights)[0], memory[5], atol=1e-4)


@pytest.mark.exhaustive
def test_as_a_module():
    layer = TuringMemory(4, slots=6, width=3, heads=2)
    (controller,) = normal(4, (2, 4))
    parameters = layer.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda x: x + rng.normal(scale=0.5, size=x.shape).astype(np.float32), parameters)
    _, state = jax.jit(layer.__call__)(parameters, controller, layer.begin((2,)))
    read, _ = check_layer(layer, jnp.asarray(controller), state)
    assert read.shape == (2, 2, 3)


@pytest.mark.exhaustive
def test_a_memory_in_bfloat16_goes_through_a_scan():
    layer = TuringMemory(4, slots=6, width=3)
    parameters = jax.tree.map(lambda x: x.astype(jnp.bfloat16), layer.init(jax.random.key(0)))
    (controllers,) = normal(5, (5, 2, 4))

    def step(state, controller):
        read, state = layer(parameters, controller, state)
        return state, read

    begin = layer.begin((2,), jnp.bfloat16)
    state, read = jax.lax.scan(step, begin, jnp.asarray(controllers, jnp.bfloat16))
    assert read.dtype == state.memory.dtype == jnp.bfloat16 and state.reading.dtype == jnp.float32
    np.testing.assert_allclose(state.reading.sum(-1), 1, atol=1e-5)


def test_bad_input_is_named():
    layer = TuringMemory(4, slots=6, width=3)
    with pytest.raises(ValueError, match=r"`memory` must have shape .* with slots = 6; got \(7, 3\)"):
        layer({}, jnp.zeros(4), TuringMemory(4, slots=7, width=3).begin())
    with pytest.raises(ValueError, match="`features` must be a positive int; got 0"):
        TuringMemory(0, slots=6, width=3)
    ones = jnp.ones(1)

    def addressing(shifts, width=3):
        return Addressing(jnp.zeros((1, width)), ones, ones, jnp.ones((1, shifts)), ones)

    for shifts in (2, 7):
        with pytest.raises(ValueError, match=rf"`shifts` must be an odd number .* at most the 5 slots; got {shifts}"):
            address(jnp.zeros((5, 3)), jnp.zeros((1, 5)), addressing(shifts))
    with pytest.raises(ValueError, match=r"`key` must have shape \[..., heads, width\] with width = 3, as in `memory`"):
        address(jnp.zeros((5, 3)), jnp.zeros((1, 5)), addressing(3, width=4))
    with pytest.raises(ValueError, match="`slots` must be at least 2 `reach` \\+ 1; got 4 and reach 2"):
        TuringMemory(4, slots=4, width=3, reach=2)
    with pytest.raises(ValueError, match="`width` must be a positive int"):
        TuringMemory(4, slots=4, width=0)
