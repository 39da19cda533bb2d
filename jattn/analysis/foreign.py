"""Arrays of any library as NumPy arrays, one at a time."""

import math
from typing import Any

import numpy as np
from jax.core import Tracer

from ..foundation.arrays import describe


def as_numpy(array: Any) -> np.ndarray:
    """An array of JAX, NumPy or PyTorch as a float32 array on the host. PyTorch is not imported.

    Args:
        array: floating-point; a tensor of PyTorch may need gradients, be on a GPU, or be bfloat16.

    >>> as_numpy(np.ones(2, np.float16)).dtype
    dtype('float32')
    """
    for method in ("detach", "cpu", "float"):  # NumPy has neither gradients, nor devices, nor bfloat16
        if hasattr(array, "detach") and hasattr(array, method):
            array = getattr(array, method)()
    return np.asarray(array, dtype=np.float32)


def check_floats(name: str, array: Any) -> tuple[int, ...]:
    """Check that something is an array of floating-point numbers whose values are known.

    Args:
        name: what to call it in the message.

    Returns:
        Its shape.

    Raises:
        ValueError: it is not.
    """
    shape, dtype = getattr(array, "shape", None), getattr(array, "dtype", None)
    if isinstance(array, Tracer):
        raise ValueError(
            f"{name} must have known values, and is traced by a transformation of JAX: return it from the transformed "
            "function first. `jattn.recorded(function)` returns `(output, seen)`."
        )
    if shape is None or dtype is None or "float" not in str(dtype):
        raise ValueError(f"{name} must be a floating-point array of JAX, NumPy or PyTorch; got {describe(array)}.")
    return tuple(int(size) for size in shape)


def attention_shape(name: str, array: Any) -> tuple[int, int, int, int]:
    """The shape `[batch, heads, queries, keys]` of an array of weights, whose batch axes may be none or several.

    Raises:
        ValueError: it has no such shape.
    """
    shape = check_floats(f"the weights of {name!r}", array)
    if len(shape) < 3 or 0 in shape:
        raise ValueError(
            f"the weights of {name!r} must have shape [batch, heads, queries, keys] or [heads, queries, keys], without "
            f"an axis of size 0; got {list(shape)}."
            + (" For the map of one head: `weights[None]`." if len(shape) == 2 else "")
        )
    return (math.prod(shape[:-3]), *shape[-3:])  # type: ignore[return-value]


def row_softmax(scores: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """The softmax over the last axis of the pairs that may attend; a row of zeros where none may.

    Args:
        scores: float32.
        mask: booleans that broadcast with them; None for all pairs.

    >>> row_softmax(np.zeros((2, 2), np.float32), np.array([[True, False], [False, False]]))
    array([[1., 0.],
           [0., 0.]], dtype=float32)
    """
    if mask is not None:
        scores = np.where(mask, scores, -np.inf)
    top = scores.max(-1, keepdims=True)
    exponentials = np.exp(scores - np.where(np.isneginf(top), 0, top))
    total = exponentials.sum(-1, keepdims=True)
    return exponentials / np.where(total == 0, 1, total)
