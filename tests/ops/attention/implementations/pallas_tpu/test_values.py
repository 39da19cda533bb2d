"""The kernel in interpret mode, over several tiles, beside the reference: values, lse, NaN."""

import jax.numpy as jnp
import numpy as np
import pytest
from measure import near, random

import jattn
from jattn import masks, scores
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU

KERNEL = PallasTPU(q_tile=128, kv_tile=128, interpret=True)
IDS = np.repeat(np.arange(4), 50)
CALLS = {
    # name: (q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim), pieces
    "two heads of a key head": ((256, 256, 2, 1, 8, 8), dict(mask=masks.Causal())),
    "two key heads, padding": ((200, 200, 2, 2, 12, 20), dict(mask=masks.SlidingWindow(60, 0))),
    "one head": ((130, 300, 1, 1, 8, 8), {}),
    "segments, scores": (
        (200, 200, 4, 2, 8, 8),
        dict(
            mask=masks.SameSegment(jnp.asarray(IDS)) & masks.Causal(),
            scores=(scores.ALiBi.standard(4), scores.SoftCap(5.0)),
        ),
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_tiles_are_those_of_the_reference(name):
    (q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim), pieces = CALLS[name]
    arrays = random((q_len, q_heads, qk_dim), (kv_len, kv_heads, qk_dim), (kv_len, kv_heads, v_dim))
    have, want = (jattn.partial_attention(*arrays, **pieces, implementation=one) for one in (KERNEL, "reference"))
    near(have.out, want.out, 1e-5)
    near(have.lse, want.lse, 1e-5)


def test_nan_and_inf_reach_who_may_attend_to_them():
    query, key, value = random((200, 2, 8), (200, 1, 8), (200, 1, 8))
    value = value.at[30, 0, 3].set(jnp.inf).at[150, 0, 5].set(jnp.nan)
    have, want = (
        jattn.attention(query, key, value, mask=masks.Causal(), implementation=one) for one in (KERNEL, "reference")
    )
    np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(have), np.isposinf(want))


@pytest.mark.parametrize("sizes", [{"q_tile": 100}, {"kv_tile": 0}, {"heads": 0}])
def test_sizes_are_checked(sizes):
    with pytest.raises(ValueError, match=next(iter(sizes))):
        PallasTPU(**sizes)
