"""The contract of layers that generate, and that any one can replace another in a block."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from flax import linen, nnx
from generative_layers import FEATURES, FEW, LAYERS, LENGTH, PACKED, random_parameters
from tiers import rows

import jattn.linen
import jattn.nnx
from jattn.layers.caches import Contiguous

BATCH = 2


@functools.cache
def prefill(name):
    """Compiled once for all tests of a layer."""
    return jax.jit(
        lambda parameters, inputs, segment_ids=None: LAYERS[name].prefill(
            parameters, inputs, None, segment_ids=segment_ids
        )
    )


def equal(got, want, atol=1e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=atol), got, want)


@pytest.mark.parametrize("name", rows(LAYERS, ["Hyena"]))
def test_every_split_is_the_whole(name):
    """At every s: the first s tokens and the rest at once, or one by one; outputs, and states behind each token."""
    layer = LAYERS[name]
    parameters, (inputs,) = random_parameters(layer), normal(1, (BATCH, LENGTH, FEATURES))

    def run(parameters, inputs):
        def token(state, x):
            out, after = layer.step(parameters, x, state)
            return after, (state, out)

        end, (states, steps) = jax.lax.scan(
            token, layer.initial_state(parameters, (BATCH,)), jnp.moveaxis(inputs, 1, 0)
        )
        states = [*(jax.tree.map(lambda leaf, s=s: leaf[s], states) for s in range(LENGTH)), end]
        return layer.prefill(parameters, inputs)[0], jnp.moveaxis(steps, 0, 1), states

    whole, steps, states = jax.jit(run)(parameters, inputs)
    equal(steps, whole)
    go_on = jax.jit(layer.prefill)  # a program for each length, of which both parts make use
    for s in range(LENGTH + 1):
        head, middle = go_on(parameters, inputs[:, :s], states[0])
        tail, end = go_on(parameters, inputs[:, s:], middle)
        equal(np.concatenate([head, tail], 1), whole)
        equal(middle, states[s])
        equal(end, states[-1])


@pytest.mark.parametrize("name", rows(PACKED, ["Gated DeltaNet"]))
def test_segments_are_sequences_apart(name):
    """In outputs and in the state that is left; what one holds, NaN too, does not reach the other."""
    parameters, (inputs,) = random_parameters(LAYERS[name]), normal(2, (BATCH, LENGTH, FEATURES))
    ids, half = np.repeat([3, 7], LENGTH // 2), LENGTH // 2
    out, state = prefill(name)(parameters, inputs, ids)
    swapped, _ = prefill(name)(parameters, np.concatenate([inputs[:, half:], inputs[:, :half]], 1), ids)
    equal(swapped, np.concatenate([out[:, half:], out[:, :half]], 1))
    whole, _ = prefill(name)(parameters, inputs)
    equal(out[:, :half], whole[:, :half])
    alone, left = jax.jit(LAYERS[name].prefill)(parameters, inputs[:, half:])
    equal(out[:, half:], alone)
    step = jax.jit(LAYERS[name].step)
    equal(step(parameters, inputs[:, 0], state)[0], step(parameters, inputs[:, 0], left)[0])
    inputs[:, 1] = np.nan
    equal(prefill(name)(parameters, inputs, ids)[0][:, half:], out[:, half:])
    inputs[:, half] = np.inf
    got, _ = prefill(name)(parameters, inputs, ids)
    equal(got[:, 0], out[:, 0])
    assert not np.isfinite(got[:, half:]).any()


@pytest.mark.parametrize("name", rows(LAYERS, ["Gated DeltaNet"]))
def test_nan_of_the_future_does_not_reach_the_past(name):
    """Neither outputs nor their gradients; and what comes behind it is NaN, through the state, too."""
    layer = LAYERS[name]
    parameters, (inputs,) = random_parameters(layer), normal(3, (BATCH, LENGTH, FEATURES))
    clean, _ = prefill(name)(parameters, inputs)
    spoiled = inputs.copy()
    spoiled[0, 3, 2] = np.nan
    out, state = prefill(name)(parameters, spoiled)
    equal(out[0, :3], clean[0, :3])
    equal(out[1], clean[1])
    if name != "Hyena, longer than its filters":
        assert np.isnan(out[0, 3:]).all()
    behind, _ = jax.jit(lambda p, x, state: layer.prefill(p, x, state))(parameters, inputs[:, :1], state)
    later, _ = jax.jit(layer.step)(parameters, inputs[:, 0], state)
    assert np.isnan(later[0]).all()
    assert np.isnan(behind[0]).all()
    equal(later[1], behind[1, 0])

    @jax.jit
    def gradient(inputs):
        return jax.grad(lambda x: jnp.sin(layer(parameters, x)[:, :3]).sum())(inputs)

    got, want = gradient(spoiled), gradient(inputs)
    equal(got[:, :3], want[:, :3])
    assert (want[:, :3] != 0).any()


@pytest.mark.parametrize("name", rows(LAYERS, FEW))
def test_a_state_that_does_not_fit_is_named(name):
    layer = LAYERS[name]
    parameters, (inputs,) = layer.init(jax.random.key(0)), normal(4, (BATCH, FEATURES))
    state = layer.initial_state(parameters, (BATCH,))
    first = jax.tree.leaves(state)[0]
    for wrong, got in ((first[:1], "float32 of shape"), (first.astype(jnp.bfloat16), "bfloat16")):
        leaves, tree = jax.tree.flatten(state)
        other = jax.tree.unflatten(tree, [wrong, *leaves[1:]])
        with pytest.raises(ValueError, match=rf"`state\..* must be float32 of shape .* got {got}"):
            layer.step(parameters, inputs, other)
        with pytest.raises(ValueError, match=rf"`state\..* must be float32 of shape .* got {got}"):
            layer.prefill(parameters, inputs[:, None], other)
    with pytest.raises(ValueError, match=f"`state` must be what `initial_state`.* of {type(layer).__name__} gave"):
        layer.step(parameters, inputs, first)
    with pytest.raises(ValueError, match=r"`inputs` must have shape .* features = 10"):
        layer.prefill(parameters, jnp.ones((3, 4)))


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in PACKED])
def test_segments_are_refused_where_they_would_leak(name):
    layer = LAYERS[name]
    with pytest.raises(ValueError, match=r"`segment_ids` are not for .*: give each sequence a row"):
        layer(layer.init(jax.random.key(0)), jnp.ones((4, FEATURES)), segment_ids=np.arange(4))


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(LAYERS, ["GLA, grouped, convolved"]))
def test_bfloat16(name):
    """The output keeps the dtype of inputs and parameters; the state is float32, and decoding keeps it so."""
    layer = LAYERS[name]
    parameters = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), random_parameters(layer))
    inputs = jnp.asarray(normal(5, (BATCH, LENGTH, FEATURES))[0], jnp.bfloat16)

    @jax.jit
    def run(parameters, inputs):
        out, state = layer.prefill(parameters, inputs)
        return out, state, *layer.step(parameters, inputs[:, 0], state)

    out, state, next_out, after = run(parameters, inputs)
    assert out.dtype == next_out.dtype == jnp.bfloat16
    assert all(leaf.dtype in (jnp.float32, jnp.int32) for leaf in jax.tree.leaves((state, after)))
    assert np.isfinite(np.asarray(out, np.float32)).all()
    wide, _ = prefill(name)(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), parameters), inputs.astype(jnp.float32))
    error = np.asarray(out, np.float32) - wide
    assert np.sqrt((error**2).mean() / (np.asarray(wide) ** 2).mean()) < 0.05


class Block(nnx.Module):
    """A block of a transformer: the mixer is whatever `make` makes, and nothing else depends on it."""

    def __init__(self, make, *, rngs):
        self.norms = nnx.List([nnx.RMSNorm(FEATURES, rngs=rngs) for _ in range(2)])
        self.mixer = make(rngs)
        self.inner = nnx.Linear(FEATURES, 2 * FEATURES, rngs=rngs)
        self.outer = nnx.Linear(2 * FEATURES, FEATURES, rngs=rngs)

    def __call__(self, x):
        return self.network(x + self.mixer(self.norms[0](x)))

    def network(self, x):
        return x + self.outer(nnx.gelu(self.inner(self.norms[1](x))))

    def step(self, x, state):
        mixed, state = self.mixer.step(self.norms[0](x), state)
        return self.network(x + mixed), state


class Model(nnx.Module):
    """Two blocks, each with its own cache."""

    def __init__(self, make, *, rngs):
        self.blocks = nnx.List([Block(make, rngs=rngs) for _ in range(2)])

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return x

    def initial_state(self, batch):
        return [block.mixer.initial_state(batch) for block in self.blocks]

    def step(self, x, states):
        after = []
        for block, state in zip(self.blocks, states, strict=True):
            x, state = block.step(x, state)
            after.append(state)
        return x, after


SOFTMAX: Any = dict(mask=jattn.masks.Causal(), cache=Contiguous(LENGTH))
MIXERS = {
    "softmax": lambda rngs: jattn.nnx.MultiHeadAttention(FEATURES, 2, **SOFTMAX, rngs=rngs),
    **{name: functools.partial(lambda layer, rngs: jattn.nnx.Layer(layer, rngs=rngs), LAYERS[name]) for name in LAYERS},
}


@pytest.mark.parametrize("name", rows(MIXERS, ["Gated DeltaNet"]))
def test_takes_the_place_of_multi_head_attention(name):
    """One line changes; the block is causal with each, and generates as it computes the whole."""
    model = Model(MIXERS[name], rngs=nnx.Rngs(0))
    definition, weights = nnx.split(model)
    (inputs,) = normal(6, (BATCH, LENGTH, FEATURES))

    @jax.jit
    def run(weights, inputs):
        model = nnx.merge(definition, weights)
        whole, front = model(inputs), model(inputs[:, :3])

        def token(states, x):
            x, states = model.step(x, states)
            return states, x

        _, steps = jax.lax.scan(token, model.initial_state((BATCH,)), jnp.moveaxis(inputs, 1, 0))
        return whole, front, jnp.moveaxis(steps, 0, 1)

    whole, front, steps = run(weights, inputs)
    equal(front, whole[:, :3])
    equal(steps, whole)


class LinenBlock(linen.Module):
    """The block of above in linen, with `Layer` or `MultiHeadAttention` as its mixer."""

    mixer: linen.Module

    @linen.compact
    def __call__(self, x, state=None):
        normed = linen.RMSNorm()(x)
        mixed, state = (self.mixer(normed), None) if state is None else self.mixer.step(normed, state)
        x = x + mixed
        inner = linen.gelu(linen.Dense(2 * FEATURES)(linen.RMSNorm()(x)))
        return x + linen.Dense(FEATURES)(inner), state


@pytest.mark.parametrize(
    "name", rows(["softmax", "RWKV-6", "GLA, grouped, convolved", "Hedgehog", "AFT-local"], ["softmax"])
)
def test_takes_its_place_in_linen(name):
    mixer = (
        jattn.linen.MultiHeadAttention(FEATURES, 2, **SOFTMAX) if name == "softmax" else jattn.linen.Layer(LAYERS[name])
    )
    block = LinenBlock(mixer)
    (inputs,) = normal(7, (BATCH, LENGTH, FEATURES))
    variables = jax.jit(block.init)(jax.random.key(0), inputs)
    whole, _ = jax.jit(block.apply)(variables, inputs)
    equal(jax.jit(block.apply)(variables, inputs[:, :3])[0], whole[:, :3])
    state = mixer.apply({"params": variables["params"]["mixer"]}, (BATCH,), method="initial_state")
    step = jax.jit(block.apply)
    for t in range(LENGTH):
        out, state = step(variables, inputs[:, t], state)
        equal(out, whole[:, t])
