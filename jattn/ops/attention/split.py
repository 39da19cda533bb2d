"""Runs a call whose batch or heads are split over Explicit mesh axes on each device's own part."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import NamedSharding

from ...foundation.arrays import known_while_tracing
from ...foundation.pieces import map_fields
from ...foundation.shard_map import run_split
from ...foundation.sharding import Layout, Split, Whole, auto_devices, layout, mesh_axes, spec_of, split_axes, split_of
from .call import Call, Pieces, check_arrays, prepare

LAYOUTS = {
    "query": (Whole("query"), "head", Whole("query features")),
    "key": (Whole("key"), "key head", Whole("key features")),
    "value": (Whole("key"), "key head", Whole("value features")),
    "keys of heads": (Whole("key"), "head", Whole("key features")),
    "out": (Whole("query"), "head", Whole("value features")),
    "lse": (Whole("query"), "head"),
    "weights": ("head", Whole("query"), Whole("key")),
    "pairs": (None, Whole("query"), Whole("key")),
}
"""The axes after the batch axes."""

NAMES = ("query", "key", "value")

Arrays = tuple[jax.Array, jax.Array, jax.Array]


def run_on_parts(
    function: Callable[..., Any],
    arrays: Arrays,
    pieces: Pieces,
    results: Any,
    *,
    watch: Callable[[Call], None] | None = None,
    whole_heads: bool = False,
) -> Any:
    """`jattn.ops.attention.api.run_call` for arrays on a mesh with Explicit axes, which are checked."""
    split = split_of_call(arrays, whole_heads)
    assert split is not None
    pieces = _indexed(arrays, pieces.checked())
    _look_at_whole(arrays, pieces, watch)
    rank, group = arrays[0].ndim - 3, arrays[0].shape[-2] // arrays[1].shape[-2]
    alone = tuple(axis for axis in split.over("head") if axis not in split.over("key head"))
    layouts = (tuple(layout(rank, *LAYOUTS[name]) for name in NAMES), layouts_of(pieces))
    out = jax.tree.map(lambda name: layout(rank, *LAYOUTS[name]), results)
    return run_split(_Local(function, alone, group), (arrays, pieces), layouts, out, split)


def look_at_call(arrays: Arrays, pieces: Pieces, watch: Callable[[Call], None]) -> None:
    """`jattn.ops.attention.api.run_call` up to the point where `watch` receives the whole call. Nothing runs."""
    check_arrays(*arrays)
    if split_of_call(arrays) is None:
        watch(prepare(*arrays, pieces)[0])
    else:
        _look_at_whole(arrays, _indexed(arrays, pieces.checked()), watch)


def gathered(arrays: Arrays) -> tuple[str, ...]:
    """In words, which arrays are gathered on all devices before a call runs, as far as it is known.

    The type of an array shows the split over Explicit axes. Outside of `jit`, its sharding shows Auto axes too.
    """
    split = split_of_call(arrays)
    rank, found = len(arrays[0].shape) - 3, []
    words = [*(f"batch axis {axis}" for axis in range(rank)), "length", "heads", "features"]
    for name, array in zip(NAMES, arrays, strict=True):
        sharding = None if isinstance(array, Tracer) else getattr(array, "sharding", None)
        own = tuple(sharding.spec) if isinstance(sharding, NamedSharding) else spec_of(array)
        kept = own if split is None else tuple(split.spec(layout(rank, *LAYOUTS[name]), array.shape))
        for axis, over in enumerate(own):
            if over is not None and (words[axis] in ("length", "features") or over != kept[axis]):
                found.append(f"`{name}` along its {words[axis]} (mesh axes {', '.join(map(repr, mesh_axes(over)))})")
    return tuple(found)


def split_of_call(arrays: Arrays, whole_heads: bool = False) -> Split | None:
    """How batch and heads are split: like the query, otherwise like the key or value. None without Explicit axes.

    A device has the key heads of its query heads. If there are fewer key heads than devices, they are split as far as
    possible.
    """
    rank = arrays[0].ndim - 3
    split = split_of(arrays, tuple(layout(rank, *LAYOUTS[name]) for name in NAMES))
    if split is None:
        return None
    axes = dict(split.axes)
    axes["head"] = () if whole_heads else axes.get("head") or axes.get("key head", ())
    parts, key_axes = 1, []
    for axis in axes["head"]:
        parts *= split.mesh.shape[axis]
        if arrays[1].shape[-2] % parts:
            break
        key_axes.append(axis)
    axes["key head"] = tuple(key_axes)
    return dataclasses.replace(split, axes=tuple(axes.items()))


def layouts_of(pieces: Pieces) -> Pieces:
    """The layout of every array in the pieces, and of positions."""

    def visit(value: Any, axes: tuple[str, ...], name: str) -> Layout:
        del name
        return layout(np.ndim(value) - len(axes), *("head" if axis == "head" else None for axis in axes))

    def one(name: str, item: Any) -> Any:
        if name.endswith("positions"):
            return None if item is None else layout(np.ndim(item) - 1, None)
        return map_fields(item, visit)

    fields = dataclasses.fields(Pieces)
    return Pieces(**{field.name: one(field.name, getattr(pieces, field.name)) for field in fields})


def _indexed(arrays: Arrays, pieces: Pieces) -> Pieces:
    """The pieces with the indices of the whole call, where they read any."""
    pieces = pieces.indexed(arrays[0].shape[:-3], arrays[0].shape[-2], split_axes(*arrays))
    return dataclasses.replace(pieces, mask=known_while_tracing(pieces.mask))


def _look_at_whole(whole: Arrays, pieces: Pieces, watch: Callable[[Call], None] | None) -> None:
    """Run all checks at the sizes of the whole call, so that messages do not show the sizes of shards; then `watch`."""

    def check(arrays: Arrays, pieces: Pieces) -> tuple:
        call, *_ = prepare(*arrays, pieces)
        if watch is not None:
            watch(dataclasses.replace(call, devices=devices))
        return ()

    devices = auto_devices(*whole)
    leaves, tree = jax.tree.flatten((whole, pieces))
    known = [isinstance(leaf, np.ndarray) for leaf in leaves]
    # Shapes without shardings are enough, since nothing prepared here runs.
    shapes = [
        jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype) for leaf, stays in zip(leaves, known, strict=True) if not stays
    ]

    def fill(given: list[Any]) -> tuple:
        rest = iter(given)
        return check(
            *tree.unflatten([leaf if stays else next(rest) for leaf, stays in zip(leaves, known, strict=True)])
        )

    jax.eval_shape(fill, shapes)


def own_key_heads(array: jax.Array, over: str | tuple[str, ...], count: int, group: int, axis: int = -2) -> jax.Array:
    """The key heads of this device's query heads, where mesh axes split query heads but not key heads.

    Args:
        array: one of all key heads, or of those that other mesh axes left.
        over: the mesh axes, which are Manual here.
        count: the number of this device's query heads.
        group: the number of query heads for each key head.
        axis: the axis of the heads.
    """
    first = jax.lax.axis_index(over) * count
    if group % count == 0:  # one key head for them all
        return jax.lax.dynamic_slice_in_dim(array, first // group, 1, axis % array.ndim)
    return jnp.take(array, (first + np.arange(count)) // group, axis=axis, mode="clip")


@dataclasses.dataclass(frozen=True)
class _Local:
    """What runs on one device.

    alone: the mesh axes that split query heads but not key heads.
    group: the number of query heads per key head.
    """

    function: Callable[..., Any]
    alone: tuple[str, ...]
    group: int

    def __call__(self, arrays: Arrays, pieces: Pieces) -> Any:
        query, key, value = arrays
        if self.alone:
            key, value = (own_key_heads(one, self.alone, query.shape[-2], self.group) for one in (key, value))
        call, query, key = prepare(query, key, value, pieces)
        return self.function(call, query, key, value)
