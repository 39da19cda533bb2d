"""A kernel of the same design as JAX's splash attention, for comparison, whose cycles the compiler can estimate.

The estimate does not count what runs under a condition on data, and splash runs every tile under one. This kernel does
what splash does in a tile that it visits, without the condition: a grid step per tile, scores `[queries, keys]`
forward and `[keys, queries]` backward, running maxima and sums in 128 equal lanes. It evaluates no mask. The
benchmark page has the bundles of both. `tests/benchmarks/tpu/test_splash_like.py` compares its values with the
definition.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

FORWARD, BACKWARD = "splash_like_forward", "splash_like_backward"
"""The names of the kernels."""

LANES = 128
LOWEST = -0.7 * float(jnp.finfo(jnp.float32).max)
BOTH_LAST = (((1,), (1,)), ((), ()))


def _product(left: Any, right: Any, dimensions: Any = (((1,), (0,)), ((), ()))) -> jax.Array:
    return lax.dot_general(left, right, dimensions, preferred_element_type=jnp.float32)


def _forward(q_ref, k_ref, v_ref, out_ref, lse_ref, most_ref, sum_ref, total_ref):
    step, steps = pl.program_id(2), pl.num_programs(2)

    @pl.when(step == 0)
    def _():
        total_ref[...] = jnp.zeros_like(total_ref)
        most_ref[...] = jnp.full_like(most_ref, LOWEST)
        sum_ref[...] = jnp.zeros_like(sum_ref)

    scores = _product(q_ref[...], k_ref[...], BOTH_LAST)
    before = most_ref[...]
    most = jnp.maximum(before, scores.max(-1, keepdims=True))
    weights = jnp.exp(scores - jnp.tile(most, (1, scores.shape[-1] // LANES)))
    shrink = jnp.exp(before - most)
    most_ref[...] = most
    sum_ref[...] = shrink * sum_ref[...] + jnp.broadcast_to(weights.sum(-1, keepdims=True), shrink.shape)
    features = total_ref.shape[-1] // LANES
    total = lax.dot_general(weights, v_ref[...].astype(jnp.float32), (((1,), (0,)), ((), ())))
    total_ref[...] = jnp.tile(shrink, (1, features)) * total_ref[...] + total

    @pl.when(step == steps - 1)
    def _():
        out_ref[...] = (total_ref[...] * jnp.tile(1 / sum_ref[...], (1, features))).astype(out_ref.dtype)
        lse_ref[...] = jnp.log(sum_ref[...]) + most_ref[...]


def _backward(
    q_ref, k_ref, v_ref, lse_ref, do_ref, di_ref, dq_ref, dk_ref, dv_ref, dk_sum_ref, dv_sum_ref, *, group: int
):
    head, step, steps = pl.program_id(1), pl.program_id(2), pl.num_programs(2)
    in_group = lax.rem(head, jnp.int32(group))

    @pl.when((step == 0) & (in_group == 0))
    def _():
        dk_sum_ref[...] = jnp.zeros_like(dk_sum_ref)
        dv_sum_ref[...] = jnp.zeros_like(dv_sum_ref)

    query, key, d_out = q_ref[...], k_ref[...], do_ref[...]
    weights = jnp.exp(_product(key, query, BOTH_LAST) - lse_ref[:1])
    dv_sum_ref[...] += _product(weights.astype(d_out.dtype), d_out)
    d_scores = (_product(v_ref[...], d_out, BOTH_LAST) - di_ref[:1]) * weights
    dk_sum_ref[...] += _product(d_scores.astype(query.dtype), query)
    dq_ref[...] = _product(d_scores.T.astype(key.dtype), key).astype(dq_ref.dtype)

    @pl.when((step == steps - 1) & (in_group == group - 1))
    def _():
        dk_ref[...] = dk_sum_ref[...].astype(dk_ref.dtype)
        dv_ref[...] = dv_sum_ref[...].astype(dv_ref.dtype)


def forward(
    query: jax.Array, key: jax.Array, value: jax.Array, *, tile: int = 512, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Attention without a mask or a scale: the output `[q_heads, q_len, dim]` and lse `[q_heads, q_len, 128]`.

    Args:
        query: `[q_heads, q_len, dim]`, scaled.
        key: `[kv_heads, kv_len, dim]`.
        value: `[kv_heads, kv_len, dim]`.
        tile: queries and keys per tile.
        interpret: run it without a TPU.
    """
    heads, q_len, dim = query.shape
    group = heads // key.shape[0]
    rows = pl.BlockSpec((None, tile, dim), lambda h, i, j: (h, i, 0))
    columns = pl.BlockSpec((None, tile, dim), lambda h, i, j: (lax.div(h, jnp.int32(group)), j, 0))
    lanes = pl.BlockSpec((None, tile, LANES), lambda h, i, j: (h, i, 0))
    return pl.pallas_call(
        _forward,
        name=FORWARD,
        grid=(heads, q_len // tile, key.shape[1] // tile),
        in_specs=[rows, columns, columns],
        out_specs=[rows, lanes],
        out_shape=[
            jax.ShapeDtypeStruct(query.shape, query.dtype),
            jax.ShapeDtypeStruct((heads, q_len, LANES), jnp.float32),
        ],
        scratch_shapes=[
            pltpu.VMEM((tile, LANES), jnp.float32),
            pltpu.VMEM((tile, LANES), jnp.float32),
            pltpu.VMEM((tile, dim), jnp.float32),
        ],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "arbitrary", "arbitrary")),
        interpret=interpret,
    )(query, key, value)


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    lse: jax.Array,
    d_out: jax.Array,
    d_sum: jax.Array,
    *,
    tile: int = 512,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of query (one part for each tile of keys, `[kv_len / tile, q_heads, q_len, dim]`), key and value.

    Args:
        query: `[q_heads, q_len, dim]`, scaled.
        key: `[kv_heads, kv_len, dim]`.
        value: `[kv_heads, kv_len, dim]`.
        lse: `[q_heads, 1, q_len]`.
        d_out: `[q_heads, q_len, dim]`.
        d_sum: Σ d_out · out of each query, `[q_heads, 1, q_len]`.
        tile: queries and keys per tile.
        interpret: run it without a TPU.
    """
    heads, q_len, dim = query.shape
    group, tiles = heads // key.shape[0], key.shape[1] // tile
    rows = pl.BlockSpec((None, tile, dim), lambda j, h, i: (h, i, 0))
    columns = pl.BlockSpec((None, tile, dim), lambda j, h, i: (lax.div(h, jnp.int32(group)), j, 0))
    numbers = pl.BlockSpec((None, 1, tile), lambda j, h, i: (h, 0, i))
    parts = pl.BlockSpec((None, None, tile, dim), lambda j, h, i: (j, h, i, 0))
    return pl.pallas_call(
        functools.partial(_backward, group=group),
        name=BACKWARD,
        grid=(tiles, heads, q_len // tile),
        in_specs=[rows, columns, columns, numbers, rows, numbers],
        out_specs=[parts, columns, columns],
        out_shape=[
            jax.ShapeDtypeStruct((tiles, *query.shape), query.dtype),
            jax.ShapeDtypeStruct(key.shape, key.dtype),
            jax.ShapeDtypeStruct(value.shape, value.dtype),
        ],
        scratch_shapes=[pltpu.VMEM((tile, dim), jnp.float32)] * 2,
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary", "arbitrary")),
        interpret=interpret,
    )(query, key, value, lse, d_out, d_sum)
