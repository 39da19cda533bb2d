"""Laws of intervals: what is said of a tile holds for every pair in it, for any mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

import jattn
from jattn.foundation.pieces import align, array, piece
from jattn.masks import Mask, of
from jattn.ops.attention.plan import EMPTY, FULL, PARTIAL, make_plan

# Shrinking a failure would compile for minutes.
quick = settings(deadline=None, derandomize=True, phases=[Phase.explicit, Phase.generate])
pytestmark = pytest.mark.filterwarnings("ignore:Generating overly large repr")


AS_WRITTEN = {"xla_disable_hlo_passes": "algsimp"}
"""XLA's simplifier takes `abs(x) >= 0` for true, which it is not for NaN and the smallest integer."""


def in_place(mask, q, k, batch=(), head=1):
    """A mask and its positions, aligned with each other and the batch; all in NumPy, and so known."""
    mask = align(mask, batch, {"head": head, "query": q.shape[-1], "key": k.shape[-1]})
    lead = (1,) * len(batch)
    q, k = np.asarray(q, np.int32).reshape(*lead, 1, -1, 1), np.asarray(k, np.int32).reshape(*lead, 1, 1, -1)
    return jax.tree.map(np.asarray, mask), q, k


def at_every_pair(mask, q, k):
    """The dense evaluation of a mask on the device. Arrays are arguments, so that XLA folds nothing."""
    return np.asarray(jax.jit(lambda mask, q, k: mask.allows(q, k), compiler_options=AS_WRITTEN)(mask, q, k))


def plan_and_truth(mask, q, k, q_tile, k_tile, batch=(), head=1):
    """A plan of which everything is known, and the dense evaluation of its mask."""
    mask, q, k = in_place(mask, q, k, batch, head)
    with np.errstate(all="ignore"):  # JAX folds constants in NumPy, which warns of what it casts
        plan = make_plan(mask, q, k, q_tile, k_tile)
    assert plan.known
    return plan, at_every_pair(mask, q, k)


def traced_plan_and_truth(mask, q, k, q_tile, k_tile, batch=(), head=1, tables=False, eager=False):
    """The same of positions that are on the device, with the mask's arrays or without them (`tables`)."""
    mask, q, k = in_place(mask, q, k, batch, head)
    kept = mask

    def both(mask, q, k):
        return make_plan(kept if tables else mask, q, k, q_tile, k_tile), mask.allows(q, k)

    with np.errstate(all="ignore"):
        if eager:
            plan, truth = both(*jax.tree.map(jnp.asarray, (mask, q, k)))
        else:
            plan, truth = jax.jit(both, compiler_options=AS_WRITTEN)(mask, q, k)  # one program
    assert not plan.known
    return plan, np.asarray(truth)


def assert_sound(plan, truth):
    states = np.asarray(plan.states)
    whole = np.repeat(np.repeat(states, plan.q_tile, -2), plan.k_tile, -1)[..., : plan.q_len, : plan.kv_len]
    whole, truth = np.broadcast_arrays(whole, truth)
    assert not truth[whole == EMPTY].any()
    assert truth[whole == FULL].all()
    assert set(np.unique(states)) <= {EMPTY, PARTIAL, FULL}


def assert_agrees(traced, known):
    """A traced plan is that of the known one, but for tiles that only a second look finds empty or full."""
    traced, known = np.asarray(traced), np.broadcast_to(known, np.shape(traced))
    np.testing.assert_array_equal(np.where(traced == PARTIAL, PARTIAL, known), traced)


def truncated_quotient(x, y):
    return jax.lax.div(*jnp.broadcast_arrays(x, jnp.asarray(y, x.dtype)))


def truncated_remainder(x, y):
    return jax.lax.rem(*jnp.broadcast_arrays(x, jnp.asarray(y, x.dtype)))


EDGES = np.array([-9, -9, 0, 4, 17, 40], np.int32)
WIDE = jnp.asarray(np.random.default_rng(0).integers(-30, 30, (3, 4)), jnp.int32)


def numbers(constants, floats):
    """Random integer expressions of (q, k), as functions."""
    leaf = st.one_of(
        st.just(lambda q, k: q),
        st.just(lambda q, k: k),
        constants.map(lambda c: lambda q, k: jnp.int32(c)),
    )

    def extend(inner):
        def two(f):
            return st.tuples(inner, inner).map(lambda ab: lambda q, k: f(ab[0](q, k), ab[1](q, k)))

        def one(f):
            return inner.map(lambda a: lambda q, k: f(a(q, k)))

        def by_constant(f):
            return st.tuples(inner, st.integers(-40, 40).filter(bool)).map(
                lambda ac: lambda q, k: f(ac[0](q, k), ac[1])
            )

        binary = [jnp.add, jnp.subtract, jnp.multiply, jnp.minimum, jnp.maximum, jnp.floor_divide, jnp.remainder]
        binary += [truncated_quotient, truncated_remainder, jnp.bitwise_and, jnp.bitwise_or, jnp.bitwise_xor]
        unary = [jnp.abs, jnp.negative, jnp.sign, jnp.square, lambda x: x**3, lambda x: jnp.clip(x, -5, 20)]
        unary += [jnp.bitwise_not, lambda x: x >> 2, lambda x: x << 3, lambda x: x * x, lambda x: jax.jit(jnp.abs)(x)]
        # Not negative: XLA of JAX 0.10 folds the leading zeros of a negative constant to -32.
        unary += [lambda x: jax.lax.clz(jnp.maximum(x, 0))]
        unary += [jax.lax.population_count, lambda x: x >> 1 << 2, lambda x: -7 >> x, lambda x: 3 << x]
        unary += [lambda x: (x.astype(jnp.uint32) - 5 >> 3).astype(jnp.int32), lambda x: jnp.searchsorted(EDGES, x)]
        unary += [
            lambda x: jax.lax.shift_right_logical(x, 28),
            lambda x: jax.lax.fori_loop(0, 3, lambda i, x: x // 3, x),
        ]
        unary += [lambda x: jnp.stack([x, 5 - x, x * 0], -1).sum(-1), lambda x: jnp.stack([x, 5 - x], -1).argmax(-1)]
        unary += [lambda x: jnp.sort(jnp.stack([x, 5 - x, x * 3], -1), -1)[..., 1], lambda x: WIDE[x % 3, x % 4]]
        choices = [two(f) for f in binary] + [one(f) for f in unary]
        choices += [two(jnp.left_shift), two(jnp.right_shift), two(jax.lax.shift_right_logical)]
        choices += [two(jnp.vectorize(lambda x, y: jax.lax.cond(x > 3, lambda: x - y, lambda: y)))]
        choices += [two(lambda x, y: WIDE[x, y]), two(lambda x, y: WIDE[x % 3].min(-1) + y)]
        choices += [by_constant(f) for f in (jnp.floor_divide, jnp.remainder, truncated_quotient, truncated_remainder)]
        choices += [
            st.tuples(inner, inner, inner).map(
                lambda abc: lambda q, k: jnp.where(abc[0](q, k) > 3, abc[1](q, k), abc[2](q, k))
            ),
            st.tuples(inner, st.lists(st.integers(-9, 9), min_size=7, max_size=7)).map(
                lambda at: lambda q, k: jnp.array(at[1], jnp.int32)[at[0](q, k)]
            ),
            st.tuples(inner, st.lists(st.integers(-9, 9), min_size=7, max_size=7)).map(
                lambda at: lambda q, k: jnp.take(jnp.array(at[1], jnp.int32), at[0](q, k))
            ),
        ]
        if floats:
            choices += [
                one(lambda x: (x.astype(jnp.float32) * 0.3 - 1.7).astype(jnp.int32)),
                one(lambda x: jnp.floor(x / 7).astype(jnp.int32)),
                one(lambda x: jnp.sqrt(x.astype(jnp.float32)).astype(jnp.int32)),
                one(lambda x: x.astype(jnp.bfloat16).astype(jnp.int32)),
                one(lambda x: x.astype(jnp.int8).astype(jnp.int32)),
                one(lambda x: x.astype(jnp.uint32).astype(jnp.int32)),
            ]
        return st.one_of(choices)

    return st.recursive(leaf, extend, max_leaves=5)


def algebra(constants, floats):
    """Random masks of a random algebra."""
    number = numbers(constants, floats)
    comparisons = [jnp.less, jnp.less_equal, jnp.greater, jnp.greater_equal, jnp.equal, jnp.not_equal]
    comparison = st.tuples(st.sampled_from(comparisons), number, number).map(
        lambda fab: lambda q, k: fab[0](fab[1](q, k), fab[2](q, k))
    )

    def extend(inner):
        def two(f):
            return st.tuples(inner, inner).map(lambda ab: lambda q, k: f(ab[0](q, k), ab[1](q, k)))

        return st.one_of(
            two(jnp.logical_and),
            two(jnp.logical_or),
            two(jnp.logical_xor),
            two(jnp.equal),
            inner.map(lambda a: lambda q, k: ~a(q, k)),
            st.tuples(inner, inner, inner).map(lambda abc: lambda q, k: jnp.where(*(one(q, k) for one in abc))),
            st.tuples(inner, number).map(lambda ab: lambda q, k: (ab[0](q, k) * ab[1](q, k)) > 2),
        )

    return st.recursive(comparison, extend, max_leaves=4)


SMALL = st.integers(-50, 50)
ANY = st.one_of(SMALL, st.sampled_from([2**31 - 1, -(2**31), 2**30, 2**16, -(2**16), 46341, 2**24 + 1]))


Q_LEN, KV_LEN = 24, 31  # always the same, so that little is compiled


def positions(length, largest=60):
    """Consecutive from some offset, or in any order."""
    run = st.integers(-largest, largest).map(lambda offset: np.arange(length, dtype=np.int32) + offset)
    some = st.lists(st.integers(-largest, largest), min_size=length, max_size=length)
    return run | some.map(lambda values: np.array(values, np.int32))


def known_plans(examples):
    @settings(quick, max_examples=examples)
    @given(algebra(ANY, floats=True), positions(Q_LEN), positions(KV_LEN), st.integers(1, 9), st.integers(1, 9))
    def test(function, q, k, q_tile, k_tile):
        assert_sound(*plan_and_truth(of(function), q, k, q_tile, k_tile))

    return test


def traced_plans(examples):
    @settings(quick, max_examples=examples)
    @given(algebra(ANY, floats=True), positions(Q_LEN), positions(KV_LEN))
    def test(function, q, k):
        assert_sound(*traced_plan_and_truth(of(function), q, k, 5, 7, tables=True))

    return test


test_a_known_plan_is_sound, test_a_traced_plan_is_sound = known_plans(10), traced_plans(2)
test_more_known_plans_are_sound = pytest.mark.exhaustive(known_plans(70))
test_more_traced_plans_are_sound = pytest.mark.exhaustive(traced_plans(14))


@pytest.mark.exhaustive
@settings(quick, max_examples=3)
@given(algebra(ANY, floats=True), positions(Q_LEN), positions(KV_LEN))
def test_a_plan_outside_jit_is_sound(function, q, k):
    assert_sound(*traced_plan_and_truth(of(function), q, k, 5, 7, tables=True, eager=True))


@pytest.mark.exhaustive
@settings(quick, max_examples=15)
@given(algebra(SMALL, floats=False), positions(Q_LEN), positions(KV_LEN))
def test_a_traced_plan_equals_the_known_one_where_it_decides(function, q, k):
    known, _ = plan_and_truth(of(function), q, k, 5, 7)
    later, _ = traced_plan_and_truth(of(function), q, k, 5, 7, tables=True)
    assert_agrees(later.states, known.states)


HUGE = np.array([2**31 - 1, 2**31 - 9, 2**30, 5, 0, -7, -(2**30), -(2**31) + 3, -(2**31)], np.int32)


@pytest.mark.parametrize(("tile", "traced"), [(2, False), (1, False), (9, False), (2, True)])
@pytest.mark.parametrize(
    "function",
    [
        lambda q, k: q + k > 0,
        lambda q, k: q - k > 0,
        lambda q, k: q * k > 0,
        lambda q, k: -q > k,
        lambda q, k: abs(q) >= 0,
        lambda q, k: q * q >= 0,
        lambda q, k: q**3 > k,
        lambda q, k: (q << 4) > k,
        lambda q, k: q // k > 0,
        lambda q, k: q % k >= 0,
        lambda q, k: jax.lax.rem(q, k) > 2,
        lambda q, k: jax.lax.div(q, k) >= 0,
        lambda q, k: q // -1 > k,
        lambda q, k: q // 0 > 0,
        lambda q, k: q % 0 > 0,
        lambda q, k: (q.astype(jnp.uint32) - k.astype(jnp.uint32)) > 7,
        lambda q, k: q.astype(jnp.int8) > 0,
        lambda q, k: (q.astype(jnp.float32) * 4).astype(jnp.int32) > k,
        lambda q, k: q.astype(jnp.float32) > k.astype(jnp.float32),
        lambda q, k: (q << k) > 0,
        lambda q, k: (q >> k) < k,
        lambda q, k: jax.lax.shift_right_logical(q, 3) > jax.lax.shift_right_logical(q - k, jnp.int32(7)),
        lambda q, k: (q ^ k) < 5,
        lambda q, k: (q | k) > (q & k),
        lambda q, k: (q.astype(jnp.uint32) ^ k.astype(jnp.uint32)) > jnp.uint32(2**31),
        lambda q, k: (~q.astype(jnp.uint8) >> 2) > k.astype(jnp.uint8),
        lambda q, k: jax.lax.clz(q - k) < 3,
        lambda q, k: jax.lax.population_count(q) > jax.lax.population_count(q ^ k),
        lambda q, k: jnp.stack([q, k, q]).sum(0) > 0,
        lambda q, k: jnp.cumsum(jnp.stack([q, k, q]))[1] > 0 if jnp.ndim(q) == 0 else q + k > 0,
        lambda q, k: jnp.stack([q, k], -1).max(-1) > 0,
        lambda q, k: jnp.searchsorted(jnp.array([-(2**31), 0, 5, 2**31 - 1]), q + k) > 1,
        lambda q, k: (q > 0) + (k > 0) > 1,
        lambda q, k: jnp.round(q / 7) == jnp.round(k / 7),
        lambda q, k: jnp.log2(q.astype(jnp.float32)) > 30,
    ],
)
def test_integers_that_wrap_around_are_never_trusted(function, tile, traced):
    get = traced_plan_and_truth if traced else plan_and_truth
    assert_sound(*get(of(function), HUGE, HUGE[::-1], tile, tile))


FLOATS = np.array([2.5, np.nan, -0.0, np.inf, 1e-40, -7], np.float32)
SORTED = np.array([-np.inf, -3, -0.0, 0.5, 2.5, np.inf], np.float32)


@piece
class Threshold(Mask):
    """A mask on numbers that ride on queries and keys."""

    left: np.ndarray | jax.Array = array("query")
    right: np.ndarray | jax.Array = array("key")
    rule: int = 0

    def allows(self, query, key):
        a, b = self.left, self.right
        rules = [
            lambda: a < b, lambda: a != b, lambda: a - b <= 0, lambda: ~(a * b > 0), lambda: a / b >= 1,
            lambda: jnp.maximum(a, b) == a, lambda: a.astype(bool), lambda: jnp.sqrt(a) >= b, lambda: a == b,
            lambda: jnp.where(a < b, a, b) <= b, lambda: a.astype(jnp.int32) >= 0, lambda: jnp.sign(a) >= 0,
            lambda: abs(a) >= 0, lambda: a**2 >= 0, lambda: jnp.exp(a) >= 0, lambda: a * b + a >= a,
            lambda: jnp.log(a) < b, lambda: jnp.tanh(a) <= 1, lambda: jnp.round(a) != a, lambda: jnp.sin(a) <= 1,
            lambda: jnp.log1p(a) > -9, lambda: a**b >= 0, lambda: jnp.isfinite(a), lambda: jax.lax.rsqrt(a) > 0,
            lambda: jnp.asarray(FLOATS)[jnp.abs(a).astype(jnp.int32) % 6] > b, lambda: jnp.searchsorted(SORTED, a) > 2,
            lambda: jnp.argmax(FLOATS) > a, lambda: jnp.sort(FLOATS)[2] > a, lambda: FLOATS.max() > a,
        ]  # fmt: skip
        return rules[self.rule]()


@pytest.mark.parametrize("rule", range(29))
@pytest.mark.parametrize(
    ("dtype", "traced"),
    [
        (jnp.float32, False),
        (jnp.float32, True),
        pytest.param(jnp.bfloat16, False, marks=pytest.mark.exhaustive),
        pytest.param(jnp.bfloat16, True, marks=pytest.mark.exhaustive),
    ],
)
def test_nan_and_infinity_are_never_trusted(rule, traced, dtype):
    values = np.array(
        [0, -0.0, 1, np.nan, np.inf, -np.inf, 2.5, -3, 1e-40, -1e-40, 3e38, 1.5, 0.1, 0.3, np.nan, 7], np.float32
    ).astype(dtype)
    mask = Threshold(values, np.roll(values, 5), rule)
    get = traced_plan_and_truth if traced else plan_and_truth
    for tile in (2,) if traced else (1, 2, 16):
        assert_sound(*get(mask, np.arange(16), np.arange(16), tile, tile))


def test_arrays_that_ride_on_batch_heads_and_pairs():
    rng = np.random.default_rng(0)
    masks = [
        jattn.masks.SlidingWindow(np.array([3, 9]), np.array([0, 30])),
        jattn.masks.Dense(rng.random((3, 1, 20, 30)) < 0.02),
        ~jattn.masks.Dense(rng.random((2, 1, 30)) < 0.1),
        jattn.masks.Lengths(np.array([30, 4, 0])),
        jattn.masks.SameSegment(np.sort(rng.integers(0, 4, (3, 20)), -1), np.sort(rng.integers(0, 4, (3, 30)), -1)),
        jattn.masks.Blocks(rng.random((3, 2, 5, 5)) < 0.3, 7),
    ]
    for mask in masks:
        later, truth = traced_plan_and_truth(mask, np.arange(20), np.arange(30), 4, 7, (3,), 2)
        known = make_plan(*in_place(mask, np.arange(20), np.arange(30), (3,), 2), 4, 7)
        assert_sound(known, truth)
        assert_agrees(later.states, known.states)


def test_segments_and_lengths_traced_under_jit_and_vmap():
    ids = np.sort(np.random.default_rng(1).integers(0, 5, (4, 3, 40)), -1)
    position = np.arange(40, dtype=np.int32)

    def states(ids, lengths):
        mask = (jattn.masks.SameSegment(ids) & jattn.masks.Causal()) & jattn.masks.Lengths(lengths)
        aligned = align(mask, (3,), {"head": 1, "query": 40, "key": 40})
        return make_plan(aligned, position.reshape(1, 1, -1, 1), position.reshape(1, 1, 1, -1), 8, 8).states

    lengths = np.array([[40, 31, 3]] * 4)
    found = jax.jit(jax.vmap(states))(ids, lengths)
    for one, length, result in zip(ids, lengths, found, strict=True):
        assert_agrees(result, states(one, length))


def test_an_unknown_primitive_means_some():
    plan, _ = plan_and_truth(
        of(lambda q, k: jax.lax.lgamma(q.astype(jnp.float32)) > 99.0), np.arange(8), np.arange(8), 4, 4
    )
    assert (plan.states == PARTIAL).all()
    plan, _ = plan_and_truth(
        of(lambda q, k: (k <= q) & (jax.lax.lgamma(q.astype(jnp.float32)) > 99.0)), np.arange(8), np.arange(8), 4, 4
    )
    np.testing.assert_array_equal(plan.states, [[[PARTIAL, EMPTY], [PARTIAL, PARTIAL]]])


def test_floor_division_and_remainder_are_exact_across_zero():
    """Both are recognized by the body that `jnp` gives them, whatever the version of JAX."""
    position = np.arange(-8, 8)
    plan, _ = plan_and_truth(of(lambda q, k: q // 4 == k // 4), position, position, 4, 4)
    np.testing.assert_array_equal(plan.states[0], np.eye(4) * FULL)
    plan, _ = plan_and_truth(of(lambda q, k: (q % 8 < 4) & (k % 8 >= 4)), position, position, 4, 4)
    np.testing.assert_array_equal(plan.states[0], np.outer([1, 0, 1, 0], [0, 1, 0, 1]) * FULL)


def test_a_mask_that_returns_numbers_is_refused():
    @piece
    class Numbers(Mask):
        def allows(self, query, key):
            return query - key

    with pytest.raises(ValueError, match="must return one boolean"):
        make_plan(Numbers(), np.zeros((1, 4, 1), np.int32), np.zeros((1, 1, 4), np.int32), 2, 2)
