"""Functions of a pair, evaluated on a tile: they and their derivatives equal JAX's own, or are refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from pair_functions import FUNCTIONS, away, own

from jattn import scores
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower

REFUSED = {
    "`cumsum` of a query and a key": lambda s, q, k: jnp.cumsum(jnp.stack([s, 2 * s]))[1],
    "`sort` of a query and a key": lambda s, q, k: jnp.sort(jnp.stack([s, away(q, k)]))[0],
    "`lgamma` of a query and a key": lambda s, q, k: lax.lgamma(abs(s) + 1),
    "`cbrt` of a query and a key": lambda s, q, k: jnp.cbrt(s),
    "`erfc` of a query and a key": lambda s, q, k: jax.nn.gelu(s, approximate=False),
    "`lgamma`": lambda s, q, k: own(s),  # in its derivative
    "numbers of float16": lambda s, q, k: s.astype(jnp.float16).astype(jnp.float32),
    "numbers of complex64": lambda s, q, k: abs(s + 1j * q).astype(jnp.float32),
    "numbers of int8": lambda s, q, k: s + (q * k).astype(jnp.int8),
    "in a table of 100 entries (at most 64)": lambda s, q, k: s + jnp.arange(100.0)[q * k],
    "`while` of a query and a key": lambda s, q, k: lax.while_loop(lambda x: x > 1, lambda x: x / 2, s),
}
ROWS, COLUMNS = 5, 7


FEW = dataclasses.replace(MOSAIC, pairs=0)


def lowered(function, limits=FEW):
    arrays = [jnp.zeros((1, length, 1, 2)) for length in (ROWS, COLUMNS, COLUMNS)]
    positions = {"query_positions": np.arange(ROWS), "key_positions": np.arange(COLUMNS)}
    call, *_ = prepare(*arrays, Pieces(scores=scores.of(function), **positions))
    return lower(call, limits), call


def test_functions_on_a_tile():
    query, key = np.arange(ROWS, dtype=np.int32)[None], np.arange(COLUMNS, dtype=np.int32)[:, None]
    rng = np.random.default_rng(0)
    raw, cotangent = (jnp.asarray(rng.normal(size=(COLUMNS, ROWS)), jnp.float32) for _ in range(2))
    allowed = jnp.asarray(rng.random((COLUMNS, ROWS)) < 0.7)
    cotangent = jnp.where(allowed, cotangent, 0)

    @jax.jit
    def both(raw, cotangent):
        results = {}
        for name, function in FUNCTIONS.items():
            low, call = lowered(function)
            assert low.refusal is None, (name, low.refusal)
            fields = [one.reshape(one.shape[-2:]).T for one in low.fields(call.pieces)]
            tile = low.tile(fields, jnp.asarray(query), jnp.asarray(key))
            mine, pull = jax.vjp(
                lambda raw, tile=tile, low=low: tile.scores(raw * low.before, allowed) * low.after, raw
            )
            whole = jax.vmap(jax.vmap(function, (0, 0, None)), (0, None, 0))
            theirs, pull_theirs = jax.vjp(lambda raw, f=whole: f(raw, query[0], key[:, 0]).astype(raw.dtype), raw)
            results[name] = (mine, *pull(cotangent)), (theirs, *pull_theirs(cotangent))
        return results

    for name, (mine, theirs) in both(raw, cotangent).items():
        for have, want in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5, err_msg=name)


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple) else (value,):
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    yield from primitives(inner)


def test_no_primitive_is_forgotten():
    found = {name for one in FUNCTIONS.values() for name in primitives(jax.make_jaxpr(one)(1.0, 1, 2).jaxpr)}
    # Some are of derivatives alone, or of one version of JAX.
    assert MOSAIC.primitives - found <= {"add_any", "copy", "expand_dims", "log2"}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_lacking_is_refused_by_name(what):
    refusal = lowered(REFUSED[what])[0].refusal
    assert refusal is not None and what in refusal and "`scores`: `" in refusal and "Mosaic" in refusal


def test_what_is_lacking_of_few_pairs_is_computed_outside():
    function = REFUSED["in a table of 100 entries (at most 64)"]
    for limits, kinds in ((FEW, ()), (dataclasses.replace(MOSAIC, pairs=ROWS * COLUMNS), ("pair",))):
        low, _ = lowered(function, limits)
        assert low.kinds == kinds and (low.refusal is None) == bool(kinds)
    assert "for all pairs, 35 numbers; at most 0" in (lowered(function)[0].refusal or "")
    # Not of scores, which only the kernel has.
    assert lowered(REFUSED["`cbrt` of a query and a key"], MOSAIC)[0].refusal is not None


def test_what_is_lacking_of_one_side_is_computed_outside():
    """The same functions of a query or a key alone are no matter."""
    functions = [
        lambda s, q, k: s + lax.lgamma(q + 1.0) * jnp.cbrt(k + 0.5),
        lambda s, q, k: s + jnp.arange(100.0)[q * 3] - jnp.arange(100.0)[k],
        lambda s, q, k: s * jnp.sort(jnp.stack([q, 3 - q]))[0] + jnp.cumsum(jnp.stack([k, k]))[1],
        lambda s, q, k: s + lax.while_loop(lambda x: x > 1, lambda x: x / 2, k * 1.0),
    ]
    for function in functions:
        low, _ = lowered(function)
        assert low.refusal is None and set(low.kinds) <= {"query", "key"}
