"""Whether a mask or a score looks at positions at all, read from its jaxpr."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
    needed = _needed_inputs(jaxpr, [True] * len(jaxpr.outvars))
    return needed[-2], needed[-1]


def _needed_inputs(jaxpr: Any, outputs: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs may depend on."""
    needed = {atom for atom, wanted in zip(jaxpr.outvars, outputs, strict=True) if wanted and not hasattr(atom, "val")}
    for equation in reversed(jaxpr.eqns):
        wanted = [variable in needed for variable in equation.outvars]
        if not any(wanted) and not equation.effects:
            continue
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        used = [True] * len(equation.invars) if inner is None else _needed_inputs(inner.jaxpr, wanted)
        needed.update(atom for atom, one in zip(equation.invars, used, strict=True) if one and not hasattr(atom, "val"))
    return [variable in needed for variable in jaxpr.invars]
