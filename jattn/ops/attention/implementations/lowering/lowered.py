"""`lower`: what a kernel reads of the pieces of a call, and how it evaluates a tile of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...call import Call, Pieces
from ...tile import is_float
from . import distances, factors
from .choice import Choice, Field, Lookup
from .expressions import Axes, Builder, Expression, Lacking, Source, operands_of
from .features import FeatureSum, feature_sum
from .limits import Limits
from .outside import everywhere
from .primitives import held
from .tile import Tile, as_floats

EXACT = 2**24
"""Integers up to this number are exact in float32."""


def offset_of(call: Call) -> int | None:
    """`query position - key position` of the first query and key, if all positions are known and consecutive."""
    firsts = []
    for positions in (call.pieces.query_positions, call.pieces.key_positions):
        if not isinstance(positions, np.ndarray) or positions.size != max(positions.shape) or not positions.size:
            return None
        flat = positions.reshape(-1)
        if (flat != flat[0] + np.arange(flat.size)).any():
            return None
        firsts.append(int(flat[0]))
    return firsts[0] - firsts[1]


def lower(call: Call, limits: Limits, *, offset: int | None = None) -> "Lowered":
    """Find out what a kernel reads of the pieces of a call.

    Args:
        call: prepared; only shapes and dtypes of its arrays matter.
        limits: of the kernel's compiler.
        offset: `offset_of` the call when its positions were known.
    """
    leaves, structure = jax.tree.flatten(call.pieces)
    shapes = tuple((tuple(jnp.shape(leaf)), jnp.dtype(jnp.result_type(leaf))) for leaf in leaves)
    wide = jnp.result_type(float) == jnp.float64  # the pieces' functions are traced differently
    dot = call.pieces.similarity.is_dot
    features = None if dot else Features(call.qk_dim, call.dtypes[:2], call.scale)
    given = structure, shapes, len(call.batch) + 3, call.q_len, call.kv_len, limits, offset, features, wide
    try:
        return _lower(*given)
    except TypeError as error:
        if "unhashable" not in str(error):
            raise
        return _lower.__wrapped__(*given)


@dataclasses.dataclass(frozen=True)
class Features:
    """What the tiles of a similarity that is no dot product depend on: features, their dtypes, and the scale."""

    count: int
    dtypes: tuple[str, str]
    scale: float


@functools.lru_cache(maxsize=256)
def _lower(
    structure: Any,
    shapes: tuple,
    rank: int,
    q_len: int,
    kv_len: int,
    limits: Limits,
    offset: int | None,
    features: Features | None,
    wide: bool,
) -> "Lowered":
    del wide
    return Lowered(structure, shapes, Axes(rank), q_len, kv_len, limits, offset, features)


class Lowered:
    """The pieces of a call as a kernel sees them.

    Attributes:
        refusal: why the kernel cannot evaluate the pieces, or None.
        kinds: of each field: "none", "head", "query", "key", "pair", "distance" or "feature".
        differentiable: of each field, whether it needs a gradient.
        masks: whether `Tile.allowed` is to be asked.
        scores_differ: whether `Tile.scores` is to be asked.
        drops: whether `Tile.dropout` is to be asked.
        before: what the scaled numbers of the similarity are to be multiplied by before `Tile.scores`, or
            `Tile.activation` if there are no scores (see `factors`).
        after: what the results of `Tile.scores` are to be multiplied by; 1 for elementwise normalizers.
        sum: the similarity, if it is no dot product. Its parameters are the fields of kind "feature", in their order.
            `Tile.scores` then begins with what follows the sum, the scale included.
    """

    def __init__(
        self,
        structure: Any,
        shapes: tuple,
        axes: Axes,
        q_len: int,
        kv_len: int,
        limits: Limits,
        offset: int | None,
        features: Features | None = None,
    ):
        self._axes, self._limits, self._offset = axes, limits, offset
        self._lengths = q_len, kv_len
        places = structure.unflatten(list(range(len(shapes))))
        sizes = [max((shape[axis] for shape, _ in shapes), default=1) for axis in range(axes.rank)]
        self._choice = Choice(axes, limits, distances=offset is not None, sizes=sizes)
        self._leaves = [self._leaf(place, *one) for place, one in enumerate(shapes)]
        self._pieces = places
        query, key = self._leaves[places.query_positions], self._leaves[places.key_positions]
        self._query = dataclasses.replace(query, origin=Source("query"))
        self._key = dataclasses.replace(key, origin=Source("key"))
        far = abs(offset or 0) + q_len + kv_len
        self._floats = None
        if offset is not None and far < EXACT:
            self._floats = (
                dataclasses.replace(self._query, origin=Source("float query"), dtype=np.dtype(np.float32)),
                dataclasses.replace(self._key, origin=Source("float key"), dtype=np.dtype(np.float32)),
            )
        self._positions = {"query": places.query_positions, "key": places.key_positions}
        self._raw = Expression((1,) * axes.rank, np.dtype("float32"), Source("scores"), of_scores=True)
        self.masks = places.mask is not None
        self.scores_differ = bool(places.scores)
        self.drops = places.dropout is not None
        self.sum: FeatureSum | None = None
        self._features = features
        self._scale = 1.0 if features is None else features.scale
        self.refusal: str | None = None
        self._allowed = self._factor = self._activation = self._raw  # replaced where there are such
        self.before = self.after = 1.0
        self._scores: list[Expression] = []
        self._of_scores: set[int] = set()  # fields
        try:
            self._settle()
        except _Refused as error:
            self.refusal = str(error)

    def _leaf(self, place: int, shape: tuple[int, ...], dtype: Any) -> Expression:
        rank = self._axes.rank
        along = frozenset(axis for axis in range(rank) if shape[axis] > 1)
        return Expression((1,) * rank + shape[rank:], dtype, Source(place), along=along)

    def _settle(self) -> None:
        pieces = self._pieces
        if pieces.mask is not None:
            self._allowed = self._result(pieces.mask, "mask", lambda mask, q, k: mask.allows(q, k))
        if pieces.dropout is not None:
            self._factor = self._result(pieces.dropout, "dropout", lambda one, q, k: one.factor(q, k))
        if self._features is not None:
            self.sum = self._similarity(pieces.similarity, self._features)
            self.scores_differ |= not self.sum.is_whole or self._scale != 1.0
        steps = [(score, "scores", lambda one, s, q, k: one.modify(s, q, k)) for score in pieces.scores]
        elementwise = pieces.normalizer.streams_as == "elementwise"
        if elementwise:
            steps.append((pieces.normalizer, "normalizer", lambda one, s, q, k: one.activation(s)))
        found = [self._traced(*step, self._raw) for step in steps]
        builder = Builder(self._axes, keep=True)
        self.before, found, self.after = factors.moved(found, builder, waits=not elementwise)
        for (piece, argument, _), one in zip(steps, found, strict=True):
            self._choose(piece, argument, one)
        if elementwise:
            self._activation = found.pop()
        self._scores = found
        if self.sum is not None:
            self._scale, self.before = self._scale * self.before, 1.0
        outer = [] if self.sum is None else [self.sum.outer]
        self._of_scores = self._fields_of([*outer, *self._scores, self._activation])
        if self.sum is not None:
            first = len(self._choice.fields)
            of = [self._leaves[place] for place in self.sum.parameters]
            self._choice.fields += [Field(one, 0, "feature", np.dtype(np.float32)) for one in of]
            self._of_scores |= set(range(first, first + len(of)))

    def _similarity(self, piece: Any, features: Features) -> FeatureSum:
        try:
            found = feature_sum(piece, self._leaves, features.dtypes, features.count, self._axes, self._limits)
            self._choice.choose(found.outer)
        except Lacking as error:
            raise _Refused(
                f"it computes dot products and sums over features, and `similarity`: {_name_of(piece)} needs {error}; "
                "`tiled` computes it"
            ) from None
        return found

    def _result(self, piece: Any, argument: str, function: Any, *inputs: Expression) -> Expression:
        """What a function of a piece returns, and how it is computed."""
        result = self._traced(piece, argument, function, *inputs)
        self._choose(piece, argument, result)
        return result

    def _traced(self, piece: Any, argument: str, function: Any, *inputs: Expression) -> Expression:
        """What a function of a piece returns."""
        places, tree = jax.tree.flatten(piece)
        given = [*(self._leaves[place] for place in places), *inputs, self._query, self._key]
        count = len(places)
        builder = Builder(self._axes, keep=argument in ("scores", "normalizer"), floats=self._floats)

        def of_arrays(*arrays: Any) -> Any:
            return function(tree.unflatten(arrays[:count]), *arrays[count:])

        with self._refusing(piece, argument):
            (result,) = builder.trace(of_arrays, given)
        return result

    def _choose(self, piece: Any, argument: str, result: Expression) -> None:
        """Choose how what a function of a piece returns is computed."""
        with self._refusing(piece, argument):
            self._choice.choose(result)

    @contextlib.contextmanager
    def _refusing(self, piece: Any, argument: str) -> Iterator[None]:
        try:
            yield
        except Lacking as error:
            raise _Refused(
                f"`{argument}`: {_name_of(piece)} needs {error}, which {self._limits.name} lacks in a kernel"
            ) from None

    def _fields_of(self, values: Sequence[Expression]) -> set[int]:
        read, found = self._choice.read, set()
        waiting, seen = list(values), set()
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            if id(value) in read:
                found.update(read[id(value)][1])
                of = read[id(value)][0]
                waiting.extend([of.index] if isinstance(of, Lookup) else [])
            else:
                waiting.extend(operands_of(value))
        return found

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(field.kind for field in self._choice.fields)

    @property
    def differentiable(self) -> tuple[bool, ...]:
        return tuple(
            place in self._of_scores and jnp.issubdtype(field.dtype, jnp.inexact)
            for place, field in enumerate(self._choice.fields)
        )

    @property
    def entries(self) -> int:
        """How many entries of tables a tile compares an index of both positions with. Each is a part of the program."""
        tables = [(of, places) for of, places in self._choice.read.values() if isinstance(of, Lookup)]
        return sum(len(places) for of, places in tables if not of.of_flags)

    def fields(self, pieces: Pieces) -> list[jax.Array]:
        """The arrays that a kernel reads, aligned: `[batch..., head, query, key]`, or rows of distances `[batch...,
        head, 1, 1, q_len + kv_len]` (see `distances`), or parameters `[batch..., head, 1, 1, features]`."""
        leaves = jax.tree.leaves(pieces)
        sources: dict[Any, Any] = dict(enumerate(leaves))
        sources |= {name: leaves[place] for name, place in self._positions.items()}
        sources |= as_floats(sources)
        computed: dict[tuple[int, str], Any] = {}
        found = []
        for field in self._choice.fields:
            at = id(field.of), field.kind
            if at not in computed:
                computed[at] = self._compute(field, sources)
            found.append(_stored(computed[at][..., field.entry], field))
        return found

    def _compute(self, field: Field, sources: dict[Any, Any]) -> Any:
        """The value of a field, `[batch..., head, query, key, entries]`."""
        axes, of = self._axes, field.of
        if field.kind == "feature":
            assert isinstance(of, Expression) and isinstance(of.origin, Source) and self._features is not None
            array = sources[of.origin.name]
            array = array.reshape(*array.shape[: axes.rank], -1)
            return jnp.broadcast_to(array, (*array.shape[:-1], self._features.count))[..., None]
        if isinstance(of, Lookup):
            found = everywhere(of.value, sources, axes, (of.index, of.places))
            found = found.reshape(*found.shape[: axes.rank], -1)
            return _words(found) if of.of_flags else found
        if field.kind == "distance":
            q_len, kv_len = self._lengths
            away = kv_len - np.arange(distances.length(q_len, kv_len), dtype=np.int32) - (self._offset or 0)
            alone = (1,) * (axes.rank - 1)
            sources = {**sources, "query": np.zeros((*alone, 1), np.int32), "key": away.reshape(*alone, -1)}
            sources |= as_floats(sources)
            found = everywhere(of, sources, axes)
            return jnp.swapaxes(found.reshape(*found.shape[: axes.rank], 1), -2, -1)[..., None]
        if isinstance(of.origin, Source) and isinstance(of.origin.name, int):
            array = sources[of.origin.name]
        else:
            array = everywhere(of, sources, axes)
        return array.reshape(*array.shape[: axes.rank], -1)

    def pull(self, pieces: Pieces, gradients: Sequence[Any]) -> Pieces:
        """The gradients of the floating-point arrays of the pieces (None for others), from those of the fields.

        Args:
            pieces: as in `fields`.
            gradients: one a field, of its shape, for gradients of the scores that lack the factor `after`; None for
                fields that are not differentiable.
        """
        leaves, tree = jax.tree.flatten(pieces)
        floats = [leaf for leaf in leaves if is_float(leaf)]
        wanted = [place for place, one in enumerate(self.differentiable) if one]

        def of_floats(floats: list[Any]) -> list[Any]:
            rest = iter(floats)
            whole = tree.unflatten([next(rest) if is_float(leaf) else leaf for leaf in leaves])
            found = self.fields(whole)
            return [found[place] for place in wanted]

        out, pull = jax.vjp(of_floats, [jnp.asarray(leaf) for leaf in floats])
        cotangents = [(gradients[place] * self.after).astype(one.dtype) for place, one in zip(wanted, out, strict=True)]
        rest = iter(pull(cotangents)[0])
        return tree.unflatten([next(rest) if is_float(leaf) else None for leaf in leaves])

    def tile(self, fields: Sequence[Any], query: Any, key: Any) -> "Tile":
        """A tile, in the layout `[key, query]`; or `[query, key]`, if its positions and fields broadcast to that.

        Args:
            fields: those of the tile, which broadcast to `[k, q]`; of "distance" windows `[1, k + q]`.
            query: positions `[1, q]`.
            key: positions `[k, 1]`.
        """
        return Tile(self, fields, query, key)


class _Refused(Exception):
    """Names the piece, and what the compiler lacks."""


def _name_of(piece: Any) -> str:
    return f"`{getattr(getattr(piece, 'function', None), 'name', None) or type(piece).__name__}`"


def _words(flags: Any) -> Any:
    """Booleans `[..., n]` as words `[..., n / 32]`, the first flag in the lowest bit."""
    count = -(-flags.shape[-1] // 32)
    padded = jnp.pad(flags, [(0, 0)] * (flags.ndim - 1) + [(0, 32 * count - flags.shape[-1])])
    bits = padded.reshape(*flags.shape[:-1], count, 32).astype(jnp.uint32) << np.arange(32, dtype=np.uint32)
    return jax.lax.bitcast_convert_type(bits.sum(-1, dtype=jnp.uint32), jnp.int32)


def _stored(array: Any, field: Field) -> Any:
    """A field in a dtype that kernels can read."""
    dtype, pair = field.dtype, field.kind == "pair"
    if dtype == np.bool_:
        return jnp.asarray(array).astype(jnp.int8 if pair else jnp.int32)
    if jnp.issubdtype(dtype, jnp.inexact):
        return jnp.asarray(array).astype(held(dtype) if pair else jnp.float32)
    return jnp.asarray(array).astype(jnp.uint32 if dtype == np.uint32 else jnp.int32)
