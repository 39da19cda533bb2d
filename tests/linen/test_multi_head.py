"""The linen layer equals the nnx layer and Flax's own, with the same weights."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jattn.linen
import jattn.nnx
from jattn import masks, normalizers, scores
from jattn.parallel import Heads

# Quick without `jit`; the implementations are tested elsewhere.
Layer: Any = functools.partial(jattn.linen.MultiHeadAttention, implementation="reference")

BATCH, LENGTH, HEADS, FEATURES = 2, 6, 8, 16
X = jax.random.normal(jax.random.key(0), (BATCH, LENGTH, FEATURES))
Y = jax.random.normal(jax.random.key(1), (BATCH, LENGTH, 9))
EVERYTHING: dict[str, Any] = dict(
    kv_heads=2,
    head_dim=6,
    out_features=5,
    qk_norm=True,
    rotary=True,
    mask=masks.Causal(),
    scores=(scores.SoftCap(20.0), scores.ALiBi.standard(HEADS)),
    normalizer=normalizers.Softmax(jnp.linspace(-1, 1, HEADS)),
    implementation="reference",
    learned=("normalizer", "scores"),
)


def close(got, want):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


def weigh(out):
    return (out * jnp.cos(jnp.arange(out.size).reshape(out.shape))).sum()


def stringed(tree):
    """Places in tuples are named by strings in linen."""
    return {str(name): stringed(value) if isinstance(value, dict) else value for name, value in tree.items()}


@pytest.mark.parametrize("cross", [pytest.param(False, marks=pytest.mark.exhaustive), True], ids=["self", "cross"])
def test_equals_nnx_with_the_same_weights(cross):
    inputs = (X, Y) if cross else (X,)
    one = jattn.nnx.MultiHeadAttention(
        FEATURES, HEADS, in_kv_features=9 if cross else None, **EVERYTHING, rngs=nnx.Rngs(0)
    )
    twin: Any = jattn.linen.MultiHeadAttention(q_heads=HEADS, **EVERYTHING)
    weights = stringed(nnx.to_pure_dict(nnx.state(one, nnx.Param)))
    made = jax.eval_shape(twin.init, jax.random.key(0), *inputs)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, weights)
    close(jax.jit(twin.apply)({"params": weights}, *inputs), nnx.jit(lambda one, *inputs: one(*inputs))(one, *inputs))
    got = jax.jit(jax.grad(lambda weights: weigh(twin.apply({"params": weights}, *inputs))))(weights)
    want = stringed(nnx.to_pure_dict(nnx.jit(nnx.grad(lambda one: weigh(one(*inputs))))(one)))
    close(got, want)
    assert all(float(jnp.abs(leaf).max()) > 0 for leaf in jax.tree.leaves(got))


def test_equals_flax_with_the_same_weights():
    flax, ours = nn.MultiHeadAttention(HEADS, bias_init=nn.initializers.normal()), Layer(FEATURES, HEADS)
    variables = jax.jit(flax.init)(jax.random.key(0), X)
    causal = nn.make_causal_mask(X[..., 0])
    made = jax.eval_shape(ours.init, jax.random.key(0), X)
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, variables)

    def ours_of(variables, x):
        return weigh(ours.apply(variables, x, mask=masks.Causal()))

    def flax_of(variables, x):
        return weigh(flax.apply(variables, x, mask=causal))

    close(*(jax.jit(jax.value_and_grad(one, (0, 1)))(variables, X) for one in (ours_of, flax_of)))


def test_dropout():
    one = Layer(FEATURES, HEADS, dropout_rate=0.5)
    variables = one.init(jax.random.key(0), X, deterministic=True)
    plain = one.apply(variables, X, deterministic=True)
    close(plain, Layer(FEATURES, HEADS).apply(variables, X))
    drop = lambda seed: one.apply(variables, X, deterministic=False, rngs={"dropout": jax.random.key(seed)})  # noqa: E731
    assert float(jnp.abs(drop(0) - plain).max()) > 1e-3
    close(drop(0), drop(0))
    assert float(jnp.abs(drop(0) - drop(1)).max()) > 1e-3
    given = one.clone(deterministic=False).apply(variables, X, dropout_rng=jax.random.key(2))
    assert float(jnp.abs(given - plain).max()) > 1e-3


def test_weights_positions_and_dtypes():
    one = Layer(FEATURES, HEADS, mask=masks.Causal(), rotary=True, dtype=jnp.bfloat16)
    variables = one.init(jax.random.key(0), X)
    assert one.apply(variables, X).dtype == jnp.bfloat16
    full = one.clone(dtype=None)
    weights = full.apply(variables, X, heads=[0, 5], method="attention_weights")
    assert weights.shape == (BATCH, 2, LENGTH, LENGTH)
    close(weights.sum(-1), jnp.ones((BATCH, 2, LENGTH)))
    shifted = full.apply(variables, X, positions=jnp.arange(LENGTH) + 5)
    np.testing.assert_allclose(shifted, full.apply(variables, X), atol=1e-4)


def test_partitioned_parameters_scan_and_remat():
    init = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model", None))
    boxed: Any = Layer(FEATURES, HEADS, kernel_init=init, out_kernel_init=nn.initializers.zeros_init()).init(
        jax.random.key(0), X
    )
    assert nn.get_partition_spec(boxed)["params"]["query"]["kernel"] == jax.sharding.PartitionSpec(None, "model", None)

    assert float(jnp.abs(boxed["params"]["out"]["kernel"]).max()) == 0

    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return x + nn.remat(jattn.linen.MultiHeadAttention)(
                FEATURES, HEADS, implementation="reference", mask=masks.Causal()
            )(x), None

    stack: Any = nn.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    out, _ = stack.apply(stack.init(jax.random.key(0), X, None), X, None)
    assert out.shape == X.shape


@pytest.mark.exhaustive
def test_heads_over_devices():
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    one = Layer(FEATURES, HEADS, mask=masks.Causal(), rotary=True)
    split = one.clone(parallel=Heads("model", mesh=mesh))
    variables = one.init(jax.random.key(0), X)
    gradients = [jax.jit(jax.grad(lambda v, m=m: weigh(m.apply(v, X))))(variables) for m in (split, one)]
    close(*gradients)


def test_bad_input():
    for arguments, message in [
        (dict(q_heads=5), "`in_features` must be a multiple of `q_heads`"),
        (dict(q_heads=8, kv_heads=3), "`q_heads` must be a multiple of `kv_heads`"),
        (dict(q_heads=8, learned="scores"), "holds no floating-point array"),
        (dict(q_heads=8, normalizer=masks.Causal()), "`normalizer` must be a Normalizer"),
    ]:
        with pytest.raises(ValueError, match=message):
            Layer(**arguments).init(jax.random.key(0), X)


def test_inputs_that_are_no_numbers():
    layer = Layer(FEATURES, HEADS, mask=masks.Causal())
    variables = layer.init(jax.random.key(0), X)
    state = layer.apply(variables, X.shape[:-2], length=9, method="initial_state")
    tokens = jnp.ones(X.shape, int)
    for call, message in [
        (lambda: layer.apply(variables, None), "`inputs` must be an array .*got None"),
        (lambda: layer.apply(variables, None, state, method="prefill"), "`inputs` must be an array .*got None"),
        (lambda: layer.apply(variables, None, state, method="step"), "`inputs` must be an array .*got None"),
        (lambda: layer.apply(variables, tokens), "`inputs` must be floating-point; got an array of dtype int32"),
    ]:
        with pytest.raises(ValueError, match=message):
            call()
