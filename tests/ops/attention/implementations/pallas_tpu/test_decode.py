"""A few queries over a cache, in interpret mode: each way in which a cache lies in memory, and each kind of piece."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from measure import near, random
from tiers import rows

import jattn
from jattn import masks, normalizers, scores
from jattn.layers import caches
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU, geometry

KERNEL = PallasTPU(kv_tile=128, interpret=True)
KERNEL_OF_TWO = PallasTPU(kv_tile=256, interpret=True)  # not a program of another test
LENGTHS = jnp.array([0, 150, 280])
PLACES = 280  # two whole tiles and a part of one
CALLS = {
    # name: (q_len, q_heads, kv_heads, qk_dim, v_dim), pieces
    "tokens first": ((1, 4, 2, 128, 128), dict(mask=masks.Causal())),
    "heads first, a window": ((1, 3, 3, 128, 128), dict(mask=masks.SlidingWindow(100, None))),
    "features first, several queries": ((3, 4, 2, 8, 12), dict(mask=masks.Lengths(LENGTHS) & masks.Causal())),
    "wide values": ((1, 4, 2, 8, 256), {}),
    "scores": (
        (2, 4, 1, 8, 8),
        dict(
            mask=lambda q, k: jnp.where(k < 9, True, (k <= q) & (q - k < 60)),
            scores=(
                scores.ALiBi.standard(4),
                scores.Bias(jnp.sin(jnp.arange(3 * PLACES)).reshape(3, 1, 1, PLACES)),
                scores.Bias(jnp.cos(jnp.arange(4 * 2 * PLACES)).reshape(4, 2, PLACES)),
                scores.SoftCap(5.0),
            ),
        ),
    ),
    "each weight alone": (
        (1, 2, 2, 8, 8),
        dict(
            mask=masks.Lengths(LENGTHS),
            normalizer=normalizers.Sigmoid(bias=-1.0),
            dropout=jattn.Dropout(0.3, jax.random.key(0)),
        ),
    ),
}  # fmt: skip


def pair(name, *kernels):
    (q_len, q_heads, kv_heads, qk_dim, v_dim), pieces = CALLS[name]
    arrays = random((3, q_len, q_heads, qk_dim), (3, PLACES, kv_heads, qk_dim), (3, PLACES, kv_heads, v_dim))
    positions = PLACES - q_len + np.arange(q_len)
    call: Any = jattn.attention if "normalizer" in pieces else jattn.partial_attention

    @jax.jit
    def run(*arrays):
        return [
            call(*arrays, **pieces, query_positions=positions, implementation=one) for one in (*kernels, "reference")
        ]

    return run(*arrays)


@pytest.mark.parametrize("name", rows(CALLS, {"scores"}))
def test_values(name):
    have, want = pair(name, KERNEL)
    jax.tree.map(lambda have, want: near(have, want, 1e-5), have, want)


def test_two_cores_share_the_keys(monkeypatch):
    monkeypatch.setitem(geometry.CORES, "", 2)  # those of this machine
    have, want = pair("features first, several queries", KERNEL_OF_TWO)
    near(have.out, want.out, 1e-5)
    near(have.lse, want.lse, 1e-5)


@pytest.mark.exhaustive
def test_nan_and_inf_reach_who_may_attend_to_them():
    """A NaN among the keys of one head stays with that head, and one that is masked out reaches nothing."""
    query, key, value = (array.astype(jnp.bfloat16) for array in random((1, 2, 128), (200, 2, 128), (200, 2, 128)))
    key = key.at[60, 0].set(jnp.nan).at[190].set(jnp.inf)
    value = value.at[30, 0, 3].set(jnp.inf).at[150, 1, 5].set(jnp.nan).at[190].set(jnp.nan)
    options: Any = dict(
        mask=lambda batch, head, q, k: (k < 180) & ((head != 0) | (k != 60)), query_positions=np.array([199])
    )
    have, want = (jattn.attention(query, key, value, **options, implementation=one) for one in (KERNEL, "reference"))
    np.testing.assert_array_equal(np.isnan(have), np.isnan(want))
    np.testing.assert_array_equal(np.isposinf(have), np.isposinf(want))
    finite = np.isfinite(np.asarray(want, np.float32))
    assert not finite.all()
    near(have.astype(jnp.float32)[finite], want.astype(jnp.float32)[finite], 1e-2)


CACHES = {
    "contiguous": caches.Contiguous(150),
    "rolling": caches.Rolling(60, sinks=2),
    "paged": caches.Paged(pages=24, page_size=16, slots=10, block=64),
}


def filled(spec, kv_heads, dim):
    """A cache with 0, 50 and 130 tokens."""
    cache = spec.create((3,), kv_heads, dim)
    if isinstance(spec, caches.Paged):
        pool = caches.PageAllocator(spec.pages, spec.page_size)
        cache = cache.with_table(pool.table([pool.allocate(tokens) for tokens in (5, 60, 150)], spec.slots))
    key, value = random((3, 130, kv_heads, dim), (3, 130, kv_heads, dim))
    return cache.append(key, value, valid=np.arange(130) < np.array([[0], [50], [130]]))[1]


@pytest.mark.parametrize("as_values", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", rows(CACHES, {"paged"}))
def test_caches(name, as_values):
    heads = 1 if as_values else 2

    @jax.jit
    def step(cache, query, key, value):
        view, _ = cache.append(key, value, valid=jnp.array([True, True, False]))
        view = view.with_keys_as_values() if as_values else view
        return [view.attend(query, mask=masks.Causal(), implementation=one) for one in (KERNEL, "reference")]

    arrays = random((3, 3, 2, 128), (3, 3, heads, 128), (3, 3, heads, 128))
    have, want = step(filled(CACHES[name], heads, 128), *arrays)
    near(have, want, 1e-5)
    assert np.abs(want).max() > 0.1


@pytest.mark.exhaustive
def test_pages_are_read_by_the_kernel(monkeypatch):
    """They are not gathered first. Under `vmap` and in the backward pass they are."""
    read, seen = PallasTPU.stream_pages, []
    monkeypatch.setattr(PallasTPU, "stream_pages", lambda *given: seen.append(1) or read(*given))
    view, (query,) = filled(CACHES["paged"], 2, 128).view(), random((3, 1, 4, 128))

    @functools.partial(jax.jit, static_argnums=1)
    def attend(query, implementation):
        return view.attend(query, query_positions=view.lengths[:, None], implementation=implementation)

    want = attend(query, "reference")
    assert not seen
    near(attend(query, KERNEL), want, 1e-5)
    assert seen
    near(jax.vmap(lambda query: attend(query, KERNEL))(query[None])[0], want, 1e-5)
    gradient = jax.jit(jax.grad(lambda query, one: (attend(query, one) ** 2).sum()), static_argnums=1)
    near(gradient(query, KERNEL), gradient(query, "reference"), 1e-5)


def test_explain_sees_who_reads_pages():
    cache = jax.eval_shape(lambda: CACHES["paged"].create((3,), 2, 128))
    query = jax.ShapeDtypeStruct((3, 1, 4, 128), "float32")

    def attend(query, cache):
        return cache.view().attend(query, query_positions=cache.lengths[:, None], mask=masks.Causal())

    for target, name in (("tpu v5e", "pallas_tpu"), ("cpu", "tiled")):
        (found,) = jattn.explain_calls(attend, query, cache, target=target)
        assert found.implementation == name


def test_gradients():
    """Those of the other kernel; here lengths and slopes have 64 bits."""
    arrays = random((2, 1, 4, 8), (2, 130, 2, 8), (2, 130, 2, 8))
    with jax.enable_x64(True):
        lengths, slopes = jnp.array([30, 130], int), jnp.linspace(0.1, 0.4, 4, dtype=float)

        def loss(query, key, value, slopes, implementation):
            out, lse = jattn.partial_attention(
                query,
                key,
                value,
                mask=masks.Lengths(lengths),
                scores=scores.ALiBi(slopes),
                query_positions=lengths[:, None] - 1,
                implementation=implementation,
            )
            return (out**2).sum() + lse.sum()

        gradients = jax.jit(jax.grad(loss, (0, 1, 2, 3)), static_argnums=4)
        have, want = (gradients(*arrays, slopes, one) for one in (KERNEL, "reference"))
        for one, other in zip(have, want, strict=True):
            assert one.dtype == other.dtype
            near(one, other, 1e-5)
