"""Flax linen's tools treat the layer like Flax's own, also if its pieces hold JAX arrays.

As in `tests/nnx/test_tools.py`, the pieces change nothing, and both layers have the same parameters.
"""

import functools
import re
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn.linen
from jattn import masks, scores

HEADS, FEATURES, LENGTH = 4, 16, 6
RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, LENGTH, FEATURES)).astype(np.float32)
WIDE = jnp.arange(HEADS) + LENGTH
EVERYWHERE = jnp.full(LENGTH, LENGTH)
PIECES = dict(
    mask=masks.SlidingWindow(WIDE, WIDE) & masks.of(lambda q, k: k < EVERYWHERE[q]),
    scores=scores.ALiBi(jnp.zeros(HEADS)),
)


def ours(wrap: Any = lambda module: module, **options) -> Any:
    return wrap(jattn.linen.MultiHeadAttention)(q_heads=HEADS, **PIECES, implementation="reference", **options)


def flaxes(wrap: Any = lambda module: module, **options) -> Any:
    return wrap(nn.MultiHeadAttention)(HEADS, **options)


def variables(*stacked):
    """Of both layers, made in NumPy: importing a test compiles nothing."""
    declared = jax.eval_shape(flaxes().init, jax.random.key(0), X)
    return jax.tree.map(lambda one: RANDOM.normal(0, 0.2, (*stacked, *one.shape)).astype(np.float32), declared)


VARIABLES, STACKED = variables(), variables(3)


def loss(module, variables, x=X):
    return jnp.sin(module.apply(variables, x)).sum()


class Wrapped(nn.Module):
    """A module in which the layer stands, transformed, under the name `layer`."""

    kind: Any
    wrap: Any

    @nn.compact
    def __call__(self, x):
        return self.kind(self.wrap, name="layer")(x)


def within(wrap, kind):
    """The gradient of the layer inside another module, transformed by `wrap`."""
    module = Wrapped(kind, wrap)
    return jax.jit(jax.value_and_grad(functools.partial(loss, module)))({"params": {"layer": VARIABLES["params"]}})


def shapes(kind):
    return jax.tree.map(jnp.shape, jax.eval_shape(kind().init, jax.random.key(0), X))


def table(kind):
    text = kind().tabulate(jax.random.key(0), X, console_kwargs={"width": 200})
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert re.search(r"MultiHeadAttention.*float32\[2,6,16\]", text) and "Total Parameters: 1,088" in text


def rematerialized(kind):
    return within(nn.remat, kind)


def jitted(kind):
    return within(nn.jit, kind)


def mapped(kind):
    """`map_variables`: every kernel halved on its way in."""
    halve = functools.partial(jax.tree.map, lambda one: one / 2)
    return within(lambda module: nn.map_variables(module, "params", trans_in_fn=halve), kind)


def vmapped(kind):
    several = functools.partial(
        nn.vmap, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=3
    )
    return jax.jit(kind(several).apply)(STACKED, X)


def scanned(kind):
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + kind(name="layer")(x), None

    run: Any = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": True}, length=3)()
    return jax.jit(run.apply)({"params": {"layer": STACKED["params"]}}, X, None)[0]


def bound(kind):
    return kind().bind(VARIABLES)(X)


def lifted(kind):
    """As a module of nnx."""
    from flax import nnx

    layer = nnx.bridge.ToNNX(kind(), rngs=nnx.Rngs(0)).lazy_init(X)
    return jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(layer, nnx.Param)))


def captured(kind):
    out = kind().apply(VARIABLES, X, capture_intermediates=lambda module, _: module.name is None)[1]
    return out["intermediates"]["__call__"]


TOOLS = (shapes, table, rematerialized, jitted, mapped, vmapped, scanned, bound, lifted, captured)


def test_width():
    """Another width than the parameters have is refused in the words of Flax."""
    for kind in (ours, flaxes):
        with pytest.raises(flax.errors.ScopeParamShapeError, match="/query"):
            kind().apply(VARIABLES, X[..., :8])


FURTHER = {table, rematerialized, mapped, vmapped, lifted}


@pytest.mark.parametrize(
    "tool", rows(TOOLS, {tool.__name__ for tool in set(TOOLS) - FURTHER}, lambda tool: tool.__name__)
)
def test_as_with_the_layer_of_flax(tool):
    def close(a, b):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)

    jax.tree.map(close, tool(ours), tool(flaxes))


def test_partition_metadata():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model", None))
    for kind in (ours, flaxes):
        specs = nn.get_partition_spec(kind(kernel_init=init).init(jax.random.key(0), X))["params"]
        assert specs["query"]["kernel"] == jax.P(None, "model", None)


def test_a_mask_at_the_call_restricts():
    causal, near = ours().clone(mask=masks.Causal()), masks.SlidingWindow(1, 1)
    both = causal.clone(mask=masks.SlidingWindow(1, 0))
    np.testing.assert_allclose(causal.apply(VARIABLES, X, mask=near), both.apply(VARIABLES, X), rtol=2e-5, atol=2e-5)
