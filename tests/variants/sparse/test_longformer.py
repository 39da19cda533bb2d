"""Longformer: the mask pair by pair, and the layer against a dense reimplementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from pattern_oracle import attend, dense, written_out
from variant_layers import check_layer

import jattn
from jattn import masks
from jattn.variants.sparse import Longformer, global_flags, longformer_mask

LENGTH = 13


def near(h, i, j):
    width, step = (2, 1)[h], (1, 3)[h]
    return abs(i - j) <= width * step and (i - j) % step == 0


@pytest.mark.parametrize("causal", [False, True])
def test_mask_is_its_definition(causal):
    tokens = (4, 9)

    def pair(h, i, j):
        return (near(h, i, j) or i in tokens or j in tokens) and (j <= i or not causal)

    mask = longformer_mask((2, 1), dilation=(1, 3), global_tokens=tokens, length=LENGTH, causal=causal)
    np.testing.assert_array_equal(dense(mask, LENGTH, heads=2), written_out(LENGTH, 2, pair))


def rebuilt(parameters, inputs, flags, tokens, causal):
    """The layer with dense masks, for one sequence of which the first `tokens` are no padding."""
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    inputs = np.asarray(inputs, np.float64)
    length = len(inputs)
    inside = np.arange(length) < tokens
    limit = inside[:, None] & inside
    if causal:
        limit = limit & np.tril(np.ones((length, length), bool))

    def heads(prefix, allowed):
        def project(name):
            one = parameters[prefix + name]
            return np.einsum("nf,fhd->nhd", inputs, one["kernel"]) + one["bias"]

        return attend(project("query"), project("key"), project("value"), allowed & limit)

    local = heads("", written_out(length, 2, lambda h, i, j: near(h, i, j) or flags[j]))
    every = heads("global_", np.ones((2, length, length), bool))
    mixed = np.where(flags[:, None, None], every, local)
    out = parameters["out"]
    return np.einsum("qhd,hdf->qf", mixed, out["kernel"]) + out["bias"]


@pytest.mark.parametrize("causal", [False, True])
def test_layer_is_a_dense_rebuild(causal):
    layer = Longformer(6, heads=2, reach=(2, 1), dilation=(1, 3), causal=causal)
    parameters = layer.init(jax.random.key(0))
    (inputs,) = normal(0, (2, LENGTH, 6))
    tokens, globals_ = np.array([LENGTH, 10]), np.array([[0, 7], [3, -1]])
    limit = masks.Lengths(tokens, tokens)
    got = jax.jit(lambda p, x: layer(p, x, global_tokens=globals_, mask=limit))(parameters, inputs)
    flags = global_flags(globals_, LENGTH)
    for index in range(2):
        want = rebuilt(parameters, inputs[index], flags[index], tokens[index], causal)
        np.testing.assert_allclose(got[index], want, atol=2e-6)
    np.testing.assert_array_equal(got[1, 10:], np.broadcast_to(parameters["out"]["bias"], (3, 6)))


@pytest.mark.exhaustive
def test_traced_flags_per_batch_and_no_globals():
    layer = Longformer(4, heads=2, reach=1)
    parameters = layer.init(jax.random.key(0))
    inputs = jnp.asarray(normal(0, (2, 7, 4))[0])
    flags = global_flags([[0], [5]], 7)
    run = jax.jit(lambda flags: layer(parameters, inputs, global_tokens=flags))
    np.testing.assert_allclose(run(jnp.asarray(flags)), layer(parameters, inputs, global_tokens=flags), atol=1e-6)
    positions = run(jnp.array([[0], [5]]))
    np.testing.assert_allclose(positions, run(jnp.asarray(flags)), atol=1e-6)
    none = run(jnp.zeros((1, 7), bool))
    np.testing.assert_allclose(none, jax.jit(lambda x: layer(parameters, x))(inputs), atol=1e-6)


def test_as_a_module():
    layer = Longformer(4, heads=2, reach=1, use_bias=False)
    check_layer(layer, jnp.asarray(normal(1, (2, 7, 4))[0]), global_tokens=np.array([2]))


def test_tiles_are_skipped_head_by_head():
    shape = jax.ShapeDtypeStruct((4096, 2, 8), "float32")
    mask = longformer_mask(128, dilation=(1, 8), global_tokens=[0], length=4096)
    plan = jattn.explain(shape, shape, shape, mask=mask, implementation=jattn.implementations.Tiled(128, 128)).plan
    near_head, far_head = (plan.states != 0).sum((-1, -2))
    assert near_head == (32 + 2 * 31) + 2 * 30
    assert near_head < far_head < 32 * 32 * 0.6


def test_bad_input_is_refused():
    layer = Longformer(4, heads=2, reach=1)
    with pytest.raises(ValueError, match=r"`global_tokens` must have shape \[..., 9\]; got \(1,\)"):
        layer(layer.init(jax.random.key(0)), jnp.ones((9, 4)), global_tokens=[True])
    with pytest.raises(ValueError, match="`reach`"):
        Longformer(4, heads=2, reach=-1)
    with pytest.raises(ValueError, match="`dilation`"):
        longformer_mask(2, dilation=0)
    with pytest.raises(ValueError, match="`reach` must have one number for each of the 2 heads"):
        Longformer(4, heads=2, reach=(1, 2, 3))
    with pytest.raises(ValueError, match="`reach` must be an int, or a tuple with one for each head"):
        Longformer(4, heads=2, reach=[1, 2])
    with pytest.raises(ValueError, match="`features` must be a multiple of `heads`"):
        Longformer(5, heads=2, reach=1)
    with pytest.raises(ValueError, match="`length` must be given"):
        longformer_mask(2, global_tokens=[0])
    with pytest.raises(ValueError, match="must be positions from 0 to 6"):
        longformer_mask(2, global_tokens=[7], length=7)
    with pytest.raises(ValueError, match="`global_tokens` must be booleans"):
        global_flags(np.ones(3))
    with pytest.raises(ValueError, match=r"`global_tokens` must have shape \[..., 7\]; got \(6,\)"):
        Longformer(4, heads=2, reach=1)({}, jnp.ones((7, 4)), global_tokens=np.ones(6, bool))
    with pytest.raises(ValueError, match="`inputs` must have shape"):
        Longformer(4, heads=2, reach=1)({}, jnp.ones((7, 5)))
