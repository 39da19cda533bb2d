"""Products of weights and values, where values may be NaN or inf."""

import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops.attention.tile import add_values, multiply_values


@pytest.mark.parametrize("keys", [6, 5000])
@pytest.mark.parametrize("special", [(), (np.inf,), (-np.inf,), (np.nan,), (np.inf, -np.inf), (np.inf, np.nan)])
def test_values_that_are_not_finite_reach_the_rows_that_may_see_them(keys, special):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(1, keys, 3)).astype(np.float32)
    values[0, : len(special), 0] = special
    values[0, -1, 1] = np.nan  # no row may see it
    if not special:
        values[0, -1, 1] = 0
    allowed = np.ones((2, 4, keys), bool)
    allowed[:, :, -1] = False
    allowed[:, 1, : len(special)] = False
    allowed[:, 2, 1:] = False
    weights = np.where(allowed, rng.random(allowed.shape), 0).astype(np.float32)
    clean = np.where(np.isfinite(values), values, 0)
    with np.errstate(invalid="ignore"):
        seen = np.where(allowed[..., None] & ~np.isfinite(values)[:, None], values[:, None], 0).sum(-2)
    want = weights @ clean + seen
    np.testing.assert_allclose(multiply_values(weights, values, allowed), want, 1e-4, 1e-4)
    added = add_values(lambda: jnp.ones(want.shape), jnp.asarray(weights), lambda: values, lambda: allowed, ())
    np.testing.assert_allclose(added, 1 + want, 1e-4, 1e-4)
