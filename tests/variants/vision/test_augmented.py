"""Relative attention over an image equals its equation pixel by pixel; the augmented convolution equals its parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from tiers import rows
from variant_layers import check_layer

import jattn
from jattn.variants.vision import AugmentedConvolution, relative_image_attention

HEIGHT, WIDTH, DIM = 2, 3, 2


def truth(query, key, value, height_table, width_table):
    height, width, heads, dim = query.shape
    group = heads // key.shape[2]
    out = np.zeros((height, width, heads, value.shape[-1]))
    for h in range(heads):
        for y in range(height):
            for x in range(width):
                scores = np.zeros((height, width))
                for b in range(height):
                    for a in range(width):
                        relative = height_table[b - y + height - 1] + width_table[a - x + width - 1]
                        scores[b, a] = query[y, x, h] @ (key[b, a, h // group] + relative) / np.sqrt(dim)
                weights = np.exp(scores) / np.exp(scores).sum()
                out[y, x, h] = np.einsum("ba,bad->d", weights, value[:, :, h // group])
    return out


@pytest.mark.parametrize("kv_heads", rows([1, 2], ["1"]))
def test_relative_attention(kv_heads):
    shapes = ((HEIGHT, WIDTH, 2, DIM), (HEIGHT, WIDTH, kv_heads, DIM), (HEIGHT, WIDTH, kv_heads, 3))
    given = normal(0, *shapes, (2 * HEIGHT - 1, DIM), (2 * WIDTH - 1, DIM))
    check(relative_image_attention, truth, *given)


@pytest.mark.exhaustive
def test_tables_of_zeros_leave_plain_attention():
    q, k, v = map(jnp.asarray, normal(1, *[(2, 4, 5, 2, 3)] * 3))
    out = relative_image_attention(q, k, v, jnp.zeros((7, 3)), jnp.zeros((9, 3)))
    flat = [x.reshape(2, 20, 2, 3) for x in (q, k, v)]
    np.testing.assert_allclose(out.reshape(2, 20, 2, 3), jattn.attention(*flat), rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_a_shifted_image_has_the_same_logits():
    """With one pixel that differs from the rest, moving it and the reader moves the answer."""
    height_table, width_table = map(jnp.asarray, normal(2, (9, 2), (9, 2)))
    q = jnp.ones((5, 5, 1, 2))
    k = jnp.zeros((5, 5, 1, 2))

    def logit(reader, seen):
        value = jnp.zeros((5, 5, 1, 1)).at[seen].set(1.0)
        other = jnp.zeros((5, 5, 1, 1)).at[reader].set(1.0)
        out = [relative_image_attention(q, k, v, height_table, width_table)[reader][0, 0] for v in (value, other)]
        return jnp.log(out[0] / out[1])  # the normalizer cancels

    np.testing.assert_allclose(logit((0, 1), (2, 0)), logit((2, 4), (4, 3)), rtol=1e-4)
    assert abs(logit((0, 1), (2, 0)) - logit((2, 0), (0, 1))) > 1e-2


def test_bfloat16():
    given = normal(3, *[(4, 5, 2, 3)] * 3, (7, 3), (9, 3))
    want = relative_image_attention(*map(jnp.asarray, given))
    out = relative_image_attention(*(jnp.asarray(array, jnp.bfloat16) for array in given))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), want, atol=0.05)


LAYER = AugmentedConvolution(4, 3, 2, 7, attention_channels=4, key_channels=6, heads=2)


def test_the_layer_is_its_parts():
    (images,) = map(jnp.asarray, normal(4, (2, 4, 3, 2)))
    parameters = LAYER.init(jax.random.key(0))
    out = np.asarray(LAYER(parameters, images), np.float64)
    assert out.shape == (2, 4, 3, 7)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), parameters)
    for n, x in enumerate(np.asarray(images, np.float64)):
        q, k, v = (np.einsum("yxc,chd->yxhd", x, p[name]) for name in ("query", "key", "value"))
        attended = np.einsum("yxhd,hdc->yxc", truth(q, k, v, p["height"], p["width"]), p["out"])
        np.testing.assert_allclose(out[n, ..., 3:], attended, rtol=1e-4, atol=1e-5)
        room = np.pad(x, ((1, 1), (1, 1), (0, 0)))
        for i in range(4):
            for j in range(3):
                local = np.einsum("abc,abco->o", room[i : i + 3, j : j + 3], p["convolution"]["kernel"])
                np.testing.assert_allclose(out[n, i, j, :3], local, rtol=1e-4, atol=1e-5)


@pytest.mark.exhaustive
def test_as_a_module():
    (images,) = normal(5, (2, 4, 3, 2))
    check_layer(LAYER, jnp.asarray(images))


def test_errors():
    q = jnp.ones((4, 5, 2, 3))
    with pytest.raises(ValueError, match=r"`height_table` must have shape \[7, qk_dim\]; got \(9, 3\)"):
        relative_image_attention(q, q, q, jnp.ones((9, 3)), jnp.ones((9, 3)))
    with pytest.raises(ValueError, match=r"`value` must have shape .* with width = 5"):
        relative_image_attention(q, q, q[:, :4], jnp.ones((7, 3)), jnp.ones((9, 3)))
    with pytest.raises(
        ValueError, match=r"`key_channels` must be a multiple of `heads`; got key_channels 5 and heads 2"
    ):
        AugmentedConvolution(4, 3, 2, 7, attention_channels=4, key_channels=5, heads=2)
    with pytest.raises(ValueError, match=r"`attention_channels` must be less than `out_channels`"):
        AugmentedConvolution(4, 3, 2, 4, attention_channels=4, key_channels=6, heads=2)
    with pytest.raises(ValueError, match=r"`images` must have shape .* with height = 4"):
        LAYER({}, jnp.ones((3, 4, 2)))
