"""The functions of a piece as graphs of expressions for one pair, each of which knows on what it depends.

Pieces are aligned to `[batch..., head, query, key, own...]` and evaluated by broadcasting. With size 1 on every layout
axis the same code computes a single pair, and each value in its jaxpr is one number of that pair (or several, with own
axes). The jaxpr says nothing about tiles, so it can be evaluated anywhere: for all positions of one side, or for a tile
of any layout.

An expression is *one-sided* if it depends on queries or on keys, but not on both. Calls are inlined, branches become
selections, short loops are unrolled, and constants are folded.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from .....foundation.shard_map import apply_varying, carries_alone
from .....foundation.sharding import without_mesh
from .....masks.selected import row_holds

TURNS = 16
"""The most iterations of a loop that are unrolled."""

CALLS = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
CUSTOM = {"custom_jvp_call", "custom_vjp_call", "call_hi_primitive"}
"""Functions with their own derivative: a user's, or those of which JAX says itself what they are made of."""

Apply = Callable[[Sequence[Any]], list[Any]]


class Lacking(Exception):
    """Says what a kernel's compiler lacks to evaluate a function."""


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """An input.

    Its name is the place of a leaf among those of the pieces; "query" or "key", for positions; "float query" or "float
    key", for positions less any one of them, in float32; "scores"; or that of an argument, an array or a constant.
    """

    name: Any
    value: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Node:
    """An equation.

    Attributes:
        name: of its primitive.
        params: of its primitive.
        operands: its inputs.
        apply: computes the results from arrays of the operands' shapes, in plain JAX.
        equation: of the jaxpr it comes from; None for a selection that stands for a branch.
    """

    name: str
    params: dict[str, Any]
    operands: tuple["Expression", ...]
    apply: Apply
    equation: Any = None


@dataclasses.dataclass(frozen=True, eq=False)
class Expression:
    """A value of one pair.

    Attributes:
        shape, dtype: of the value, with layout axes of size 1.
        origin: a `Source`, or the `Node` that it is a result of.
        index: which result of the node.
        along: the layout axes (counted from the first batch axis) along which it varies.
        apart: if its value depends on positions through `key - query` alone, the other axes along which it varies;
            otherwise None.
        of_scores: whether it depends on the scores.
    """

    shape: tuple[int, ...]
    dtype: Any
    origin: Source | Node
    index: int = 0
    along: frozenset[int] = frozenset()
    apart: frozenset[int] | None = None
    of_scores: bool = False

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def constant(self) -> Any:
        """Its value if that is known, otherwise None."""
        return self.origin.value if isinstance(self.origin, Source) else None


class Axes:
    """The layout axes of a call, as numbers."""

    def __init__(self, rank: int):
        self.rank, self.head, self.query, self.key = rank, rank - 3, rank - 2, rank - 1

    def sides(self, value: Expression) -> frozenset[int]:
        """Which of the query and key axes a value depends on; both if it depends on the scores."""
        both = frozenset((self.query, self.key))
        return both if value.of_scores else value.along & both

    def one_sided(self, value: Expression) -> bool:
        return len(self.sides(value)) < 2


def constant(value: Any) -> Expression:
    value = np.asarray(value)
    return Expression(value.shape, value.dtype, Source("constant", value))


class Builder:
    """Makes expressions of jaxprs.

    Args:
        axes: of the call.
        keep: whether functions with their own derivative stay whole; otherwise they are inlined.
        floats: stand-ins for the query and key positions in float32, from which their differences are exact; with them,
            differences that the function converts to float32 are taken of floats, which saves the conversion of a tile.
    """

    def __init__(self, axes: Axes, *, keep: bool, floats: tuple[Expression, Expression] | None = None):
        self.axes, self.keep = axes, keep
        self.floats = None if floats is None else {"query": floats[0], "key": floats[1]}

    def trace(self, function: Callable[..., Any], inputs: Sequence[Expression]) -> list[Expression]:
        """The results of a function of arrays."""
        shapes = [jax.ShapeDtypeStruct(one.shape, one.dtype) for one in inputs]
        with without_mesh(), jax.numpy_rank_promotion("allow"):
            closed = jax.make_jaxpr(function)(*shapes)
        return self.build(closed.jaxpr, closed.consts, inputs)

    def build(self, jaxpr: Any, consts: Sequence[Any], inputs: Sequence[Expression]) -> list[Expression]:
        known: dict[Any, Expression] = dict(zip(jaxpr.invars, inputs, strict=True))
        for variable, value in zip(jaxpr.constvars, consts, strict=True):
            if isinstance(value, Tracer):  # of a program that may be gone when the expressions are used again
                raise Lacking("an array that is traced and no field of the piece")
            known[variable] = (
                constant(value)
                if isinstance(value, np.ndarray | np.generic | int | float | bool)
                else Expression(np.shape(value), value.dtype, Source("array", value))
            )

        def read(atom: Any) -> Expression:
            return constant(np.asarray(atom.val, atom.aval.dtype)) if hasattr(atom, "val") else known[atom]

        for equation in jaxpr.eqns:
            results = self._equation(equation, tuple(read(atom) for atom in equation.invars))
            known.update(zip(equation.outvars, results, strict=True))
        return [read(atom) for atom in jaxpr.outvars]

    def _equation(self, equation: Any, operands: tuple[Expression, ...]) -> list[Expression]:
        name, params = equation.primitive.name, equation.params
        inner = params.get("jaxpr", params.get("call_jaxpr"))
        if name in CUSTOM and not self.keep:
            return self.inlined(equation, operands)
        if name in CALLS:
            return self.trace(_row_holds, operands) if _is_row_holds(params, inner) else self._inlined(inner, operands)
        if name == "cond":
            return self._branches(params["branches"], operands)
        if name == "scan" and params["length"] <= TURNS and carries_alone(equation):
            fixed, carry = operands[: -len(equation.outvars)], list(operands[len(operands) - len(equation.outvars) :])
            for _ in range(params["length"]):
                carry = self._inlined(inner, (*fixed, *carry))
            return carry
        return self.node(
            Node(name, params, operands, functools.partial(apply_varying, equation), equation),
            [one.aval for one in equation.outvars],
        )

    def inlined(self, equation: Any, operands: Sequence[Expression]) -> list[Expression]:
        """The results of a function with its own derivative, in terms of others."""
        if "call_jaxpr" in equation.params:
            return self._inlined(equation.params["call_jaxpr"], operands)
        return self.trace(equation.params["_prim"].expand, operands)

    def _inlined(self, inner: Any, operands: Sequence[Expression]) -> list[Expression]:
        jaxpr, consts = (
            (inner.jaxpr, inner.consts) if hasattr(inner, "consts") and hasattr(inner, "jaxpr") else (inner, ())
        )
        return self.build(jaxpr, consts, operands)

    def _branches(self, branches: Any, operands: tuple[Expression, ...]) -> list[Expression]:
        which, *arguments = operands
        results = [self._inlined(one, arguments) for one in branches]
        return [self._select(which, cases) for cases in zip(*results, strict=True)]

    def _select(self, which: Expression, cases: tuple[Expression, ...]) -> Expression:
        last = len(cases) - 1

        def apply(values: Sequence[Any]) -> list[Any]:
            index, *given = values
            index = index if index.dtype == np.bool_ else jnp.clip(index, 0, last)
            return [jax.lax.select_n(jnp.broadcast_to(index, given[0].shape), *given)]

        return self.node(Node("select_n", {}, (which, *cases), apply), [cases[0]])[0]

    def node(self, node: Node, avals: Sequence[Any]) -> list[Expression]:
        """The results of a node, with what follows from its operands."""
        folded = _folded(node, avals)
        if folded is not None:
            return [constant(folded)]
        if node.name == "convert_element_type" and avals[0].dtype == np.float32 and self.floats is not None:
            exact = self._as_floats(node.operands[0])
            if exact is not None:
                return [exact]
        operands = node.operands
        along = frozenset().union(*(one.along for one in operands))
        of_scores = any(one.of_scores for one in operands)
        apart = self._apart(node)
        return [
            Expression(tuple(one.shape), one.dtype, node, index, along, apart, of_scores)
            for index, one in enumerate(avals)
        ]

    def _as_floats(self, value: Expression) -> Expression | None:
        """An integer function of a difference of positions, computed in float32 with the same result; or None."""
        node, floats = value.origin, self.floats
        if not isinstance(node, Node) or value.dtype != np.int32 or floats is None:
            return None
        aval = jax.ShapeDtypeStruct(value.shape, np.dtype(np.float32))
        if node.name == "sub":
            sides = [_position(one) for one in node.operands]
            if set(sides) != {"query", "key"}:
                return None
            operands = tuple(dataclasses.replace(floats[side], shape=value.shape) for side in sides if side)
            return self.node(Node("sub", {}, operands, in_jax(jnp.subtract, value.shape)), [aval])[0]
        if node.name not in _ONE_SIGN:
            return None
        inner = self._as_floats(node.operands[0])
        if inner is None:
            return None
        return self.node(Node(node.name, {}, (inner,), in_jax(_ONE_SIGN[node.name], value.shape)), [aval])[0]

    def _apart(self, node: Node) -> frozenset[int] | None:
        if node.name == "sub" and {_position(one) for one in node.operands} == {"query", "key"}:
            return frozenset()
        both = {self.axes.query, self.axes.key}
        parts = []
        for one in node.operands:
            if one.of_scores or (one.along & both and one.apart is None):
                return None
            parts.append(one.along if one.apart is None else one.apart)
        return frozenset().union(*parts)


def _row_holds(table: Any, row: Any, number: Any) -> Any:
    """`masks.selected.row_holds` without a search, whose look-ups would cost a tile more than all comparisons."""
    entries = jax.lax.dynamic_slice(table, (row, row.dtype.type(0)), (1, table.shape[1]))
    return (number >= 0) & (entries == number).any()


def _is_row_holds(params: dict[str, Any], inner: Any) -> bool:
    """Whether a call is that of `masks.Selected`, not of another function of its name."""
    if params.get("name") != "row_holds" or [len(one.aval.shape) for one in inner.jaxpr.invars] != [2, 0, 0]:
        return False
    shapes = [jax.ShapeDtypeStruct(one.aval.shape, one.aval.dtype) for one in inner.jaxpr.invars]
    with without_mesh():
        own = jax.make_jaxpr(row_holds)(*shapes)
    return str(own.jaxpr.eqns[0].params["jaxpr"]) == str(inner)


_ONE_SIGN = {"abs": jnp.abs, "neg": jnp.negative}


def in_jax(function: Callable[..., Any], shape: tuple[int, ...]) -> Apply:
    """What a node that is made of a function of arrays applies."""
    return lambda values: [function(*values).reshape(shape)]


def _position(value: Expression) -> str | None:
    """Which position a value is, however reshaped."""
    while isinstance(value.origin, Node) and value.size == 1 and value.origin.name in RESHAPES | {"copy"}:
        value = value.origin.operands[0]
    name = value.origin.name if isinstance(value.origin, Source) else None
    return _POSITIONS.get(name) if isinstance(name, str) else None


_POSITIONS = {"query": "query", "key": "key", "float query": "query", "float key": "key"}


RESHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims"}

_FOLDED: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "neg": np.negative,
    "max": np.maximum,
    "min": np.minimum,
    "sign": np.sign,
    "abs": np.abs,
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "select_n": lambda which, *cases: np.choose(which, cases),
    "convert_element_type": lambda value: value,
}


def _folded(node: Node, avals: Sequence[Any]) -> Any:
    """The result of a node whose operands are numbers that are known; None if it is not computed here."""
    values = [one.constant for one in node.operands]
    if len(avals) != 1 or any(value is None for value in values):
        return None
    shape, dtype = tuple(avals[0].shape), avals[0].dtype
    if int(np.prod(shape)) != 1 or any(value.size != 1 for value in values):
        return None
    function = (lambda value: value) if node.name in RESHAPES else _FOLDED.get(node.name)
    if function is None or (node.name == "convert_element_type" and values[0].dtype.kind == "f" and dtype.kind != "f"):
        return None
    with np.errstate(all="ignore"):
        return np.asarray(function(*(value.reshape(()) for value in values))).astype(dtype).reshape(shape)


Needs = Callable[[Expression], Sequence[Expression]]


def operands_of(value: Expression) -> Sequence[Expression]:
    """What a value is computed from."""
    return value.origin.operands if isinstance(value.origin, Node) else ()


def in_order(values: Sequence[Expression], needs: Needs = operands_of) -> list[Expression]:
    """The values and all that they need, each once and after what it needs."""
    order: list[Expression] = []
    seen: set[int] = set()
    waiting = [(value, False) for value in values]
    while waiting:
        value, ready = waiting.pop()
        if ready:
            order.append(value)
        elif id(value) not in seen:
            seen.add(id(value))
            waiting.append((value, True))
            waiting.extend((one, False) for one in needs(value))
    return order
