"""Inside `shard_map` each device runs the recurrence of its own batch or heads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from generative_layers import FEATURES, LAYERS, random_parameters
from jax.sharding import PartitionSpec
from recurrences import KINDS, inputs, run
from tiers import rows


def mesh():
    return jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        *(pytest.param(*row.values, "chunked", marks=row.marks) for row in rows(KINDS, ["bonus"])),
        *(pytest.param(kind, "scan", marks=pytest.mark.exhaustive) for kind in ("bonus", "gated delta")),
    ],
)
def test_batch(kind, form):
    both = [inputs(kind, 20, seed=seed) for seed in (0, 1)]
    fixed = {name: array for name, array in both[0].items() if array.shape[0] != 20}
    given = {name: np.stack([one[name] for one in both]) for name in both[0] if name not in fixed}
    segments = np.repeat([0, 1], [13, 7])

    def whole(given, fixed):
        return run({**given, **fixed}, implementation=form, chunk=8, segment_ids=segments)

    spread = jax.shard_map(
        whole, mesh=mesh(), in_specs=(PartitionSpec("data"), PartitionSpec()), out_specs=PartitionSpec("data")
    )

    def graded(function):
        def loss(given, fixed):
            out, state = function(given, fixed)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.sin(state))

        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(given, fixed)

    got, want = graded(spread), graded(whole)
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, wish, rtol=2e-5, atol=2e-5 * max(1, np.abs(wish).max()))


# One of each kind of state.
SOME = ("attention", "GLA, grouped, convolved", "RWKV-6", "Gated DeltaNet", "Performer", "Hyena", "AFT-local")


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(SOME, ["Gated DeltaNet"]))
def test_layers(name):
    """The whole, and prefill with a step behind it."""
    layer = LAYERS[name]
    parameters, inputs = random_parameters(layer), jax.random.normal(jax.random.key(0), (2, 6, FEATURES))

    def decode(parameters, inputs):
        out, state = layer.prefill(parameters, inputs[:, :5])
        return jnp.concatenate([out, layer.step(parameters, inputs[:, 5], state)[0][:, None]], 1)

    specs = {"in_specs": (PartitionSpec(), PartitionSpec("data")), "out_specs": PartitionSpec("data")}
    want, *found = jax.jit(
        lambda *given: (layer(*given), *(jax.shard_map(one, mesh=mesh(), **specs)(*given) for one in (layer, decode)))
    )(parameters, inputs)
    for got in found:
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
