"""Scores that are no dot products but sums over features, block by block: no array `[keys, queries, features]` exists.

    s_ji = Σ_f term(q_fi, k_jf, a_f)

Queries and keys are transposed, so that a feature of the queries is a row. Eight features of the keys are transposed
back at once, and each is a column. A block of scores stays in registers while the features are added up:

    forward:   s of a block = Σ_f term                                     for each block: for each feature
    backward:  dq_f = Σ_j,  dk_f = Σ_i,  da_f = Σ_ij  of the pulled ds     for each block: for each feature
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .design import Step, finite
from .fields import FEATURE, of_feature
from .geometry import LANES, SUBLANES

WIDTH = 2 * LANES
"""Queries of a block, at most: with 128 keys it takes half of the registers."""


def add_up(step: Step, unit: int, queries: Any, keys: Any, scores: Any) -> None:
    """Write the sums over the features of a unit, without what follows the sum in the similarity.

    Args:
        step: the step.
        unit: the unit.
        queries: ref of its queries, float32 `[features, queries of a step]`.
        keys: ref of the keys of a tile, float32 `[features, keys]`.
        scores: ref `[keys, queries of a unit]`.
    """
    summed = step.design.lowered.sum
    assert summed is not None
    whole, rest = divmod(summed.features, SUBLANES)

    def block(rows: Any, columns: Any, inside: Any) -> None:
        def some(chunk: Any, total: Any, count: int = SUBLANES) -> Any:
            at = _chunk(chunk)
            some_keys, some_queries = keys[at, rows].T, queries[at, columns]
            for place in range(count):
                parameters = _parameters(step, unit, chunk * SUBLANES + place, inside.size)
                row, column = some_queries[place : place + 1], some_keys[:, place : place + 1]
                total = total + summed.number(row, column, parameters)
            return total

        total = lax.fori_loop(0, whole, some, jnp.zeros((LANES, inside.size), jnp.float32))
        scores[rows, inside] = some(whole, total, rest) if rest else total

    _for_each_block(step, unit, keys.shape[1], block)


def differentiate(
    step: Step, unit: int, queries: Any, keys: Any, d_scores: Any, d_queries: Any, d_keys: Any, d_parameters: Any
) -> None:
    """Add the gradients of queries, keys and parameters.

    Args:
        step, unit, queries, keys: as in `add_up`.
        d_scores: ref of the gradients of the sums, `[keys, queries of a unit]`.
        d_queries: ref `[features, queries of a unit]`.
        d_keys: ref `[features, keys]`.
        d_parameters: of each differentiated parameter, a ref `[features, LANES]`.
    """
    summed = step.design.lowered.sum
    assert summed is not None
    whole, rest = divmod(summed.features, SUBLANES)

    def block(rows: Any, columns: Any, inside: Any) -> None:
        def some(chunk: Any, _: Any, count: int = SUBLANES) -> None:
            at = _chunk(chunk)
            some_keys, some_queries, cotangent = finite(keys[at, rows]).T, queries[at, columns], d_scores[rows, inside]
            lane = lax.broadcasted_iota(jnp.int32, (LANES, LANES), 1)
            column_sums = jnp.zeros((LANES, LANES), jnp.float32)
            row_sums: list[list[Any]] = [[] for _ in range(1 + len(d_parameters))]
            for place in range(count):
                parameters = _parameters(step, unit, chunk * SUBLANES + place, inside.size)
                row, column = some_queries[place : place + 1], some_keys[:, place : place + 1]
                _, pull = jax.vjp(summed.number, row, column, parameters)
                d_row, d_column, d_numbers = pull(cotangent)
                column_sums = jnp.where(lane == place, d_column, column_sums)
                for sums, one in zip(row_sums, (d_row, *map(_narrow, d_numbers)), strict=True):
                    sums.append(one)
            for ref, place, sums in zip((d_queries, *d_parameters), (inside, slice(None)), row_sums, strict=False):
                sums += [jnp.zeros_like(sums[0])] * (SUBLANES - count)
                ref[at, place] += jnp.concatenate(sums, 0)
            d_keys[at, rows] += column_sums.T[:SUBLANES]

        lax.fori_loop(0, whole, some, None)
        if rest:
            some(whole, None, rest)

    _for_each_block(step, unit, keys.shape[1], block)


def _for_each_block(step: Step, unit: int, keys: int, block: Any) -> None:
    """Call `block` with its keys, and its queries counted in the step and in the unit."""
    cut = step.design.cut
    width = WIDTH if cut.unit % WIDTH == 0 else LANES
    wide = cut.unit // width

    def one(index: Any, _: None) -> None:
        rows = pl.ds(pl.multiple_of(lax.div(index, wide) * LANES, LANES), LANES)
        first = pl.multiple_of(lax.rem(index, wide) * width, LANES)
        columns = pl.ds(pl.multiple_of(first + cut.queries_of(unit).start, LANES), width)
        block(rows, columns, pl.ds(first, width))

    lax.fori_loop(0, keys // LANES * wide, one, None)


def _chunk(chunk: Any) -> Any:
    return pl.ds(pl.multiple_of(chunk * SUBLANES, SUBLANES), SUBLANES)


def _parameters(step: Step, unit: int, feature: Any, width: int) -> list[jax.Array]:
    """The parameters of a feature as rows, so that their gradients are sums over sublanes."""
    cut = step.design.cut
    return [
        jnp.full((1, width), of_feature(field, ref, cut, step.place, unit, feature), field.dtype)
        for field, ref in zip(step.design.fields, step.refs, strict=True)
        if field.kind == FEATURE
    ]


def _narrow(row: jax.Array) -> jax.Array:
    """A row summed to one register."""
    return sum((row[:, lane : lane + LANES] for lane in range(LANES, row.shape[1], LANES)), row[:, :LANES])
