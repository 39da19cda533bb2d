"""The short convolution layer continues from its past, and runs as a module."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from differences import normal
from variant_layers import check_layer

from jattn.layers.short_convolution import ShortConvolution

IDS = np.array([[0, 0, 0, 2, 2, 2, 2], [1, 2, 3, 3, 3, 4, 4]])


def test_goes_on_at_every_split():
    layer = ShortConvolution(3, 4, use_bias=True)
    parameters = {"kernel": normal(2, (4, 3))[0], "bias": normal(3, (3,))[0]}
    (inputs,), run = normal(4, (2, 7, 3)), jax.jit(layer.__call__)
    for ids in (None, IDS):
        whole, last = run(parameters, inputs, None, ids)
        for split in range(8):
            cut = (None, None) if ids is None else (ids[:, :split], ids[:, split:])
            head, past = run(parameters, inputs[:, :split], None, cut[0])
            if ids is not None and 0 < split < 7:  # the state belongs to the first segment of the rest
                past = np.where((ids[:, split - 1] == ids[:, split])[:, None, None], past, np.float32(0))
            tail, end = run(parameters, inputs[:, split:], past, cut[1])
            np.testing.assert_allclose(np.concatenate([head, tail], 1), whole, atol=1e-6)
            np.testing.assert_allclose(end, last, atol=1e-6)


def test_as_a_module():
    check_layer(ShortConvolution(3, 2, use_bias=True), jnp.asarray(normal(6, (2, 5, 3))[0]))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="`taps` must be a positive int; got 0"):
        ShortConvolution(3, 0)
