"""Checks of a layer's options, made at construction so that mistakes surface before the first call."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from ..foundation.arguments import check_flags, check_rate
from ..foundation.arrays import describe, dtype_of
from ..ops.attention.implementations import ATTENTION
from ..parallel import Heads
from .layer import Layer
from .norms import as_qk_norm
from .parameters import biased


def check_options(
    *,
    rotary: Any,
    dropout_rate: Any,
    implementation: Any,
    parallel: Any,
    dtypes: dict[str, Any],
    initializers: dict[str, Any],
    use_bias: Any = True,
    qk_norm: Any = None,
    **flags: Any,
) -> None:
    """Check the options of a layer of multi-head attention.

    Args:
        rotary: None, a flag or a function.
        dropout_rate: a probability.
        implementation: as in `jattn.attention`.
        parallel: None or `Heads`.
        dtypes: dtypes by argument name; None is skipped.
        initializers: initializers by argument name; None is skipped.
        use_bias: a flag, or names of projections.
        qk_norm: a flag, or a `QKNorm`.
        **flags: True or False.

    Raises:
        ValueError: names the argument, the value received and what was expected.

    >>> options = dict(rotary="yes", dropout_rate=0.1, implementation=None, parallel=None, dtypes={}, initializers={})
    >>> check_options(**options)
    Traceback (most recent call last):
    ...
    ValueError: `rotary` must be True, False or a function such as `jattn.positions.rotary`; got 'yes' (str).
    """
    check_flags(**flags)
    biased(use_bias)
    as_qk_norm(qk_norm)
    check_rotary(rotary)
    check_rate("dropout_rate", dropout_rate)
    if implementation is not None:
        ATTENTION.named(implementation)
    check_parallel(parallel)
    for name, dtype in dtypes.items():
        if dtype is not None:
            check_dtype(name, dtype)
    for name, initializer in initializers.items():
        if initializer is not None and not callable(initializer):
            raise ValueError(
                f"`{name}` must be a function of a key, a shape and a dtype, such as "
                f"`jax.nn.initializers.lecun_normal()`; got {describe(initializer)}."
            )


def check_parallel(parallel: Any) -> None:
    """Check that `parallel` is None or `Heads`.

    Raises:
        ValueError: it is something else.
    """
    if parallel is not None and not isinstance(parallel, Heads):
        raise ValueError(f"`parallel` must be `jattn.parallel.Heads(...)`, or None; got {describe(parallel)}.")


def check_inputs(**sources: Any) -> None:
    """Check that inputs are arrays `[..., length, features]`; None is skipped.

    Raises:
        ValueError: names the argument that is not.

    >>> check_inputs(inputs=[[1.0, 2.0]])
    Traceback (most recent call last):
    ...
    ValueError: `inputs` must be an array [..., length, features], of JAX or NumPy; got [[1.0, 2.0]] (list).
    """
    for name, source in sources.items():
        if source is not None and (dtype_of(source) is None or len(source.shape) < 2):
            raise ValueError(
                f"`{name}` must be an array [..., length, features], of JAX or NumPy; got {describe(source)}."
            )


def check_layer(layer: Any) -> None:
    """Check that `layer` is an instance of `Layer`.

    Raises:
        ValueError: it is something else, such as the class itself.
    """
    if not isinstance(layer, Layer):
        raise ValueError(f"`layer` must be a layer of `jattn`, such as `RetNet(64, 4)`; got {describe(layer)}.")


def method_of(layer: Layer, name: str) -> Callable[..., Any]:
    """A method of a layer, looked up by name.

    Raises:
        ValueError: the layer has no such method.
    """
    method = getattr(layer, name, None) if isinstance(name, str) else None
    if not callable(method):
        found = [one for one in dir(layer) if not one.startswith("_") and callable(getattr(layer, one))]
        raise ValueError(
            f"{type(layer).__name__} has no `{name}`: `method` must be one of {', '.join(found)}; got {name!r}."
        )
    return method


def check_rotary(rotary: Any) -> None:
    """Check that `rotary` is None, a flag or a function.

    Raises:
        ValueError: it is something else.
    """
    if rotary is not None and not isinstance(rotary, bool) and not callable(rotary):
        raise ValueError(
            f"`rotary` must be True, False or a function such as `jattn.positions.rotary`; got {describe(rotary)}."
        )


def check_dtype(name: str, dtype: Any) -> None:
    """Check that a dtype is floating-point with at least 16 bits, so that attention can accumulate in it.

    Raises:
        ValueError: it is not.
    """
    try:
        kind = jnp.dtype(dtype)
    except TypeError:
        raise ValueError(f"`{name}` must be a dtype, such as `jax.numpy.bfloat16`; got {describe(dtype)}.") from None
    if not jnp.issubdtype(kind, jnp.floating) or jnp.finfo(kind).bits < 16:
        raise ValueError(f"`{name}` must be floating-point, of at least 16 bits; got {kind}.")
