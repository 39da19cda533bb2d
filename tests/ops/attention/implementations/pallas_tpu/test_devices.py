"""The kernel on the four devices of a v5e host: which calls run it, and what the devices tell each other.

Compiled by libtpu; nothing runs.
"""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from tpu import needs_libtpu

import jattn
from jattn import masks, scores
from jattn.benchmarks.tpu.compiler import devices
from jattn.parallel import Heads

pytestmark = needs_libtpu

E, A = AxisType.Explicit, AxisType.Auto
BATCHES, HEADS, BOTH, NEITHER = P("x"), P(None, None, "y"), P("x", None, "y"), P()
COLLECTIVE = re.compile(r"(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)[\w-]*\(")


def mesh_of(kinds):
    return Mesh(devices("v5e").reshape(2, 2), ("x", "y"), axis_types=kinds)


def compiled(function, mesh, spec, *pieces):
    """The HLO of the output and of the gradients of query, key and value."""

    def gradients(query, key, value, *pieces):
        out, pull = jax.vjp(lambda *arrays: function(*arrays, *pieces), query, key, value)
        return out, pull(out)

    arrays = [((4, 256, 8, 128), spec), ((4, 256, 4, 128), spec), ((4, 256, 4, 128), spec), *pieces]
    given = [
        jax.ShapeDtypeStruct(shape, jnp.int32 if len(shape) == 2 else jnp.bfloat16, sharding=NamedSharding(mesh, spec))
        for shape, spec in arrays
    ]
    return jax.jit(gradients).lower(*given).compile().as_text()


def attend(query, key, value):
    return jattn.attention(query, key, value, mask=masks.Causal())


def with_pieces(query, key, value, ids, slopes):
    mask = masks.Causal() & masks.SameSegment(ids)
    return jattn.attention(query, key, value, mask=mask, scores=scores.ALiBi(slopes.astype(jnp.float32)))


def has_kernels(text):
    return "jattn_forward" in text and "jattn_backward" in text


@pytest.mark.parametrize(
    "kinds, spec",
    [
        ((E, E), BOTH),
        pytest.param((E, E), BATCHES, marks=pytest.mark.exhaustive),
        pytest.param((E, E), HEADS, marks=pytest.mark.exhaustive),
        ((E, E), NEITHER),
    ],
)
def test_explicit_axes(kinds, spec):
    mesh = mesh_of(kinds)
    text = compiled(with_pieces, mesh, spec, ((4, 256), P(spec[0] if spec else None)), ((8,), P(*spec[2:])))
    assert has_kernels(text)
    assert not COLLECTIVE.findall(text)


@pytest.mark.exhaustive
def test_vmap_over_a_split_axis():
    text = compiled(jax.vmap(attend), mesh_of((E, E)), BATCHES)
    assert has_kernels(text)
    assert not COLLECTIVE.findall(text)


def test_heads_name_auto_axes():
    mesh = mesh_of((A, A))
    heads = Heads("y", batch="x", mesh=mesh)
    text = compiled(lambda *arrays: heads.attention(*arrays, mask=masks.Causal()), mesh, BOTH)
    assert has_kernels(text)
    assert not COLLECTIVE.findall(text)


@pytest.mark.exhaustive
def test_a_users_shard_map():
    mesh = mesh_of((A, A))
    text = compiled(jax.shard_map(attend, mesh=mesh, in_specs=BOTH, out_specs=BOTH), mesh, BOTH)
    assert has_kernels(text)
    assert not COLLECTIVE.findall(text)


@pytest.mark.parametrize("kinds", [(A, A), pytest.param((E, A), marks=pytest.mark.exhaustive)])
def test_xla_divides_loops_and_no_kernel(kinds):
    mesh = mesh_of(kinds)
    text = compiled(attend, mesh, BATCHES)
    assert "jattn_forward" not in text
    assert not COLLECTIVE.findall(text)
    array = jax.ShapeDtypeStruct((4, 256, 8, 128), jnp.bfloat16, sharding=NamedSharding(mesh, BATCHES))
    explained = jattn.explain(array, array, array, target="tpu v5e")
    assert explained.implementation == "tiled"
    assert "XLA divides this program over" in explained.reasons["pallas_tpu"]
    with pytest.raises(jattn.Unsupported, match=r"name the axes with `jattn.parallel.Heads`"):
        compiled(lambda *arrays: jattn.attention(*arrays, implementation="pallas_tpu"), mesh, BATCHES)


@pytest.mark.exhaustive
def test_checkpoint_and_scan():
    """Twelve layers as one loop that recomputes each layer."""
    one = NamedSharding(Mesh(devices("v5e")[:1], ("device",)), P())
    given = jax.ShapeDtypeStruct((1, 256, 4, 128), jnp.bfloat16, sharding=one)

    def loss(x):
        layer = jax.checkpoint(lambda x, _: (attend(x, x, x), None))
        return jax.lax.scan(layer, x, length=12)[0].astype(jnp.float32).sum()

    text = jax.jit(jax.grad(loss)).lower(given).compile().as_text()
    assert text.count("jattn_forward") >= 2  # also in the backward pass
    assert "jattn_backward" in text
