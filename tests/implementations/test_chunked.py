"""What only the chunked implementation promises."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn.implementations import Chunked


def test_calls_outside_jit_compile_once(caplog):
    query, mask = jnp.ones((24, 2, 4)), jattn.masks.Causal()

    def call(fill):
        array = query * fill
        return jax.grad(lambda array: jattn.attention(array, array, array, mask=mask, implementation="chunked").sum())(
            array
        )

    call(1.0)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        call(2.0)
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


def test_a_plan_that_differs_is_not_confused_with_another():
    array = jax.random.normal(jax.random.key(0), (32, 2, 4))
    chunked = Chunked(8, 8)
    for left in (1, 9, 20):
        mask = jattn.masks.SlidingWindow(left, 0)
        both = [jattn.attention(array, array, array, mask=mask, implementation=one) for one in (chunked, "reference")]
        np.testing.assert_allclose(*both, atol=1e-5)


@pytest.mark.parametrize("sizes", [{"q_tile": 0}, {"k_tile": -1}, {"q_tile": 2.5}])
def test_tile_sizes_must_be_positive_integers(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Chunked(**sizes)
