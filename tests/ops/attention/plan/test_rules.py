"""Every rule, on intervals of all kinds, against the values inside; for 8-bit integers, against all values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jattn.ops.attention.plan.bounds import Context, Interval
from jattn.ops.attention.plan.intervals import evaluate

COUNT = 400
LONG = np.random.default_rng(5).permutation(256).astype(np.int32)
UNARY = {
    "long table": lambda x: jnp.asarray(LONG)[x.astype(jnp.int32) + 128],
    "neg": lambda x: -x,
    "not": lambda x: ~x,
    "abs": abs,
    "sign": jnp.sign,
    "square": lambda x: x * x,
    "cube": lambda x: x**3,
    "clz": jax.lax.clz,
    "population_count": jax.lax.population_count,
    "to unsigned": lambda x: x.astype(jnp.uint8),
    "to signed": lambda x: x.astype(jnp.int8),
    "to bool": lambda x: x.astype(bool),
    "wider": lambda x: x.astype(jnp.int16) * 3,
    "halves": lambda x: jnp.round(x * 0.5).astype(jnp.int8),
    "clip": lambda x: jnp.clip(x, 3, 20),
    "by 0": lambda x: jax.lax.div(x, x - x),
    "search": lambda x: jnp.searchsorted(jnp.array([3, 3, 9, 60], x.dtype), x),
    "loop": lambda x: jax.lax.fori_loop(0, 2, lambda i, y: y // 3 + 1, x),
    "branch": lambda x: jax.lax.cond(x > 5, lambda: x - 100, lambda: x + 1),
    "while": lambda x: jax.lax.while_loop(lambda y: y > 9, lambda y: y // 2, x),
}
BINARY = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "div": jax.lax.div,
    "rem": jax.lax.rem,
    "floor_divide": jnp.floor_divide,
    "remainder": jnp.remainder,
    "and": lambda x, y: x & y,
    "or": lambda x, y: x | y,
    "xor": lambda x, y: x ^ y,
    "shift_left": jax.lax.shift_left,
    "shift_right_arithmetic": jax.lax.shift_right_arithmetic,
    "shift_right_logical": jax.lax.shift_right_logical,
    "max": jnp.maximum,
    "min": jnp.minimum,
    "eq": lambda x, y: x == y,
    "ne": lambda x, y: x != y,
    "lt": lambda x, y: x < y,
    "le": lambda x, y: x <= y,
    "where": lambda x, y: jnp.where(x > 3, x, y),
    "select_n": lambda x, y: jax.lax.select_n(x.astype(jnp.int32) // 60, y, -y, x),
    "sum": lambda x, y: jnp.stack([x, y, x]).sum(dtype=x.dtype),
    "cumsum": lambda x, y: jnp.cumsum(jnp.stack([x, y]), dtype=x.dtype)[1],
    "argmax": lambda x, y: jnp.argmax(jnp.stack([x, y])),
    "argmin": lambda x, y: jnp.argmin(jnp.stack([x, y])),
    "sort": lambda x, y: jnp.sort(jnp.stack([x, y, x - x]))[1],
    "dot": lambda x, y: jnp.stack([x, y]) @ jnp.stack([y, y]),
    "any": lambda x, y: (jnp.stack([x, y]) > 5).any(),
    "bools": lambda x, y: (x > 5) ^ (y > 7),
    "bools summed": lambda x, y: (x > 5).astype(x.dtype) + (y > 7).astype(x.dtype),
    "table": lambda x, y: jnp.arange(12, dtype=jnp.int32).reshape(3, 4)[x % 3, y % 4] * 5 % 7,
    "box of a table": lambda x, y: jnp.asarray(LONG.reshape(16, 16))[x.astype(int) // 16 + 8, y.astype(int) // 16 + 8],
    "row": lambda x, y: (jnp.arange(12).reshape(3, 4)[x % 3] == y).any(),
}


def intervals(dtype, rng):
    """Wide, narrow, single numbers, aligned blocks, and the ends of the range."""
    info = np.iinfo(dtype)
    lo = rng.integers(info.min, info.max, COUNT, endpoint=True)
    width = np.select([lo % 4 == 0, lo % 4 == 1], [0, 1], rng.integers(0, 90, COUNT))
    block = rng.random(COUNT) < 0.2
    lo = np.where(block, lo // 16 * 16, lo)
    hi = np.minimum(np.where(block, lo + 15, lo + width), info.max)
    lo[:4], hi[:4] = [info.min, info.min, 0, info.max], [info.max, info.min, info.max, info.max]
    return lo.astype(dtype), hi.astype(dtype)


def assert_holds(function, dtype, arity):
    rng = np.random.default_rng(0)
    every = np.arange(np.iinfo(dtype).min, np.iinfo(dtype).max + 1).astype(dtype)
    grids = np.meshgrid(*[every] * arity, indexing="ij")
    truth = np.asarray(jax.jit(jax.vmap(function))(*(grid.reshape(-1) for grid in grids))).reshape((256,) * arity)
    ends = [intervals(dtype, rng) for _ in range(arity)]
    if arity == 2:
        ends[1] = tuple(rng.permutation(np.stack(ends[1]), axis=1))
    shape = (COUNT, 1, 1)
    given = [Interval(lo.reshape(shape), hi.reshape(shape)) for lo, hi in ends]
    closed = jax.make_jaxpr(function)(*[jax.ShapeDtypeStruct((), dtype)] * arity)
    context = Context(np, 3, COUNT, ((1, 1), (1, 1)))
    with np.errstate(all="ignore"):
        (found,) = evaluate(context, closed.jaxpr, closed.consts, given)
    lows, highs = (np.broadcast_to(bound, shape).reshape(-1) for bound in found)
    start = int(every[0])
    known = 0
    for number, (low, high) in enumerate(zip(lows, highs, strict=True)):
        box = truth[tuple(slice(int(lo[number]) - start, int(hi[number]) - start + 1) for lo, hi in ends)]
        assert low <= box.min(), (number, low, box.min(), [(lo[number], hi[number]) for lo, hi in ends])
        assert high >= box.max(), (number, high, box.max(), [(lo[number], hi[number]) for lo, hi in ends])
        known += low == box.min() and high == box.max()
    return known / COUNT


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", UNARY)
def test_of_one(name, dtype):
    exact = assert_holds(UNARY[name], dtype, 1)
    assert name != "long table" or exact == 1


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("name", BINARY)
def test_of_two(name, dtype):
    exact = assert_holds(BINARY[name], dtype, 2)
    if name in ("and", "or", "xor", "max", "min", "eq", "lt", "le", "ne", "any", "bools", "box of a table"):
        assert exact > 0.4  # a rule, not merely caution


FLOATS = {
    "exp": jnp.exp,
    "exp2": jnp.exp2,
    "expm1": jnp.expm1,
    "log": jnp.log,
    "log2": jnp.log2,
    "log1p": jnp.log1p,
    "tanh": jnp.tanh,
    "logistic": jax.nn.sigmoid,
    "cbrt": jnp.cbrt,
    "sinh": jnp.sinh,
    "asinh": jnp.arcsinh,
    "atan": jnp.arctan,
    "rsqrt": jax.lax.rsqrt,
    "sqrt": jnp.sqrt,
    "sin": jnp.sin,
    "cos": jnp.cos,
    "pow": lambda x: x**1.7,
    "falling pow": lambda x: abs(x) ** -0.3,
    "floor": jnp.floor,
    "ceil": jnp.ceil,
    "round": jnp.round,
    "away from zero": lambda x: jax.lax.round(x, jax.lax.RoundingMethod.AWAY_FROM_ZERO),
    "finite": jnp.isfinite,
    "quotient": lambda x: (x + 1) / (x * x + 2),
}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", FLOATS)
def test_of_a_float(name, dtype):
    """Of both ends, and of a number between them."""
    rng, function = np.random.default_rng(0), FLOATS[name]
    scale = 10.0 ** rng.integers(-4, 5, 2000)
    ends = np.sort(np.stack([rng.normal(size=2000) * scale, rng.normal(size=2000) * scale]), 0)
    ends[1] = np.where(rng.random(2000) < 0.7, ends[0] + abs(ends[0]) * rng.random(2000) * 0.1, ends[1])
    ends[:, :4] = [[0, 0.5, -1, 1e38], [0, 2.5, 1, np.inf]]
    lo, hi = (np.asarray(jnp.asarray(end, dtype)) for end in ends)
    between = np.clip((lo.astype(float) + hi.astype(float)) / 2, lo.astype(float), hi.astype(float)).astype(lo.dtype)
    shape = (2000, 1, 1)
    given = Interval(*(end.astype(np.float64).reshape(shape) for end in (lo, hi)))
    closed = jax.make_jaxpr(function)(jax.ShapeDtypeStruct((), dtype))
    with np.errstate(all="ignore"):
        (found,) = evaluate(Context(np, 3, 2000, ((1, 1), (1, 1))), closed.jaxpr, closed.consts, [given])
    low, high = (np.broadcast_to(bound, shape).reshape(-1) for bound in found)
    unknown = np.isnan(low.astype(float))
    assert unknown.mean() < 0.8  # a logarithm knows nothing of half of them
    for value in (lo, between, hi):
        result = np.asarray(jax.jit(jax.vmap(function))(value)).astype(float)
        assert (unknown | ((low <= result) & (result <= high))).all()
