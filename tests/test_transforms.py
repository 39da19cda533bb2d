"""Attention under JAX's transformations, of first order in every implementation and of higher in `reference`.

`jit`, `vmap`, nested and with any `in_axes`, are tested row by row in test_cases.py; settings and kinds of input, in
test_settings.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from measure import near, random

import jattn
from jattn import masks

TILES = jattn.implementations.Tiled(q_tile=8, k_tile=8)
BOTH = pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), TILES], ids=["reference", "tiled"]
)


def test_first_order():
    query, key, value = random((13, 2, 4), (13, 2, 4), (13, 2, 4))

    def loss(query):
        return (jattn.attention(query, key, value, mask=masks.Causal(), implementation=TILES) ** 2).sum()

    want = jax.jit(jax.grad(loss))(query)
    near(jax.jit(jax.grad(jax.checkpoint(loss)))(query), want)
    near(jax.jit(jax.grad(lambda q: jax.lax.scan(lambda c, _: (c, loss(q)), 0, None, 2)[1].sum()))(query), 2 * want)


@BOTH
def test_shard_map(implementation):
    mesh = jax.make_mesh((2,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    query, key, value = random((4, 13, 2, 4), (4, 13, 2, 4), (4, 13, 2, 4))
    spec = PartitionSpec("batch")

    def loss(query, key, value):
        run = jax.shard_map(
            lambda *a: jattn.attention(*a, mask=masks.Causal(), implementation=implementation),
            mesh=mesh,
            in_specs=(spec, spec, spec),
            out_specs=spec,
        )
        return (run(query, key, value) ** 2).sum()

    got = jax.jit(jax.value_and_grad(loss, (0, 1, 2)))(query, key, value)
    want = jax.jit(
        jax.value_and_grad(
            lambda *a: (jattn.attention(*a, mask=masks.Causal(), implementation="reference") ** 2).sum(), (0, 1, 2)
        )
    )(query, key, value)
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        near(have, wish, 2e-5)


@BOTH
def test_export(implementation):
    query, key, value = random((13, 2, 4), (13, 2, 4), (13, 2, 4))
    run = jax.jit(lambda *a: jattn.attention(*a, mask=masks.Causal(), implementation=implementation))
    exported = jax.export.export(run)(query, key, value)
    near(exported.call(query, key, value), run(query, key, value), 1e-6)


@pytest.mark.exhaustive
def test_of_higher_order_on_reference():
    query, key, value, tangent = random((5, 2, 3), (5, 2, 3), (5, 2, 3), (5, 2, 3))

    def loss(query):
        return (jattn.attention(query, key, value, mask=masks.Causal(), implementation="reference") ** 2).sum()

    def shifted(step):
        with jax.enable_x64(True):
            wide = [jnp.asarray(array, "float64") for array in (query, key, value, tangent)]

            def loss(query):
                out = jattn.attention(query, *wide[1:3], mask=masks.Causal(), implementation="reference")
                return (out**2).sum()

            return jax.tree.map(np.asarray, jax.value_and_grad(loss)(wide[0] + step * wide[3]))

    (above, gradient_above), (below, gradient_below) = shifted(1e-5), shifted(-1e-5)
    _, forward = jax.jvp(loss, (query,), (tangent,))
    near(forward, (above - below) / 2e-5, 1e-4)
    _, second = jax.jit(lambda: jax.jvp(jax.grad(loss), (query,), (tangent,)))()
    near(second, (np.asarray(gradient_above) - np.asarray(gradient_below)) / 2e-5, 1e-4)
