"""The kernels in the simulator of a TPU: copies arrive when they are waited for, and steps that may be parallel come in
any order, on any core.

The interpreter of the other tests copies at once and takes one step after the other, so it cannot see a missing wait, a
buffer that is overwritten too soon, or a step that needs what another one left. Here these raise, and a read of memory
that nothing has written is NaN.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.pallas import tpu as pltpu
from measure import near, random

import jattn
from jattn import masks, scores
from jattn.layers import caches
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU, backward, decode_kernel, forward, geometry, tables

pytestmark = pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the simulator of TPUs needs a newer JAX")

KERNEL = PallasTPU(q_tile=128, kv_tile=128, heads=1, interpret=True)
TARGETS = {1: "tpu v6e", 2: "tpu v4"}
"""By the number of cores of a device."""


@pytest.fixture
def simulated(monkeypatch):
    """Makes the interpreted kernels run in the simulator, with so many cores."""

    def start(cores):
        params = pltpu.InterpretParams(detect_races=True, random_seed=1, num_cores_or_threads=cores)
        for module in (forward, backward, decode_kernel):
            monkeypatch.setattr(module, "interpreter", lambda *_: params)
        return jattn.compiled_for(TARGETS[cores])

    yield start
    pltpu.reset_tpu_interpret_mode_state()


@pytest.mark.parametrize("cores", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_copies_and_steps(cores, simulated, monkeypatch):
    """Keys and fields by copies, gradients of keys in two chunks, a row of the list at a time, pairs in memory."""
    monkeypatch.setattr(geometry, "RESIDENT", {"forward": 0, "backward": 0, "gradients": 0})
    monkeypatch.setattr(tables, "WHOLE", 0)
    arrays = random(*[(2, 260, 2, 8)] * 3, (1, 2, 1, 260), (1, 2, 260, 260))

    def gradients(implementation):
        def run(query, key, value, of_keys, of_pairs):
            pieces = {"mask": masks.Causal(), "scores": (scores.Bias(of_keys), scores.Bias(of_pairs))}
            return jattn.attention(query, key, value, **pieces, implementation=implementation)

        out, pull = jax.vjp(run, *arrays)
        return out, *pull(jnp.sin(out))

    with simulated(cores):
        have = gradients(KERNEL)
    for one, other in zip(have, gradients("reference"), strict=True):
        near(one, other)


@pytest.mark.parametrize("cores", [pytest.param(1, marks=pytest.mark.exhaustive), 2])
def test_pages(cores, simulated):
    """A step of decoding from a cache in pages, of examples of several lengths."""
    pool, lengths = caches.PageAllocator(24, 16), (5, 60, 250)
    cache = caches.Paged(pages=24, page_size=16, slots=16, block=64).create((3,), 2, 8)
    cache = cache.with_table(pool.table([pool.allocate(length) for length in lengths], 16))
    key, value, query = random((3, 250, 2, 8), (3, 250, 2, 8), (3, 1, 4, 8))
    view = cache.append(key, value, valid=jnp.arange(250) < jnp.array(lengths)[:, None])[1].view()

    def attend(implementation):
        return view.attend(query, query_positions=view.lengths[:, None], implementation=implementation)

    with simulated(cores):
        have = attend(KERNEL)
    near(have, attend("reference"), 1e-5)
