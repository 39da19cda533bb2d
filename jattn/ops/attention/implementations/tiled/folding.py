"""Batch and heads written as (major, minor), the major parts computed at once, so that XLA can keep them split.

A dynamic slice along an axis that is split over a mesh axis of type Auto makes XLA gather the whole array, and how an
array is split over Auto axes cannot be seen while tracing. So the loop slices the minor parts alone, one after
another, and computes all of the major parts in one step: whatever is split, lies on them. On one device, and wherever
the types of the arrays show no Auto mesh, nothing is folded. All devices take the same steps: a tile is visited where
any major part needs it, which the devices tell each other where that is not known while tracing.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .....foundation.sharding import major_size


@dataclasses.dataclass(frozen=True)
class Fold:
    """How the batch axes and the heads of a call become the batch axes and the heads of the loops.

    The loops see `sizes` as their batch axes: a batch axis of `b` elements on `n` devices as two, gcd(b, n) and the
    rest, and behind them one for the major part of the heads.

    Args:
        batch: the batch axes of the call.
        looped: whether a step has one batch element; otherwise it has all, and no batch axis is folded.
        devices: over how many devices an axis may be split, as far as can be seen.
        heads: the major part of the key heads.
    """

    batch: tuple[int, ...]
    looped: bool
    devices: int = 1
    heads: int = 1

    @functools.cached_property
    def majors(self) -> tuple[int, ...]:
        """The major part of each batch axis; 1 where it is not folded."""
        return tuple(major_size(size, self.devices) if self.looped else 1 for size in self.batch)

    @property
    def trivial(self) -> bool:
        """Whether nothing is folded."""
        return self.heads == 1 and set(self.majors) <= {1}

    @functools.cached_property
    def sizes(self) -> tuple[int, ...]:
        """The batch axes that the loops see."""
        return self._folded(self.batch) + ((self.heads,) if self.heads > 1 else ())

    @functools.cached_property
    def whole(self) -> tuple[bool, ...]:
        """Which of `sizes` are computed at once."""
        parts = ((True, False) if major > 1 else (not self.looped,) for major in self.majors)
        return sum(parts, ()) + ((True,) if self.heads > 1 else ())

    def _folded(self, batch: tuple[int, ...]) -> tuple[int, ...]:
        """The sizes of an array's batch axes, each 1 or the call's, once they are folded."""
        parts = (
            (min(size, major), max(size // major, 1)) if major > 1 else (size,)
            for size, major in zip(batch, self.majors, strict=True)
        )
        return sum(parts, ())

    def rows(self, array: Any) -> Any:
        """`[batch..., length, heads, ...]` as the loops take it."""
        if self.trivial:
            return array
        rank = len(self.batch)
        *_, length, heads = array.shape[: rank + 2]
        batch = self._folded(self.batch)
        folded = array.reshape(*batch, length, self.heads, heads // self.heads, *array.shape[rank + 2 :])
        axis = len(batch)
        return jnp.moveaxis(folded, axis + 1, axis) if self.heads > 1 else folded.reshape(*batch, *array.shape[rank:])

    def unfolded_rows(self, array: Any) -> Any:
        """The inverse of `rows`."""
        if self.trivial:
            return array
        axis = len(self._folded(self.batch))
        if self.heads > 1:
            array = jnp.moveaxis(array, axis, axis + 1)
            array = array.reshape(*array.shape[: axis + 1], -1, *array.shape[axis + 3 :])
        return array.reshape(*self.batch, *array.shape[axis:])

    def aligned(self, array: Any) -> Any:
        """`[batch..., head, ...]`, each size 1 where it is shared, as the loops take it."""
        if self.trivial:
            return array
        rank, shape = len(self.batch), np.shape(array)
        heads = shape[rank]
        head_axes = (min(heads, self.heads), max(heads // self.heads, 1)) if self.heads > 1 else (heads,)
        return array.reshape(*self._folded(shape[:rank]), *head_axes, *shape[rank + 1 :])

    def apart(self, array: Any) -> Any:
        """An aligned array with a copy for each major part that shares it.

        Their gradients are then summed once, by `together`, and not by all devices in every tile.
        """
        folded = self.aligned(array)
        if self.trivial:
            return folded
        shape = [
            size if whole and have == 1 else have
            for have, size, whole in zip(folded.shape, self.sizes, self.whole, strict=False)
        ]
        return jnp.broadcast_to(folded, (*shape, *folded.shape[len(shape) :]))

    def together(self, gradient: jax.Array, array: Any) -> jax.Array:
        """From the gradient of `apart(array)` to that of the array."""
        if self.trivial:
            return gradient
        shape = np.shape(self.aligned(array))
        shared = tuple(i for i, (have, want) in enumerate(zip(gradient.shape, shape, strict=True)) if have != want)
        return gradient.sum(shared).reshape(np.shape(array))
