"""Norms of queries and keys, and biases of some projections, in the function and in both layers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from flax import nnx
from tiers import rows

import jattn.linen
import jattn.nnx
from jattn.layers import QKNorm, Sizes, multi_head, parameter_shapes
from jattn.layers.multi_head import multi_head_weights
from jattn.parallel import Heads

NORMS = {
    "qwen 3": QKNorm(),
    "gemma 3": QKNorm(zero_centered=True),
    "olmo 2": QKNorm(over="heads", epsilon=0.1),
    "persimmon": QKNorm("layer", use_bias=True),
    "command r": QKNorm("layer", per_head=True, epsilon=0.1),
    "all heads, mean and variance": QKNorm("layer", "heads", use_bias=True, zero_centered=True),
}
Q_HEADS, KV_HEADS, DIM, FEATURES = 4, 2, 3, 10
BIASED = ("query", "value", "out")
X = jnp.asarray(normal(0, (2, 5, FEATURES))[0])


def truth(norm, x, scale, bias=None):
    over = (-2, -1) if norm.over == "heads" else -1
    centered = x - x.mean(over, keepdims=True) if norm.kind == "layer" else x
    out = centered / np.sqrt((centered**2).mean(over, keepdims=True) + norm.epsilon)
    return out * (scale + norm.zero_centered) + (0 if bias is None else bias)


def parameters(norm) -> Any:
    shapes = parameter_shapes(Sizes(FEATURES, Q_HEADS, KV_HEADS, DIM), use_bias=BIASED, qk_norm=norm)
    draw = np.random.default_rng(3)
    return {
        group: {name: draw.normal(size=shape.shape).astype(np.float32) for name, shape in members.items()}
        for group, members in shapes.items()
    }


@pytest.mark.parametrize("name", NORMS)
def test_norms_and_their_gradients(name):
    norm = NORMS[name]
    shapes = [(4, 2, 3), (2, 3) if len(norm.axes) == 2 else (3,)]
    arrays = normal(1, *shapes, *shapes[1:] * norm.use_bias)

    def ours(x, *of):
        return norm.apply(x, dict(zip(("scale", "bias"), of, strict=False)))

    check(ours, lambda *arrays: truth(norm, *arrays), *arrays)
    low = norm.apply(jnp.asarray(arrays[0], jnp.bfloat16), dict(zip(("scale", "bias"), arrays[1:], strict=False)))
    assert low.dtype == jnp.bfloat16


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", rows(NORMS, ["all heads, mean and variance"]))
def test_multi_head_and_both_layers_norm_by_it(name):
    norm = NORMS[name]
    tree = parameters(norm)
    assert [group for group in tree if "bias" in tree[group] and "norm" not in group] == list(BIASED)
    normed = {}
    for group in ("query", "key"):
        made = np.einsum("btf,fhd->bthd", X, tree[group]["kernel"]) + tree[group].get("bias", 0)
        normed[group] = truth(norm, made, **tree[f"{group}_norm"])
    keys = np.repeat(normed["key"], 2, -2)
    scores = np.einsum("bqhd,bkhd->bhqk", normed["query"], keys) / np.sqrt(DIM)
    weights, out = jax.jit(
        lambda tree, x: (multi_head_weights(tree, x, qk_norm=norm), multi_head(tree, x, qk_norm=norm))
    )(tree, X)
    np.testing.assert_allclose(weights, jax.nn.softmax(scores), atol=2e-6)

    options: dict[str, Any] = dict(kv_heads=KV_HEADS, head_dim=DIM, use_bias=BIASED, qk_norm=norm)
    linen = jattn.linen.MultiHeadAttention(FEATURES, Q_HEADS, **options)
    layer = jattn.nnx.MultiHeadAttention(FEATURES, Q_HEADS, **options, rngs=nnx.Rngs(0))
    first = nnx.to_pure_dict(nnx.state(layer, nnx.Param))
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, tree)
    made = linen.init(jax.random.key(0), X)["params"]
    for group in ("query_norm", "key_norm"):
        assert (first[group]["scale"] == 1 - norm.zero_centered).all() and not first[group].get("bias", X[:0]).any()
        jax.tree.map(np.testing.assert_array_equal, made[group], first[group])
    nnx.update(layer, nnx.State(jax.tree.map(jnp.asarray, tree)))
    np.testing.assert_allclose(nnx.jit(lambda layer, x: layer(x))(layer, X), out, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(jax.jit(linen.apply)({"params": tree}, X), out, rtol=1e-6, atol=1e-6)


@pytest.mark.exhaustive
@pytest.mark.parametrize("kind", ["rms", pytest.param("layer", marks=pytest.mark.exhaustive)])
def test_heads_on_two_devices_are_normed_together(kind):
    norm = QKNorm(kind, over="heads")
    mesh = jax.make_mesh((2,), ("model",))

    def loss(tree, parallel):
        return (
            multi_head(tree, X, qk_norm=norm, parallel=parallel) * jnp.cos(jnp.arange(100.0).reshape(2, 5, 10))
        ).sum()

    run = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    want, got = run(parameters(norm), None), run(parameters(norm), Heads("model", mesh=mesh))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QKNorm("l2"), "`kind` must be one of 'rms', 'layer'"),  # type: ignore[arg-type]
        (lambda: QKNorm(over="all"), "`over` must be one of 'head', 'heads'"),  # type: ignore[arg-type]
        (lambda: QKNorm(use_bias=True), "`use_bias` needs `kind='layer'`"),
        (lambda: QKNorm(epsilon=-1.0), "`epsilon` must be a number of at least 0"),
        (lambda: QKNorm(per_head=1), "`per_head` must be True or False"),  # type: ignore[arg-type]
        (lambda: multi_head(parameters(True), X, qk_norm="rms"), "`qk_norm` must be True, False or a"),  # type: ignore[arg-type]
        (lambda: parameter_shapes(Sizes(4, 1), use_bias=("keys",), qk_norm=False), r"`use_bias` must be .*\('keys',\)"),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
