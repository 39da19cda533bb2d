"""A function is traced once and identified by what it does; errors of untraceable functions say what to write."""

import functools
import gc
import itertools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jattn
from jattn import masks, scores
from jattn.foundation.functions import Traced


@pytest.mark.parametrize(
    "function",
    [
        lambda q, k: k <= q and q - k < 3,
        lambda q, k: k <= q < k + 3,
        lambda q, k: not k > q,
        lambda q, k: k <= q if k > 2 else k == 0,
    ],
    ids=["and", "chained", "not", "if"],
)
def test_decisions_in_python_are_refused_with_the_remedy(function):
    with pytest.raises(ValueError, match=r"`&`, `\|` and `~` for `and`, `or` and `not`"):
        masks.of(function)


def test_likewise_for_scores():
    with pytest.raises(ValueError, match=r"jnp.where\(condition, x, y\)"):
        scores.of(lambda s, q, k: s if k > q else 2 * s)


def _with_rule(slope):
    """The identity, with a derivative rule of its own."""

    @jax.custom_jvp
    def function(x):
        return x * 1.0

    function.defjvp(lambda primals, tangents: (function(primals[0]), slope * tangents[0]))
    return function


PLAIN, STEEP = _with_rule(1.0), _with_rule(2.0)
NUMBERS, OTHERS = jnp.arange(5.0), jnp.arange(5.0) + 1


def _bound(table):
    return jax.jit(lambda i: table[i])


BOUND, BOUND_OTHERS = _bound(NUMBERS), _bound(OTHERS)


def _scores_of(value):
    """Functions made anew at each call, by what `value` does in them."""
    return {
        "number": scores.of(lambda s, q, k: s * value),
        "power": scores.of(lambda s, q, k: s**value),
        "compared": scores.of(lambda s, q, k: jnp.where(q - k < value, s, -s)),
    }


def _score_with(rule):
    return scores.of(lambda s, q, k: rule(s))


def _plus(number):
    return scores.of(lambda s, q, k: s + number(q).astype(jnp.float32))


def _relu_plus(table):
    return scores.of(lambda s, q, k: jax.nn.relu(s + table[q]))


def _of_new(rule, table):
    return scores.of(lambda s, q, k: rule(s + table[q]))


def _held_by_its_rule(table):
    """A function whose derivative rule holds an array that the function itself does not."""

    @jax.custom_jvp
    def bent(x):
        return x

    @bent.defjvp
    def _(primals, tangents):
        return primals[0], tangents[0] * table.sum()

    return scores.of(lambda s, q, k: bent(s))


SAME = {
    "a number": lambda: scores.of(lambda s, q, k: s * 0.5),
    "NaN": lambda: scores.of(lambda s, q, k: jnp.where(q < k, s, jnp.nan)),
    "other names": lambda: scores.of(lambda a, b, c: jnp.where(b < c, a, jnp.nan)),
    "jax.nn.relu": lambda: scores.of(lambda s, q, k: jax.nn.relu(s)),
    "a rule of its own": lambda: _score_with(STEEP),
    "jax.nn.relu of a new array": lambda: _relu_plus(jnp.arange(5.0)),
    "jax.nn.softplus of a new array": lambda: _of_new(jax.nn.softplus, np.arange(5.0, dtype=np.float32)),
    "an array": lambda: scores.of(lambda s, q, k: s + NUMBERS[q]),
    "an array in a jitted function": lambda: scores.of(lambda s, q, k: s + BOUND(q)),
    "a NumPy array": lambda: scores.of(lambda s, q, k: s + jnp.asarray(np.arange(5.0, dtype=np.float32))[q]),
    "cond": lambda: scores.of(lambda s, q, k: jax.lax.cond(q < k, lambda x: x, lambda x: 2 * x, s)),
    "a mask": lambda: masks.of(lambda q, k: (k // 3 <= q // 3) & (q % 2 == k % 2)),
}


@pytest.mark.parametrize("name", SAME)
def test_functions_that_do_the_same_are_the_same_piece(name):
    first, again = SAME[name](), SAME[name]()
    assert first == again and hash(first) == hash(again)
    assert jax.tree.structure(first) == jax.tree.structure(again)


DIFFERENT = {
    "numbers": lambda: [_scores_of(value)["number"] for value in (1.0, 1.5, 0.0, -0.0, float("nan"))],
    "powers": lambda: [_scores_of(value)["power"] for value in (2, 3, 2.0, 0.5)],
    "bounds": lambda: [_scores_of(value)["compared"] for value in (1, 2, 1.0)],
    "primitives": lambda: [
        scores.of(lambda s, q, k: jnp.maximum(s, 0.0)),
        scores.of(lambda s, q, k: jnp.minimum(s, 0.0)),
        scores.of(lambda s, q, k: jax.nn.relu(s)),  # the same values, another derivative at 0
    ],
    "arguments": lambda: [masks.of(lambda q, k: q < k), masks.of(lambda q, k: k < q), masks.of(lambda q, k: q > k)],
    "arrays in rules": lambda: [_held_by_its_rule(jnp.full(3, value)) for value in (1.0, 2.0)],
    "rules": lambda: [_score_with(rule) for rule in (PLAIN, STEEP)],
    "arrays": lambda: [_plus(lambda q, table=table: table[q]) for table in (NUMBERS, OTHERS, NUMBERS[:4])],
    "arrays in jitted functions": lambda: [_plus(BOUND), _plus(BOUND_OTHERS)],
    "branches": lambda: [
        scores.of(lambda s, q, k: jax.lax.cond(q < k, lambda x: x, lambda x: 2 * x, s)),
        scores.of(lambda s, q, k: jax.lax.cond(q < k, lambda x: x, lambda x: 3 * x, s)),
    ],
    "casts": lambda: [_plus(lambda q: q.astype(jnp.float16)), _plus(lambda q: q.astype(jnp.bfloat16))],
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENT)
def test_functions_that_differ_are_different_pieces(name):
    pieces = DIFFERENT[name]()
    for one, other in itertools.combinations(pieces, 2):
        assert one != other, (one, other)


def test_a_rule_that_is_named_anew_is_another(monkeypatch):
    """The same line of code, whose global name stands for another derivative rule since."""
    monkeypatch.setitem(globals(), "RULE", PLAIN)

    def make():
        return scores.of(lambda s, q, k: RULE(s))  # noqa: F821  (see above)

    before, again = make(), make()
    monkeypatch.setitem(globals(), "RULE", STEEP)
    assert before == again and before != make()


def test_inline_functions_compile_once(caplog):
    """Called without `jit`, as arguments of one, and as its static arguments; and nothing of them is kept."""
    query = jnp.ones((24, 2, 4))
    traced = []

    @jax.jit
    def as_argument(query, mask):
        traced.append("argument")
        return jattn.attention(query, query, query, mask=mask)

    @functools.partial(jax.jit, static_argnums=1)
    def as_static(query, score):
        traced.append("static")
        return jattn.attention(query, query, query, scores=score)

    def call():
        width = 5
        jattn.attention(query, query, query, mask=lambda q, k: (k <= q) & (q - k < width))
        as_argument(query, masks.of(lambda q, k: q - k < width))
        as_static(query, scores.of(lambda s, q, k: s - 0.5 * abs(q - k)))

    call()
    alive = sum(issubclass(type(one), Traced) for one in gc.get_objects())
    with jax.log_compiles(), caplog.at_level(logging.DEBUG, logger="jax"):
        for _ in range(3):
            call()
    assert not [record.getMessage() for record in caplog.records if "Compiling" in record.getMessage()]
    assert traced == ["argument", "static"]
    gc.collect()
    assert sum(issubclass(type(one), Traced) for one in gc.get_objects()) <= alive


TABLE, LIST = np.arange(12).reshape(3, 4), [3, 1, 2]


def _helper(q):
    return TABLE[q % 3, q % 4]


@pytest.mark.parametrize(
    "function, plain",
    [
        (lambda q, k: TABLE[q % 3, k % 4] > 4, lambda q, k: TABLE[q % 3, k % 4] > 4),
        (lambda q, k: _helper(q) > k, lambda q, k: TABLE[q % 3, q % 4] > k),
        (lambda q, k: LIST[q % 3] > k, lambda q, k: LIST[q % 3] > k),
        (lambda q, k: np.abs(q - k) < 3, lambda q, k: abs(q - k) < 3),
        (lambda q, k: np.logical_and(k <= q, np.where(q < 4, k < 2, True)), lambda q, k: k <= q and (q >= 4 or k < 2)),
    ],
    ids=["NumPy table", "in a helper", "list", "np.abs", "np.where"],
)
def test_numpy_inside_a_function_works_where_it_can(function, plain):
    mask = masks.of(function)
    found = mask.allows(jnp.arange(6)[:, None], jnp.arange(6))
    np.testing.assert_array_equal(found, [[plain(q, k) for k in range(6)] for q in range(6)])
    # What is NumPy in it is known while tracing.
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(mask))


@pytest.mark.exhaustive
def test_branches_and_loops_of_a_function_inside_shard_map():
    starts = jnp.array([0, 5, 9])

    def function(q, k):
        third = jax.lax.fori_loop(0, 2, lambda i, x: x // 2, k)
        halved = jax.lax.while_loop(lambda x: x > 3, lambda x: x // 2, q)
        same = jnp.searchsorted(starts, q, side="right") == jnp.searchsorted(starts, k, side="right")
        return jax.lax.cond(q > 4, lambda: same, lambda: third <= halved)

    def attend(x):
        return jattn.attention(x, x, x, mask=function)

    query = jax.random.normal(jax.random.key(0), (2, 12, 1, 4))
    mesh = jax.make_mesh((2,), ("data",))
    batch = jax.sharding.PartitionSpec("data")
    inside = jax.shard_map(attend, mesh=mesh, in_specs=batch, out_specs=batch)
    found = inside(jax.device_put(query, jax.NamedSharding(mesh, batch)))
    np.testing.assert_allclose(found, attend(query), atol=1e-6)


@pytest.mark.parametrize("function", [lambda q, k: np.max([q, k]) > 3, lambda q, k: np.busday_count(q, k) > 3])
def test_numpy_that_cannot_is_refused_with_the_remedy(function):
    with pytest.raises(ValueError, match=r"gives a traced number to NumPy\. Write `jnp` for `np`"):
        masks.of(function)


def test_what_a_function_closes_over_may_change():
    """The numbers of an array are leaves, those in an expression are not: neither is mixed up with the one before."""
    query = jax.random.normal(jax.random.key(0), (6, 2, 4))

    def attend(table, slope, limit):
        pieces = {"mask": lambda q, k: table[k] <= limit, "scores": lambda s, q, k: s - slope * abs(q - k)}
        return jattn.attention(query, query, query, **pieces)

    for table, slope, limit in ((np.arange(6), 1.0, 3), (np.arange(6)[::-1], 1.0, 3), (np.arange(6), 2.0, 4)):
        score = scores.ALiBi(np.full(2, slope, np.float32))
        want = jattn.attention(query, query, query, mask=masks.Dense((table <= limit)[None, None]), scores=score)
        np.testing.assert_allclose(attend(table, slope, limit), want, atol=1e-5)
        np.testing.assert_allclose(attend(jnp.asarray(table), slope, limit), want, atol=1e-5)
