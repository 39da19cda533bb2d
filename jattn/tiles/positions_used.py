"""Whether a mask or a score looks at positions at all, read from its jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.dependence import needed_inputs
from ..masks.base import Mask
from ..pieces import map_fields, own_rank
from ..scores.base import Score


def mask_reads_positions(mask: Mask | None) -> tuple[bool, bool]:
    """Whether an aligned mask depends on the query positions, and on the key positions.

    >>> import jattn
    >>> mask_reads_positions(jattn.masks.Causal()), mask_reads_positions(jattn.masks.Sinks(4))
    ((True, True), (False, True))
    """
    if mask is None:
        return False, False
    return _reads(lambda piece, q, k: piece.allows(q, k), mask)


def score_reads_positions(score: Score) -> tuple[bool, bool]:
    """Whether an aligned score depends on the query positions, and on the key positions."""

    def modify(piece, q, k):
        return piece.modify(jnp.zeros(jnp.broadcast_shapes(jnp.shape(q), jnp.shape(k)), jnp.float32), q, k)

    return _reads(modify, score)


def _reads(function: Callable[..., Any], piece: Any) -> tuple[bool, bool]:
    ranks = {0}

    def visit(value, axes, name):
        del name
        rank = jnp.ndim(value) - own_rank(axes)
        if not any(axis.startswith("own") for axis in axes):
            ranks.add(rank)
        return jax.ShapeDtypeStruct(jnp.shape(value), jax.dtypes.canonicalize_dtype(value.dtype))

    abstract = map_fields(piece, visit)
    position = jax.ShapeDtypeStruct((1,) * max(ranks), jnp.int32)
    jaxpr = jax.make_jaxpr(function)(abstract, position, position).jaxpr
    needed = needed_inputs(jaxpr, [True] * len(jaxpr.outvars))
    return needed[-2], needed[-1]
