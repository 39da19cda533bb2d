"""Functions of arrays that are split over Explicit mesh axes: each device runs them on its own examples and heads.

Attention itself does so at its door (`split`). What loops, cuts or reshapes on its own (a recurrence, a layer) says
which axes its arrays have, and runs on the shards that a device holds; everything along other axes is whole there.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import jax
import numpy as np

from ..foundation.arrays import as_array
from ..foundation.sharding import Layout, Split, layout, run_split, split_of
from ..masks.base import as_mask
from ..pieces import Piece, map_fields

Function = TypeVar("Function", bound=Callable[..., Any])

Axes = str | Callable[[Any, int], str]
"""The axes of an array behind the batch, as words; or a function of the array and the batch axes to them.

The one called "head" may be split, too. An array with fewer axes than there are words has no batch.
"""

ALIKE: Mapping[str, Axes] = {
    **dict.fromkeys(("segment_ids", "positions", "query_positions", "key_positions"), "length"),
    "lengths": "",
}
"""What is always called so."""


def by_example(out: Any = None, *, by_shape: bool = False, **axes: Axes) -> Callable[[Function], Function]:
    """Decorate a function of arrays `[batch..., *axes]`.

    Args:
        out: the axes of each result, in order; by default, every result that begins with the batch axes has them.
        by_shape: whether arrays that `axes` does not name and that begin with the batch axes have them. Otherwise
            they have none; nor have `parameters`.
        axes: of each argument; the first decides how many batch axes there are.
    """
    deciding = next(iter(axes))
    names = axes[deciding]
    assert isinstance(names, str)
    own = len(names.split())

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        (*_, last) = signature.parameters.values()

        @functools.wraps(function)
        def run(*args: Any, **options: Any) -> Any:
            try:
                arguments = dict(signature.bind(*args, **options).arguments)
            except TypeError:
                return function(*args, **options)  # which says what is wrong
            inputs = arguments.get(deciding)
            if not isinstance(inputs, jax.Array) or inputs.ndim < own:
                return function(*args, **options)
            if split_of(inputs, _layout(inputs, names, inputs.ndim - own)) is None:
                return function(*args, **options)
            if last.kind is last.VAR_KEYWORD:
                arguments.update(arguments.pop(last.name, {}))
            return _run(function, arguments, {**ALIKE, **axes}, inputs.shape[: inputs.ndim - own], out, by_shape)

        return cast(Function, run)

    return decorate


@dataclasses.dataclass(frozen=True)
class _OfArrays:
    """A call of a function, as a function of the arrays among its arguments; the other leaves of the tree are known."""

    function: Callable[..., Any]
    tree: Any
    others: tuple[Any, ...]  # None for an array

    def __call__(self, arrays: list[Any]) -> Any:
        rest = iter(arrays)
        leaves = [next(rest) if one is None else one for one in self.others]
        return self.function(**self.tree.unflatten(leaves))


def _run(
    function: Callable[..., Any],
    arguments: dict[str, Any],
    axes: Mapping[str, Axes],
    batch: tuple[int, ...],
    out: Any,
    by_shape: bool,
) -> Any:
    if arguments.get("mask") is not None and not isinstance(arguments["mask"], jax.Array | np.ndarray):
        arguments["mask"] = as_mask(arguments["mask"])
    for name in ("query_positions", "key_positions"):
        if name in arguments:
            arguments[name] = as_array(arguments[name])
    heads = any(isinstance(one, str) and "head" in one.split() for one in axes.values())
    found = {name: _layouts(name, one, axes, batch, by_shape, heads) for name, one in arguments.items()}
    layouts = jax.tree.leaves(found, is_leaf=lambda node: isinstance(node, Layout))
    leaves, tree = jax.tree.flatten(arguments)
    is_array = [isinstance(leaf, jax.Array | np.ndarray) for leaf in leaves]
    others = tuple(None if array else leaf for leaf, array in zip(leaves, is_array, strict=True))
    arrays = [leaf for leaf, array in zip(leaves, is_array, strict=True) if array]
    layouts = [one for one, array in zip(layouts, is_array, strict=True) if array]
    function = _OfArrays(function, tree, others)
    split = split_of(arrays, layouts)
    assert split is not None  # or the function would have run as it is
    split = _dividing(split, arrays, layouts)
    shapes = _checked(function, arrays)
    if out is None:
        out = jax.tree.map(lambda leaf: _by_shape(leaf.shape, batch), shapes)
    else:
        results, structure = jax.tree.flatten(shapes)
        named = zip(results, jax.tree.leaves(out), strict=True)
        out = structure.unflatten([_layout(leaf, names, len(batch)) for leaf, names in named])
    return run_split(function, (arrays,), (layouts,), out, split, shared_vary=False)


def _checked(function: Callable[..., Any], arrays: list[Any]) -> Any:
    """The shapes of the whole results. The function checks its arguments, by the sizes of the whole."""
    known = [array if isinstance(array, np.ndarray) else None for array in arrays]
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays if not isinstance(array, np.ndarray)]

    def fill(given: list[Any]) -> Any:
        rest = iter(given)
        return function([next(rest) if one is None else one for one in known])

    return jax.eval_shape(fill, shapes)


def _dividing(split: Split, arrays: list[Any], layouts: list[Layout]) -> Split:
    """Without a split of heads that does not divide the heads of every array."""
    counts = [array.shape[names.index("head")] for array, names in zip(arrays, layouts, strict=True) if "head" in names]
    if all(count % split.parts("head") == 0 for count in counts):
        return split
    return dataclasses.replace(split, axes=tuple(one for one in split.axes if one[0] != "head"))


def _layouts(
    name: str, argument: Any, axes: Mapping[str, Axes], batch: tuple[int, ...], by_shape: bool, heads: bool
) -> Any:
    """A `Layout` for every leaf of an argument."""

    def visit(value: Any, names: tuple[str, ...], _: str) -> Layout:
        return _layout(value, " ".join(one if heads else "whole" for one in names), np.ndim(value) - len(names))

    if name == "parameters":
        return jax.tree.map(lambda leaf: Layout([None] * np.ndim(leaf)), argument)
    if isinstance(argument, Piece) or (isinstance(argument, tuple) and any(isinstance(one, Piece) for one in argument)):
        return map_fields(argument, visit)
    if name in axes and isinstance(argument, jax.Array | np.ndarray):
        return _layout(argument, axes[name], len(batch))
    return jax.tree.map(
        lambda leaf: _by_shape(np.shape(leaf), batch) if by_shape else Layout([None] * np.ndim(leaf)), argument
    )


def _layout(array: Any, axes: Axes, batch_axes: int) -> Layout:
    names = (axes if isinstance(axes, str) else axes(array, batch_axes)).split()
    rank = len(np.shape(array))
    own = [one if one == "head" else None for one in names][max(len(names) - rank, 0) :]
    return layout(max(rank - len(names), 0), *own)


def _by_shape(shape: tuple[int, ...], batch: tuple[int, ...]) -> Layout:
    """Of an array that begins with the batch, or has none."""
    if shape[: len(batch)] != batch:
        return Layout([None] * len(shape))
    return Layout((*range(-len(batch), 0), *[None] * (len(shape) - len(batch))))
