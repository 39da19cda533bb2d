"""The plan visits what a dense evaluation finds, and lists it for both passes."""

import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn import masks
from jattn.foundation.pieces import align
from jattn.ops.attention.plan import EMPTY, FULL, PARTIAL, Plan, make_plan
from jattn.ops.attention.plan import plan as plans


def plan_of(mask, length, tile):
    aligned = align(mask, (), {"head": 1, "query": length, "key": length})
    position = np.arange(length, dtype=np.int32)
    return make_plan(aligned, position.reshape(1, -1, 1), position.reshape(1, 1, -1), tile, tile)


Q, K = np.arange(1536)[:, None], np.arange(1536)[None, :]
GRID = (48, 32)
IDS = np.arange(1536) // 200


def clamped(position, side, reach):
    """The first coordinate of a window that shifts inwards at the borders."""
    return np.clip(position - reach, 0, side - 2 * reach - 1)


def natten(reach):
    inside = True
    for q, k, side in ((Q // 32, K // 32, 48), (Q % 32, K % 32, 32)):
        start = clamped(q, side, reach)
        inside = inside & (start <= k) & (k <= start + 2 * reach)
    return inside


FIGURES = {
    "causal": (masks.Causal(), K <= Q),
    "causal window": (masks.SlidingWindow(300, 0), (K <= Q) & (Q - K <= 300)),
    "symmetric window": (masks.SlidingWindow(200, 200), abs(Q - K) <= 200),
    "longformer": (
        masks.SlidingWindow(200, 200) | masks.of(lambda q, k: (q < 16) | (k < 16)),
        (abs(Q - K) <= 200) | (Q < 16) | (K < 16),
    ),
    "prefix": (masks.Prefix(200), (K <= Q) | (K < 200)),
    "chunked": (masks.Chunked(300), Q // 300 == K // 300),
    "block causal": (masks.BlockCausal(192), K // 192 <= Q // 192),
    "strided": (
        masks.Causal() & (masks.SlidingWindow(300, 0) | masks.Strided(300)),
        (K <= Q) & ((Q - K <= 300) | ((Q - K) % 300 == 0)),
    ),
    "dilated": (masks.Dilated(3, 100), ((Q - K) % 100 == 0) & (abs(Q - K) <= 300)),
    "negated window": (~masks.SlidingWindow(300, 0), ~((K <= Q) & (Q - K <= 300))),
    "neighborhood as in NATTEN": (masks.Neighborhood(GRID, 7), natten(3)),
    "neighborhood cut off": (
        masks.of(lambda q, k: (abs(q // 32 - k // 32) <= 3) & (abs(q % 32 - k % 32) <= 3)),
        (abs(Q // 32 - K // 32) <= 3) & (abs(Q % 32 - K % 32) <= 3),
    ),
    "sinks and window": (
        masks.Causal() & (masks.SlidingWindow(300, 0) | masks.Sinks(4)),
        (K <= Q) & ((Q - K <= 300) | (K < 4)),
    ),
    "where": (
        masks.of(lambda q, k: jnp.where(q < 768, k <= q, abs(q - k) < 100)),
        np.where(Q < 768, K <= Q, abs(Q - K) < 100),
    ),
    "documents": (
        masks.of(lambda q, k: jnp.asarray(IDS)[q] == jnp.asarray(IDS)[k]),
        Q // 200 == K // 200,
    ),
}


@pytest.mark.parametrize("name", FIGURES)
def test_visited_tiles_are_those_of_a_dense_evaluation(name):
    mask, truth = FIGURES[name]
    mask = jax.tree.map(np.asarray, mask)
    plan = plan_of(mask, 1536, 128)
    blocks = truth.reshape(12, 128, 12, 128)
    ideal = np.where(blocks.all((1, 3)), FULL, np.where(blocks.any((1, 3)), PARTIAL, EMPTY))
    assert plan.known
    np.testing.assert_array_equal(plan.states[0], ideal)
    assert plan.counts() == ((ideal != EMPTY).sum(), (ideal == FULL).sum(), 144)


def test_a_million_positions_build_nothing_larger_than_the_grid():
    mask = masks.SlidingWindow(2048, 2048) | masks.of(lambda q, k: (q < 64) | (k < 64))
    plan_of(mask, 4096, 512)  # what is imported and traced once does not count
    tiles = 2048 * 2048
    tracemalloc.start()
    plan = plan_of(mask, 2**20, 512)
    lists = plan.lists()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert plan.states.shape == (1, 2048, 2048)
    # 2 * 2048 - 1 tiles of row 0 and column 0, and 4 or 5 to each side of the diagonal.
    ideal = abs(np.arange(2048)[:, None] - np.arange(2048)) <= 4
    ideal[0] = ideal[:, 0] = True
    assert plan.counts()[0] == ideal.sum() == lists.order.size
    assert peak < 40 * tiles  # some arrays of a grid of int32 at a time; one row of pairs a tile would be 512 x more


def test_a_question_is_answered_once():
    window = [masks.SlidingWindow(np.array([width]), 0) for width in (5, 5, 6)]
    states = [plan_of(mask, 40, 8).states for mask in window]
    assert np.shares_memory(states[0], states[1])
    assert not np.shares_memory(states[0], states[2])
    assert not states[0].flags.writeable
    jax.eval_shape(lambda width: plan_of(masks.SlidingWindow(width, 0), 40, 8), np.array([5]))
    assert all(isinstance(answer, np.ndarray) for answer in plans._ANSWERS.values())


def check_lists(plan, by):
    lists = plan.lists(by)
    states = np.asarray(plan.states if by == "query" else np.swapaxes(plan.states, -1, -2))
    assert lists.bounds.shape == (*states.shape[:-1], 3)
    order = np.asarray(lists.order)
    assert order.dtype == np.int32 and order.size >= 1
    for row in np.ndindex(*states.shape[:-1]):
        start, full_stop, stop = (int(bound) for bound in lists.bounds[row])
        np.testing.assert_array_equal(order[start:full_stop], np.flatnonzero(states[row] == FULL))
        np.testing.assert_array_equal(order[full_stop:stop], np.flatnonzero(states[row] == PARTIAL))
    return lists


def random_plan(density, shape=(2, 3, 5, 7)):
    states = np.random.default_rng(0).choice(3, shape, p=[1 - density, density / 2, density / 2]).astype(np.uint8)
    return Plan(states, 4, 4, 4 * shape[-2], 4 * shape[-1])


@pytest.mark.parametrize("by", ["query", "key"])
@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
def test_lists(density, by):
    plan = random_plan(density)
    lists = check_lists(plan, by)
    assert lists.order.size == max(plan.counts()[0], 1)
    later = jax.jit(lambda states: Plan(states, 4, 4, 20, 28).lists(by))(plan.states)
    assert later.order.size == plan.states.size
    np.testing.assert_array_equal(lists.bounds, later.bounds)
    stop = int(np.max(lists.bounds[..., 2]))
    np.testing.assert_array_equal(lists.order[:stop], later.order[:stop])


def test_traced_lists_need_no_sort():
    shape = jax.ShapeDtypeStruct((1, 8, 8), np.uint8)
    text = jax.jit(lambda states: Plan(states, 4, 4, 32, 32).lists()).lower(shape).as_text()
    assert "stablehlo.sort" not in text
    assert "scatter" in text


def test_coarse_visits_what_any_visits_and_is_full_where_all_are():
    plan = random_plan(0.8, (2, 2, 6, 5, 7))
    coarse = plan.coarse((True, True), 3)
    assert coarse.states.shape == (1, 1, 2, 5, 7)
    joined = plan.states.reshape(4, 2, 3, 5, 7).transpose(1, 0, 2, 3, 4).reshape(2, 12, 5, 7)
    np.testing.assert_array_equal(coarse.states[0, 0] != EMPTY, (joined != EMPTY).any(1))
    np.testing.assert_array_equal(coarse.states[0, 0] == FULL, (joined == FULL).all(1))
    assert plan.coarse((), 2).states.shape == (2, 2, 3, 5, 7)
    shared = Plan(plan.states[:, :, :1], 4, 4, 20, 28)
    assert shared.coarse((), 3) is shared
    later = jax.jit(lambda states: Plan(states, 4, 4, 20, 28).coarse((True, True), 3).states)(plan.states)
    np.testing.assert_array_equal(later, coarse.states)
    with pytest.raises(ValueError, match="`head_group` must divide the 6 heads"):
        plan.coarse((), 4)


def test_the_last_tile_may_be_ragged():
    plan = plan_of(masks.Causal(), 10, 4)
    np.testing.assert_array_equal(plan.states[0], [[1, 0, 0], [2, 1, 0], [2, 2, 1]])
    assert (plan.q_len, plan.kv_len) == (10, 10)


def test_no_mask_is_full_and_no_pairs_are_no_tiles():
    q, k = np.arange(6, dtype=np.int32).reshape(1, 1, 6, 1), np.arange(9, dtype=np.int32).reshape(1, 1, 1, 9)
    assert make_plan(None, q, k, 4, 4).states.tolist() == [[[[FULL] * 3] * 2]]
    empty = make_plan(masks.Causal(), q, k[..., :0], 4, 4)
    assert empty.states.shape == (1, 1, 2, 0)
    assert empty.lists().bounds[..., 2].tolist() == [[[0, 0]]]


def test_bad_arguments():
    q = np.zeros((1, 4, 1), np.int32)
    with pytest.raises(ValueError, match="`q_tile` and `k_tile` must be at least 1"):
        make_plan(None, q, q.reshape(1, 1, 4), 0, 4)
    with pytest.raises(ValueError, match="`by` must be"):
        random_plan(0.5).lists("rows")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="known while tracing"):
        Plan(jnp.zeros((1, 2, 2), np.uint8), 1, 1, 2, 2).counts()
