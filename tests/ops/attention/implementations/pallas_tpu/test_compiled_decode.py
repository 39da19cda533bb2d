"""A step of decoding compiles for TPUs with each cache, and reads the cache as it lies in memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tpu import compiled, needs_libtpu

from jattn import masks, scores
from jattn.layers import caches
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU

pytestmark = needs_libtpu

TOKENS = 4096
SPECS = {
    "contiguous": caches.Contiguous(TOKENS),
    "rolling": caches.Rolling(1000, sinks=4),
    "paged": caches.Paged(pages=1024, page_size=16, slots=TOKENS // 16),
}
CASES = {
    # name: (cache, new tokens, q_heads, kv_heads, features, dtype, generation)
    "contiguous": ("contiguous", 1, 32, 8, 128, "bfloat16", "v5e"),
    "rolling": ("rolling", 1, 32, 8, 128, "float32", "v6e"),
    "paged": ("paged", 1, 32, 8, 128, "bfloat16", "tpu7x"),
    "latent, features first": ("contiguous", 1, 16, 1, 576, "bfloat16", "v5p"),
    "paged, several queries": ("paged", 5, 32, 4, 128, "float32", "v5e"),
    "features first": ("contiguous", 1, 32, 8, 64, "bfloat16", "v4"),
    "one key head": ("contiguous", 1, 8, 1, 128, "bfloat16", "tpu7x"),
    "wide heads": ("contiguous", 1, 16, 8, 256, "bfloat16", "v6e"),
}
ALWAYS = ("contiguous", "rolling", "paged", "latent, features first")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ALWAYS else pytest.mark.exhaustive) for name in CASES]
)
def test_a_step_compiles(name):
    kind, new, q_heads, kv_heads, dim, dtype, generation = CASES[name]
    cache = jax.eval_shape(lambda: SPECS[kind].create((4,), kv_heads, dim, 0 if dim == 576 else dim, dtype))

    def step(query, cache, key, value):
        view, _ = cache.append(key, value)
        view = view.with_keys_as_values() if dim == 576 else view
        pieces = dict(mask=masks.Causal(), scores=(scores.ALiBi.standard(q_heads), scores.SoftCap(30.0)))
        return view.attend(query, **pieces, implementation=PallasTPU())

    def rows(heads, size):
        return jax.ShapeDtypeStruct((4, new, heads, size), dtype)

    arrays = rows(q_heads, dim), cache, rows(kv_heads, dim), rows(kv_heads, 0 if dim == 576 else dim)
    program, text = compiled(generation, step, *arrays)
    assert ("jattn_decode_pages" if kind == "paged" else "jattn_decode") in text
    # The new cache is one copy of the old one, which is not donated here.
    held = sum(np.prod(one.shape) * jnp.dtype(one.dtype).itemsize for one in (cache.keys, cache.values))
    assert program.memory_analysis().temp_size_in_bytes < held + 2**21
