"""Checks of arguments that many functions share: choices, sizes, flags, rates, dtypes, inputs, random keys, states."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .arrays import describe, dtype_of, known_values


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that `value` is one of a few names.

    Raises:
        ValueError: it is not; the message lists the names.
    """
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"`{name}` must be one of {', '.join(map(repr, choices))}; got {value!r}.")


def check_multiple(of: str, /, *, unless: str | None = None, **sizes: int) -> None:
    """Check that one size is a multiple of another.

    Args:
        of: the name of the divisor.
        unless: the name of an argument that would make this unnecessary if it were given.
        **sizes: both sizes, by the names of their arguments.

    Raises:
        ValueError: it is not; the message names both.

    >>> check_multiple("heads", features=7, heads=2, unless="head_dim")
    Traceback (most recent call last):
    ...
    ValueError: `features` must be a multiple of `heads`, unless `head_dim` is given; got features 7 and heads 2.
    """
    divisor = sizes.pop(of)
    for name, size in sizes.items():
        if size % divisor:
            remedy = "" if unless is None else f", unless `{unless}` is given"
            raise ValueError(f"`{name}` must be a multiple of `{of}`{remedy}; got {name} {size} and {of} {divisor}.")


def check_positive(**sizes: Any) -> None:
    """Check that sizes are integers of at least 1.

    Raises:
        ValueError: naming the size.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ValueError(f"`{name}` must be a positive int; got {size!r}.")


def check_counts(**counts: Any) -> None:
    """Check that counts are integers of at least 0.

    Raises:
        ValueError: naming the count.
    """
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 0:
            raise ValueError(f"`{name}` must be an int of at least 0; got {count!r}.")


def check_flags(**flags: Any) -> None:
    """Check that flags are True or False, known at trace time.

    Raises:
        ValueError: naming the flag.
    """
    for name, value in flags.items():
        if not isinstance(value, (bool, np.bool_)):
            raise ValueError(f"`{name}` must be True or False; got {value!r}.")


def check_number(name: str, value: Any, least: float) -> None:
    """Check a finite Python number of at least `least`.

    Raises:
        ValueError: it is something else.

    >>> check_number("epsilon", -1.0, least=0)
    Traceback (most recent call last):
    ...
    ValueError: `epsilon` must be a number of at least 0, and finite; got -1.0.
    """
    if not _is_number(value) or not least <= value < math.inf:
        raise ValueError(f"`{name}` must be a number of at least {least}, and finite; got {value!r}.")


def check_above(name: str, value: Any, bound: float) -> None:
    """Check a finite Python number above a bound.

    Raises:
        ValueError: it is something else.
    """
    if not _is_number(value) or not bound < value < math.inf:
        raise ValueError(f"`{name}` must be a finite number above {bound}; got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_rate(name: str, value: Any) -> None:
    """Check a probability in [0, 1]: a number or a floating-point scalar array. Traced values are not checked.

    Raises:
        ValueError: it is something else.

    >>> check_rate("dropout_rate", 2.0)
    Traceback (most recent call last):
    ...
    ValueError: `dropout_rate` must be a probability in [0, 1]; got 2.0.
    """
    dtype = dtype_of(value)
    number = type(value) in (int, float)
    array = dtype is not None and jnp.issubdtype(dtype, jnp.floating) and jnp.ndim(value) == 0
    known = value if number else known_values(value) if array else None
    if not (number or array) or (known is not None and not 0 <= known <= 1):
        raise ValueError(
            f"`{name}` must be a probability in [0, 1]; got {describe(value) if known is None else known}."
        )


def check_key(name: str, key: Any) -> None:
    """Check a single JAX random key, typed or as raw words.

    Raises:
        ValueError: it is something else, or several keys.

    >>> check_key("sample", 3)
    Traceback (most recent call last):
    ...
    ValueError: `sample` must be one random key, such as `jax.random.key(0)`; got 3.
    """
    dtype, rank = getattr(key, "dtype", None), len(getattr(key, "shape", ()))
    typed = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
    words = dtype == np.uint32 and tuple(key.shape) in ((2,), (4,))
    if not (typed and rank == 0) and not words:
        got = repr(key) if dtype is None else f"an array of dtype {dtype} and shape {key.shape}"
        raise ValueError(f"`{name}` must be one random key, such as `jax.random.key(0)`; got {got}.")


def check_batch(batch: Any) -> None:
    """Check that batch axes are a tuple of sizes.

    Raises:
        ValueError: they are something else, such as a single size.
    """
    if not isinstance(batch, tuple) or not all(isinstance(size, int | np.integer) and size >= 0 for size in batch):
        raise ValueError(f"`batch` must be a tuple of sizes, such as (2,), or () for none; got {batch!r}.")


def leave_out(pieces: Mapping[str, Any], why: str, *names: str) -> dict[str, Any]:
    """The given pieces without those that a variant sets itself or that have no meaning in it.

    Raises:
        ValueError: one of these is given.

    >>> leave_out({"similarity": 3}, "places are compared by dot products", "similarity")
    Traceback (most recent call last):
    ...
    ValueError: `similarity` must be left out: places are compared by dot products; got 3.
    """
    for name in names:
        if pieces.get(name) is not None:
            raise ValueError(f"`{name}` must be left out: {why}; got {pieces[name]!r}.")
    return {name: piece for name, piece in pieces.items() if name not in names}


def check_baseline(baseline: Any, of: str, rewards: Any) -> None:
    """Check the baseline of REINFORCE: one number, or one per reward.

    Raises:
        ValueError: it is not numbers, or has another shape, which would broadcast to more losses than there are.
    """
    dtype = dtype_of(baseline)
    if not _is_number(baseline) and (dtype is None or not jnp.issubdtype(dtype, jnp.floating)):
        raise ValueError(f"`baseline` must be a number or a floating-point array; got {describe(baseline)}.")
    shape = np.shape(baseline)
    if shape not in ((), np.shape(rewards)):
        raise ValueError(
            f"`baseline` must be one number, or have the shape {np.shape(rewards)} of `{of}`; got {shape}."
        )


def check_inputs(**sources: Any) -> None:
    """Check that inputs are floating-point arrays `[..., length, features]`; None is skipped, except for `inputs`.

    Raises:
        ValueError: names the argument that is not.

    >>> check_inputs(inputs=[[1.0, 2.0]])
    Traceback (most recent call last):
    ...
    ValueError: `inputs` must be an array [..., length, features], of JAX or NumPy; got [[1.0, 2.0]] (list).
    """
    for name, source in sources.items():
        if source is None and name != "inputs":
            continue
        if source is None or dtype_of(source) is None or len(source.shape) < 2:
            raise ValueError(
                f"`{name}` must be an array [..., length, features], of JAX or NumPy; got {describe(source)}."
            )
        if not jnp.issubdtype(source.dtype, jnp.floating):  # tokens before their embedding, for example
            raise ValueError(f"`{name}` must be floating-point; got {describe(source)}.")


def check_dtype(name: str, dtype: Any) -> None:
    """Check that a dtype is floating-point with at least 16 bits, so that attention can accumulate in it, and enabled.

    Raises:
        ValueError: it is not.
    """
    try:
        if dtype is None or dtype_of(dtype) is not None:  # NumPy takes None for float64, and an array for its dtype
            raise TypeError
        kind = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"`{name}` must be a dtype, such as `jax.numpy.bfloat16`; got {describe(dtype)}.") from None
    if not jnp.issubdtype(kind, jnp.floating) or jnp.finfo(kind).bits < 16:
        raise ValueError(f"`{name}` must be floating-point, of at least 16 bits; got {kind}.")
    if jax.dtypes.canonicalize_dtype(kind) != kind:  # JAX would warn, and use float32
        raise ValueError(
            f"`{name}` may be {kind} only after `jax.config.update('jax_enable_x64', True)`, which is not set."
        )


def check_record(name: str, value: Any, kind: type) -> None:
    """Check that a state has the type that an earlier call returned.

    Raises:
        ValueError: naming the type.
    """
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be a {kind.__name__}, as an earlier call returns it; got {type(value).__name__}."
        )
