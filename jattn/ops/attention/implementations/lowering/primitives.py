"""Elementwise primitives on a tile `[k, q]`, in a kernel.

A number of a pair is an array that broadcasts to the tile: `[1, 1]`, `[1, q]` for queries, `[k, 1]` for keys, or `[k,
q]`; a constant stays a NumPy number. A value with own axes is a NumPy array of such arrays, so that reshapes, slices
and concatenations cost nothing.

Booleans are special to compilers of kernels: a selection between them becomes logic, and they are spread along an axis
as integers.
"""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .expressions import RESHAPES

Entries = np.ndarray
"""Of objects: arrays `[1 or k, 1 or q]`, or NumPy numbers."""


def entries(values: Sequence[Any], shape: tuple[int, ...]) -> Entries:
    found = np.empty(len(values), object)
    for place, one in enumerate(values):
        found[place] = one
    return found.reshape(shape)


def number(name: str, params: Mapping[str, Any], dtypes: Sequence[Any], operands: Sequence[Any]) -> Any:
    """An elementwise primitive on arrays that broadcast."""
    if all(dtype == np.bool_ for dtype in dtypes) or (name == "select_n" and dtypes[1] == np.bool_):
        rule = _BOOLEANS.get(name)
        if rule is not None:
            shape = np.broadcast_shapes(*map(np.shape, operands))
            return rule(*(spread(one, shape, dtype) for one, dtype in zip(operands, dtypes, strict=True)))
    shape = np.broadcast_shapes(*map(np.shape, operands))
    full = [spread(one, shape, dtype) for one, dtype in zip(operands, dtypes, strict=True)]
    rule = _REWRITTEN.get(name)
    if rule is not None:
        return rule(params, *full)
    return _primitive(name, params, full)


def held(dtype: Any) -> Any:
    """The dtype in which a tile holds numbers of a dtype: small integers as int32, and float64 as float32."""
    dtype = np.dtype(dtype)
    if dtype == np.float64:
        return np.dtype(np.float32)
    return np.dtype(np.int32) if dtype.kind in "iu" and dtype.itemsize < 4 else dtype


def spread(value: Any, shape: tuple[int, ...], dtype: Any) -> Any:
    """Broadcast a number."""
    if np.shape(value) == shape and not isinstance(value, np.ndarray | np.generic):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return jnp.full(shape, value.item(), held(dtype))
    if value.dtype == np.bool_:
        return jnp.broadcast_to(value.astype(jnp.int32), shape) != 0
    return jnp.broadcast_to(value, shape)


def _primitive(name: str, params: Mapping[str, Any], operands: Sequence[Any]) -> Any:
    function = _LAX.get(name) or getattr(jax.lax, name)
    return function(*operands, **{key: params[key] for key in _PARAMETERS.get(name, ())})


_LAX: dict[str, Callable[..., Any]] = {
    "and": jax.lax.bitwise_and,
    "or": jax.lax.bitwise_or,
    "xor": jax.lax.bitwise_xor,
    "not": jax.lax.bitwise_not,
    "add_any": jax.lax.add,
    "copy": lambda value: value,
    "population_count": jax.lax.population_count,
}
_PARAMETERS = {"integer_pow": ("y",), "bitcast_convert_type": ("new_dtype",), "round": ("rounding_method",)}


def _converted(params: Mapping[str, Any], value: Any) -> Any:
    dtype = held(params["new_dtype"])
    if value.dtype == np.bool_ and dtype != np.int32:
        value = value.astype(jnp.int32)
    return value.astype(dtype)


def _selected(params: Mapping[str, Any], which: Any, *cases: Any) -> Any:
    del params
    if which.dtype == np.bool_:
        return jnp.where(which, cases[1], cases[0])
    return functools.reduce(
        lambda found, item: jnp.where(which == item[0], item[1], found), enumerate(cases[1:], 1), cases[0]
    )


def _clamped(params: Mapping[str, Any], least: Any, value: Any, most: Any) -> Any:
    del params
    return jnp.minimum(jnp.maximum(value, least), most)


def _sign(params: Mapping[str, Any], value: Any) -> Any:
    """By comparisons; the compiler's own asks for the kind of the device."""
    del params
    one, zero = jnp.ones_like(value), jnp.zeros_like(value)
    signed = jnp.where(value > 0, one, jnp.where(value < 0, -one, zero))
    return jnp.where(value == value, signed, value) if jnp.issubdtype(value.dtype, jnp.inexact) else signed


@jax.custom_jvp
def _erf(value: Any) -> Any:
    return jax.lax.erf(value)


@_erf.defjvp
def _erf_tangent(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (value,), (tangent,) = primals, tangents
    return _erf(value), tangent * np.float32(2 / math.sqrt(math.pi)) * jnp.exp(-value * value)


@jax.custom_jvp
def _expm1(value: Any) -> Any:
    """tanh(x / 2) = (exp(x) - 1) / (exp(x) + 1), which does not cancel near 0."""
    return jnp.tanh(value / 2) * (jnp.exp(value) + 1)


@_expm1.defjvp
def _expm1_tangent(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    (value,), (tangent,) = primals, tangents
    return _expm1(value), tangent * jnp.exp(value)


@jax.custom_jvp
def _tanh(value: Any) -> Any:
    """With the derivative as it is defined: that of JAX takes an operation more."""
    return jnp.tanh(value)


@_tanh.defjvp
def _tanh_tangent(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    found = jnp.tanh(primals[0])
    return found, tangents[0] * (1 - found * found)


_REWRITTEN: dict[str, Callable[..., Any]] = {
    "convert_element_type": _converted,
    "select_n": _selected,
    "clamp": _clamped,
    "sign": _sign,
    "erf": lambda params, value: _erf(value),
    "tanh": lambda params, value: _tanh(value),
    "expm1": lambda params, value: _expm1(value),
    "atan": lambda params, value: jax.lax.atan2(value, jnp.ones_like(value)),
    "log2": lambda params, value: jnp.log(value) * np.float32(1 / math.log(2)),
    "stop_gradient": lambda params, value: jax.lax.stop_gradient(value),
}

_BOOLEANS: dict[str, Callable[..., Any]] = {
    "select_n": lambda which, *cases: _chosen(which, cases),
    "eq": lambda x, y: ~(x ^ y),
    "ne": lambda x, y: x ^ y,
    "lt": lambda x, y: ~x & y,
    "le": lambda x, y: ~x | y,
    "gt": lambda x, y: x & ~y,
    "ge": lambda x, y: x | ~y,
    "max": lambda x, y: x | y,
    "min": lambda x, y: x & y,
    "mul": lambda x, y: x & y,
    "add": lambda x, y: x | y,
}


def _chosen(which: Any, cases: Sequence[Any]) -> Any:
    """A selection between booleans, as logic."""
    if which.dtype == np.bool_:
        return (which & cases[1]) | (~which & cases[0])
    parts = [(which == place) & case for place, case in enumerate(cases)]
    return functools.reduce(jnp.logical_or, parts)


def _broadcast(params: Mapping[str, Any], value: Entries) -> Entries:
    shape, axes = params["shape"], params["broadcast_dimensions"]
    placed = [1] * len(shape)
    for axis, size in zip(axes, value.shape, strict=True):
        placed[axis] = size
    return np.broadcast_to(value.reshape(placed), shape)


def _sliced(params: Mapping[str, Any], value: Entries) -> Entries:
    strides = params["strides"] or (1,) * value.ndim
    return value[tuple(map(slice, params["start_indices"], params["limit_indices"], strides))]


SHAPES: dict[str, Callable[..., Entries]] = {
    "broadcast_in_dim": _broadcast,
    "reshape": lambda params, value: value.reshape(params["new_sizes"]),
    "squeeze": lambda params, value: value.squeeze(tuple(params["dimensions"])),
    "expand_dims": lambda params, value: np.expand_dims(value, tuple(params["dimensions"])),
    "transpose": lambda params, value: value.transpose(params["permutation"]),
    "slice": _sliced,
    "rev": lambda params, value: np.flip(value, params["dimensions"]),
    "concatenate": lambda params, *values: np.concatenate(values, params["dimension"]),
    "stack": lambda params, *values: np.stack(values, params["axis"]),
}
"""Primitives that only move entries."""

assert set(RESHAPES) <= set(SHAPES)

REDUCTIONS = {
    "reduce_sum": "add",
    "reduce_max": "max",
    "reduce_min": "min",
    "reduce_prod": "mul",
    "reduce_and": "and",
    "reduce_or": "or",
}
"""Reductions along own axes, and the primitive that combines two entries."""


def reduced(combine: str, value: Entries, axes: Sequence[int], dtype: Any) -> Entries:
    kept = [axis for axis in range(value.ndim) if axis not in axes]
    moved = value.transpose(*kept, *axes).reshape(*(value.shape[axis] for axis in kept), -1)
    rows = moved.reshape(-1, moved.shape[-1])
    found = [functools.reduce(lambda x, y: number(combine, {}, (dtype, dtype), (x, y)), row) for row in rows]
    return entries(found, moved.shape[:-1])


def looked_up(index: Any, places: np.ndarray, fields: Sequence[Any], dtype: Any) -> Any:
    """The entry of a table at an index, by comparing the index with each of its places."""
    index = _clamped({}, places[0], index, places[-1])
    found = fields[0]
    for place, field in zip(places[1:], fields[1:], strict=True):
        shape = np.broadcast_shapes(np.shape(found), field.shape, index.shape)
        here, field, found = (spread(one, shape, one.dtype) for one in (index, field, found))
        found = number("select_n", {}, (np.bool_, dtype, dtype), (here == place, found, field))
    return found


def flag(index: Any, places: np.ndarray, words: Sequence[Any]) -> Any:
    """The flag at an index, of words of 32."""
    place = _clamped({}, places[0], index, places[-1]) - places[0]
    word = looked_up(place >> 5, np.arange(len(words), dtype=place.dtype), words, np.int32)
    shape = np.broadcast_shapes(word.shape, place.shape)
    word, place = spread(word, shape, np.int32), spread(place, shape, place.dtype)
    return (jax.lax.shift_right_logical(word, (place & 31).astype(jnp.int32)) & 1) != 0
