"""Non-local blocks equal their equation over all pairs of pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal
from tiers import rows
from variant_layers import check_layer

from jattn.variants.vision import NonLocal

PAIRWISE = ("gaussian", "embedded", "dot", "concat")
NAMES = ("value", "out", "query", "key", "pair")
SHAPES = ((3, 2), (2, 3), (3, 2), (3, 2), (4,))


def truth(pairwise, x, g, w_z, theta=None, phi=None, pair=None):
    height, width, channels = x.shape
    pixels = x.reshape(-1, channels)
    n = len(pixels)
    z = np.zeros_like(pixels)
    for i in range(n):
        f = np.zeros(n)
        for j in range(n):
            if pairwise == "gaussian":
                f[j] = np.exp(pixels[i] @ pixels[j])
            elif pairwise == "embedded":
                f[j] = np.exp((pixels[i] @ theta) @ (pixels[j] @ phi))
            elif pairwise == "dot":
                f[j] = (pixels[i] @ theta) @ (pixels[j] @ phi)
            else:
                f[j] = max(pair @ np.concatenate([pixels[i] @ theta, pixels[j] @ phi]), 0)
        y = f @ (pixels @ g) / (f.sum() if pairwise in ("gaussian", "embedded") else n)
        z[i] = pixels[i] + y @ w_z
    return z.reshape(height, width, channels)


def arrays(pairwise, seed=0):
    count = {"gaussian": 2, "embedded": 4, "dot": 4, "concat": 5}[pairwise]
    return normal(seed, (3, 2, 3), *SHAPES[:count], spread=0.7)


@pytest.mark.parametrize("pairwise", PAIRWISE)
def test_equation(pairwise):
    def ours(x, *parameters):
        return NonLocal(3, 2, pairwise)(dict(zip(NAMES, parameters, strict=False)), x)

    check(ours, lambda *a: truth(pairwise, *a), *arrays(pairwise))


@pytest.mark.parametrize("pairwise", rows(PAIRWISE, ["embedded", "concat"]))
def test_as_a_module(pairwise):
    (images,) = normal(1, (2, 4, 3, 3))
    check_layer(NonLocal(3, 2, pairwise), jnp.asarray(images))


@pytest.mark.parametrize("pairwise", rows(PAIRWISE, ["embedded"]))
def test_at_first_it_is_the_identity(pairwise):
    (images,) = normal(2, (2, 5, 3, 3))
    layer = NonLocal(3, 2, pairwise)
    np.testing.assert_array_equal(layer(layer.init(jax.random.key(0)), jnp.asarray(images)), images)


@pytest.mark.parametrize("pairwise", rows(PAIRWISE, ["embedded"]))
def test_pixels_in_another_order_come_out_in_that_order(pairwise):
    x, *parameters = arrays(pairwise, 3)
    layer, tree = NonLocal(3, 2, pairwise), dict(zip(NAMES, parameters, strict=False))
    order = np.random.default_rng(0).permutation(6)
    shuffled = x.reshape(6, 3)[order].reshape(x.shape)
    want = np.asarray(layer(tree, x)).reshape(6, 3)[order]
    np.testing.assert_allclose(np.asarray(layer(tree, shuffled)).reshape(6, 3), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("pairwise", rows(PAIRWISE, ["embedded"]))
def test_bfloat16(pairwise):
    x, *parameters = arrays(pairwise, 4)
    layer, tree = NonLocal(3, 2, pairwise), dict(zip(NAMES, parameters, strict=False))
    out = layer(tree, jnp.asarray(x, jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(np.float32), layer(tree, x), atol=0.1)


@pytest.mark.parametrize("pairwise", rows(PAIRWISE, ["concat"]))
def test_no_matrix_of_all_pairs(pairwise):
    """The compiled gradient at four times the pixels takes about four times the temporaries."""
    layer = NonLocal(8, 4, pairwise)
    parameters = layer.init(jax.random.key(0))

    def temporaries(side):
        step = jax.jit(jax.grad(lambda p, x: layer(p, x).sum()))
        compiled = step.lower(parameters, jax.ShapeDtypeStruct((side, side, 8), jnp.float32)).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(128) < 6 * temporaries(64)


def test_errors():
    with pytest.raises(
        ValueError, match=r"`pairwise` must be one of 'gaussian', 'embedded', 'dot', 'concat'; got 'cosine'"
    ):
        NonLocal(3, 2, "cosine")
    with pytest.raises(ValueError, match=r"`images` must have shape .* with channels = 3; got \(4, 4, 2\)"):
        NonLocal(3, 2)({}, jnp.ones((4, 4, 2)))
