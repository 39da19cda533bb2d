"""What is known while tracing."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


@dataclasses.dataclass(frozen=True)
class Known:
    """A NumPy array that is compared by its values, so that it may be a static argument of `jax.jit`.

    >>> Known(np.arange(3)) == Known(np.arange(3)), Known(np.arange(3)) == Known(np.zeros(3, int))
    (True, False)
    """

    array: np.ndarray = dataclasses.field(compare=False)
    identity: tuple = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "identity", (self.array.shape, self.array.dtype, self.array.tobytes()))


def known_while_tracing(tree: Any) -> Any:
    """Inside `jax.jit`, concrete arrays as NumPy: they are constants of the program, so what follows from them may be.

    Outside, an array stays one of JAX: a program that depended on its numbers would be compiled anew for others. So
    does one that spans processes, which cannot be read.
    """
    leaves, structure = jax.tree.flatten(tree)
    concrete = [
        isinstance(leaf, jax.Array)
        and not isinstance(leaf, Tracer)
        and not jnp.issubdtype(leaf.dtype, jax.dtypes.extended)
        for leaf in leaves
    ]
    # What is computed inside `jit` is traced, even of constants.
    if not any(concrete) or not isinstance(jnp.zeros((), bool), Tracer):
        return tree
    return structure.unflatten(
        np.asarray(jax.device_get(leaf)) if here and leaf.is_fully_addressable else leaf
        for leaf, here in zip(leaves, concrete, strict=True)
    )


def has_numbers(array: jax.Array) -> bool:
    """Whether NumPy can hold it, which has no random keys."""
    return not jnp.issubdtype(array.dtype, jax.dtypes.extended)


def readable(value: Any) -> Any:
    """The array as NumPy, so that it is known while tracing, if it is."""
    return value if isinstance(value, Tracer) else np.asarray(value)
