"""Compressive memory: what is attended to, what is compressed, and where each gradient goes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import close, normal
from variant_layers import check_layer

from jattn.variants.memory import Compressive

LAYER = Compressive(6, heads=2, memory_len=4, compressed_len=3, rate=2, head_dim=4)


def setup(length=12):
    parameters = LAYER.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    parameters = jax.tree.map(lambda x: x + rng.normal(scale=0.3, size=x.shape).astype(np.float32), parameters)
    (inputs,) = normal(0, (2, length, 6))
    return parameters, jnp.asarray(inputs)


@functools.partial(jax.jit, static_argnames="size")
def run(parameters, inputs, size=4):
    memory, outs, losses, memories = None, [], [], []
    for start in range(0, inputs.shape[1], size):
        out, memory, loss = LAYER(parameters, inputs[:, start : start + size], memory)
        outs.append(out)
        losses.append(loss)
        memories.append(memory)
    return outs, losses, memories


def attend(parameters, inputs, before):
    """Transformer-XL of one example, pair by pair, with R = [sin, cos]."""
    p = {
        name: np.asarray(leaf["kernel"] if isinstance(leaf, dict) else leaf, float) for name, leaf in parameters.items()
    }
    context = np.concatenate([before, inputs])
    q = np.einsum("tf,fhd->thd", inputs, p["query"])
    k, v = (np.einsum("tf,fhd->thd", context, p[name]) for name in ("key", "value"))
    out = np.zeros_like(q)
    for i in range(len(inputs)):
        at = len(before) + i
        angles = (at - np.arange(at + 1))[:, None] * 10000.0 ** (-np.arange(3) / 3)
        distance = np.concatenate([np.sin(angles), np.cos(angles)], -1) @ p["position"].reshape(6, 8)
        scores = np.einsum("hd,jhd->hj", q[i] + p["content_bias"], k[: at + 1])
        scores += np.einsum("hd,jhd->hj", q[i] + p["position_bias"], distance.reshape(-1, 2, 4))
        weights = np.exp(scores / 2)
        weights /= weights.sum(-1, keepdims=True)
        out[i] = np.einsum("hj,jhd->hd", weights, v[: at + 1])
    return np.einsum("thd,hdf->tf", out, p["out"])


def compressed(parameters, states):
    groups = np.asarray(states, float).reshape(-1, 2 * 6)
    return groups @ np.asarray(parameters["compress"]["kernel"], float).reshape(12, 6) + np.asarray(
        parameters["compress"]["bias"], float
    )


def test_segments_attend_compressed_then_recent_then_themselves():
    parameters, inputs = setup(16)
    outs, _, memories = run(parameters, inputs)
    assert [memory.filled.tolist() for memory in memories] == [[0, 4], [2, 4], [3, 4], [3, 4]]
    for b in range(2):
        x = np.asarray(inputs[b], float)
        made = compressed(parameters, x)
        close(outs[0][b], attend(parameters, x[:4], x[:0]), 1e-5)
        close(outs[1][b], attend(parameters, x[4:8], x[:4]), 1e-5)
        close(outs[2][b], attend(parameters, x[8:12], np.concatenate([made[:2], x[4:8]])), 1e-5)
        # The fourth segment sees the last three of four compressed states.
        close(outs[3][b], attend(parameters, x[12:], np.concatenate([made[1:4], x[8:12]])), 1e-5)


@pytest.mark.exhaustive
def test_short_segments_fill_the_memory_first():
    parameters, inputs = setup(8)
    _, losses, memories = run(parameters, inputs, size=2)
    assert [memory.filled.tolist() for memory in memories] == [[0, 2], [0, 4], [1, 4], [2, 4]]
    np.testing.assert_array_equal(memories[-1].states, inputs[:, 4:8])
    for b in range(2):
        close(memories[-1].compressed[b, 1:], compressed(parameters, inputs[b, :4]), 1e-5)
    np.testing.assert_array_equal(losses[0], 0)
    np.testing.assert_array_equal(losses[1], 0)
    assert (np.asarray(losses[2]) > 0).all()


def test_loss_is_its_definition():
    parameters, inputs = setup(8)
    _, losses, _ = run(parameters, inputs)
    kernels = {name: np.asarray(parameters[name]["kernel"], float) for name in ("query", "key", "value")}
    for b in range(2):
        x = np.asarray(inputs[b], float)

        def read(states, queries=x[4:8]):
            q = np.einsum("tf,fhd->thd", queries, kernels["query"])
            k, v = (np.einsum("tf,fhd->thd", states, kernels[name]) for name in ("key", "value"))
            weights = np.exp(np.einsum("ihd,jhd->hij", q, k) / 2)
            return np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), v)

        apart = read(x[:4]) - read(compressed(parameters, x[:4]))
        close(losses[1][b], np.asarray((apart**2).mean()), 1e-5)


@pytest.mark.exhaustive
def test_the_loss_trains_the_convolution_alone_and_nothing_else_trains_it():
    parameters, inputs = setup()

    def total(which):
        def loss(parameters, inputs):
            outs, losses, _ = run(parameters, inputs)
            return sum(losses).sum() if which == "loss" else sum(jnp.sin(out).sum() for out in outs)

        return jax.jit(jax.grad(loss, (0, 1)))(parameters, inputs)

    gradients, to_inputs = total("loss")
    np.testing.assert_array_equal(to_inputs, 0)
    for name, gradient in gradients.items():
        for leaf in jax.tree.leaves(gradient):
            assert np.any(leaf) == (name == "compress"), name
    gradients, _ = total("outputs")
    for name, gradient in gradients.items():
        for leaf in jax.tree.leaves(gradient):
            assert np.any(leaf) == (name != "compress"), name


@pytest.mark.exhaustive
def test_training_on_the_loss_reconstructs_better():
    parameters, inputs = setup()
    value = jax.jit(jax.value_and_grad(lambda parameters: sum(run(parameters, inputs)[1]).sum()))
    first, gradient = value(parameters)
    for _ in range(30):
        parameters = jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradient)
        last, gradient = value(parameters)
    assert last < 0.7 * first


@pytest.mark.exhaustive
def test_as_a_module():
    parameters, inputs = setup()
    _, memory, _ = jax.jit(LAYER.__call__)(parameters, inputs[:, :4])
    check_layer(LAYER, inputs[:, 4:8], memory)


def test_bad_input_is_named():
    parameters, inputs = setup()
    with pytest.raises(ValueError, match="`memory_len` must be a multiple of `rate`"):
        Compressive(6, heads=2, memory_len=4, compressed_len=3, rate=3)
    with pytest.raises(ValueError, match="`compressed_len` must be a positive int"):
        Compressive(6, heads=2, memory_len=4, compressed_len=0, rate=2)
    for length in (3, 6):
        with pytest.raises(ValueError, match=f"multiple of `rate` = 2 and at most 4 .* got {length}"):
            LAYER(parameters, inputs[:, :length])
    with pytest.raises(ValueError, match="features = 6"):
        LAYER(parameters, inputs[..., :5])
    _, memory, _ = LAYER(parameters, inputs[:, :4])
    with pytest.raises(ValueError, match=r"`states` must have shape"):
        LAYER(parameters, inputs[:, :4], memory._replace(states=memory.states[:, :3]))


def test_an_empty_segment_changes_nothing():
    parameters, inputs = setup()
    _, memory, _ = LAYER(parameters, inputs[:, :4])
    out, after, loss = LAYER(parameters, inputs[:, :0], memory)
    assert out.shape == (2, 0, 6)
    np.testing.assert_array_equal(loss, 0)
    jax.tree.map(np.testing.assert_array_equal, after, memory)
