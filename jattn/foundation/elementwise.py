"""Checks that a mask or score treats each pair by itself, and whether it uses positions, from its jaxpr.

A piece is evaluated one tile at a time. A primitive that combines entries along queries or keys (a sum, a sort, an
index count) would see a tile instead of a row, and its result would change with the tile size. So the piece is traced
once with arrays whose batch, head, query and key sizes are distinct primes that nothing else has; an axis is then
recognized by its size wherever the piece moves it.
"""

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .pieces import LAYOUT, Piece, map_fields, own_rank, parts
from .sharding import without_mesh

Sizes = tuple[int, ...]


def mask_reads_positions(mask: Piece | None) -> tuple[bool, bool]:
    """Whether an aligned mask depends on the query positions, and on the key positions.

    Raises:
        ValueError: it is not a function of one pair at a time.

    >>> import jattn
    >>> mask_reads_positions(jattn.masks.Causal()), mask_reads_positions(jattn.masks.Sinks(4))
    ((True, True), (False, True))
    """
    return (False, False) if mask is None else _read(mask, jnp.float32)


def score_reads_positions(score: Piece, dtype: Any = jnp.float32) -> tuple[bool, bool]:
    """Whether an aligned score depends on the query positions, and on the key positions.

    Args:
        score: aligned.
        dtype: the dtype of the scores, which it must preserve.

    Raises:
        ValueError: it does not modify each score by itself.
    """
    return _read(score, dtype)


def _read(piece: Any, dtype: Any) -> tuple[bool, bool]:
    ranks, shapes = [len(LAYOUT)], []

    def look(value: Any, axes: tuple[str, ...], name: str) -> Any:
        del name
        shape, own = tuple(jnp.shape(value)), own_rank(axes)
        constant = any(axis.startswith("own") for axis in axes)  # whose axes in front have size 1
        ranks.append(0 if constant else len(shape) - own)
        shapes.append((shape, len(shape) if constant else own, jax.dtypes.canonicalize_dtype(value.dtype)))
        return value

    map_fields(piece, look)
    structure = jax.tree.structure(piece)
    try:
        hash(structure)
    except TypeError:  # a static field that has no hash
        return _examine.__wrapped__(structure, tuple(shapes), max(ranks), jnp.dtype(dtype))
    return _examine(structure, tuple(shapes), max(ranks), jnp.dtype(dtype))


@functools.lru_cache(maxsize=1024)
def _examine(structure: Any, shapes: tuple, rank: int, dtype: Any) -> tuple[bool, bool]:
    """Trace a piece; cached by its structure and the shapes of its arrays."""
    taken = {size for shape, own, _ in shapes for size in shape[len(shape) - own :] if size}
    free = (one for one in itertools.count(1009, 2) if all(one % other for other in range(3, 100, 2)))
    sizes = tuple(itertools.islice((prime for prime in free if all(size % prime for size in taken)), rank))

    def abstract(shape: tuple[int, ...], own: int, dtype: Any) -> jax.ShapeDtypeStruct:
        lead = len(shape) - own
        tile = [1 if have == 1 else want for have, want in zip(shape[:lead], sizes[rank - lead :], strict=True)]
        return jax.ShapeDtypeStruct((*tile, *shape[lead:]), dtype)

    piece = structure.unflatten([abstract(*one) for one in shapes])
    alone = (1,) * (rank - 2)  # every axis but the last two
    query, key = (jax.ShapeDtypeStruct((*alone, *pair), jnp.int32) for pair in ((sizes[-2], 1), (1, sizes[-1])))
    if hasattr(piece, "allows"):
        name, method = "mask", "allows"
        function: Callable[..., Any] = lambda piece, q, k: piece.allows(q, k)  # noqa: E731
        operands: tuple[Any, ...] = (piece, query, key)
    else:
        name, method = "scores", "modify"
        function = lambda piece, s, q, k: piece.modify(s, q, k)  # noqa: E731
        operands = (piece, jax.ShapeDtypeStruct(sizes, dtype), query, key)
    function_name = getattr(getattr(piece, "function", None), "name", None)
    what = function_name or f"{type(piece).__name__}.{method}"
    with one_expression(name, what), without_mesh():
        try:
            with jax.numpy_rank_promotion("allow"):  # the arrays of a call all have its rank, not so these
                closed, result = jax.make_jaxpr(function, return_shape=True)(*operands)
        except (TypeError, ValueError) as error:
            if isinstance(error, jax.errors.JAXTypeError) or "truth value" in str(error):
                raise
            raise ValueError(
                f"`{name}` must be elementwise: `{what}` fails on arrays that broadcast to [batch..., head, query, "
                f"key]: "
                f"{error}"
            ) from error
    _check_result(name, what, result, sizes, dtype)
    for primitive in _looking_along(closed.jaxpr, sizes):
        for part in parts(piece):  # rather name the part
            if hasattr(part, "allows") or hasattr(part, "modify"):
                _read(part, dtype)
        _refuse(name, what, primitive)
    needed = needed_inputs(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return needed[-2], needed[-1]


def _check_result(name: str, what: str, result: Any, shape: tuple[int, ...], dtype: Any) -> None:
    got = f"`{what}` returns {result}" if not hasattr(result, "dtype") else f"`{what}` returns {result.dtype}"
    if name == "mask":
        if getattr(result, "dtype", None) != np.bool_:
            raise ValueError(f"`mask` must say True or False of each pair; {got}. Compare: `a <= b`.")
        if not _fits(result.shape, shape, (1,)):
            raise ValueError(f"`mask` must answer for each pair of positions; {_odd_shape(what, result)}")
        return
    if getattr(result, "dtype", None) != dtype:
        raise ValueError(
            f"`scores` must keep their dtype, {dtype}; {got}. Convert at the end: `.astype(scores.dtype)`."
        )
    if not _fits(result.shape, shape, ()):
        raise ValueError(f"`scores` must keep their shape; {_odd_shape(what, result)}")


def _fits(found: tuple[int, ...], wanted: tuple[int, ...], also: tuple[int, ...]) -> bool:
    """Whether the last axes have the `wanted` sizes, or one of `also`. Leading axes of size 1 are batch axes."""
    while len(found) > len(wanted) and found[0] == 1:
        found = found[1:]
    if also:
        found = (1,) * (len(wanted) - len(found)) + found
    return len(found) == len(wanted) and all(
        have == want or have in also for have, want in zip(found, wanted, strict=True)
    )


def _odd_shape(what: str, result: Any) -> str:
    return (
        f"`{what}` returns an array with {result.ndim} axes that does not fit the scores [batch..., head, query, key]. "
        "Arrays of the piece already have these axes, and broadcast."
    )


def _refuse(name: str, what: str, primitive: str) -> None:
    if primitive in ("iota", "random_bits"):
        remedy = "indices within a tile, not in the sequence: use the positions `query` and `key`"
    elif name == "mask":
        remedy = "several pairs at once: write it for one query and one key"
    else:
        remedy = "several scores at once: what turns whole rows into weights is a normalizer (`jattn.normalizers`)"
    raise ValueError(
        f"`{name}` must be elementwise, because it is computed tile by tile; `{what}` has the primitive `{primitive}`, "
        f"which uses {remedy}."
    )


def _looking_along(jaxpr: Any, sizes: Sizes) -> Iterator[str]:
    """The names of primitives that combine elements along a batch, head, query or key axis."""
    for equation in jaxpr.eqns:
        for value in equation.params.values():
            for one in value if isinstance(value, (tuple, list)) else (value,):
                inner = getattr(one, "jaxpr", one)
                if hasattr(inner, "eqns"):
                    yield from _looking_along(inner, sizes)
        if _mixes(equation, sizes):
            yield equation.primitive.name


def _mixes(equation: Any, sizes: Sizes) -> bool:
    name, params = equation.primitive.name, equation.params
    shapes = [tuple(getattr(atom.aval, "shape", ())) for atom in equation.invars]
    first = shapes[0] if shapes else ()

    def layout(size: int) -> bool:
        return any(size % prime == 0 for prime in sizes) and size > 0

    def some(shape: tuple[int, ...], axes: Any) -> bool:
        return any(layout(shape[axis]) for axis in axes)

    def changed(new: Any) -> bool:
        return any(layout(have) and have != want for have, want in zip(first, new, strict=True))

    if name == "reduce_precision":
        return False
    if name.startswith(("reduce_", "arg")) or name == "reduce":
        axes = params.get("axes", params.get("dimensions", ()))
        # A reduction over no axes is one of a scalar: the function was written for a pair but meant a row.
        return some(first, axes) if axes else some(first, range(len(first)))
    if name in ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"):
        return some(first, [params["axis"]])
    if name == "sort":
        return some(first, [params["dimension"]])
    if name in ("top_k", "approx_top_k"):
        return some(first, [params.get("axis", params.get("reduction_dimension", -1))])
    if name in ("rev", "fft"):
        return some(first, params["dimensions"] if name == "rev" else range(-len(params["fft_lengths"]), 0))
    if name == "split":
        return some(first, [params["axis"]])
    if name == "concatenate":
        return any(some(shape, [params["dimension"]]) for shape in shapes)
    if name in ("iota", "random_bits", "rng_bit_generator", "rng_uniform"):
        return any(some(atom.aval.shape, range(len(atom.aval.shape))) for atom in equation.outvars)
    if name == "dot_general":
        left, right = params["dimension_numbers"][0]
        return some(first, left) or some(shapes[1], right)
    if name in ("slice", "pad"):
        return changed(equation.outvars[0].aval.shape)
    if name == "dynamic_slice":
        return changed(params["slice_sizes"])
    if name == "dynamic_update_slice":
        return changed(shapes[1])
    if name == "gather":
        return some(first, params["dimension_numbers"].start_index_map)
    if name.startswith("scatter"):
        return some(first, params["dimension_numbers"].scatter_dims_to_operand_dims)
    if name == "reshape":  # two axes in one
        return any(layout(size) and size not in sizes for size in equation.outvars[0].aval.shape)
    if name == "scan":
        return layout(params["length"])
    if name.startswith(("reduce_window", "conv_general", "select_and")):
        return some(first, range(len(first)))
    linear = ("cholesky", "eigh", "eig", "svd", "lu", "qr", "triangular_solve", "householder_product", "schur")
    return name in linear and some(first, range(-min(2, len(first)), 0))


def needed_inputs(jaxpr: Any, outputs: list[bool]) -> list[bool]:
    """Which inputs the wanted outputs may depend on."""
    needed = {atom for atom, wanted in zip(jaxpr.outvars, outputs, strict=True) if wanted and not hasattr(atom, "val")}
    for equation in reversed(jaxpr.eqns):
        wanted = [variable in needed for variable in equation.outvars]
        if not any(wanted) and not equation.effects:
            continue
        inner = equation.params.get("jaxpr") if equation.primitive.name in ("jit", "pjit") else None
        used = [True] * len(equation.invars) if inner is None else needed_inputs(inner.jaxpr, wanted)
        needed.update(atom for atom, one in zip(equation.invars, used, strict=True) if one and not hasattr(atom, "val"))
    return [variable in needed for variable in jaxpr.invars]


@contextlib.contextmanager
def one_expression(name: str, function: Any) -> Iterator[None]:
    """Turn JAX's errors about concrete values of tracers into an error that says how to rewrite the function.

    Args:
        name: the name of the argument that is, or contains, the function.
        function: the function that the message is about.

    Raises:
        ValueError: the function branches in Python on a tracer, or passes one to NumPy or Python.
    """
    try:
        yield
    except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, ValueError) as error:
        found = [
            (doing, remedy)
            for kind, doing, remedy in _REMEDIES
            if (kind in str(error) if isinstance(kind, str) else isinstance(error, kind))
        ]
        if not found:
            raise
        doing, remedy = found[0]
        what = function if isinstance(function, str) else getattr(function, "__qualname__", None) or repr(function)
        raise ValueError(f"`{name}` must be one JAX expression for all pairs; `{what}` {doing}. {remedy}") from error


_DECIDES = (
    "asks in Python whether something holds",
    "Write `&`, `|` and `~` for `and`, `or` and `not`, with each comparison in parentheses; `(a < b) & (b < c)` "
    "for `a < b < c`; and `jnp.where(condition, x, y)` for `x if condition else y`.",
)
# Keyed by the type of the error, or by text in its message.
_REMEDIES: tuple[tuple[type[Exception] | str, str, str], ...] = (
    (jax.errors.TracerBoolConversionError, *_DECIDES),
    ("truth value of an array", *_DECIDES),
    (
        "out of bounds for array of dimension 0",
        "looks along an axis, and is given one pair at a time",
        "What turns whole rows of scores into weights is a normalizer (`jattn.normalizers`).",
    ),
    (
        jax.errors.TracerIntegerConversionError,
        "indexes a list, or counts in Python, with a traced number",
        "Make an array of the list first: `jnp.asarray(table)[q]`.",
    ),
    (
        jax.errors.TracerArrayConversionError,
        "gives a traced number to NumPy",
        "Write `jnp` for `np`; an array of NumPy that is indexed by a position is `jnp.asarray(table)[q]`.",
    ),
    (
        jax.errors.ConcretizationTypeError,
        "makes a Python number of a traced one",
        "Write `x.astype(int)` for `int(x)`, `x.astype(float)` for `float(x)`, and `jnp.floor(x)` for `math.floor(x)`.",
    ),
    (
        jax.errors.NonConcreteBooleanIndexError,
        "indexes with a condition",
        "Write `jnp.where(condition, x, y)`.",
    ),
)
