"""What a piece of attention is: frozen data whose arrays say which axis they ride on.

A piece (a mask, a score, a similarity, a normaliser) is a frozen dataclass and a JAX pytree. Each array field declares
its trailing axes, `array("head")` or `array("query", "key")`, and may have any batch axes in front of them. From the
declaration follows everything that is done to the field: `align` brings it to the one layout

    [batch..., head, query, key, own axes...]

(size 1 where it does not ride), in which a piece is evaluated by plain broadcasting and sliced like an array by
`take`. Partition specs and vmapping read the same declaration.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Self, TypeVar, dataclass_transform

import jax
import jax.numpy as jnp
import numpy as np

LAYOUT = ("head", "query", "key")
"""The axes of a score behind the batch; any other declared name is an axis of the piece's own."""

PieceType = TypeVar("PieceType", bound="type[Piece]")


def array(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that holds an array (always a pytree leaf) with these trailing axes."""
    return dataclasses.field(default=default, metadata={"axes": axes})


def number(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """A field that holds a Python number (static) or an array with these trailing axes (a leaf)."""
    return dataclasses.field(default=default, metadata={"axes": axes, "static_number": True})


def constants(default: Any = ()) -> Any:
    """A field that holds a tuple of arrays of any shapes, which ride on no axis of the call."""
    return dataclasses.field(default=default, metadata={"constants": True})


def part(default: Any = dataclasses.MISSING) -> Any:
    """A field that holds another piece, or a tuple of pieces."""
    return dataclasses.field(default=default, metadata={"part": True})


def _is_child(field: dataclasses.Field, value: Any) -> bool:
    if field.metadata.get("static_number") and isinstance(value, (bool, int, float)):
        return False
    return value is not None and not field.metadata.keys().isdisjoint(("axes", "part", "constants"))


@dataclass_transform(frozen_default=True, field_specifiers=(array, number, constants, part, dataclasses.field))
def piece(cls: PieceType) -> PieceType:
    """Make `cls` a frozen dataclass registered as a pytree, by the declarations of its fields."""
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)  # equality below compares arrays by value

    def flatten_with_keys(self):
        children, (names, static) = _flatten(self)
        return [(jax.tree_util.GetAttrKey(n), v) for n, v in zip(names, children, strict=True)], (names, static)

    def unflatten(aux, children):
        return _unflatten(cls, aux, children)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, _flatten)
    return cls


class Piece:
    """Base of every piece. Subclass one of `Mask`, `Score`, `Similarity`, `Normalizer`, decorated with `@piece`."""

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, my_tree = jax.tree.flatten(self)
        theirs, their_tree = jax.tree.flatten(other)
        return my_tree == their_tree and all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))

    def __hash__(self) -> int:
        return hash((type(self), jax.tree.structure(self)))

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  (every concrete piece is a dataclass)


def _flatten(self: Piece) -> tuple[list[Any], tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]]:
    values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]  (see `replace`)
    # What was unflattened keeps its structure, whatever its leaves are now: `vmap` puts a bool where an array was.
    names = self.__dict__.get("_children")
    if names is None:
        names = tuple(field.name for field, value in values if _is_child(field, value))
    static = tuple((field.name, value) for field, value in values if field.name not in names)
    return [getattr(self, name) for name in names], (names, static)


def _unflatten(cls: type, aux: Any, children: Any) -> Any:
    names, static = aux
    self = object.__new__(cls)  # leaves may be anything here (tracers, shapes, specs): nothing is checked
    for name, value in (("_children", names), *static, *zip(names, children, strict=True)):
        object.__setattr__(self, name, value)
    return self


def map_fields(tree: Any, visit: Callable[[Any, tuple[str, ...], str], Any]) -> Any:
    """A copy of a piece (or tuple of pieces) with `visit(array, axes, name)` in place of each of its arrays.

    `name` reads `Alibi.slopes`; nested pieces are entered.
    """
    if tree is None:
        return None
    if isinstance(tree, tuple):
        return tuple(map_fields(item, visit) for item in tree)
    children, aux = _flatten(tree)
    by_name = {field.name: field for field in dataclasses.fields(tree)}
    changed = []
    for name, value in zip(aux[0], children, strict=True):
        metadata = by_name[name].metadata
        if "part" in metadata:
            changed.append(map_fields(value, visit))
        elif "constants" in metadata:
            changed.append(
                tuple(
                    visit(item, tuple(f"own{axis}" for axis in range(jnp.ndim(item))), f"{type(tree).__name__}.{name}")
                    for item in value
                )
            )
        else:
            changed.append(visit(value, metadata["axes"], f"{type(tree).__name__}.{name}"))
    return _unflatten(type(tree), aux, changed)


def own_rank(axes: tuple[str, ...]) -> int:
    """How many axes of the piece's own follow the layout once a field is aligned."""
    return sum(name not in LAYOUT for name in axes)


def align(tree: Any, batch: tuple[int, ...], sizes: dict[str, int]) -> Any:
    """Bring every array of a piece to `[batch..., head, query, key, own...]`, checking its shape on the way.

    Args:
        tree: a piece, a tuple of pieces, or None.
        batch: the batch sizes of the call.
        sizes: the sizes of `head`, `query` and `key` in the call.

    Raises:
        ValueError: an array has too few axes, or a size that is neither 1 nor the call's. Sizes are never guessed.
    """

    def visit(value, axes, name):
        shape = jnp.shape(value)
        if len(shape) < len(axes):
            raise ValueError(
                f"`{name}` must have the axes [batch..., {', '.join(axes)}]; got shape {shape}. "
                f"Give every axis, with size 1 where it is shared."
            )
        lead = shape[: len(shape) - len(axes)]
        if len(lead) > len(batch) or any(
            have not in (1, want) for have, want in zip(reversed(lead), reversed(batch), strict=False)
        ):
            raise ValueError(
                f"`{name}` of shape {shape} has batch axes {lead} in front of [{', '.join(axes)}], "
                f"which do not fit the batch {batch} of the query. Each must be 1 or equal to it."
            )
        own = shape[len(lead) :]
        for axis, have in zip(axes, own, strict=True):
            if axis in sizes and have not in (1, sizes[axis]):
                raise ValueError(
                    f"`{name}` of shape {shape} has size {have} on its {axis} axis (axes: [batch..., "
                    f"{', '.join(axes)}]), but the call has {sizes[axis]}. It must be 1 or {sizes[axis]}."
                )
        if axes == LAYOUT and batch and not lead and own[0] == batch[-1] == sizes["head"] > 1:
            raise ValueError(
                f"`{name}` of shape {shape} leaves open whether its first axis is the batch or the heads: both are "
                f"{own[0]}. Write it as [batch, 1, query, key] (`array[:, None]`) or as [1, head, query, key] "
                "(`array[None]`)."
            )
        order = sorted(range(len(axes)), key=lambda i: LAYOUT.index(axes[i]) if axes[i] in LAYOUT else len(LAYOUT) + i)
        backend: Any = np if isinstance(value, (np.ndarray, np.generic, int, float)) else jnp
        moved = backend.transpose(value, (*range(len(lead)), *(len(lead) + i for i in order)))
        by_axis = dict(zip(axes, own, strict=True))
        layout = tuple(by_axis.get(axis, 1) for axis in LAYOUT)
        extra = tuple(size for axis, size in zip(axes, own, strict=True) if axis not in LAYOUT)
        return backend.reshape(moved, (1,) * (len(batch) - len(lead)) + lead + layout + extra)

    return map_fields(tree, visit)


def take(value: Any, starts: dict[int, Any], sizes: dict[int, int]) -> Any:
    """Slice an aligned array: `starts[axis]`, `sizes[axis]`, wherever the array does not have size 1."""
    shape = jnp.shape(value)
    if all(shape[axis] == 1 or shape[axis] == size for axis, size in sizes.items()):
        return value
    start = [jnp.asarray(starts.get(axis, 0) if have != 1 else 0, jnp.int32) for axis, have in enumerate(shape)]
    size = [min(sizes[axis], shape[axis]) if axis in sizes else shape[axis] for axis in range(len(shape))]
    return jax.lax.dynamic_slice(value, start, size)
