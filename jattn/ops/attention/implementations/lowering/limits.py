"""What the compiler of a kernel lacks."""

import dataclasses
from collections.abc import Callable
from typing import Any

from .....foundation.target import Target
from . import distances

ALWAYS = frozenset(
    {
        "abs", "add", "add_any", "and", "broadcast_in_dim", "convert_element_type", "copy", "div", "eq", "exp", "ge",
        "gt", "integer_pow", "le", "log", "lt", "max", "min", "mul", "ne", "neg", "not", "or", "pow", "reshape",
        "select_n", "sqrt", "square", "squeeze", "stop_gradient", "sub", "tanh", "xor", "expand_dims",
    }
)  # fmt: skip
"""Elementwise primitives that every compiler has."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a compiler can do in a kernel.

    Attributes:
        name: of the compiler, for messages.
        primitives: the elementwise primitives that it has, or that are written in terms of those (see `primitives`).
        entries: the most entries of a table that is looked up with an index of both positions, by comparing the index
            with each. Also the most entries of any value with own axes.
        flags: the same for tables of booleans, of which 32 are one field.
        pairs: the most numbers of an array of all pairs that is made of what the compiler lacks.
        diagonals: makes a tile `[k, q]` of a row of values of distances (see `distances`), differentiable; None if the
            compiler cannot.
        query_cost: values that depend on queries alone are computed outside of the kernel if that takes at least so
            many elementary operations. In the kernel they are rows.
        key_cost: the same for keys. In the kernel they are columns, which cost more.
    """

    name: str
    primitives: frozenset[str]
    entries: int = 64
    flags: int = 1024
    pairs: int = 2**25
    diagonals: Callable[[Any, int, int], Any] | None = None
    query_cost: int = 24
    key_cost: int = 4


MOSAIC = Limits(
    "Mosaic",
    ALWAYS
    | {
        "atan", "atan2", "bitcast_convert_type", "ceil", "clamp", "clz", "cos", "erf", "erf_inv", "exp2", "expm1",
        "floor", "is_finite", "log1p", "log2", "logistic", "population_count", "rem", "round", "rsqrt", "shift_left",
        "shift_right_arithmetic", "shift_right_logical", "sign", "sin", "tan",
    },
    diagonals=distances.diagonals,
)  # fmt: skip
"""Pallas for TPUs."""


def mosaic(target: Target | None) -> Limits:
    """`MOSAIC` for the generation of a target."""
    if target is not None and target.generation == "v4":
        return dataclasses.replace(MOSAIC, diagonals=distances.diagonals_by_groups)
    return MOSAIC
