"""A tile of a lowered call: evaluates the functions of its pieces in a kernel."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from .choice import Field, Lookup
from .expressions import Expression, operands_of
from .inside import Read, evaluate
from .outside import guarded, may_be_singular
from .primitives import entries, flag, held, looked_up, spread

if TYPE_CHECKING:
    from .lowered import Lowered


class Tile:
    """Evaluates the functions of the pieces on a tile `[k, q]`; without rows of distances, also on `[q, k]`.

    Args:
        lowered: the pieces.
        fields, query, key: as in `Lowered.tile`.
    """

    def __init__(self, lowered: "Lowered", fields: Sequence[Any], query: Any, key: Any):
        self._lowered, self._fields = lowered, fields
        self._query, self._key = query, key
        self._shape = np.broadcast_shapes(query.shape, key.shape)

    def allowed(self) -> Any:
        """Which pairs may attend, booleans that broadcast to the tile."""
        return self._evaluate(self._lowered._allowed)

    def dropout(self) -> Any:
        """The factor of the weights."""
        return spread(self._evaluate(self._lowered._factor), self._shape, np.float32)

    def scores(self, raw: Any, allowed: Any = None) -> Any:
        """The scores, from the scaled numbers of the similarity, but for the factors `Lowered.before` and `.after`.

        Those of masked pairs are arbitrary.

        Gradients of masked pairs must be 0; they then reach no other gradient, whatever the pair's numbers are.

        Args:
            raw: `[k, q]`, float32, times `Lowered.before`. If the similarity is no dot product, the sum over the
                features, not scaled.
            allowed: which pairs may attend; None for all.
        """
        lowered = self._lowered
        if lowered.sum is not None and not lowered.sum.is_whole:
            raw = self._modified(lowered._pieces.similarity.finite, lowered.sum.outer, raw, allowed)
        raw = raw if lowered._scale == 1.0 else raw * lowered._scale
        for piece, value in zip(lowered._pieces.scores, lowered._scores, strict=True):
            raw = self._modified(piece.finite_at_zero, value, raw, allowed)
        return raw

    def activation(self, scores: Any, allowed: Any = None) -> Any:
        """The weights of an elementwise normalizer. Those of masked pairs are arbitrary."""
        lowered = self._lowered
        return self._modified(lowered._pieces.normalizer.finite_at_zero, lowered._activation, scores, allowed)

    def _modified(self, finite_at_zero: bool, value: Expression, raw: Any, allowed: Any) -> Any:
        lowered = self._lowered
        if allowed is not None and finite_at_zero:
            raw = jnp.where(allowed, raw, 0)

        def needs(one: Expression) -> Sequence[Expression]:
            return () if id(one) in lowered._choice.read else operands_of(one)

        if finite_at_zero or (allowed is None and not may_be_singular([value], needs)):
            return spread(self._evaluate(value, raw), self._shape, np.float32)
        # Everything is an argument: a kernel's compiler does not let derivatives close over arrays.
        places = sorted(lowered._fields_of([value]))

        def run(raw: Any, query: Any, key: Any, *given: Any) -> Any:
            fields = list(self._fields)
            for place, one in zip(places, given, strict=True):
                fields[place] = one
            return spread(Tile(lowered, fields, query, key)._evaluate(value, raw), self._shape, np.float32)

        def full(place: int) -> Any:
            """A field of the shape of the tile, whose gradient is one number a pair."""
            one, field = self._fields[place], lowered._choice.fields[place]
            if not lowered.differentiable[place]:
                return one
            return spread(self._tile_of(one, field), self._shape, one.dtype)

        return guarded(run)(raw, self._query, self._key, *map(full, places))

    def _evaluate(self, value: Expression, raw: Any = None) -> Any:
        positions = {"query": self._query, "key": self._key}
        sources = {name: entries([one], ()) for name, one in (positions | as_floats(positions)).items()}
        if raw is not None:
            sources["scores"] = entries([raw], ())
        read = {at: self._read(of, places) for at, (of, places) in self._lowered._choice.read.items()}
        return evaluate([value], sources, read)[0].reshape(-1)[0]

    def _read(self, of: Expression | Lookup, places: Sequence[int]) -> Read:
        fields = [self._fields[place] for place in places]
        types = [self._lowered._choice.fields[place] for place in places]
        if isinstance(of, Expression):
            return Read(lambda: entries([self._number(*one) for one in zip(fields, types, strict=True)], of.shape))
        if of.of_flags:
            return Read(lambda at: entries([flag(at.reshape(-1)[0], of.places, fields)], of.value.shape), (of.index,))

        def get(at: Any) -> Any:
            index, size = at.reshape(-1)[0], of.value.size
            found = [looked_up(index, of.places, fields[entry::size], of.value.dtype) for entry in range(size)]
            return entries(found, of.value.shape)

        return Read(get, (of.index,))

    def _tile_of(self, array: Any, field: Field) -> Any:
        """A field as an array that broadcasts to the tile."""
        if field.kind != "distance" or array.shape == self._shape:
            return array
        diagonals = self._lowered._limits.diagonals
        assert diagonals is not None  # or there would be no such field
        return diagonals(array.astype(jnp.int32) if array.dtype == np.bool_ else array, *self._shape)

    def _number(self, array: Any, field: Field) -> Any:
        """A field as its value: booleans, and numbers in their dtype."""
        array = self._tile_of(array, field)
        if field.dtype == np.bool_:
            return array if array.dtype == np.bool_ else array.astype(jnp.int32) != 0
        dtype = held(field.dtype)
        return array if array.dtype == dtype else array.astype(dtype)


def as_floats(positions: dict[Any, Any]) -> dict[str, Any]:
    """Positions less the first one of the keys, in float32: they have the same differences."""
    query, key = positions["query"], positions["key"]
    first = key[tuple(slice(0, 1) for _ in key.shape)]
    return {f"float {name}": (one - first).astype(np.float32) for name, one in (("query", query), ("key", key))}
