"""Pieces: frozen dataclasses that are JAX pytrees, and whose array fields declare their axes.

Masks, scores, similarities, normalizers and dropout are pieces. An array field declares its trailing axes, as in
`array("head")` or `array("query", "key")`; any number of batch axes may precede them. Everything that is done to a
field follows from this declaration. `align` brings it to the common layout

    [batch..., head, query, key, own axes...]

with size 1 on axes that it does not have. In this layout a piece is evaluated by plain broadcasting, and `take` slices
it for a tile like an array. Partition specs and `vmap` use the same declaration.
"""

import collections
import dataclasses
import difflib
import functools
import json
from collections.abc import Callable
from typing import Any, ClassVar, Self, TypeVar, dataclass_transform

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from .arrays import FOREIGN, as_array, describe, dtype_of, same_values, slice_at

LAYOUT = ("head", "query", "key")
"""The layout axes after the batch axes. Any other declared name is an own axis of the piece."""

PieceType = TypeVar("PieceType", bound="type[Piece]")


def array(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds an array with these trailing axes. It is always a pytree leaf.

    Raises:
        ValueError: an axis is not a string, is named twice, or is nearly `head`, `query` or `key`.
    """
    _check_axes(axes)
    return dataclasses.field(default=default, metadata={"axes": axes})


def number(*axes: str, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds a Python number (static), or an array with these trailing axes (a leaf).

    Raises:
        ValueError: as in `array`.
    """
    _check_axes(axes)
    return dataclasses.field(default=default, metadata={"axes": axes, "static_number": True})


def constants(default: Any = ()) -> Any:
    """Declare a field that holds a tuple of arrays of any shape, which have no layout axes."""
    return dataclasses.field(default=default, metadata={"constants": True})


def part(default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds another piece, or a tuple of pieces."""
    return dataclasses.field(default=default, metadata={"part": True})


def _check_axes(axes: tuple[str, ...]) -> None:
    for axis in axes:
        if not isinstance(axis, str):
            raise ValueError(f"an axis must be a string, such as {LAYOUT}; got {axis!r}.")
        if axis == "batch":
            raise ValueError("batch axes are not declared: every array may have any number of them in front.")
        near = [] if axis in LAYOUT else difflib.get_close_matches(axis, LAYOUT, 1, cutoff=0.65)
        if near:
            raise ValueError(f"an axis of the call is one of {LAYOUT}; got {axis!r}. Did you mean {near[0]!r}?")
    if len(set(axes)) < len(axes):
        raise ValueError(f"each axis must be named once; got {axes}.")


def _is_child(field: dataclasses.Field, value: Any) -> bool:
    if field.metadata.get("static_number") and isinstance(value, (bool, int, float)):
        return False
    return value is not None and not field.metadata.keys().isdisjoint(("axes", "part", "constants"))


@dataclass_transform(frozen_default=True, field_specifiers=(array, number, constants, part, dataclasses.field))
def piece(cls: PieceType) -> PieceType:
    """Class decorator: make `cls` a frozen dataclass and a pytree, as its fields declare.

    Fields are checked after `__post_init__`: lists of numbers become arrays, and a value that does not match its
    declaration is refused. Pieces can be arguments of functions that `jax.export` serializes.
    """
    own_check = getattr(cls, "__post_init__", None)

    def check(self):
        if own_check is not None:
            own_check(self)
        if type(self) is cls:  # a subclass checks its fields once its own `__post_init__` is done
            _check_fields(self)

    cls.__post_init__ = check  # type: ignore[attr-defined]  (dataclasses look for it)
    cls = dataclasses.dataclass(frozen=True, eq=False)(cls)  # equality below compares arrays by value

    def flatten_with_keys(self):
        children, (names, static) = _flatten(self)
        return [(jax.tree_util.GetAttrKey(n), v) for n, v in zip(names, children, strict=True)], (names, static)

    def unflatten(aux, children):
        return _unflatten(cls, aux, children)

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, _flatten)
    jax.export.register_pytree_node_serialization(
        cls,
        serialized_name=unique_name(cls),
        serialize_auxdata=functools.partial(_to_bytes, cls),
        deserialize_auxdata=_from_bytes,
    )
    cls._decorated = cls
    return cls


class Piece:
    """The base class of pieces. Subclass `Mask`, `Score`, `Similarity` or `Normalizer`, and decorate with `@piece`."""

    __array_ufunc__ = None  # so that `array & mask` calls the mask's operator, not NumPy's for each element
    _decorated: ClassVar[Any] = None

    def __new__(cls, *arguments: Any, **fields: Any) -> Self:
        del arguments, fields  # the dataclass's `__init__` takes them
        self = super().__new__(cls)
        if cls._decorated is not cls:
            raise ValueError(
                f"the class `{cls.__name__}` must be decorated with `@jattn.foundation.pieces.piece` to be a piece."
            )
        return self

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        mine, my_tree = jax.tree.flatten(self)
        theirs, their_tree = jax.tree.flatten(other)
        return my_tree == their_tree and all(map(same_values, mine, theirs))

    def __hash__(self) -> int:
        return hash((type(self), jax.tree.structure(self)))

    def __bool__(self) -> bool:
        raise ValueError(
            f"a {type(self).__name__} is neither true nor false, so `and`, `or`, `not` and `if` would drop a piece in "
            "silence. Join masks by `&`, `|` and `~`; ask for a piece that was left out with `is None`."
        )

    def indexed(self, batch: tuple[int, ...], q_heads: int, split: tuple[str, ...] = ()) -> Self:
        """A copy with batch and head indices filled in, where the piece or a part of it uses them.

        Args:
            batch: the batch axes of the call.
            q_heads: the number of query heads of the call.
            split: the mesh axes over which the call's arrays may already be split; indices would then not be those of
                the whole arrays.

        Raises:
            ValueError: a piece uses an index that is unknown.
        """
        parts = {}
        for field in dataclasses.fields(self):  # type: ignore[arg-type]  (see `replace`)
            if "part" in field.metadata:
                part = getattr(self, field.name)
                filled = indexed(part, batch, q_heads, split)
                if filled is not part:
                    parts[field.name] = filled
        return self.replace(**parts) if parts else self

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)  # type: ignore[type-var]  (every concrete piece is a dataclass)


def _check_fields(self: Piece) -> None:
    """Check that every field holds what it declares. Lists of numbers become arrays, lists of parts tuples.

    Raises:
        ValueError: naming the field, its value, and what was expected.
    """
    for field in dataclasses.fields(self):  # type: ignore[arg-type]  (see `replace`)
        value, name = getattr(self, field.name), f"{type(self).__name__}.{field.name}"
        if value is None and (field.default is None or field.metadata.keys().isdisjoint(("axes", "part"))):
            continue
        if "axes" in field.metadata:
            checked = _array_field(name, value, field.metadata["axes"])
        elif "part" in field.metadata:
            checked = _part_field(name, value)
        elif "constants" in field.metadata:
            if not isinstance(value, (list, tuple)) or any(dtype_of(one) is None for one in value):
                raise ValueError(f"`{name}` must be a tuple of arrays; got {describe(value)}.")
            checked = tuple(value)
        elif any(isinstance(leaf, jax.Array | np.ndarray) for leaf in jax.tree.leaves(value)):
            raise ValueError(
                f"`{name}` holds an array, but is not declared as one: JAX could neither trace nor differentiate it. "
                f"Write `{field.name}: jax.Array = array(...)` with the axes that it rides on."
            )
        else:
            continue
        if checked is not value:
            object.__setattr__(self, field.name, checked)


def _array_field(name: str, value: Any, axes: tuple[str, ...]) -> Any:
    if isinstance(value, (bool, int, float)):
        return value
    array = as_array(value)
    if dtype_of(array) is None:
        layout = f"[batch..., {', '.join(axes)}]" if axes else "of any batch axes"
        raise ValueError(
            f"`{name}` must be an array {layout}, of JAX or NumPy, or a list of numbers; got {describe(value)}. "
            f"{FOREIGN}"
        )
    return array.astype(np.float32) if array is not value and array.dtype == np.float64 else array


def _part_field(name: str, value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_part_field(f"{name}[{place}]", one) for place, one in enumerate(value))
    if not isinstance(value, Piece):
        remedy = ""
        if isinstance(value, type):
            remedy = f" Make one of it: `{value.__name__}(...)`."
        elif callable(value):
            remedy = " Make one of a function with `jattn.masks.of(function)` or `jattn.scores.of(function)`."
        raise ValueError(f"`{name}` must be a piece, such as `jattn.masks.Causal()`; got {describe(value)}.{remedy}")
    return value


def _flatten(self: Piece) -> tuple[list[Any], tuple[tuple[str, ...], tuple[tuple[str, Any], ...]]]:
    values = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)]  # type: ignore[arg-type]  (see `replace`)
    # An unflattened piece keeps its structure even if leaves changed type: `vmap` puts bools in place of arrays.
    names = self.__dict__.get("_children")
    if names is None:
        names = tuple(field.name for field, value in values if _is_child(field, value))
    static = tuple((field.name, value) for field, value in values if field.name not in names)
    return [getattr(self, name) for name in names], (names, static)


def _unflatten(cls: type, aux: Any, children: Any) -> Any:
    names, static = aux
    self = object.__new__(cls)  # no checks: leaves may be anything here (tracers, shapes, specs)
    for name, value in (("_children", names), *static, *zip(names, children, strict=True)):
        object.__setattr__(self, name, value)
    return self


_names: collections.Counter[str] = collections.Counter()


def unique_name(cls: type) -> str:
    """The name of a class in an exported function. A class that is redefined, as in a notebook, gets a number."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    _names[name] += 1
    return name if _names[name] == 1 else f"{name}#{_names[name]}"


def _to_bytes(cls: type, aux: Any) -> bytes:
    names, static = aux
    for name, value in static:
        try:
            same = _from_json(json.loads(json.dumps(value))) == value
        except (TypeError, ValueError):
            same = False
        if not same:
            raise ValueError(
                f"`{cls.__name__}.{name}` cannot be serialized: {describe(value)}. Make the piece inside the function "
                "that is exported, not outside of it."
            )
    return json.dumps([names, static]).encode()


def _from_bytes(data: bytes) -> Any:
    return _from_json(json.loads(data))


def _from_json(value: Any) -> Any:
    return tuple(_from_json(one) for one in value) if isinstance(value, list) else value


def map_fields(tree: Any, visit: Callable[[Any, tuple[str, ...], str], Any]) -> Any:
    """A copy of a piece (or tuple of pieces) with `visit(array, axes, name)` in place of each array.

    `name` reads like `ALiBi.slopes`. Nested pieces are visited too.
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
                    visit(item, tuple(f"own{axis}" for axis in range(jnp.ndim(item))), _name_of(tree, name))
                    for item in value
                )
            )
        else:
            changed.append(visit(value, metadata["axes"], _name_of(tree, name)))
    return _unflatten(type(tree), aux, changed)


def _name_of(piece: Any, field: str) -> str:
    """What errors call a field: as the caller gave it, if the class says so in `given_as`."""
    return getattr(type(piece), "given_as", {}).get(field, f"{type(piece).__name__}.{field}")


def parts(self: Piece) -> list[Any]:
    """The pieces that a piece directly contains."""
    held = [getattr(self, field.name) for field in dataclasses.fields(self) if "part" in field.metadata]  # type: ignore[arg-type]  (see `Piece.replace`)
    return [one for part in held for one in (part if isinstance(part, tuple) else (part,)) if one is not None]


def indexed(tree: Any, batch: tuple[int, ...], q_heads: int, split: tuple[str, ...] = ()) -> Any:
    """`Piece.indexed` for a piece, a tuple of pieces, or None."""
    if isinstance(tree, tuple):
        filled = tuple(indexed(item, batch, q_heads, split) for item in tree)
        return filled if any(new is not old for new, old in zip(filled, tree, strict=True)) else tree
    return tree if tree is None else tree.indexed(batch, q_heads, split)


def own_rank(axes: tuple[str, ...]) -> int:
    """The number of own axes that follow the layout once a field is aligned."""
    return sum(name not in LAYOUT for name in axes)


_MADE_OF_FLAGS = " If `masks.from_attention_mask` made it: `attention_mask` needs a number for each key of the call."


def align(tree: Any, batch: tuple[int, ...], sizes: dict[str, int]) -> Any:
    """Bring every array of a piece to `[batch..., head, query, key, own...]`, and check its shape.

    Args:
        tree: a piece, a tuple of pieces, or None.
        batch: the batch sizes of the call.
        sizes: the sizes of `head`, `query` and `key` in the call.

    Raises:
        ValueError: an array has too few axes, or a size that is neither 1 nor the call's. Nothing is guessed.
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
                    f"{_MADE_OF_FLAGS if name == 'Dense.array' and own[:2] == (1, 1) else ''}"
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
    """Slice an aligned array by `starts[axis]` and `sizes[axis]`, on axes where it does not have size 1."""
    shape = jnp.shape(value)
    if all(shape[axis] == 1 or shape[axis] == size for axis, size in sizes.items()):
        return value
    start = [starts.get(axis, 0) if have != 1 else 0 for axis, have in enumerate(shape)]
    size = [min(sizes[axis], shape[axis]) if axis in sizes else shape[axis] for axis in range(len(shape))]
    return slice_at(value, start, size)
