"""What only the tiled implementation guarantees."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn.ops.attention.implementations import Tiled


def test_calls_outside_jit_compile_once(caplog):
    query, mask = jnp.ones((24, 2, 4)), jattn.masks.Causal()

    def call(fill):
        array = query * fill
        return jax.grad(lambda array: jattn.attention(array, array, array, mask=mask, implementation="tiled").sum())(
            array
        )

    call(1.0)
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        call(2.0)
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]


@pytest.mark.exhaustive
def test_a_plan_that_differs_is_not_confused_with_another():
    array = jax.random.normal(jax.random.key(0), (32, 2, 4))
    chunked = Tiled(8, 8)
    for left in (1, 9, 20):
        mask = jattn.masks.SlidingWindow(left, 0)
        both = [jattn.attention(array, array, array, mask=mask, implementation=one) for one in (chunked, "reference")]
        np.testing.assert_allclose(*both, atol=1e-5)


WINDOWS = {"alike in pairs": [3, 3, 40, 40], "different in pairs": [3, 40, 3, 40], "all alike": [9, 9, 9, 9]}


@pytest.mark.parametrize("kv_heads", [4, pytest.param(1, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", rows(WINDOWS, ["different in pairs"]))
def test_heads_do_not_visit_tiles_for_one_another(name, kv_heads):
    """Heads are computed together where their plans agree, and apart where one would visit another's tiles.

    With one key head its query heads are told apart too.
    """
    windows = WINDOWS[name]
    query, key, value = (
        jax.random.normal(jax.random.key(i), (64, heads, 4)) for i, heads in enumerate((4, kv_heads, kv_heads))
    )
    chunked = Tiled(8, 8)

    def counts(window):
        mask = jattn.masks.SlidingWindow(window, 0)
        return jattn.explain(query, key, value, mask=mask, implementation=chunked).plan.counts()

    visited, _, total = counts(np.array(windows))
    assert total == 4 * 8 * 8
    assert visited == sum(counts(one)[0] for one in windows)

    def gradients(implementation, window):
        mask = jattn.masks.SlidingWindow(window, 0)

        def out(*arrays):
            return jnp.sin(jattn.attention(*arrays, mask=mask, implementation=implementation)).sum()

        return jax.jit(jax.grad(out, argnums=(0, 1, 2)))(query, key, value)

    want = gradients("reference", np.array(windows))
    for have in (gradients(chunked, np.array(windows)), gradients(chunked, jnp.array(windows))):
        for one, other in zip(have, want, strict=True):
            np.testing.assert_allclose(one, other, atol=2e-5)


@pytest.mark.parametrize("sizes", [{"q_tile": 0}, {"k_tile": -1}, {"q_tile": 2.5}])
def test_tile_sizes_must_be_positive_integers(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Tiled(**sizes)
