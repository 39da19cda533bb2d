"""Functions of a pair, evaluated on a tile: they and their derivatives equal JAX's own, or are refused by name."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jattn import scores
from jattn.ops.attention.call import Pieces, prepare
from jattn.ops.attention.implementations.lowering import MOSAIC, lower


def away(q, k):
    return 0.3 * q - 0.1 * k + 0.05


@jax.custom_jvp
def own(x):
    return x * 1.0


own.defjvp(lambda primals, tangents: (own(*primals), tangents[0] * jax.lax.lgamma(abs(primals[0]) + 1)))

FUNCTIONS = {
    "exp": lambda s, q, k: jnp.exp(s - abs(q - k)),
    "powers": lambda s, q, k: s**3 + jnp.square(s) + (abs(s) + 1) ** -2 + (abs(s) + 1) ** 0.3,
    "logs": lambda s, q, k: jnp.log(abs(s) + 1) + jnp.log1p(s * s) + jnp.log2(abs(s) + 2),
    "roots": lambda s, q, k: jnp.sqrt(abs(s) + 1) + lax.rsqrt(abs(s) + 1),
    "of circles": lambda s, q, k: jnp.sin(s) + jnp.cos(s) + jnp.tan(s / 4) + jnp.arctan(s) + jnp.arctan2(s, away(q, k)),
    "expm1": lambda s, q, k: jnp.expm1(s) + jnp.expm1(1e-4 * s) * 1e4,
    "erf": lambda s, q, k: lax.erf(s) + lax.erf_inv(jnp.tanh(s / 4)),
    "sign": lambda s, q, k: jnp.sign(s) * s + jnp.sign(q - k),
    "rounding": lambda s, q, k: s + jnp.floor(s) + jnp.ceil(s) + jnp.round(s) + jnp.trunc(s),
    "remainders": lambda s, q, k: s % 0.7 + s // 0.3 + jnp.fmod(s, 0.4) + (q - k) % 3 + (q - k) // 2,
    "clip": lambda s, q, k: jnp.clip(s, -0.5, away(q, k)) + jnp.maximum(s, away(q, k)),
    "bits": lambda s, q, k: s + ((q ^ k) << 2) + ((q - k) >> 1) + lax.population_count(q & k) + lax.clz(q | k),
    "unsigned": lambda s, q, k: s + ((q * 7 + k).astype(jnp.uint32) * np.uint32(0x9E3779B9) >> 20).astype(jnp.float32),
    "half precision": lambda s, q, k: (s.astype(jnp.bfloat16) * jnp.bfloat16(0.5)).astype(jnp.float32),
    "activations": lambda s, q, k: jax.nn.silu(s) + jax.nn.gelu(s) + jax.nn.elu(s) + jax.nn.leaky_relu(s),
    "own derivatives": lambda s, q, k: jax.nn.relu(s) + jax.nn.softplus(s) + jnp.logaddexp(s, away(q, k)),
    "stopped": lambda s, q, k: s * lax.stop_gradient(s) + lax.stop_gradient(jnp.exp(s)),
    "branches": lambda s, q, k: (
        lax.cond(q > k, lambda s: 2 * s, lambda s: s * s, s)
        + lax.switch((q + k) % 4 - 1, [lambda s: s, lambda s: s**2, lambda s: 3 * s], s)
    ),
    "a loop": lambda s, q, k: lax.fori_loop(0, 3, lambda i, x: x * 0.5 + i * q, s),
    "booleans": lambda s, q, k: (
        jnp.where(jnp.where(q > 2, k > q, k < q) ^ (k == 3), s, 0.0)
        + jnp.where(jnp.minimum(q > k, k > 3) <= ((q > 1) == (k > 1)), s, 1.0) * (q >= k)
        + jnp.where((q > 1) < (k > 1), s, 0.0)
    ),
    "three cases": lambda s, q, k: lax.select_n((q + k) % 3, s, 2 * s, s * s),
    "own axes": lambda s, q, k: (
        jnp.stack([s, away(q, k), s * s]).sum() + jnp.stack([s, away(q, k)]).max() + jnp.flip(jnp.stack([s, 2 * s]))[0]
    ),
    "a table of two sides": lambda s, q, k: s + jnp.arange(9.0)[(q * k) % 9] + jnp.asarray([1, 5])[(q + k) % 2],
    "past the end of a table": lambda s, q, k: s + jnp.take(jnp.arange(4.0), q - k, mode="clip"),
    "a table of both": lambda s, q, k: s + jnp.arange(12.0).reshape(3, 4)[q % 3, k % 4] * s,
    "flags of both": lambda s, q, k: jnp.where((jnp.arange(40 * 3) % 7 < 3).reshape(40, 3)[q, k % 3], s, 2 * s),
    "ldexp": lambda s, q, k: jnp.ldexp(s, (q + k) % 3),
}
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
            mine, pull = jax.vjp(lambda raw, tile=tile: tile.scores(raw, allowed), raw)
            whole = jax.vmap(jax.vmap(function, (0, 0, None)), (0, None, 0))
            theirs, pull_theirs = jax.vjp(lambda raw, f=whole: f(raw, query[0], key[:, 0]).astype(raw.dtype), raw)
            results[name] = (mine, *pull(cotangent)), (theirs, *pull_theirs(cotangent))
        return results

    for name, (mine, theirs) in both(raw, cotangent).items():
        for have, want in zip(mine, theirs, strict=True):
            np.testing.assert_allclose(have, want, rtol=2e-5, atol=2e-5, err_msg=name)


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
