"""Splits batch and heads into (major, minor) parts and computes major parts at once, so that XLA can shard them.

A dynamic slice along an axis that is split over an Auto mesh axis makes XLA gather the whole array, and whether an axis
is split over Auto axes is not visible at trace time. So the loop slices only the minor parts, one after another, and
computes all major parts in one step; splits then fall on the major parts. On one device, and where array types show no
Auto mesh, nothing is folded. All devices take the same steps: a tile is visited if any major part needs it. If that is
not known at trace time, devices communicate it.
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
    """How the batch axes and heads of a call become those of the loops.

    The loops see `sizes` as their batch axes. A batch axis of b elements on n devices becomes two, of gcd(b, n) and the
    remaining factor. The major part of the heads is one more axis after them.

    Args:
        batch: the batch axes of the call.
        looped: whether a step computes one batch element; otherwise it computes all, and no batch axis is folded.
        devices: the number of devices over which an axis may be split, as far as is known.
        heads: the major part of the key heads.
    """

    batch: tuple[int, ...]
    looped: bool
    devices: int = 1
    heads: int = 1

    @functools.cached_property
    def majors(self) -> tuple[int, ...]:
        """The major part of each batch axis; 1 if it is not folded."""
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
        """The folded sizes of an array's batch axes, each of which is 1 or the call's."""
        parts = (
            (min(size, major), max(size // major, 1)) if major > 1 else (size,)
            for size, major in zip(batch, self.majors, strict=True)
        )
        return sum(parts, ())

    def rows(self, array: Any) -> Any:
        """Fold an array `[batch..., length, heads, ...]` for the loops."""
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
        """Fold an aligned array `[batch..., head, ...]`, with size 1 on shared axes, for the loops."""
        if self.trivial:
            return array
        rank, shape = len(self.batch), np.shape(array)
        heads = shape[rank]
        head_axes = (min(heads, self.heads), max(heads // self.heads, 1)) if self.heads > 1 else (heads,)
        return array.reshape(*self._folded(shape[:rank]), *head_axes, *shape[rank + 1 :])

    def apart(self, array: Any) -> Any:
        """Fold an aligned array, with one copy for each major part that shares it.

        Gradients of the copies are summed once, by `together`, instead of by all devices in every tile.
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
        """The gradient of an array, from the gradient of `apart(array)`."""
        if self.trivial:
            return gradient
        shape = np.shape(self.aligned(array))
        shared = tuple(i for i, (have, want) in enumerate(zip(gradient.shape, shape, strict=True)) if have != want)
        return gradient.sum(shared).reshape(np.shape(array))
