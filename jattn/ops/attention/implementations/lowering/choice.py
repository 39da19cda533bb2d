"""Which values a kernel computes in its tiles, and which it reads.

From the results down, the first value that meets a condition is computed outside, for all positions:

1. It is one-sided, and needs a primitive that the compiler lacks, or has own axes, or is expensive.
2. It depends on positions through their difference alone, and needs a primitive that the compiler lacks: a row of
   distances.
3. It looks up a table with an index of both sides: the table, one field an entry, or 32 flags a field.
4. It needs a primitive that the compiler lacks, and there are few pairs: an array of all pairs.

Everything else must consist of elementwise primitives that the compiler has, or is refused by the primitive's name.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .expressions import CUSTOM, RESHAPES, Axes, Expression, Lacking, Node, Source, in_order, operands_of
from .inside import primal, pulled
from .limits import Limits
from .primitives import REDUCTIONS, SHAPES

LOOKUPS = ("gather", "dynamic_slice")
WORD = 32
EXACT = {"convert_element_type", "eq", "ge", "gt", "le", "lt", "max", "min", "ne", "select_n"}
"""Primitives whose results do not depend on the width of integers."""
COSTS = {
    **dict.fromkeys(("div", "rem"), 12),
    **dict.fromkeys(("exp", "exp2", "log", "log1p", "tanh", "logistic", "sqrt", "rsqrt", "pow", "sin", "cos"), 8),
    **dict.fromkeys((*RESHAPES, "convert_element_type", "copy", "stop_gradient"), 0),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Lookup:
    """A node that looks up a table, with the index that the kernel compares.

    Attributes:
        value: the result.
        index: one of the node's indices; all else that the result depends on is one-sided.
        places: the numbers that the index may be, consecutive. Smaller or larger ones act like the first or last.
    """

    value: Expression
    index: Expression
    places: np.ndarray

    @property
    def of_flags(self) -> bool:
        """Whether its entries are read as bits of words."""
        return self.value.dtype == np.bool_ and self.value.size == 1


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """An array that a kernel reads.

    Attributes:
        of: an expression or a table.
        entry: which entry of the flattened value (of the entries of a table, and of each the value's; or a word of
            flags).
        kind: "none", "head", "query", "key", "pair" or "distance".
        dtype: of the value in the kernel.
    """

    of: Expression | Lookup
    entry: int
    kind: str
    dtype: Any


class Choice:
    """Collects the fields of several results.

    Args:
        axes: of the call.
        limits: of the compiler.
        distances: whether positions are consecutive, so that tiles may be made of rows of distances.
        sizes: of the layout axes of the arrays.
    """

    def __init__(self, axes: Axes, limits: Limits, *, distances: bool = False, sizes: Sequence[int] = ()):
        self.axes, self.limits, self._sizes = axes, limits, sizes
        self.distances = distances and limits.diagonals is not None
        self.fields: list[Field] = []
        self.read: dict[int, tuple[Any, ...]] = {}  # by the id of an expression: what is read for it
        self._seen: dict[int, Expression] = {}
        self._plain: dict[int, bool] = {}

    def choose(self, value: Expression) -> None:
        """Choose how a value is computed.

        Raises:
            Lacking: it cannot be.
        """
        if id(value) in self._seen:
            return
        self._seen[id(value)] = value
        origin = value.origin
        if isinstance(origin, Source):
            if origin.name == "array" or isinstance(origin.name, int):
                self._outside(value)
            return
        if self._belongs_outside(value, origin):
            self._outside(value)
        elif self.distances and value.apart is not None and value.size == 1 and not self._pairs_are_plain(value):
            self._add(value, value, 1, "distance")
        else:
            lookup = self._lookup_of(value, origin) if origin.name in LOOKUPS else None
            lacking = lookup if isinstance(lookup, str) else None if lookup is not None else self._lacks(value)
            if lacking is not None:
                self._for_all_pairs(value, lacking)
            elif isinstance(lookup, Lookup):
                self._look_up(lookup)
            else:
                for one in origin.operands:
                    self.choose(one)

    def _for_all_pairs(self, value: Expression, lacking: str) -> None:
        """Compute a value outside for all pairs, if they are few."""
        if value.of_scores or not self._sizes or value.size > 1 or not _is_held(value.dtype):
            raise Lacking(lacking)
        count = int(np.prod([self._sizes[axis] for axis in value.along]))
        if count > self.limits.pairs:
            raise Lacking(f"{lacking} (for all pairs, {count:,} numbers; at most {self.limits.pairs:,})")
        self._outside(value)

    def _belongs_outside(self, value: Expression, node: Node) -> bool:
        if self.axes.one_sided(value):
            return not self._is_plain(value) or self._is_expensive(value)
        # Pairs in float16 are read as float32.
        first = node.operands[0] if node.operands else value
        return node.name == "convert_element_type" and first.dtype == np.float16 and _is_leaf(first)

    def _lacks(self, value: Expression) -> str | None:
        """What a tile lacks to compute a value from its operands, or None."""
        node = value.origin
        assert isinstance(node, Node)
        known = self.limits.primitives | SHAPES.keys() | REDUCTIONS.keys() | CUSTOM
        if node.name not in known:
            return _of_both(node)
        size = max(value.size, *(one.size for one in node.operands))
        if size > self.limits.entries:
            return f"`{node.name}` of {size} numbers for each pair (at most {self.limits.entries})"
        for one in (value, *node.operands):
            if not _is_held(one.dtype):
                return f"numbers of {np.dtype(one.dtype).name}"
            if _is_small(one.dtype) and node.name not in EXACT | SHAPES.keys():
                return f"`{node.name}` of {np.dtype(one.dtype).name}"
        if node.name == "convert_element_type" and _is_small(value.dtype):
            return f"numbers of {np.dtype(value.dtype).name}"
        return self._custom_lacks(node) if node.name in CUSTOM else None

    def _custom_lacks(self, node: Node) -> str | None:
        """What a tile lacks for a function with its own derivative, or for that."""
        try:
            for results, _ in (primal(node), pulled(node)):
                inner = Choice(self.axes, self.limits)
                for one in results:
                    inner.choose(one)
        except Lacking as error:
            return str(error)
        return None

    def _is_plain(self, value: Expression) -> bool:
        """Whether a tile could compute a value, as one number."""
        if id(value) not in self._plain:
            origin = value.origin
            self._plain[id(value)] = (value.size == 1 and not _is_half(value.dtype)) and (
                isinstance(origin, Source)
                or (
                    origin.name in self.limits.primitives
                    and all(map(self._is_plain, origin.operands))
                    and self._lacks(value) is None
                )
            )
        return self._plain[id(value)]

    def _pairs_are_plain(self, value: Expression) -> bool:
        """Whether all that depends on both sides is elementwise."""
        return all(
            self.axes.one_sided(one) or isinstance(one.origin, Source) or (self._lacks(one) is None and one.size == 1)
            for one in in_order([value], lambda one: () if self.axes.one_sided(one) else operands_of(one))
        )

    def _is_expensive(self, value: Expression) -> bool:
        sides = self.axes.sides(value)
        if not sides:
            return False
        # What depends on neither side is computed once for a tile.
        found = (one for one in in_order([value]) if self.axes.sides(one))
        nodes = {id(one.origin): one.origin for one in found if isinstance(one.origin, Node)}
        cost = sum(COSTS.get(one.name, 1) for one in nodes.values())
        return cost >= (self.limits.key_cost if self.axes.key in sides else self.limits.query_cost)

    def _outside(self, value: Expression) -> None:
        if value.size > self.limits.entries:
            raise Lacking(f"{value.size} numbers for each pair (at most {self.limits.entries})")
        self._add(value, value, value.size, self._kind(value.along))

    def _kind(self, along: frozenset[int]) -> str:
        axes = self.axes
        if axes.query in along:
            return "pair" if axes.key in along else "query"
        return "key" if axes.key in along else "head" if axes.head in along else "none"

    def _add(self, value: Expression, of: Any, count: int, kind: str, dtype: Any = None) -> None:
        dtype = np.dtype(value.dtype if dtype is None else dtype)
        if not _is_held(dtype):
            raise Lacking(f"numbers of {dtype.name}")
        places = range(len(self.fields), len(self.fields) + count)
        self.fields.extend(Field(of, entry, kind, dtype) for entry in range(count))
        self.read[id(value)] = (of, tuple(places))

    def _lookup_of(self, value: Expression, node: Node) -> Lookup | str:
        """How to look up a table, or what is lacking."""
        found = _smallest([one for one in _indices(node) if self._splits(node, one[0])])
        if found is None:
            return _of_both(node)
        table = Lookup(value, *found)
        most = self.limits.flags if table.of_flags else self.limits.entries
        if len(table.places) * value.size > most + 2:
            return f"{_of_both(node)}, in a table of {len(table.places)} entries (at most {most})"
        return table

    def _look_up(self, table: Lookup) -> None:
        value, count = table.value, len(table.places)
        assert isinstance(value.origin, Node)
        along = frozenset().union(*(one.along for one in _others(value.origin, table.index)))
        count = -(-count // WORD) if table.of_flags else count * value.size
        self._add(value, table, count, self._kind(along), np.int32 if table.of_flags else None)
        self.choose(table.index)

    def _splits(self, node: Node, index: Expression) -> bool:
        """Whether all that a node depends on, but for an index, is one-sided."""
        others = _others(node, index)
        both = frozenset().union(*(self.axes.sides(one) for one in others))
        return len(both) < 2 and np.dtype(index.dtype).itemsize <= 4


def _is_leaf(value: Expression) -> bool:
    while isinstance(value.origin, Node) and value.origin.name in RESHAPES:
        value = value.origin.operands[0]
    return isinstance(value.origin, Source) and isinstance(value.origin.name, int)


def _is_half(dtype: Any) -> bool:
    return bool(jnp.issubdtype(dtype, jnp.floating)) and np.dtype(dtype).itemsize == 2


def _is_small(dtype: Any) -> bool:
    return np.dtype(dtype).kind in "iu" and np.dtype(dtype).itemsize < 4


def _is_held(dtype: Any) -> bool:
    """Whether a tile can hold numbers of a dtype."""
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return dtype != np.float16
    return dtype.name == "bfloat16" or (dtype.kind in "biu" and dtype.itemsize <= 4)


def _of_both(node: Node) -> str:
    return f"`{node.name}` of a query and a key at once"


def _indices(node: Node) -> list[tuple[Expression, np.ndarray]]:
    """The indices of a lookup, each a number, with the places they may have."""
    table, sizes = node.operands[0], node.params["slice_sizes"]
    if node.name == "dynamic_slice":
        bounds = [have - size for have, size in zip(table.shape, sizes, strict=True)]
        found = [(one, np.arange(bound + 1)) for one, bound in zip(node.operands[1:], bounds, strict=True)]
    else:
        numbers = node.params["dimension_numbers"]
        parts = _components(node.operands[1], len(numbers.start_index_map))
        if parts is None:
            return []
        filled = "FILL" in str(node.params["mode"])
        found = []
        for one, axis in zip(parts, numbers.start_index_map, strict=True):
            least = -1 if filled and np.dtype(one.dtype).kind == "i" else 0
            found.append((one, np.arange(least, table.shape[axis] - sizes[axis] + 1 + filled)))
    return [(one, places.astype(one.dtype)) for one, places in found if one.size == 1]


def _components(value: Expression, count: int) -> list[Expression] | None:
    """The numbers that an array of indices was made of."""
    if value.size == 1 and count == 1:
        return [value]
    origin = value.origin
    if not isinstance(origin, Node):
        return None
    if origin.name == "concatenate" and len(origin.operands) == count:
        return list(origin.operands) if all(one.size == 1 for one in origin.operands) else None
    if origin.name in (*RESHAPES, "copy") and origin.operands[0].size == value.size:
        return _components(origin.operands[0], count)
    return None


def _others(node: Node, index: Expression) -> list[Expression]:
    """All that a lookup depends on directly, but for one index."""
    if node.name == "dynamic_slice":
        return [one for one in node.operands if one is not index]
    parts = _components(node.operands[1], len(node.params["dimension_numbers"].start_index_map)) or [node.operands[1]]
    return [node.operands[0], *(one for one in parts if one is not index)]


def _smallest(found: Sequence[tuple[Expression, np.ndarray]]) -> tuple[Expression, np.ndarray] | None:
    return min(found, key=lambda one: len(one[1]), default=None)
