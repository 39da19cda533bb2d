"""Values that are known at trace time."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class Known:
    """A NumPy array that is compared by value, so that it can be a static argument of `jax.jit`.

    >>> Known(np.arange(3)) == Known(np.arange(3)), Known(np.arange(3)) == Known(np.zeros(3, int))
    (True, False)
    """

    array: np.ndarray = dataclasses.field(compare=False)
    identity: tuple = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "identity", (self.array.shape, self.array.dtype, self.array.tobytes()))


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
    # Inside of `jit`, even a computation on constants gives a tracer.
    if not any(concrete) or not isinstance(jnp.zeros((), bool), Tracer):
        return tree
    return structure.unflatten(
        np.asarray(jax.device_get(leaf)) if here and leaf.is_fully_addressable else leaf
        for leaf, here in zip(leaves, concrete, strict=True)
    )


def has_numbers(array: jax.Array) -> bool:
    """Whether NumPy can hold the array. It cannot hold random keys."""
    return not jnp.issubdtype(array.dtype, jax.dtypes.extended)


def readable(value: Any) -> Any:
    """The array as a NumPy array if it is known at trace time; a tracer stays as it is."""
    return value if isinstance(value, Tracer) else np.asarray(value)
