"""Squeeze-and-excitation and CBAM equal their equations, written as loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from variant_layers import check_layer

from jattn.variants.vision import CBAM, SqueezeExcite


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_squeeze_excite():
    def ours(x, w1, b1, w2, b2):
        return SqueezeExcite(3, 2)({"down": {"kernel": w1, "bias": b1}, "up": {"kernel": w2, "bias": b2}}, x)

    def truth(x, w1, b1, w2, b2):
        mean = sum(x[i, j] for i in range(2) for j in range(3)) / 6
        return x * sigmoid(np.maximum(mean @ w1 + b1, 0) @ w2 + b2)

    check(ours, truth, *normal(0, (2, 3, 3), (3, 2), (2,), (2, 3), (3,)))


def cbam(x, down, up, spatial):
    height, width, _ = x.shape
    mean, largest = x.mean((0, 1)), x.max((0, 1))
    x = x * sigmoid(np.maximum(mean @ down, 0) @ up + np.maximum(largest @ down, 0) @ up)
    maps = np.stack([x.mean(-1), x.max(-1)], -1)
    reach = spatial.shape[0] // 2
    out = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            total = 0.0
            for a in range(-reach, reach + 1):
                for b in range(-reach, reach + 1):
                    if 0 <= i + a < height and 0 <= j + b < width:
                        total += maps[i + a, j + b] @ spatial[a + reach, b + reach, :, 0]
            out[i, j] = x[i, j] * sigmoid(total)
    return out


@pytest.mark.parametrize("size", [3, pytest.param(7, marks=pytest.mark.exhaustive)])
def test_cbam(size):
    def ours(x, down, up, spatial):
        return CBAM(3, 2, size)({"down": down, "up": up, "spatial": spatial}, x)

    check(ours, cbam, *normal(1, (4, 3, 3), (3, 2), (2, 3), (size, size, 2, 1)))


@pytest.mark.exhaustive
@pytest.mark.parametrize("layer", [SqueezeExcite(3, 2), CBAM(3, 2)])
def test_as_modules_with_any_batch_axes(layer):
    (images,) = normal(2, (2, 2, 5, 4, 3))
    images = jnp.asarray(images)
    check_layer(layer, images)
    parameters = layer.init(jax.random.key(0))
    np.testing.assert_allclose(layer(parameters, images)[1, 0], layer(parameters, images[1, 0]), rtol=1e-5, atol=1e-6)
    out = layer(parameters, images.astype(jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), layer(parameters, images), atol=0.05)


def test_the_gate_is_one_number_for_a_channel():
    (images,) = normal(3, (5, 4, 3))
    layer = SqueezeExcite(3, 2)
    parameters = layer.init(jax.random.key(0))
    ratio = np.asarray(layer(parameters, jnp.asarray(images))) / images
    np.testing.assert_allclose(
        ratio, np.broadcast_to(layer.gates(parameters, jnp.asarray(images)), (5, 4, 3)), rtol=1e-4
    )


def test_errors():
    with pytest.raises(
        ValueError, match=r"`images` must have shape \[..., height, width, channels\] with channels = 3"
    ):
        SqueezeExcite(3, 2)({}, jnp.ones((5, 5, 4)))
    with pytest.raises(ValueError, match=r"`kernel_size` must be odd, so that it has a middle; got 4"):
        CBAM(3, 2, 4)
    with pytest.raises(ValueError, match=r"`images` must have pixels"):
        CBAM(3, 2)({}, jnp.ones((0, 5, 3)))
    with pytest.raises(ValueError, match=r"`hidden` must be a positive int; got 0"):
        CBAM(3, 0)


@pytest.mark.parametrize("layer", [SqueezeExcite(4, 2), CBAM(4, 2)])
def test_an_image_without_pixels_has_no_mean(layer):
    with pytest.raises(ValueError, match="`images` must have pixels"):
        layer(layer.init(jax.random.key(0)), jnp.ones((0, 3, 4)))
