"""What a value is: its dtype, its known values (also at trace time), and a description for error messages."""

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import mlir

_VALUES: ContextVar[Mapping[int, Any]] = ContextVar("_VALUES", default=MappingProxyType({}))

FOREIGN = "Convert an array of another library first: `jax.numpy.asarray(array)`, or `jax.dlpack.from_dlpack(array)`."


def dtype_of(value: Any) -> Any:
    """The dtype of an array that JAX can take, a tracer or a `ShapeDtypeStruct`; None for anything else.

    Tensors of other libraries have a `dtype` too, which NumPy and JAX do not understand.

    >>> dtype_of(np.zeros(3, np.int8)), dtype_of([1, 2]), dtype_of(np.array(["a"]))
    (dtype('int8'), None, None)
    """
    dtype: Any = getattr(value, "dtype", None)
    if not hasattr(value, "shape"):
        return None
    if isinstance(dtype, np.dtype):
        return dtype if jnp.issubdtype(dtype, np.number) or dtype == np.bool_ else None
    try:
        return dtype if jnp.issubdtype(dtype, jax.dtypes.extended) else None
    except TypeError:
        return None


def as_array(value: Any) -> Any:
    """Nested lists of numbers as a NumPy array, if they form one; anything else unchanged."""
    if not isinstance(value, (list, tuple, range)):
        return value
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, jax.errors.JAXTypeError):  # ragged, or of tracers
        return value
    return value if dtype_of(array) is None else array


def of_rank(array: Any, rank: int) -> Any:
    """The array with leading axes of size 1 up to this rank, for when implicit rank promotion is disabled.

    >>> of_rank(np.zeros(3), 2).shape
    (1, 3)
    """
    return array.reshape((1,) * (rank - array.ndim) + tuple(array.shape))


def iota(*sizes: Any, dtype: Any = np.int32) -> Any:
    """0, 1, 2, ... in an array of this shape: a NumPy array, unless a size is symbolic, as in `jax.export`.

    >>> iota(2, 2).tolist()
    [[0, 1], [2, 3]]
    """
    backend: Any = np if is_static(*sizes) else jnp
    return backend.arange(math.prod(sizes), dtype=dtype).reshape(sizes)


def is_static(*sizes: Any) -> bool:
    """Whether sizes are numbers rather than the symbols of `jax.export`."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def as_jax(*arrays: Any) -> tuple[Any, ...]:
    """NumPy arrays as JAX arrays, float64 as float32 unless it is enabled; anything else unchanged.

    >>> [one.dtype.name for one in as_jax(np.zeros(3), np.zeros(3, np.int8))]
    ['float32', 'int8']
    """
    numbers = (isinstance(one, np.ndarray) and dtype_of(one) is not None for one in arrays)
    return tuple(jnp.asarray(one) if known else one for known, one in zip(numbers, arrays, strict=True))


def known_values(value: Any) -> np.ndarray | None:
    """The values of an array, if they are known; of a tracer, those that `values_of` names."""
    if isinstance(value, np.ndarray):
        return value
    if isinstance(value, Tracer):
        value = _VALUES.get().get(id(value))
    if isinstance(value, jax.Array) and not isinstance(value, Tracer) and value.is_fully_addressable:
        return np.asarray(value)
    return None


@contextlib.contextmanager
def values_of(tracers: Sequence[Any], arrays: Sequence[Any]) -> Iterator[None]:
    """A context in which checks see the values that tracers stand for, for calls traced only to check them."""
    token = _VALUES.set({id(tracer): array for tracer, array in zip(tracers, arrays, strict=True)})
    try:
        yield
    finally:
        _VALUES.reset(token)


def known_range(numbers: Any) -> tuple[int, int] | None:
    """The smallest and the largest of some integers; None if there are none, or they are not known at trace time.

    >>> known_range([3, 1, 2])
    (1, 3)
    """
    values = as_known(numbers)
    if isinstance(values, Tracer) or not values.size:
        return None
    return int(values.min()), int(values.max())


@dataclasses.dataclass(frozen=True)
class Known:
    """A NumPy array compared by value, so that it can be a static argument of `jax.jit`.

    >>> Known(np.arange(3)) == Known(np.arange(3)), Known(np.arange(3)) == Known(np.zeros(3, int))
    (True, False)
    """

    array: np.ndarray = dataclasses.field(compare=False)
    identity: tuple = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "identity", (self.array.shape, self.array.dtype, self.array.tobytes()))


_probe = Primitive("jattn_probe")
_probe.def_impl(lambda: False)
_probe.def_abstract_eval(lambda: ShapedArray((), np.dtype(bool)))
mlir.register_lowering(_probe, mlir.lower_fun(lambda: jnp.zeros((), bool), multiple_results=False))


def is_tracing() -> bool:
    """Whether a program is being traced, so that even a computation on constants gives a tracer.

    >>> is_tracing(), bool(jax.jit(lambda: is_tracing())())
    (False, True)
    """
    return isinstance(_probe.bind(), Tracer)


def known_while_tracing(tree: Any) -> Any:
    """Inside of `jax.jit`, convert concrete JAX arrays to NumPy arrays: they are constants of the program anyway.

    Outside of `jit` they stay JAX arrays; otherwise new values would compile a new program. So do arrays that span
    processes, which cannot be read.
    """
    leaves, structure = jax.tree.flatten(tree)
    concrete = [
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        for leaf in leaves
    ]
    if not any(concrete) or not is_tracing():
        return tree
    return structure.unflatten(
        np.asarray(jax.device_get(leaf)) if here and leaf.is_fully_addressable else leaf
        for leaf, here in zip(leaves, concrete, strict=True)
    )


def as_constant(leaf: Any) -> Any:
    """A concrete array as a NumPy array, so that what follows from it is known, such as a plan.

    Anything else is unchanged: tracers, arrays that span processes, random keys, and values that are not arrays.
    """
    if not isinstance(leaf, jax.Array) or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
        return leaf
    values = known_values(leaf)
    return leaf if values is None else values


def as_known(value: Any) -> Any:
    """The array as a NumPy array if it is known at trace time; a tracer stays as it is."""
    return value if isinstance(value, Tracer) else np.asarray(value)


def same_values(one: Any, other: Any) -> bool:
    """Whether two arrays have the same shape and values. An array that spans processes equals only itself."""
    if one is other:
        return True
    spread = (isinstance(array, jax.Array) and not array.is_fully_addressable for array in (one, other))
    return not any(spread) and np.array_equal(one, other)


def describe(value: Any) -> str:
    """Describe a value that was received, for an error message.

    >>> describe(np.zeros(3)), describe("a")
    ('an array of dtype float64 and shape (3,)', "'a' (str)")
    """
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    dtype = getattr(value, "dtype", None)
    if dtype is None or not hasattr(value, "shape"):
        written = " ".join(repr(value).split())
        return f"{written if len(written) < 100 else written[:97] + '...'} ({type(value).__name__})"
    kind = type(value)
    foreign = "" if dtype_of(value) is not None else f" ({kind.__module__}.{kind.__qualname__})"
    return f"an array of dtype {dtype} and shape {tuple(value.shape)}{foreign}"


# --- slices and quotients with indices that are known to be nonnegative ---
#
# JAX's own handle negative indices too. Tiled programs consist mostly of such operations, and each costs compile time.


def slice_at(array: Any, starts: Sequence[Any], sizes: Sequence[int]) -> jax.Array:
    """`array[starts[0] : starts[0] + sizes[0], ...]`.

    >>> import jax.numpy as jnp
    >>> print(slice_at(jnp.arange(6).reshape(2, 3), (1, 0), (1, 2)))
    [[3 4]]
    """
    return jax.lax.dynamic_slice(array, _of_one_type(starts), sizes, allow_negative_indices=False)


def quotient(number: Any, divisor: Any) -> tuple[Any, Any]:
    """`divmod` of a nonnegative number.

    >>> quotient(7, 1)
    (7, 0)
    """
    if divisor == 1:
        return number, 0
    number = jnp.asarray(number)
    unsigned = number.astype(jnp.uint64 if number.dtype.itemsize == 8 else jnp.uint32)
    divisor = jnp.asarray(divisor, unsigned.dtype)
    parts = jax.lax.div(unsigned, divisor), jax.lax.rem(unsigned, divisor)
    return parts[0].astype(number.dtype), parts[1].astype(number.dtype)


def put_at(array: jax.Array, tile: jax.Array, starts: Sequence[Any]) -> jax.Array:
    """`array` with `tile` written at `starts`.

    >>> import jax.numpy as jnp
    >>> print(put_at(jnp.zeros(4), jnp.ones(2), (1,)))
    [0. 1. 1. 0.]
    """
    return jax.lax.dynamic_update_slice(array, tile, _of_one_type(starts), allow_negative_indices=False)


def _of_one_type(starts: Sequence[Any]) -> Sequence[Any]:
    """Convert indices to one dtype. With 64-bit types enabled, Python ints are int64, other indices maybe int32."""
    types = {start.dtype for start in starts if hasattr(start, "dtype")}
    if not types or types == {jnp.result_type(int)}:
        return starts
    dtype = jnp.result_type(*types)
    return [jnp.asarray(start, dtype) for start in starts]
