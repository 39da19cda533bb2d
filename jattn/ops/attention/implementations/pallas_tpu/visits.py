"""The visits of a step: the tiles of its row of the list, while the copies for the next one are on their way."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from .design import Design
from .lists import FIRST


@dataclasses.dataclass(frozen=True)
class Visits:
    """The tiles of a row, in the order of its list.

    Attributes:
        design: the static part.
        row: the numbers of the row, as a function of their place (see `lists`).
        copies: from a place in the row and a half of the buffers, the copies that bring the tile there.
    """

    design: Design
    row: Callable[[Any], Any]
    copies: Callable[[Any, Any], list[Any]]

    @property
    def full(self) -> Any:
        """The number of full tiles, which come first."""
        return self.design.trips[0] if self.design.trips else self.row(0)

    @property
    def count(self) -> Any:
        """The number of all tiles."""
        return self.design.trips[1] if self.design.trips else self.row(1)

    def tile(self, place: Any) -> Any:
        """The index of a tile."""
        return self.row(FIRST + place)

    def start(self) -> None:
        """Start the first copies."""

        @pl.when(self.count > 0)
        def _():
            for copy in self.copies(0, 0):
                copy.start()

    def sweep(self, visit: Callable[[Any, Any, Any, bool], Any], carry: Any) -> Any:
        """Visit all tiles.

        Args:
            visit: from the index of a tile, the half of the buffers where it is, the carry, and whether the tile is
                partial, the next carry.
            carry: the first one.
        """

        def one(place: Any, carry: Any, partial: bool) -> Any:
            slot = lax.rem(place, 2)
            for copy in self.copies(place, slot):
                copy.wait()
            # The last tile is copied once more: a branch would cut the schedule.
            for copy in self.copies(jnp.minimum(place + 1, self.count - 1), 1 - slot):
                copy.start()
            return visit(self.tile(place), slot, carry, partial)

        if self.design.full:
            carry = lax.fori_loop(0, self.full, lambda place, carry: one(place, carry, False), carry)
        if self.design.partial:
            carry = lax.fori_loop(self.full, self.count, lambda place, carry: one(place, carry, True), carry)

        @pl.when(self.count > 0)
        def _():
            for copy in self.copies(self.count - 1, lax.rem(self.count, 2)):
                copy.wait()

        return carry
