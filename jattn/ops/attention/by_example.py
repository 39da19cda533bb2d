"""Runs functions of arrays that are split over Explicit mesh axes on each device's own examples and heads.

Attention does this at its entry (`split`). Other functions that loop, slice or reshape (recurrences, layers) declare
the axes of their arrays with `by_example`, and then run on the shards of each device. Axes other than batch and heads
are whole on every device.
"""

import contextlib
import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AxisType

from ...foundation.arrays import Known, as_array, values_of
from ...foundation.pieces import Piece, indexed, map_fields
from ...foundation.shard_map import run_split
from ...foundation.sharding import Layout, Split, layout, mesh_of, split_of
from ...masks.base import as_mask
from ...scores.base import as_score
from ..dispatch import WATCHER
from .observed import OBSERVER

Function = TypeVar("Function", bound=Callable[..., Any])

Axes = str | Callable[[Any, int], str]
"""The names of an array's axes after the batch axes, separated by spaces; or a function from the array and the number
of batch axes to them. An axis named "head" may be split too. An array with fewer axes than names has no batch axes."""

ALIKE: Mapping[str, Axes] = {
    **dict.fromkeys(("segment_ids", "positions", "query_positions", "key_positions", "global_tokens"), "length"),
    "lengths": "",
}
"""Arguments that have the same meaning everywhere."""

WHOLE = ("parameters", "redraw", "written", "filled")
"""Arguments, and fields of records, that never have batch axes."""

PIECES = ("mask", "similarity", "scores", "normalizer", "dropout")


def by_example(
    out: Any = None, *, by_shape: bool = False, whole: tuple[str, ...] = (), **axes: Axes
) -> Callable[[Function], Function]:
    """Decorate a function of arrays `[batch..., *axes]`, so that it runs on each device's shards.

    Args:
        out: the axes of each result, in order. By default, results whose shape follows the batch have its axes.
        by_shape: whether arrays that `axes` does not name, but that begin with the batch axes, have them. Otherwise
            they have none.
        whole: arguments whose arrays have no batch axes.
        axes: the axes of each argument. The first one determines the number of batch axes.
    """
    deciding = next(iter(axes))
    names = axes[deciding]
    assert isinstance(names, str)
    own = len(names.split())

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            try:
                bound = signature.bind(*args, **options)
            except TypeError:
                return function(*args, **options)  # which raises the proper error
            inputs = bound.arguments.get(deciding)
            if not isinstance(inputs, jax.Array | np.ndarray) or inputs.ndim < own:
                return function(*args, **options)
            riding = [one for name, one in bound.arguments.items() if name in axes or hasattr(one, "_fields")]
            if AxisType.Explicit not in mesh_of(inputs, riding).axis_types:
                return function(*args, **options)
            inputs = bound.arguments[deciding] = jnp.asarray(inputs)
            batch = inputs.shape[: inputs.ndim - own]
            heads = inputs.shape[-2] if names.split()[-2:] in (["head", "dim"], ["heads", "dim"]) else None
            arguments = _settled(_flat(bound), batch, heads)
            if arguments is None:  # its pieces use indices that are unknown on a shard
                return function(*args, **options)
            rules = _Rules({**ALIKE, **axes}, batch, (*WHOLE, *whole), by_shape)
            return _run(function, arguments, inputs, rules, out)

        return cast(Function, run)

    return decorate


def _flat(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments by name, including those of `**options`."""
    arguments: dict[str, Any] = {}
    for name, one in bound.arguments.items():
        if bound.signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(one)
        else:
            arguments[name] = one
    return arguments


def _settled(arguments: dict[str, Any], batch: tuple[int, ...], heads: int | None) -> dict[str, Any] | None:
    """Functions as pieces, with the indices of the whole call; lists as arrays. None if indices are not known."""
    arguments = {name: one if name in PIECES else as_array(one) for name, one in arguments.items()}
    if arguments.get("mask") is not None and not isinstance(arguments["mask"], jax.Array | np.ndarray):
        arguments["mask"] = as_mask(arguments["mask"])
    if "scores" in arguments:
        scores = arguments["scores"]
        several = isinstance(scores, (list, tuple))
        arguments["scores"] = tuple(map(as_score, scores)) if several else as_score(scores)
    for name in PIECES:
        given = arguments.get(name)
        parts = given if isinstance(given, tuple) else (given,)
        if not all(isinstance(one, Piece) for one in parts):
            continue
        filled = indexed(given, batch, 1 if heads is None else heads)
        if filled is not given and heads is None:
            return None
        arguments[name] = filled
    return arguments


@dataclasses.dataclass(frozen=True)
class _OfArrays:
    """A call as a function of the arrays among its arguments. The other leaves of the tree are fixed."""

    function: Callable[..., Any]
    tree: Any
    others: tuple[Any, ...]  # None for an array

    def __hash__(self) -> int:
        return hash((self.function, self.tree, tuple(map(_hash, self.others))))

    def __call__(self, arrays: list[Any]) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if one is None else one for one in self.others]
        return self.function(**self.tree.unflatten(leaves))


def _hash(leaf: Any) -> int:
    """The hash of a leaf; of one that has none, such as a layer with a list in it, that of its type."""
    try:
        return hash(leaf)
    except TypeError:
        return hash(type(leaf))


@dataclasses.dataclass(frozen=True)
class _Rules:
    """The axes of the arrays of a call."""

    axes: Mapping[str, Axes]
    batch: tuple[int, ...]
    whole: tuple[str, ...]
    by_shape: bool

    @property
    def heads(self) -> bool:
        """Whether heads may be split."""
        return any(isinstance(one, str) and "head" in one.split() for one in self.axes.values())

    def layouts(self, name: str, argument: Any) -> Any:
        """A `Layout` for every leaf of an argument."""
        if name in self.whole:
            return jax.tree.map(lambda leaf: Layout([None] * np.ndim(leaf)), argument)
        if isinstance(argument, Piece) or (
            isinstance(argument, tuple) and any(isinstance(one, Piece) for one in argument)
        ):
            return map_fields(argument, self._of_field)
        if name in self.axes and isinstance(argument, jax.Array | np.ndarray):
            return _layout(argument, self.axes[name], len(self.batch))
        fields = getattr(argument, "_fields", None)  # of a record, such as a layer's state
        if fields is not None:
            return type(argument)(*map(self.layouts, fields, argument))
        return jax.tree.map(self._of_shape, argument)

    def _of_field(self, value: Any, names: tuple[str, ...], _: str) -> Layout:
        return _layout(value, " ".join(one if self.heads else "whole" for one in names), np.ndim(value) - len(names))

    def _of_shape(self, leaf: Any) -> Layout:
        return _of_shape(leaf, self.batch) if self.by_shape else Layout([None] * np.ndim(leaf))


def _of_shape(leaf: Any, batch: tuple[int, ...]) -> Layout:
    """The layout of an array that has batch axes if its shape begins with theirs."""
    shape, rank = np.shape(leaf), len(batch)
    own = [None] * (len(shape) - rank)
    return layout(rank, *own) if shape[:rank] == batch else Layout([None] * len(shape))


def _run(function: Callable[..., Any], arguments: dict[str, Any], inputs: jax.Array, rules: _Rules, out: Any) -> Any:
    found = {name: rules.layouts(name, one) for name, one in arguments.items()}
    layouts = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, Layout))
    leaves, tree = jax.tree.flatten(arguments)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    others = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    layouts = [one for one, array in zip(layouts, is_array, strict=True) if array]
    call: Any = _OfArrays(function, tree, others)
    observer = OBSERVER.get()
    if observer is not None:
        call = observer.inside(call)
    first = next(names for array, names in zip(arrays, layouts, strict=True) if array is inputs)
    split = split_of([inputs, *arrays], [first, *layouts])
    assert split is not None  # there are Explicit axes
    split = _dividing(split, arrays, layouts)
    rank = len(rules.batch)
    if observer is not None:
        arrays, layouts = [*arrays, *call.operands], [*layouts, *(_of_shape(one, rules.batch) for one in call.operands)]
    found = _checked(call, arrays)
    if observer is not None:
        # Of any head the observer may ask, so heads are whole on each device.
        split = dataclasses.replace(split, axes=tuple(one for one in split.axes if one[0] != "head"))
        found, shown = found
        shown = jax.tree.map(lambda leaf: _of_shape(leaf, rules.batch), shown)
    results, structure = jax.tree.flatten(found)
    if out is None:
        doubled = [_twice(np.shape(array), names) for array, names in zip(arrays, layouts, strict=True)]
        twice = _checked(call, arrays, doubled)
        twice = jax.tree.leaves(twice if observer is None else twice[0])
        named = [
            layout(rank, *[None] * (leaf.ndim - rank)) if leaf.shape != other.shape else Layout([None] * leaf.ndim)
            for leaf, other in zip(results, twice, strict=True)
        ]
    else:
        named = [_layout(leaf, axes, rank) for leaf, axes in zip(results, jax.tree.leaves(out), strict=True)]
    named = structure.unflatten(named)
    named = named if observer is None else (named, shown)
    with _unwatched():
        found = run_split(call, (arrays,), (layouts,), named, split, shared_vary=False)
    return found if observer is None else observer.adopt(call, *found)


def _twice(shape: tuple[int, ...], names: Layout) -> tuple[int, ...]:
    """The shape with the batch axes doubled, to find out which results depend on the batch."""
    return tuple(2 * size if isinstance(name, int) else size for size, name in zip(shape, names, strict=True))


def _checked(function: _OfArrays, arrays: list[Any], shapes: list[tuple[int, ...]] | None = None) -> Any:
    """The shapes of the results, for the whole arrays or for arrays of other shapes.

    The function checks its arguments at their whole sizes, and the values of those that are concrete. Where none
    is concrete it is traced once for each kind of arguments.
    """
    own = [np.shape(array) for array in arrays]
    shapes = own if shapes is None else shapes
    given = tuple(
        Known(array)
        if isinstance(array, np.ndarray) and array.shape == shape
        else jax.ShapeDtypeStruct(shape, array.dtype if isinstance(array, jax.Array) else jnp.result_type(array))
        for array, shape in zip(arrays, shapes, strict=True)
    )
    concrete = shapes == own and any(isinstance(one, jax.Array) and not isinstance(one, Tracer) for one in arrays)
    if concrete or (shapes == own and WATCHER.get() is not None):
        return _traced(function, given, arrays)
    with _unwatched():
        return _shapes(function, given)


@functools.lru_cache(maxsize=128)
def _shapes(function: _OfArrays, given: tuple[Any, ...]) -> Any:
    return _traced(function, given, None)


def _traced(function: _OfArrays, given: tuple[Any, ...], arrays: list[Any] | None) -> Any:
    def fill(traced: list[Any]) -> Any:
        rest = iter(traced)
        filled = [one.array if isinstance(one, Known) else next(rest) for one in given]
        with values_of(filled, arrays) if arrays is not None else contextlib.nullcontext():
            return function(filled)

    return jax.eval_shape(fill, [one for one in given if not isinstance(one, Known)])


@contextlib.contextmanager
def _unwatched() -> Iterator[None]:
    """Within it, calls are not listed: they were, with their whole arrays, when the function was checked."""
    token = WATCHER.set(None)
    try:
        yield
    finally:
        WATCHER.reset(token)


def _dividing(split: Split, arrays: list[Any], layouts: list[Layout]) -> Split:
    """Drop a split of heads that does not divide the heads of every array with more than one."""
    counts = [array.shape[names.index("head")] for array, names in zip(arrays, layouts, strict=True) if "head" in names]
    if all(count == 1 or count % split.parts("head") == 0 for count in counts):
        return split
    return dataclasses.replace(split, axes=tuple(one for one in split.axes if one[0] != "head"))


def _layout(array: Any, axes: Axes, batch_axes: int) -> Layout:
    names = (axes if isinstance(axes, str) else axes(array, batch_axes)).split()
    rank = len(np.shape(array))
    own = [one if one == "head" else None for one in names][max(len(names) - rank, 0) :]
    return layout(max(rank - len(names), 0), *own)
