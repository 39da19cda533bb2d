"""Keys selected for each query or block of queries: what is allowed, skipped and rejected."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiers import rows

import jattn
from jattn import masks
from jattn.foundation.pieces import align
from jattn.ops.attention.implementations import Tiled
from jattn.ops.attention.plan import make_plan

LENGTH, TILE = 48, 8
CHOICES = {
    "keys of queries": (1, (2, 1, 48, 4), 48),
    "key blocks of queries": ((1, 8), (2, 1, 48, 2), 6),
    "key blocks of query blocks, of each head": ((16, 8), (1, 2, 3, 2), 6),
    "one choice of all": ((48, 3), (1, 1, 1, 1), 16),
    "small blocks, whole tiles": ((4, 2), (2, 2, 12, 60), 24),
}


def drawn(name):
    size, shape, blocks = CHOICES[name]
    return size, np.random.default_rng(len(name)).integers(-1, blocks, shape)


def pairs(indices, size):
    """Pair by pair: `[batch, head, query, key]`."""
    rows, columns = (size, size) if isinstance(size, int) else size
    found = np.zeros((*indices.shape[:2], LENGTH, LENGTH), bool)
    for b, h, q, k in np.ndindex(*found.shape):
        found[b, h, q, k] = k // columns in indices[b, h, q // rows]
    return found


def states(mask):
    at = np.arange(LENGTH, dtype=np.int32)
    aligned = align(mask, (2,), {"head": 2, "query": LENGTH, "key": LENGTH})
    return make_plan(aligned, at.reshape(1, 1, -1, 1), at.reshape(1, 1, 1, -1), TILE, TILE).states


@pytest.mark.parametrize("name", rows(CHOICES, list(CHOICES)[:2]))
def test_tiles_that_nobody_chose_are_skipped(name):
    """Exactly those, and exactly the tiles of which every pair is chosen are full: known while tracing and traced."""
    size, indices = drawn(name)
    expected = pairs(indices, size)
    assert (masks.create(masks.Selected(indices, size), LENGTH, LENGTH) == expected).all()
    tiles = expected.reshape(*expected.shape[:2], LENGTH // TILE, TILE, LENGTH // TILE, TILE)
    ideal = tiles.any((3, 5)).astype(np.uint8) + tiles.all((3, 5))
    known, traced = states(masks.Selected(indices, size)), jax.jit(lambda i: states(masks.Selected(i, size)))(indices)
    assert isinstance(known, np.ndarray)
    for found in (known, traced):
        np.testing.assert_array_equal(jnp.broadcast_arrays(found, ideal)[0], ideal)


def test_whole_tiles_occur_above():
    assert (states(masks.Selected(drawn("small blocks, whole tiles")[1], (4, 2))) == 2).any()


@pytest.mark.parametrize(
    "implementation", [pytest.param("reference", marks=pytest.mark.exhaustive), Tiled(8, 8)], ids=["reference", "tiled"]
)
def test_a_token_in_a_cache_has_the_last_list(implementation):
    """`first_query` says where the first list begins; traced, so that decoding compiles once."""
    size, indices = drawn("key blocks of queries")
    q, k, v = (jax.random.normal(jax.random.key(i), (2, LENGTH, 2, 4)) for i in range(3))
    whole = jattn.attention(q, k, v, mask=masks.Selected(indices, size) & masks.Causal())

    @jax.jit
    def step(token, chosen, at):
        mask = masks.Selected(chosen, size, first_query=at) & masks.Causal()
        return jattn.attention(token, k, v, mask=mask, query_positions=at[None], implementation=implementation)

    for at in (0, 17, 47):
        one = step(q[:, at : at + 1], indices[:, :, at : at + 1], jnp.asarray(at))
        np.testing.assert_allclose(one, whole[:, at : at + 1], atol=2e-6)


def test_order_and_repetitions_say_nothing():
    _, indices = drawn("keys of queries")
    doubled = np.concatenate([indices[..., ::-1], indices], -1)
    assert (masks.create(masks.Selected(doubled), LENGTH, LENGTH) == pairs(indices, 1)).all()
    assert masks.Selected(doubled).replace(size=2).size == 2
    assert not masks.create(masks.Selected(indices[..., :0]), LENGTH, LENGTH).any()


def test_with_integers_of_64_bits():
    size, indices = drawn("key blocks of query blocks, of each head")
    with jax.enable_x64(True):
        mask = masks.Selected(jnp.asarray(indices, int), size, first_query=jnp.asarray(0, int))
        found = masks.create(mask, LENGTH, LENGTH)
    assert (found == pairs(indices, size)).all()


def test_a_router_keeps_its_gradient():
    """The lists come from scores by `top_k`; gradients of what they choose equal those of the same dense mask."""
    q, k, v = (jax.random.normal(jax.random.key(i), (1, LENGTH, 2, 4)) for i in range(3))

    def loss(k, chosen, implementation):
        router = jnp.einsum("bqhd,bkhd->bqk", q, k)
        indices = jax.lax.top_k(router, 5)[1][:, None]
        mask = masks.Selected(indices) if chosen else masks.Dense((indices[..., None] == jnp.arange(LENGTH)).any(-2))
        return (jattn.attention(q, k, v, mask=mask, implementation=implementation) ** 2).sum()

    calls = ((False, "reference"), (True, "reference"), (True, Tiled(8, 16)))
    want, *found = jax.jit(lambda k: [jax.grad(loss)(k, *call) for call in calls])(k)
    for one in found:
        np.testing.assert_allclose(one, want, atol=3e-5)


GOOD = np.zeros((1, 3, 2), int)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: masks.Selected(GOOD[0]), "`indices` must be an integer array .*query blocks, choices"),
        (lambda: masks.Selected(GOOD.astype(float)), "`indices` must be an integer"),
        (lambda: masks.Selected(3), "`indices` must be an integer array"),  # type: ignore[arg-type]
        (lambda: masks.Selected(GOOD, 0), "`size` must be a Python integer of at least 1"),
        (lambda: masks.Selected(GOOD, (1, 2, 3)), "`size` must be an integer, or"),  # type: ignore[arg-type]
        (lambda: masks.Selected(GOOD, first_query=-1), "`first_query` must be an integer of at least 0"),
        (lambda: masks.Blocks(np.ones((1, 2, 2), bool), (4, 0)), r"`size\[1\]` must be a Python integer"),
        (lambda: masks.Blocks(np.ones((1, 2, 2), bool), 1.5), "`size` must be a Python integer"),  # type: ignore[arg-type]
        (
            lambda: jattn.attention(*[jnp.ones((4, 1, 2))] * 3, mask=masks.Selected(GOOD)),
            "`mask` is made for 3 positions",
        ),
    ],
)
def test_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
