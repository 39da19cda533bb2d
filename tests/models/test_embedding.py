"""The table of vectors: as Flax's, but for the gradient of a row that many tokens read."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jattn.models.embedding import Embedding


@pytest.mark.parametrize(
    "dtype, param_dtype, rows",
    [(None, "float32", 4), ("bfloat16", "float32", 4), (None, "bfloat16", 4), (None, "bfloat16", 1)],
)
def test_values_are_flaxs_and_gradients_are_summed_in_float32(dtype, param_dtype, rows):
    tokens = np.random.default_rng(0).integers(0, min(rows, 3), 3000)
    ours, flax = (
        kind(rows, 5, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)) for kind in (Embedding, nnx.Embed)
    )
    np.testing.assert_array_equal(ours(tokens), flax(tokens))
    assert ours(tokens).dtype == flax(tokens).dtype

    gradient = nnx.grad(lambda layer: (0.1 * layer(tokens)).astype(jnp.float32).sum())(ours).embedding[...]
    assert gradient.dtype == param_dtype
    step = float(jnp.asarray(0.1, ours(tokens).dtype))
    np.testing.assert_allclose(gradient.astype("float32")[:, 0], step * np.bincount(tokens, minlength=rows), rtol=4e-3)
