"""The nnx layer equals Flax's own with the same weights, and works under nnx's transforms."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jattn.nnx
from jattn import masks, normalizers, positions, scores
from jattn.parallel import Heads

BATCH, LENGTH, HEADS, FEATURES = 2, 6, 8, 16
X = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, FEATURES))
Y = jax.random.normal(jax.random.key(1), (BATCH, LENGTH + 3, FEATURES))


def layer(**arguments):
    arguments.setdefault("implementation", "reference")  # quick without `jit`; the implementations are tested elsewhere
    return jattn.nnx.MultiHeadAttention(FEATURES, HEADS, **arguments, rngs=nnx.Rngs(3))


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


def loss(layer, *inputs, **arguments):
    out = layer(*inputs, **arguments)
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()


@nnx.jit
def call(layer, *inputs, **arguments):
    return layer(*inputs, **arguments)


@pytest.mark.parametrize(("kv_heads", "cross"), [pytest.param(8, False, marks=pytest.mark.exhaustive), (2, True)])
def test_equals_flax_with_the_same_weights(kv_heads, cross):
    inputs = (X, Y) if cross else (X,)
    ours = layer(kv_heads=kv_heads, mask=None if cross else masks.Causal())
    flax = nnx.MultiHeadAttention(
        HEADS, FEATURES, num_kv_heads=kv_heads, bias_init=nnx.initializers.normal(), decode=False, rngs=nnx.Rngs(9)
    )
    nnx.update(ours, nnx.state(flax, nnx.Param))
    arguments = {} if cross else {"mask": linen.make_causal_mask(X[..., 0])}

    def value_and_gradients(layer, **arguments):
        both = nnx.value_and_grad(functools.partial(loss, **arguments), argnums=(0, 1))
        value, (of_layer, of_inputs) = nnx.jit(both)(layer, *inputs)
        return call(layer, *inputs, **arguments), value, nnx.to_pure_dict(of_layer), of_inputs

    close(value_and_gradients(ours), value_and_gradients(flax, **arguments))


def test_parameters_are_initialized_as_in_flax():
    ours, flax = layer(), nnx.MultiHeadAttention(HEADS, FEATURES, decode=False, rngs=nnx.Rngs(3))
    shapes = [jax.tree.map(jnp.shape, nnx.to_pure_dict(nnx.state(one, nnx.Param))) for one in (ours, flax)]
    assert shapes[0] == shapes[1]
    wide = jattn.nnx.MultiHeadAttention(512, 8, head_dim=16, rngs=nnx.Rngs(0))
    assert float(wide.query.kernel[...].std()) == pytest.approx(512**-0.5, rel=0.05)
    assert float(wide.out.kernel[...].std()) == pytest.approx(128**-0.5, rel=0.05)
    assert float(jnp.abs(wide.out.bias[...]).max()) == 0
    boxed = nnx.with_partitioning(nnx.initializers.ones_init(), (None, "model", None))
    with jax.set_mesh(jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))):
        one = layer(kernel_init=boxed, out_kernel_init=nnx.initializers.zeros_init(), use_bias=False)
    assert one.query.kernel.shape == (FEATURES, HEADS, FEATURES // HEADS)
    assert one.query.kernel[...].sharding.spec[1] == "model"
    assert float(jnp.abs(one.out.kernel[...]).max()) == 0


def test_sizes_biases_norms_and_rotations():
    one = layer(kv_heads=2, head_dim=6, out_features=5, in_kv_features=9, use_bias=False, qk_norm=True, rotary=True)
    shapes = jax.tree.map(jnp.shape, one.arrays())
    assert shapes == {
        "query": {"kernel": (16, 8, 6)},
        "key": {"kernel": (9, 2, 6)},
        "value": {"kernel": (9, 2, 6)},
        "query_norm": {"scale": (6,)},
        "key_norm": {"scale": (6,)},
        "out": {"kernel": (8, 6, 5)},
    }
    assert call(one, X, Y[:, :LENGTH, :9]).shape == (BATCH, LENGTH, 5)
    gradients = nnx.jit(nnx.grad(loss))(one, X, Y[:, :LENGTH, :9])
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(gradients))
    slow = layer(head_dim=4, rotary=functools.partial(positions.rotary, base=100.0))
    assert float(jnp.abs(call(slow, X) - call(layer(head_dim=4, rotary=True), X)).max()) > 1e-4
    assert float(jnp.abs(call(layer(rotary=True), X) - call(layer(), X)).max()) > 1e-4


def test_a_mask_at_the_call_restricts():
    one, near = layer(mask=masks.Causal()), masks.SlidingWindow(1, 1)
    close(one(X, mask=near), layer(mask=masks.SlidingWindow(1, 0))(X))
    close(one.attention_weights(X, mask=near), layer(mask=masks.SlidingWindow(1, 0)).attention_weights(X))
    close(one.with_pieces(mask=near)(X), layer(mask=near)(X))
    close(layer()(X, mask=near), layer(mask=near)(X))
    close(one(X, positions=jnp.arange(LENGTH)[::-1]), layer(mask=lambda q, k: k >= q)(X))


def test_learned_pieces_are_parameters_and_others_are_not():
    sink, slopes = jnp.linspace(-1, 1, HEADS), scores.ALiBi.standard(HEADS)
    one = layer(normalizer=normalizers.Softmax(sink), scores=slopes, learned=["normalizer"], mask=masks.Causal())
    state = nnx.to_pure_dict(nnx.state(one, nnx.Param))
    close(state["normalizer"]["sink"], sink)
    assert "scores" not in state
    gradients = nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(one, X))
    want = jax.jit(
        jax.grad(lambda sink: loss(layer(normalizer=normalizers.Softmax(sink), scores=slopes, mask=masks.Causal()), X))
    )
    close(gradients["normalizer"]["sink"], want(sink))
    assert float(jnp.abs(gradients["normalizer"]["sink"]).min()) > 0
    everything = layer(scores=(scores.SoftCap(5.0), slopes), learned="scores")
    assert len(nnx.to_pure_dict(nnx.state(everything, nnx.Param))["scores"]) == 1
    for learned, message in [("normalizer", "holds no floating-point array"), ("masks", "`learned` must name pieces")]:
        with pytest.raises(ValueError, match=message):
            layer(learned=[learned])


def test_training_step_moves_the_learned_sink():
    one = layer(normalizer=normalizers.Softmax(jnp.zeros(HEADS)), learned=["normalizer"])
    before = one.normalizer.sink[...]

    @nnx.jit
    def step(one):
        gradients = nnx.grad(loss)(one, X)
        parameters = nnx.state(one, nnx.Param)
        nnx.update(one, jax.tree.map(lambda p, g: p - 0.1 * g, parameters, gradients))

    step(one)
    assert float(jnp.abs(one.normalizer.sink[...] - before).max()) > 0


def test_known_arrays_stay_known_under_jit():
    seen = []

    class Looks(jattn.Implementation):
        name = "looks"

        def refuses(self, call):
            seen.append(jax.tree.leaves(call.pieces.mask))
            return "it only looks"

        def run(self, call, query, key, value):
            raise AssertionError

        def describe(self, call):
            return None, ""

    known, traced = np.ones((1, 2, 2), bool), jnp.ones((BATCH, LENGTH), int)
    one = layer(mask=masks.Blocks(known, 4) & masks.SameSegment(traced), implementation=Looks())
    with pytest.raises(jattn.Unsupported):
        nnx.jit(lambda one, x: one(x))(one, X)
    kinds = [isinstance(leaf, np.ndarray) for leaf in seen[0]]
    assert kinds == [True, False, False]
    close(call(layer(mask=masks.Blocks(known, 4)), X), call(layer(), X))


def test_dropout_follows_train_and_eval():
    one, plain = layer(dropout_rate=0.5), layer()
    assert float(jnp.abs(one(X) - one(X)).max()) > 1e-3
    close(one(X, deterministic=True), plain(X))
    one.eval()
    close(one(X), plain(X))
    one.train()
    close(one(X, rngs=nnx.Rngs(dropout=4)), one(X, rngs=nnx.Rngs(dropout=4)))
    step = nnx.jit(lambda one, x: one(x))
    assert float(jnp.abs(step(one, X) - step(one, X)).max()) > 1e-3


def test_dtypes():
    one = layer(dtype=jnp.bfloat16)
    assert (one(X).dtype, one.query.kernel[...].dtype) == (jnp.bfloat16, jnp.float32)
    half = layer(param_dtype=jnp.bfloat16)
    assert (half.query.kernel[...].dtype, half(X.astype(jnp.bfloat16)).dtype) == (jnp.bfloat16, jnp.bfloat16)


def test_split_merge_and_scanned_layers():
    one = layer(mask=masks.Causal(), rotary=True)
    graph, state = nnx.split(one)
    close(call(nnx.merge(graph, state), X), call(one, X))

    @nnx.split_rngs(splits=3)
    @nnx.vmap(in_axes=0, out_axes=0)
    def make(rngs):
        return jattn.nnx.MultiHeadAttention(FEATURES, HEADS, mask=masks.Causal(), rngs=rngs)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
    def run(x, one):
        return x + one(x)

    out = run(X, make(nnx.Rngs(0)))
    assert out.shape == X.shape


def test_weights():
    one = layer(mask=masks.Causal(), kv_heads=2)
    weights = one.attention_weights(X, heads=[0, 5])
    assert weights.shape == (BATCH, 2, LENGTH, LENGTH)
    close(weights.sum(-1), jnp.ones((BATCH, 2, LENGTH)))


@pytest.mark.exhaustive
def test_heads_over_devices():
    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    arguments: dict[str, Any] = dict(
        mask=masks.Causal(), normalizer=normalizers.Softmax(jnp.zeros(HEADS)), learned="normalizer", qk_norm=True
    )
    one, split = layer(**arguments), layer(**arguments, parallel=Heads("model", batch="data", mesh=mesh))
    close(call(split, X), call(one, X))
    close(*(nnx.to_pure_dict(nnx.jit(nnx.grad(loss))(each, X)) for each in (split, one)))
