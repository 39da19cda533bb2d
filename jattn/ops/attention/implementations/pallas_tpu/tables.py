"""Tables of numbers in scalar memory: whole where they are small, otherwise one row at a time."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

WHOLE = 2**15
"""The most numbers of a table that is kept whole. Scalar memory has room for 2**18."""


@dataclasses.dataclass(frozen=True)
class Table:
    """An array of 32-bit numbers `[outer..., width]`, of which a step reads the row at some outer indices.

    Attributes:
        outer: the sizes of the outer axes; of size 1 where all are the same.
        width: the numbers of a row.
    """

    outer: tuple[int, ...]
    width: int

    @classmethod
    def of(cls, array: Any) -> "Table":
        return cls(tuple(array.shape[:-1]), array.shape[-1])

    @property
    def whole(self) -> bool:
        return math.prod(self.outer) * self.width <= WHOLE

    def stored(self, array: jax.Array) -> jax.Array:
        """The array as the kernel takes it."""
        return array.reshape(-1) if self.whole else array.reshape(*self.outer, 1, self.width)

    def spec(self, at: Callable[..., tuple[Any, ...]]) -> pl.BlockSpec | None:
        """Its block, or None if it is whole.

        Args:
            at: the outer indices, from those of the grid.
        """
        if self.whole:
            return None
        return pl.BlockSpec(
            (*[None] * len(self.outer), 1, self.width),
            lambda *grid: (*self._inside(at(*grid)), 0, 0),
            memory_space=pltpu.SMEM,
        )

    def row(self, ref: Any, *indices: Any) -> Callable[[Any], Any]:
        """The numbers of a row, as a function of their place.

        Args:
            ref: of the table.
            indices: the outer indices of the step.
        """
        if not self.whole:
            return lambda place: ref[0, place]
        start: Any = 0
        for index, size in zip(self._inside(indices), self.outer, strict=True):
            start = start * size + index
        return lambda place: ref[start * self.width + place]

    def _inside(self, indices: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(0 if size == 1 else index for index, size in zip(indices, self.outer, strict=True))


class Inputs(NamedTuple):
    """The inputs of a kernel, of which whole tables come first.

    arrays: in the order of the kernel.
    specs: of those that are no whole tables.
    order: the place of each, in the order of the kernel, among all as they were given.
    """

    arrays: list[jax.Array]
    specs: list[pl.BlockSpec]
    order: list[int]

    @classmethod
    def of(cls, given: Sequence[tuple[jax.Array, pl.BlockSpec | None]]) -> "Inputs":
        """The inputs, from arrays with their blocks (None for whole tables)."""
        order = sorted(range(len(given)), key=lambda place: given[place][1] is not None)
        specs = [spec for _, spec in given if spec is not None]
        return cls([given[place][0] for place in order], specs, order)

    @property
    def tables(self) -> int:
        """The number of whole tables."""
        return len(self.arrays) - len(self.specs)

    def as_given(self, refs: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """The refs of the inputs as they were given, and the refs that follow the inputs."""
        found = dict(zip(self.order, refs, strict=False))
        return [found[place] for place in range(len(self.order))], list(refs[len(self.order) :])
