"""The table of vectors: as Flax's, but for the gradient of a row that many tokens read."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.models.embedding import Embedding

TOKENS = np.random.default_rng(0).integers(0, 3, 3000)


@pytest.mark.parametrize("dtype, param_dtype", [(None, "float32"), ("bfloat16", "float32"), (None, "bfloat16")])
def test_values_are_flaxs_and_gradients_are_summed_in_float32(dtype, param_dtype):
    ours, flax = (kind(4, 5, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)) for kind in (Embedding, nnx.Embed))
    np.testing.assert_array_equal(ours(TOKENS), flax(TOKENS))
    assert ours(TOKENS).dtype == flax(TOKENS).dtype

    gradient = nnx.grad(lambda layer: (0.1 * layer(TOKENS)).astype(jnp.float32).sum())(ours).embedding[...]
    assert gradient.dtype == param_dtype
    step = float(jnp.asarray(0.1, ours(TOKENS).dtype))
    np.testing.assert_allclose(gradient.astype("float32")[:, 0], step * np.bincount(TOKENS, minlength=4), rtol=4e-3)
