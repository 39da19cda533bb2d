"""Flax nnx's tools treat the layer like Flax's own, also if its pieces hold JAX arrays.

Each row does something to a layer and returns what can be compared. The pieces are such that nothing is changed by
them: windows of each head that are wider than the call, ALiBi of slope 0, a function that allows everything.
"""

import copy
import functools
import re
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint
import pytest
from flax import nnx
from tiers import rows

import jattn.nnx
from jattn import masks, normalizers, scores

HEADS, FEATURES, LENGTH = 4, 16, 6
X = jax.random.normal(jax.random.key(0), (2, LENGTH, FEATURES))
EVERYWHERE = jnp.full(LENGTH, LENGTH)


def pieces() -> dict[str, Any]:
    wide = jnp.arange(HEADS) + LENGTH
    return dict(
        mask=masks.SlidingWindow(wide, wide) & masks.of(lambda q, k: k < EVERYWHERE[q]),
        scores=scores.ALiBi(jnp.zeros(HEADS)),
        normalizer=normalizers.Softmax(jnp.full(HEADS, -1e9)),  # a sink that takes nothing
    )


def ours(rngs, **options) -> Any:
    return jattn.nnx.MultiHeadAttention(
        FEATURES, HEADS, **pieces(), implementation="reference", learned="scores", rngs=rngs, **options
    )


def flaxes(rngs, **options) -> Any:
    options.setdefault("deterministic", False)
    return nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, rngs=rngs, **options)


def numbers(rngs):
    """The same parameters for both: Flax's, and nothing for what is learned beside them."""
    return nnx.state(flaxes(rngs), nnx.Param)


def make(kind, **options):
    layer = kind(nnx.Rngs(1), **options)
    nnx.update(layer, numbers(nnx.Rngs(0)))
    return layer


def loss(layer, x=X):
    return jnp.sin(layer(x)).sum()


def kernels(state):
    """The kernels and biases of a state of parameters or gradients, without what only ours has."""
    return {name: value for name, value in nnx.to_pure_dict(state).items() if name != "scores"}


def view(kind):
    layer = make(kind, dropout_rate=0.5)
    seen = nnx.view(layer, deterministic=True)
    assert float(jnp.abs(layer(X) - seen(X)).max()) > 1e-3, "the layer itself goes on dropping"
    return seen(X)


def view_of_an_unknown_name(kind):
    with pytest.raises(ValueError, match="determinstic"):
        nnx.view(make(kind), determinstic=True)


def evaluation(kind):
    layer = make(kind, dropout_rate=0.5)
    layer.eval()
    out = layer(X)
    layer.train()
    assert float(jnp.abs(layer(X) - out).max()) > 1e-3
    return out


def restored(kind):
    layer = make(kind, dropout_rate=0.5, deterministic=True)
    with tempfile.TemporaryDirectory() as folder, orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(f"{folder}/layer", nnx.split(layer)[1])
        checkpointer.wait_until_finished()
        abstract = nnx.eval_shape(lambda: kind(nnx.Rngs(2), dropout_rate=0.5, deterministic=True))
        graph, shapes = nnx.split(abstract)
        leaves = jax.tree.leaves(shapes)
        assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)
        here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), shapes)
        return nnx.merge(graph, checkpointer.restore(f"{folder}/layer", shapes))(X)


def table(kind):
    text = nnx.tabulate(make(kind, dropout_rate=0.5), X, console_kwargs={"width": 200})
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # bold and italics
    total = 4 * FEATURES**2 + 4 * FEATURES + (HEADS if kind is ours else 0)  # kernels, biases, slopes
    assert re.search(rf"MultiHeadAttention.*float32\[2,6,16\].* {total:,} ", text)


def filtered(kind):
    graph, params, rest = nnx.split(make(kind, dropout_rate=0.5, deterministic=True), nnx.Param, ...)
    assert kernels(params).keys() == {"query", "key", "value", "out"}
    return nnx.merge(graph, params, rest)(X)


def updated(kind):
    layer = make(kind)
    nnx.update(layer, jax.tree.map(lambda one: one / 2, nnx.state(layer, nnx.Param)))
    return nnx.clone(layer)(X)


def copied(kind):
    return copy.deepcopy(make(kind))(X)


def jitted(kind):
    layer = make(kind, dropout_rate=0.5)
    run = nnx.jit(lambda layer, x: layer(x))
    assert float(jnp.abs(run(layer, X) - run(layer, X)).max()) > 1e-3, "each call draws anew"
    return nnx.jit(lambda layer, x: layer(x))(make(kind), X)


def jitted_as_a_tree(kind):
    return jax.jit(lambda layer, x: layer(x))(make(kind), X)


def differentiated(kind):
    return kernels(nnx.jit(nnx.grad(loss))(make(kind)))


def rematerialized(kind):
    return kernels(nnx.jit(nnx.grad(lambda layer: nnx.remat(loss)(layer, X)))(make(kind)))


def trained(kind):
    layer = make(kind)
    optimizer = nnx.Optimizer(layer, optax.sgd(0.1), wrt=nnx.Param)

    @nnx.jit
    def step(layer, optimizer):
        optimizer.update(layer, nnx.grad(loss)(layer))

    step(layer, optimizer)
    return kernels(nnx.state(layer, nnx.Param))


def stack(kind, **options):
    """Three layers in one, with the parameters of three of Flax's."""

    def several(make):
        return nnx.split_rngs(splits=3)(nnx.vmap(make, in_axes=0, out_axes=0))

    layers = several(functools.partial(kind, **options))(nnx.Rngs(1))
    nnx.update(layers, nnx.state(several(flaxes)(nnx.Rngs(0)), nnx.Param))
    return layers


def vmapped(kind):
    return nnx.jit(nnx.vmap(lambda layer, x: layer(x), in_axes=(0, None)))(stack(kind), X)


def scanned(kind):
    @nnx.jit
    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, layer):
        return x + layer(x)

    dropping = stack(kind, dropout_rate=0.5)
    assert float(jnp.abs(run(X, dropping) - run(X, dropping)).max()) > 1e-3
    return run(X, stack(kind))


def sharded(kind):
    """The names of mesh axes that an initializer gives, in the metadata, the specs and the arrays."""
    mesh = jax.make_mesh((4,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "model", None))
    with jax.set_mesh(mesh):
        layer = kind(nnx.Rngs(0), kernel_init=init)
    assert layer.query.kernel[...].sharding.spec[1] == "model"
    specs = nnx.get_partition_spec(nnx.state(layer, nnx.Param))
    assert specs["query"]["kernel"].get_value() == jax.sharding.PartitionSpec(None, "model", None)


TOOLS = (
    view, view_of_an_unknown_name, evaluation, restored, table, filtered, updated, copied, jitted, jitted_as_a_tree,
    differentiated, rematerialized, trained, vmapped, scanned,
)  # fmt: skip


FURTHER = {view, table, copied, jitted_as_a_tree, rematerialized, trained, vmapped}


@pytest.mark.parametrize(
    "tool", rows(TOOLS, {tool.__name__ for tool in set(TOOLS) - FURTHER}, lambda tool: tool.__name__)
)
def test_as_with_the_layer_of_flax(tool):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), tool(ours), tool(flaxes))


def test_sharding_metadata():
    for kind in (ours, flaxes):
        sharded(kind)


def test_explain_calls_of_a_model_in_training():
    """As an argument, a method, a closure, a global; its own random keys stay where they are."""
    layer = make(ours, dropout_rate=0.5)
    count = int(layer.rngs.count[...])
    ways = [
        (layer, X),
        (layer.__call__, X),
        (lambda x: layer(x), X),
        (lambda layer, x: layer(x), layer, X),
        (functools.partial(lambda x, layer: layer(x), layer=layer), X),
        (nnx.jit(lambda layer, x: layer(x)), layer, X),
        (lambda layers, x: layers[0](x), [layer], X),
    ]
    for function, *arguments in ways:
        (one,) = jattn.explain_calls(function, *arguments)
        assert one.implementation == "reference"
    assert len(jattn.explain_calls(nnx.grad(loss), layer)) == 1
    assert int(layer.rngs.count[...]) == count


def test_with_pieces_shares_the_parameters():
    layer = make(ours)
    causal = layer.with_pieces(mask=masks.Causal())
    nnx.update(layer, jax.tree.map(lambda one: one / 2, nnx.state(layer, nnx.Param)))
    plain = nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, rngs=nnx.Rngs(0))
    nnx.update(plain, nnx.state(layer, nnx.All(nnx.Param, nnx.Not(nnx.PathContains("scores")))))
    np.testing.assert_allclose(causal(X), plain(X, mask=jnp.tril(jnp.ones((LENGTH, LENGTH)))), rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(layer(X), plain(X), rtol=2e-5, atol=2e-5)
    with pytest.raises(ValueError, match="pieces are mask, similarity, scores, normalizer; got"):
        layer.with_pieces(masks=None)
