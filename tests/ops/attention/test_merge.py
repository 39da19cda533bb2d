"""Partial attention is a monoid under `merge`, and merging chunks of keys equals attention over all of them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measure import exact, near, random

import jattn
from jattn import Partial, merge

LAW = settings(max_examples=25, deadline=None)
SHAPE = (5, 2, 3)  # q_len, q_heads, v_dim
merged = jax.jit(lambda *partials: merge(*partials))


@st.composite
def partials(draw):
    """A partial result with some empty rows and masses of very different sizes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lse = rng.normal(size=SHAPE[:-1]) * draw(st.sampled_from([0.1, 3.0, 80.0, 1e4]))
    empty = rng.random(SHAPE[:-1]) < draw(st.sampled_from([0.0, 0.3, 1.0]))
    out = np.where(empty[..., None], 0, rng.normal(size=SHAPE))
    return Partial(jnp.asarray(out, "float32"), jnp.asarray(np.where(empty, -np.inf, lse), "float32"))


def same(left: Partial, right: Partial) -> None:
    # Masses that differ in the last place of an lse of thousands weigh the parts differently by as much.
    finite = np.isfinite(right.lse)
    scale = max(1.0, float(np.abs(np.where(finite, right.lse, 0)).max()))
    np.testing.assert_allclose(left.lse, right.lse, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(left.out, right.out, rtol=0, atol=4e-6 * scale)


@given(partials(), partials())
@LAW
def test_commutative(a, b):
    same(merged(a, b), merged(b, a))


@given(partials(), partials(), partials())
@LAW
def test_associative(a, b, c):
    same(merged(merged(a, b), c), merged(a, merged(b, c)))
    same(merged(a, b, c), merged(a, merged(b, c)))


@given(partials())
@LAW
def test_the_empty_partial_is_the_identity(a):
    nothing = Partial.empty(a.out)
    for got in (merged(nothing, a), merged(a, nothing), merged(a)):
        same(got, a)


def test_many_empty_partials_are_empty():
    nothing = Partial.empty(jnp.zeros(SHAPE))
    got = merge(nothing, nothing, nothing)
    assert (got.out == 0).all() and np.isneginf(got.lse).all()


def test_gradients_are_zero_where_all_are_empty():
    (out,), lse = random(SHAPE), jnp.full(SHAPE[:-1], -jnp.inf).at[0].set(1.0)
    a, b = Partial(out.at[1:].set(0), lse), Partial.empty(out)

    def loss(a, b):
        both = merge(a, b)
        return (both.out**2).sum() + jnp.where(jnp.isfinite(both.lse), both.lse, 0).sum()

    for gradient in jax.tree.leaves(jax.grad(loss, argnums=(0, 1))(a, b)):
        assert np.isfinite(gradient).all()
        assert (np.asarray(gradient)[1:] == 0).all()


Q_LEN, KV_LEN = 7, 12


def in_chunks(query, key, value, slopes, cuts):
    """Attention by merging the chunks of the keys between traced cuts."""
    parts = [
        jattn.partial_attention(
            query,
            key,
            value,
            mask=jattn.masks.Causal() & jattn.masks.of(lambda q, k, start=start, stop=stop: (start <= k) & (k < stop)),
            scores=jattn.scores.ALiBi(slopes),
            query_positions=np.arange(Q_LEN),
            implementation="reference",
        )
        for start, stop in zip((0, *cuts), (*cuts, KV_LEN), strict=True)
    ]
    return merge(*parts)


ARRAYS = (*random((Q_LEN, 4, 3), (KV_LEN, 2, 3), (KV_LEN, 2, 5)), jnp.asarray([0.1, 0.2, 0.4, 0.8]))
COTANGENT = Partial(*random((Q_LEN, 4, 5), (Q_LEN, 4), seed=1))


@jax.jit
def results(cuts):
    """Out and lse, and the gradients of all arrays through both of them."""
    got, pull = jax.vjp(lambda *arrays: in_chunks(*arrays, cuts), *ARRAYS)
    return got, pull(COTANGENT)


@given(st.lists(st.integers(0, KV_LEN), min_size=3, max_size=3))
@LAW
def test_merging_chunks_equals_the_whole(cuts):
    got, want = results(tuple(jnp.asarray(cut) for cut in sorted(cuts))), results(())
    for have, wish in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(have, wish, rtol=0, atol=2e-5)


@pytest.mark.exhaustive
def test_merging_chunks_of_the_chunked_implementation():
    query, key, value = random((2, 9, 2, 4), (2, 21, 2, 4), (2, 21, 2, 3))
    tiles = jattn.implementations.Tiled(q_tile=4, k_tile=4)

    def loss(query, key, value, cut):
        halves = [
            jattn.partial_attention(query, key[:, part], value[:, part], implementation=tiles)
            for part in (slice(0, cut), slice(cut, 21))
        ]
        both = merge(*halves)
        return (both.out**2).sum() + both.lse.sum(), both

    (_, got), gradients = jax.jit(jax.value_and_grad(lambda *a: loss(*a, 8), (0, 1, 2), has_aux=True))(
        query, key, value
    )
    want = exact(query, key, value)
    near(got.out, want.out)
    near(got.lse, want.lse)
    (_, _), whole = jax.jit(jax.value_and_grad(lambda *a: loss(*a, 0), (0, 1, 2), has_aux=True))(query, key, value)
    for have, wish in zip(gradients, whole, strict=True):
        near(have, wish, 2e-5)


def test_one_partial_of_bfloat16_stays_bfloat16():
    out = jnp.ones(SHAPE, jnp.bfloat16)
    got = merge(Partial(out, jnp.zeros(SHAPE[:-1])), Partial.empty(out))
    assert got.out.dtype == jnp.bfloat16 and got.lse.dtype == jnp.float32


def test_bad_input():
    with pytest.raises(ValueError, match="at least one partial"):
        merge()
    a, b = Partial.empty(jnp.zeros((2, 1, 3))), Partial.empty(jnp.zeros((2, 1, 4)))
    with pytest.raises(ValueError, match=r"`partials`.*\(2, 1, 3\).*\(2, 1, 4\)"):
        merge(a, b)
