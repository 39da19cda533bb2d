"""Formulas of every kind visit the tiles that a dense evaluation finds, and distinguish full from partial tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.foundation.pieces import align
from jattn.masks import of
from jattn.ops.attention.plan import EMPTY, FULL, PARTIAL, make_plan
from jattn.ops.attention.plan import refine as refinement

LENGTH, TILE = 1536, 128
LENGTHS = (100, 37, 400, 5, 250, 130, 300, 214, 100)
STARTS = np.cumsum([0, *LENGTHS])
DOCUMENT = np.repeat(np.arange(len(LENGTHS)), LENGTHS)
LOGICAL = np.arange(LENGTH) - STARTS[DOCUMENT]
IMAGE = np.repeat([0, 1, 0, 2, 0, 3, 0], [100, 300, 90, 256, 200, 400, 190])
INTERVALS = np.array([[0, 0], [100, 400], [490, 746], [946, 1346]])
OF_ROW = np.array([384, 100, 250, 37])  # tokens of each row of a batch that is packed in rows of 384
CHOSEN = np.random.default_rng(0).integers(0, 12, (12, 4))
TABLE = np.random.default_rng(1).integers(-300, 300, (8, 8))
j = jnp.asarray


def search(position, side="right"):
    return jnp.searchsorted(j(STARTS), position, side=side)


NAMED = {
    "look-ups of intervals per image": lambda q, k: (
        (j(IMAGE)[k] > 0) & (j(INTERVALS)[j(IMAGE)[k], 0] <= q) & (q < j(INTERVALS)[j(IMAGE)[k], 1])
    ),
    "documents by logical positions": lambda q, k: (
        (j(DOCUMENT)[q] == j(DOCUMENT)[k])
        & (q - j(STARTS)[j(DOCUMENT)[q]] >= k - j(STARTS)[j(DOCUMENT)[k]])
        & (j(LOGICAL)[q] - j(LOGICAL)[k] < 64)
    ),
    "packed batches of unequal lengths": lambda q, k: (
        (j(DOCUMENT)[q] == j(DOCUMENT)[k]) & (j(LOGICAL)[k] <= j(LOGICAL)[q])
    ),
    "padded rows, packed": lambda q, k: (
        (q // 384 == k // 384) & (k % 384 < j(OF_ROW)[k // 384]) & (q % 384 < j(OF_ROW)[q // 384])
    ),
    "shared prefixes": lambda q, k: (
        (j(DOCUMENT)[q] // 3 == j(DOCUMENT)[k] // 3)
        & ((j(DOCUMENT)[k] % 3 == 0) | (j(DOCUMENT)[q] == j(DOCUMENT)[k]))
        & (j(LOGICAL)[k] + 60 * (j(DOCUMENT)[k] % 3 > 0) <= j(LOGICAL)[q] + 60 * (j(DOCUMENT)[q] % 3 > 0))
    ),
    "a shared prefix": lambda q, k: (k <= q) & ((k < 200) | (q // 384 == k // 384)),
    "a table of blocks": lambda q, k: (j(CHOSEN)[q // TILE] == k // TILE).any(),
    "a table of blocks not of the tiles'": lambda q, k: (j(CHOSEN)[q // 200] == k // 200).any() & (k <= q),
    "searchsorted": lambda q, k: search(q) == search(k),
    "wide dilations": lambda q, k: (abs(q - k) <= 1300) & ((q - k) % 300 == 0),
}
PRIMITIVES = {
    "xor": lambda q, k: (q ^ k) < 300,
    "and of xor": lambda q, k: ((q ^ k) & 384) == 0,
    "or and not": lambda q, k: ((q | ~k) & 512) != 0,
    "shifts": lambda q, k: (q >> 7) == (k >> 7),
    "shift to the left": lambda q, k: (k << 2) <= q,
    "logical shift": lambda q, k: jax.lax.shift_right_logical(q - k, 28) == 0,
    "round": lambda q, k: jnp.round(q / 200) == jnp.round(k / 200),
    "log2": lambda q, k: (k <= q) & (jnp.log2(q - k + 1.0) < 8.1),
    "clz": lambda q, k: jax.lax.clz(q) == jax.lax.clz(k),
    "population_count": lambda q, k: jax.lax.population_count((q >> 8) ^ (k >> 8)) <= 1,
    "cond": lambda q, k: jax.lax.cond(q < 768, lambda: k <= q, lambda: abs(q - k) < 100),
    "switch": lambda q, k: jax.lax.switch(q // 400, [lambda: k <= q, lambda: abs(q - k) < 90, lambda: k < 50]),
    "select_n": lambda q, k: jax.lax.select_n(q // 520, k <= q, abs(q - k) < 90, k < 50),
    "argmax of a row": lambda q, k: jnp.argmax(j(TABLE)[q // 192]) == k // 192,
    "argmax": lambda q, k: jnp.argmax(jnp.stack([q, k, jnp.int32(500)])) == 0,
    "sort of a row": lambda q, k: jnp.sort(j(TABLE)[q // 192])[0] < k - 400,
    "sort": lambda q, k: jnp.sort(jnp.stack([q, k, jnp.int32(700)]))[1] == 700,
    "sort of pairs": lambda q, k: jnp.argsort(j(TABLE)[q // 192])[0] == k // 192,
    "cumsum": lambda q, k: jnp.cumsum(abs(j(TABLE)[q // 192]))[3] > k,
    "sum": lambda q, k: (j(STARTS) <= q).sum() == (j(STARTS) <= k).sum(),
    "a sum that wraps around": lambda q, k: jnp.stack([q << 20, q << 20]).sum() > 0,
    "past the end of a table": lambda q, k: jnp.take(j(TABLE[0]), q // 192 + 3) > -5000,
    "matrix product": lambda q, k: j(TABLE)[q // 200] @ j(TABLE)[k // 200] > 0,
    "table of two axes": lambda q, k: j(TABLE)[q // 192, k // 192] > 0,
    "numbers of a row and a distance": lambda q, k: j(TABLE)[q // 192, abs(q - k) // 192] > 100,
    "table by distance": lambda q, k: j(np.arange(LENGTH) % 500 < 100)[abs(q - k)],
    "fori_loop": lambda q, k: jax.lax.fori_loop(0, 3, lambda i, x: x // 4, q) == k // 64,
    "while_loop": lambda q, k: jax.lax.while_loop(lambda x: x > 20, lambda x: x // 2, q) > k // 64,
    "sin": lambda q, k: (jnp.sin(q / 100.0) > 0.5) & (jnp.cos(k / 70.0) < 0.3),
    "pow": lambda q, k: (k + 1.0) ** 1.2 < q,
}
MEET_LATE = (
    "padded rows, packed", "a shared prefix", "a table of blocks", "searchsorted", "xor", "and of xor",
    "shifts", "shift to the left", "round", "clz", "population_count", "cond", "sort of a row", "sum", "sin",
    "a sum that wraps around", "past the end of a table",
)  # fmt: skip
"""Exact without a second look, so at any length and where arrays are traced."""


def plan_and_ideal(function, traced=False):
    mask = align(of(function), (), {"head": 1, "query": LENGTH, "key": LENGTH})
    position = np.arange(LENGTH, dtype=np.int32)
    q, k = position.reshape(1, -1, 1), position.reshape(1, 1, -1)
    on_device = jax.tree.map(jnp.asarray, mask)
    truth = np.asarray(jax.jit(lambda mask, q, k: mask.allows(q, k))(on_device, q, k))
    blocks = np.broadcast_to(truth, (1, LENGTH, LENGTH)).reshape(LENGTH // TILE, TILE, LENGTH // TILE, TILE)
    ideal = np.where(blocks.all((1, 3)), FULL, np.where(blocks.any((1, 3)), PARTIAL, EMPTY))
    if traced:
        return jax.jit(lambda mask: make_plan(mask, q, k, TILE, TILE).states)(on_device), ideal
    return make_plan(jax.tree.map(np.asarray, mask), q, k, TILE, TILE).states, ideal


@pytest.mark.parametrize("name", NAMED | PRIMITIVES)
def test_a_plan_is_exact(name):
    states, ideal = plan_and_ideal((NAMED | PRIMITIVES)[name])
    np.testing.assert_array_equal(np.broadcast_to(states[0], ideal.shape), ideal)


def test_tables_of_batch_and_heads_are_exact_for_each():
    rng = np.random.default_rng(3)
    document, reach = np.sort(rng.integers(0, 5, (2, 300)), -1), rng.random((3, 300)) < 0.02

    def function(b, h, q, k):
        return (document[b, q] == document[b, k]) & reach[h, abs(q - k)] & (k <= q)

    mask = align(of(function).indexed((2,), 3), (2,), {"head": 3, "query": 300, "key": 300})
    position = np.arange(300, dtype=np.int32)
    plan = make_plan(mask, position.reshape(1, 1, -1, 1), position.reshape(1, 1, 1, -1), 40, 50)
    b, h, q, k = np.ogrid[:2, :3, :300, :300]
    truth = (document[b, q] == document[b, k]) & reach[h, abs(q - k)] & (k <= q)
    rows = np.logical_or.reduceat(np.logical_or.reduceat(truth, range(0, 300, 40), 2), range(0, 300, 50), 3)
    np.testing.assert_array_equal(plan.states != EMPTY, rows)
    rows = np.logical_and.reduceat(np.logical_and.reduceat(truth, range(0, 300, 40), 2), range(0, 300, 50), 3)
    np.testing.assert_array_equal(plan.states == FULL, rows)


@pytest.mark.parametrize("name", MEET_LATE)
def test_what_depends_on_one_side_is_exact_without_a_second_look(name, monkeypatch):
    monkeypatch.setattr(refinement, "BUDGET", 0)
    states, ideal = plan_and_ideal((NAMED | PRIMITIVES)[name])
    np.testing.assert_array_equal(np.broadcast_to(states[0], ideal.shape), ideal)


@pytest.mark.parametrize("name", ["padded rows, packed", "a table of blocks", "searchsorted", "xor"])
def test_a_traced_plan_is_exact_too(name):
    states, ideal = plan_and_ideal((NAMED | PRIMITIVES)[name], traced=True)
    np.testing.assert_array_equal(np.broadcast_to(states[0], ideal.shape), ideal)
