"""Heads on meshes of several kinds of axes: Explicit beside Auto, and Manual ones inside of a `jax.shard_map`."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from tiers import rows

import jattn
from jattn import masks, scores
from jattn.layers import MultiHeadAttention, caches
from jattn.parallel import Heads

CAUSAL = masks.Causal()
DROPOUT = jattn.Dropout(0.5, jax.random.key(0))


def mesh_of(*kinds):
    return jax.make_mesh((2, 2), ("data", "model"), axis_types=kinds, devices=jax.devices()[:4])


def draw(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape).astype(np.float32))


QKV = draw(4, 5, 4, 4), draw(4, 5, 2, 4, seed=1), draw(4, 5, 2, 4, seed=2)


def close(got, want):
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "kinds", [(AxisType.Explicit, AxisType.Auto), (AxisType.Auto, AxisType.Explicit)], ids=["data", "model"]
)
@pytest.mark.parametrize("heads", [Heads("model", batch="data"), Heads("model"), Heads(None, batch="data")], ids=repr)
def test_one_axis_explicit_and_one_auto(kinds, heads):
    mesh = mesh_of(*kinds)
    heads = Heads(heads.axis, heads.batch, mesh)
    pieces: dict[str, Any] = dict(mask=CAUSAL & masks.Lengths(np.array([5, 3, 0, 4])), dropout=DROPOUT)

    def graded(attend):
        def loss(query, key, value):
            out = attend(query, key, value, **pieces)
            return (out**2).sum(), out

        return jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*QKV)

    (_, got), got_gradients = graded(heads.attention)
    (_, want), want_gradients = graded(jattn.attention)
    jax.tree.map(close, (got, got_gradients), (want, want_gradients))
    assert {name for name in got.sharding.spec if name} == {*heads.batch_axes(1), heads.axis} - {None}
    close(heads.attention(*QKV, **pieces), want)  # outside of `jit`


PAGES = caches.Paged(pages=6, page_size=2, slots=3)
MIXED = AxisType.Explicit, AxisType.Auto
EXPLICIT = (AxisType.Explicit,) * 2
GENERATING = {
    "contiguous": (EXPLICIT, caches.Contiguous(6), jax.jit, "data"),
    "rolling": (EXPLICIT, caches.Rolling(6), jax.jit, "data"),
    "paged": (EXPLICIT, PAGES, jax.jit, "data"),
    "heads alone": (EXPLICIT, caches.Contiguous(6), jax.jit, ()),
    "outside of jit": (EXPLICIT, caches.Contiguous(6), lambda function: function, "data"),
    "data explicit, model auto": (MIXED, caches.Contiguous(6), jax.jit, "data"),
    "data auto, model explicit": (MIXED[::-1], caches.Contiguous(6), jax.jit, "data"),
}


@pytest.mark.parametrize("name", rows(GENERATING, ["contiguous", "paged"]))
def test_a_layer_generates_from_inputs_that_are_not_split(name):
    """Tokens and the state are split as `parallel` says, whatever they were."""
    kinds, cache, compiled, batch = GENERATING[name]
    alone = MultiHeadAttention(8, 4, kv_heads=2, mask=CAUSAL, rotary=True)
    layer = dataclasses.replace(alone, parallel=Heads("model", batch, mesh_of(*kinds)))
    parameters, x = alone.init(jax.random.key(0)), draw(2, 6, 8)
    state: Any = layer.initial_state(parameters, (2,), cache=cache)
    if cache is PAGES:
        state = state.with_table(np.arange(6).reshape(2, 3))
    out, state = compiled(layer.prefill)(parameters, x[:, :4], state)
    rest = []
    for at in (4, 5):  # the second step begins with a state as XLA left it
        token, state = compiled(layer.step)(parameters, x[:, at], state)
        rest.append(np.asarray(token))
    close(np.concatenate([out, np.stack(rest, 1)], 1), jax.jit(alone)(parameters, x))


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    "cache", [caches.Contiguous(6), caches.Rolling(6), PAGES], ids=["contiguous", "rolling", "paged"]
)
def test_gradients_of_what_is_generated(cache):
    """JAX itself does not differentiate updates of arrays that are split over Explicit axes."""
    alone = MultiHeadAttention(8, 4, kv_heads=2, mask=CAUSAL)
    layer = dataclasses.replace(alone, parallel=Heads("model", "data", mesh_of(*EXPLICIT)))
    state: Any = layer.initial_state({}, (2,), cache=cache)
    if cache is PAGES:
        state = state.with_table(np.arange(6).reshape(2, 3))

    def generated(parameters, x):
        out, between = layer.prefill(parameters, x[:, :4], state)
        return jnp.sin(out).sum() + jnp.sin(layer.step(parameters, x[:, 4], between)[0]).sum()

    given = alone.init(jax.random.key(0)), draw(2, 5, 8)
    got = jax.jit(jax.grad(generated, (0, 1)))(*given)
    jax.tree.map(close, got, jax.jit(jax.grad(lambda p, x: jnp.sin(alone(p, x)).sum(), (0, 1)))(*given))


@pytest.mark.exhaustive
def test_cross_attention_generates_from_inputs_that_are_not_split():
    alone = MultiHeadAttention(8, 4, kv_heads=2, in_kv_features=6)
    layer = dataclasses.replace(alone, parallel=Heads("model", "data", mesh_of(*EXPLICIT)))
    parameters, x, y = alone.init(jax.random.key(0)), draw(2, 5, 8), draw(2, 3, 6)
    _, state = jax.jit(layer.prefill)(parameters, x[:, :4], layer.initial_state(parameters, key_inputs=y))
    close(jax.jit(layer.step)(parameters, x[:, 4], state)[0], jax.jit(alone)(parameters, x, y)[:, 4])


def inside(heads, kind, axes=("data",), **pieces):
    """The attention of `heads(mesh)` inside of a `jax.shard_map` that splits the batch."""
    mesh = mesh_of(kind, kind)
    arrays = [jax.device_put(one, NamedSharding(mesh, P("data"))) for one in QKV]

    def local(query, key, value, examples):
        given = {name: make(examples) if callable(make) else make for name, make in pieces.items()}
        return heads(mesh).attention(query, key, value, mask=CAUSAL, **given)

    examples = jax.device_put(jnp.arange(4), NamedSharding(mesh, P("data")))
    specs = (P("data"),) * 4
    run = jax.shard_map(local, mesh=mesh, in_specs=specs, out_specs=P("data"), axis_names=set(axes))
    return jax.jit(run)(*arrays, examples)


over_kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=["auto", "explicit"])


def of_context(mesh):
    del mesh
    return Heads("model")


@over_kinds
@pytest.mark.parametrize("heads", [lambda mesh: Heads("model", mesh=mesh), of_context], ids=["given", "context"])
def test_inside_of_a_shard_map_over_another_axis(heads, kind):
    close(inside(heads, kind), jattn.attention(*QKV, mask=CAUSAL))
    dropped = inside(heads, kind, dropout=lambda own: DROPOUT.replace(heads=np.arange(4), examples=own))
    close(dropped, jattn.attention(*QKV, mask=CAUSAL, dropout=DROPOUT))


@over_kinds
@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        (dict(dropout=DROPOUT), "`dropout` needs to know inside `jax.shard_map` which part of the call a device has"),
        (dict(scores=(lambda s, b, h, q, k: s + b,)), "the function reads its batch index, which is not known inside"),
        (dict(scores=(scores.ALiBi(np.ones(4)),), axes=("data", "model")), "must not name mesh axis 'model' inside"),
    ],
    ids=["dropout", "batch index", "its own axis"],
)
def test_what_is_not_known_inside_of_a_shard_map(pieces, message, kind):
    with pytest.raises(ValueError, match=re.escape(message)):
        inside(of_context, kind, **pieces)


def test_the_batch_that_a_shard_map_already_splits():
    with pytest.raises(ValueError, match=r"must not name mesh axis 'data' inside of a `jax.shard_map` over it"):
        inside(lambda mesh: Heads("model", batch="data", mesh=mesh), AxisType.Auto)


def test_axes_that_the_mesh_lacks():
    mesh, layer = mesh_of(AxisType.Auto, AxisType.Auto), MultiHeadAttention(8, 4)
    parameters, x = layer.init(jax.random.key(0)), draw(2, 6, 8)
    wrong = Heads("heads", mesh=mesh)
    for run in (
        lambda: MultiHeadAttention(8, 4, parallel=wrong)(parameters, x),
        lambda: wrong.sum_over_heads(jnp.sum, (x,), (P(),), 1),
        lambda: wrong.key_axis(4),
    ):
        with pytest.raises(ValueError, match=r"`mesh` must have an axis 'heads'; its axes are \('data', 'model'\)"):
            run()


def test_heads_with_a_list_are_hashable():
    given: Any = ["data"]
    assert hash(Heads("model", batch=given)) == hash(Heads("model", batch=("data",)))


@jax.custom_jvp
def times_square(x, factor, count):
    return x * x * factor, count


@times_square.defjvp
def times_square_jvp(given, tangents):
    (x, factor, count), (dx, dfactor, dcount) = given, tangents
    return times_square(x, factor, count), (2 * x * factor * dx + x * x * dfactor, dcount)


@jax.custom_vjp
def clipped(x, limit):
    return jnp.minimum(x, limit), limit


clipped.defvjp(lambda x, limit: (clipped(x, limit), (x, limit)), lambda kept, taken: (3 * taken[0], 0.5 * taken[0]))


@pytest.mark.parametrize("how", ["heads", pytest.param("arrays", marks=pytest.mark.exhaustive)])
def test_functions_with_their_own_derivative(how):
    """JAX's, such as that of `relu`, and the caller's are the same on every device."""
    mesh = mesh_of(*EXPLICIT)
    attend: Any = Heads("model", "data", mesh).attention if how == "heads" else jattn.attention

    def loss(attend, query, key, value, weights):
        def score(s, q, k):
            squared, _ = times_square(s, weights[k], q)
            return (
                jax.nn.relu(s) + squared + clipped(s, weights[q])[0] + jax.lax.cond(k > 2, jax.nn.softplus, jnp.sin, s)
            )

        return (attend(query, key, value, scores=score) ** 2).sum()

    given = *QKV, draw(5, seed=3)
    split = given
    if how == "arrays":
        split = *(jax.device_put(one, NamedSharding(mesh, P("data", None, "model"))) for one in QKV), given[3]
    got = jax.jit(jax.grad(lambda *arrays: loss(attend, *arrays), (0, 1, 2, 3)))(*split)
    want = jax.jit(jax.grad(lambda *arrays: loss(jattn.attention, *arrays), (0, 1, 2, 3)))(*given)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)
