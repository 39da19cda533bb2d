"""What several variants ask of their arguments, beside the shapes."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from ..foundation.arrays import of_rank
from ..masks.arguments import integers


def check_lengths(lengths: Any, batch: tuple[int, ...], longest: int) -> jax.Array:
    """The length of each example `[batch...]`; None is `longest` for all, one number is the same for all.

    Raises:
        ValueError: not integers; another shape than the batch axes; a known length beyond `longest`.

    >>> print(check_lengths([3, 5], (2,), 5), check_lengths(None, (2,), 5))
    [3 5] [5 5]
    """
    lengths = longest if lengths is None else integers("lengths", lengths, 0)
    shape = np.shape(lengths)
    if shape not in ((), batch):
        raise ValueError(
            f"`lengths` must be one integer, or one for each example, of shape {batch} like the batch axes; got shape "
            f"{shape}."
        )
    most = (known_range(lengths) or (0, 0))[1]
    if most > longest:
        raise ValueError(f"`lengths` must be at most {longest}, the length of the arrays; got {most}.")
    return jnp.broadcast_to(jnp.asarray(lengths, jnp.int32), batch)


def inside(lengths: jax.Array, longest: int) -> jax.Array:
    """Which positions are an example's own: `[batch..., longest]`."""
    lengths = lengths[..., None]
    return of_rank(jnp.arange(longest), lengths.ndim) < lengths


def known_range(numbers: Any) -> tuple[int, int] | None:
    """The least and the largest of some integers; None where there are none, or they are not known while tracing.

    >>> known_range([3, 1, 2])
    (1, 3)
    """
    if isinstance(numbers, Tracer) or not np.size(numbers):
        return None
    values = np.asarray(numbers)
    return int(values.min()), int(values.max())


def leave_out(pieces: Mapping[str, Any], why: str, *names: str) -> dict[str, Any]:
    """The other pieces: some are the variant's own, or have no meaning in it.

    Raises:
        ValueError: one of them is given.

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
    """What is taken off the rewards of REINFORCE is one number, or one for each of them.

    Raises:
        ValueError: something else, that would broadcast to more losses than there are.
    """
    shape = np.shape(baseline)
    if shape not in ((), np.shape(rewards)):
        raise ValueError(
            f"`baseline` must be one number, or have the shape {np.shape(rewards)} of `{of}`; got {shape}."
        )


def check_record(name: str, value: Any, kind: type) -> None:
    """A state is of its own kind, such as an earlier call returned it.

    Raises:
        ValueError: naming the kind.
    """
    if not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be a {kind.__name__}, as an earlier call returns it; got {type(value).__name__}."
        )
