"""CLIP's pooling and loss equal their equations."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from variant_layers import check_layer

from jattn.variants.vision import FIRST_LOG_SCALE, LARGEST_SCALE, AttentionPool, contrastive_loss, quick_gelu

LAYER = AttentionPool(2, 3, 4, heads=2, out_features=3)


def test_attention_pool():
    (x,) = normal(0, (2, 3, 4))
    shapes = dict(positions=(7, 4), **{f"{n}_kernel": (4, 2, 2) for n in ("query", "key", "value")})
    shapes |= {f"{n}_bias": (2, 2) for n in ("query", "key", "value")} | {"out_kernel": (2, 2, 3), "out_bias": (3,)}
    arrays = normal(1, *shapes.values())

    def ours(x, *arrays):
        p = dict(zip(shapes, arrays, strict=True))
        parts = {n: {"kernel": p[f"{n}_kernel"], "bias": p[f"{n}_bias"]} for n in ("query", "key", "value", "out")}
        return LAYER({"positions": p["positions"], **parts}, x)

    def truth(x, *arrays):
        p = dict(zip(shapes, arrays, strict=True))
        pixels = x.reshape(6, 4)
        tokens = np.concatenate([pixels.mean(0)[None], pixels]) + p["positions"]
        out = p["out_bias"].copy()
        for h in range(2):
            q = tokens[0] @ p["query_kernel"][:, h] + p["query_bias"][h]
            k = tokens @ p["key_kernel"][:, h] + p["key_bias"][h]
            v = tokens @ p["value_kernel"][:, h] + p["value_bias"][h]
            scores = k @ q / np.sqrt(2)
            out = out + np.exp(scores) / np.exp(scores).sum() @ v @ p["out_kernel"][h]
        return out

    check(ours, truth, x, *arrays)


def test_as_a_module():
    (images,) = normal(2, (2, 2, 3, 4))
    check_layer(LAYER, jnp.asarray(images))


def loss(images, texts, t):
    one = images / np.linalg.norm(images, axis=-1, keepdims=True)
    other = texts / np.linalg.norm(texts, axis=-1, keepdims=True)
    s = min(np.exp(t), 100) * one @ other.T
    n = len(s)
    rows = sum(np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(n)) / n
    columns = sum(np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(n)) / n
    return np.array((rows + columns) / 2)


@pytest.mark.parametrize("t", [0.0, FIRST_LOG_SCALE])
def test_contrastive_loss(t):
    images, texts = normal(3, (5, 4), (5, 4))
    check(contrastive_loss, loss, images, texts, np.asarray(t, np.float32))


@pytest.mark.exhaustive
def test_the_scale_is_capped():
    images, texts = normal(4, (5, 4), (5, 4))
    value, gradient = jax.value_and_grad(contrastive_loss, 2)(images, texts, jnp.array(9.0))
    np.testing.assert_allclose(value, loss(images.astype(float), texts.astype(float), math.log(100)), rtol=1e-5)
    assert gradient == 0
    assert LARGEST_SCALE == 100
    assert math.isclose(math.exp(FIRST_LOG_SCALE), 1 / 0.07)


def test_the_loss_is_symmetric_and_knows_no_norms():
    images, texts = normal(5, (5, 4), (5, 4))
    t = jnp.array(1.0)
    np.testing.assert_allclose(contrastive_loss(images, texts, t), contrastive_loss(texts, 7 * images, t), rtol=1e-5)


@pytest.mark.exhaustive
def test_equal_pairs_cost_nothing_and_equal_texts_a_guess():
    t = jnp.array(math.log(100.0))
    np.testing.assert_allclose(contrastive_loss(jnp.eye(5), jnp.eye(5), t), 0, atol=1e-5)
    np.testing.assert_allclose(contrastive_loss(jnp.ones((5, 3)), jnp.ones((5, 3)), t), math.log(5), rtol=1e-5)


@pytest.mark.exhaustive
def test_the_loss_makes_no_matrix_of_all_pairs():
    def temporaries(pairs):
        arrays = [jax.ShapeDtypeStruct((pairs, 8), jnp.float32)] * 2
        step = jax.jit(jax.grad(contrastive_loss, (0, 1)))
        compiled = step.lower(*arrays, jax.ShapeDtypeStruct((), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(16384) < 6 * temporaries(4096)


def test_quick_gelu():
    (x,) = normal(6, (7,))
    check(quick_gelu, lambda x: x / (1 + np.exp(-1.702 * x)), x)


def test_errors():
    with pytest.raises(ValueError, match=r"`texts` must have shape .* with pairs = 5, as in `images`; got \(4, 3\)"):
        contrastive_loss(jnp.ones((5, 3)), jnp.ones((4, 3)), jnp.array(0.0))
    with pytest.raises(ValueError, match=r"`log_scale` must be one number; got shape \(5,\)"):
        contrastive_loss(jnp.ones((5, 3)), jnp.ones((5, 3)), jnp.zeros(5))
    with pytest.raises(ValueError, match=r"`images` must have at least one pair"):
        contrastive_loss(jnp.ones((0, 3)), jnp.ones((0, 3)), jnp.array(0.0))
    with pytest.raises(ValueError, match=r"`channels` must be a multiple of `heads`; got channels 5 and heads 2"):
        AttentionPool(2, 3, 5, heads=2, out_features=3)
    with pytest.raises(ValueError, match=r"`images` must have shape .* with height = 2"):
        LAYER({}, jnp.ones((3, 2, 4)))
