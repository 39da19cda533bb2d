"""The short convolution equals its defining sum, within each segment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import check, normal

from jattn.ops.convolution import short_convolution

IDS = np.array([[0, 0, 0, 2, 2, 2, 2], [1, 2, 3, 3, 3, 4, 4]])


def truth(inputs, kernel, past=None, ids=None):
    taps = len(kernel)
    past = np.zeros((*inputs.shape[:-2], taps - 1, inputs.shape[-1])) if past is None else past
    joined, out = np.concatenate([past, inputs], -2), np.zeros(inputs.shape)
    for b, t in np.ndindex(inputs.shape[:2]):
        for s in range(taps):
            if ids is None or ids[b][max(t - s, 0)] == ids[b][t]:
                out[b, t] += kernel[s] * joined[b, t - s + taps - 1]
    return out


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("packed", [False, True])
def test_is_its_sum(taps, packed):
    ids = IDS if packed else None
    inputs, kernel, past = normal(1, (2, 7, 2), (taps, 2), (2, taps - 1, 2))
    check(
        lambda x, k, p: short_convolution(x, k, p, segment_ids=ids),
        lambda x, k, p: truth(x, k, p, ids),
        inputs,
        kernel,
        past,
    )


def test_what_is_not_finite_is_seen_by_its_taps_alone():
    (inputs, kernel), ids = normal(5, (2, 7, 2), (3, 2)), np.array([0, 0, 0, 1, 1, 1, 1])
    clean = np.asarray(short_convolution(inputs, kernel, segment_ids=ids))
    spoiled = inputs.copy()
    spoiled[0, 2, 0] = np.inf
    got = np.array(short_convolution(spoiled, kernel, segment_ids=ids))
    assert np.isnan(got[0, 2, 0])
    got[0, 2, 0] = clean[0, 2, 0]
    np.testing.assert_array_equal(got, clean)

    def front(inputs, kernel):
        return jnp.sin(short_convolution(inputs, kernel)[:, :2]).sum()

    assert all(np.isfinite(one).all() for one in jax.grad(front, (0, 1))(spoiled, kernel))


def test_bad_input_is_named():
    x = jnp.ones((5, 3))
    with pytest.raises(ValueError, match=r"`past` must have shape \[..., 2, features\]"):
        short_convolution(x, jnp.ones((3, 3)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=r"`past` must have shape|`inputs` must have shape"):
        short_convolution(x[None], jnp.ones((3, 3)), jnp.ones((2, 2, 3)))
    with pytest.raises(ValueError, match="`kernel` must have at least one tap"):
        short_convolution(x, jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="`segment_ids` must be integers"):
        short_convolution(x, jnp.ones((3, 3)), segment_ids=np.zeros(4, int))
