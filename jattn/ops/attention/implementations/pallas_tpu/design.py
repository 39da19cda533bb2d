"""What is known of the kernels of a call before they run, and what a step sees of the fields."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from .....foundation.sharding import vary, varying_shape
from ....dispatch import Unsupported
from ...call import Call
from ..lowering import Lowered, Tile
from . import fields as kinds
from .fields import Field, position
from .geometry import Cut

NN = (((1,), (0,)), ((), ()))
NT = (((1,), (1,)), ((), ()))


@dataclasses.dataclass(frozen=True)
class Design:
    """The static part of the kernels of a call.

    Attributes:
        cut: the sizes.
        lowered: how a tile is computed.
        fields: what it reads, in the order of `Lowered.fields`; then the positions that are not 0, 1, ...
        given: whether the positions of queries and of keys are fields.
        scale: the factor on the products, with `Lowered.before`.
        softmax: whether the normalizer is a softmax, or elementwise.
        full, partial: whether there may be full tiles, and partial ones.
        resident: whether a step has all its keys and values in vector memory, instead of copying them tile by tile.
        interpret: whether the kernels are interpreted on the machine at hand.
        vmem: the limit on vector memory, in bytes.
        axes: the mesh axes over which the results vary.
        exact_lse: whether the mass of a row is that of the weights before they are rounded for the product.
        cores: of one device, which divide batch elements and heads among them.
        trips: for the compiler's estimates, which cannot see bounds that are read at run time: the numbers of full and
            of visited tiles of every row, in place of those of the list. The second sweep for NaN and inf is left out:
            it is under a condition, so it would not count, and the compiler's simulation fails on its transpositions.
    """

    cut: Cut
    lowered: Lowered
    fields: tuple[Field, ...]
    given: tuple[bool, bool]
    scale: float
    softmax: bool
    full: bool
    partial: bool
    resident: bool
    interpret: bool
    vmem: int
    axes: tuple[str, ...]
    exact_lse: bool = True
    cores: int = 1
    trips: tuple[int, int] | None = None

    @property
    def sums(self) -> bool:
        """Whether the similarity is a sum over features (see `feature_sums`), not a dot product."""
        return self.lowered.sum is not None

    @property
    def folds(self) -> bool:
        """Whether the scale waits until the exponent. A negative one would make the maximum a minimum."""
        return self.softmax and not self.lowered.scores_differ and self.scale > 0

    @property
    def waiting(self) -> float:
        """The factor of the scores that waits until the exponent."""
        return self.scale if self.folds else self.lowered.after

    def product(self, a: jax.Array, b: jax.Array, contract: Any) -> jax.Array:
        """A matrix product that sums in float32."""
        if self.interpret:  # a CPU has no product of bfloat16 numbers in a loop
            a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
        return lax.dot_general(a, b, contract, precision=exact, preferred_element_type=jnp.float32)

    def shape(self, *sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
        """The shape of an output, which varies like the inputs."""
        return varying_shape(sizes, dtype, self.axes)

    def zeros(self, shape: jax.ShapeDtypeStruct) -> jax.Array:
        """An array of zeros, which varies like the inputs."""
        return vary(jnp.zeros(shape.shape, shape.dtype), self.axes)

    def queries(self, at: Any, width: int) -> pl.BlockSpec:
        """The block of an array of queries of a step.

        Args:
            at: (batch element, step, query tile) from the grid's indices.
            width: the features.
        """
        cut = self.cut
        if cut.blocked:
            block = (None, None, None, cut.heads, cut.q_tile, width)
            return pl.BlockSpec(block, lambda *grid: (*at(*grid), 0, 0, 0))
        return pl.BlockSpec((None, cut.heads, cut.q_tile, width), lambda *grid: (*at(*grid), 0))

    def order(self, free: int, rest: int) -> tuple[Any, ...]:
        """The order of the steps, as the grid takes it: of several cores each has a share of the first axes.

        A single core takes one step after the other, because the next row begins with what the one before left.

        Args:
            free: the first axes of the grid, whose steps need nothing of each other.
            rest: the other axes.
        """
        return (pltpu.PARALLEL if self.cores > 1 else pltpu.ARBITRARY,) * free + (pltpu.ARBITRARY,) * rest

    @property
    def copied(self) -> list[int]:
        """The fields that are copied with the keys."""
        return [place for place, field in enumerate(self.fields) if field.copied(self.resident)]


@dataclasses.dataclass(frozen=True)
class Step:
    """A step of the grid inside a kernel: its place, and its refs of the fields.

    Attributes:
        design: the static part.
        batch, step, q_index: the batch element, the step over all heads, and the query tile.
        refs: of each field, its block, or the whole if it is copied.
        buffers: of each copied field.
        semaphores: of each copied field, two.
    """

    design: Design
    batch: Any
    step: Any
    q_index: Any
    refs: Sequence[Any]
    buffers: Sequence[Any]
    semaphores: Any

    @property
    def place(self) -> tuple[Any, Any, Any]:
        return self.batch, self.step, self.q_index

    @property
    def is_first(self) -> Any:
        """Whether scratch is as yet what it happens to be: in the first step; of several cores, those of any heads."""
        of_heads = self.q_index == 0
        return of_heads if self.design.cores > 1 else of_heads & (self.batch == 0) & (self.step == 0)

    def copies(self, tile: Any, slot: Any) -> list[Any]:
        """The copies of the fields for a tile of keys."""
        design = self.design
        return [
            pltpu.make_async_copy(
                kinds.source(design.fields[number], self.refs[number], design.cut, self.place, design.cut.keys(tile)),
                buffer.at[slot],
                self.semaphores.at[order, slot],
            )
            for order, (number, buffer) in enumerate(zip(design.copied, self.buffers, strict=True))
        ]

    def read(self, unit: int, tile: Any, slot: Any) -> list[jax.Array]:
        """What a tile of a unit sees of each field."""
        cut, buffers = self.design.cut, iter(self.buffers)
        return [
            kinds.read(field, next(buffers), cut, self.place, unit, tile, slot)
            if field.copied(self.design.resident)
            else kinds.read(field, ref, cut, self.place, unit, tile, None)
            for field, ref in zip(self.design.fields, self.refs, strict=True)
        ]

    def positions(self, values: list[jax.Array], unit: int, tile: Any) -> tuple[list[jax.Array], jax.Array, jax.Array]:
        """The fields of the pieces, and the positions of the queries and keys."""
        cut = self.design.cut
        rest, found = list(values), []
        for given in reversed(self.design.given):
            found.append(rest.pop() if given else None)
        key, query = found
        if query is None:
            query = position(1, cut.unit, self.q_index * cut.q_tile + cut.queries_of(unit).start)
        if key is None:
            key = position(0, cut.kv_tile, tile * cut.kv_tile)
        return rest, query, key

    def tile(self, values: list[jax.Array], unit: int, tile: Any) -> Tile:
        """A tile of a unit, from what it sees of the fields."""
        rest, query, key = self.positions(values, unit, tile)
        return self.design.lowered.tile(rest, query, key)

    def seen(self, unit: int, tile: Any, slot: Any) -> Tile:
        """A tile of a unit."""
        return self.tile(self.read(unit, tile, slot), unit, tile)

    def allowed(self, seen: Tile | None, unit: int, tile: Any, *, queries: bool = False) -> jax.Array | None:
        """Which pairs of a partial tile may attend, without padding among the keys, and, if asked for, the queries."""
        cut = self.design.cut
        found = None if seen is None or not self.design.lowered.masks else seen.allowed()
        if cut.ragged[1]:
            real = position(0, cut.kv_tile, tile * cut.kv_tile) < cut.kv_len
            found = real if found is None else found & real
        if queries and cut.ragged[0]:
            real = position(1, cut.unit, self.q_index * cut.q_tile + cut.queries_of(unit).start) < cut.q_len
            found = real if found is None else found & real
        return found


def interpreter(interpret: bool, axes: tuple[str, ...]) -> Any:
    """The interpreter of a kernel, as `pallas_call` takes it.

    Inside of `jax.shard_map` it must be the slower one, which simulates a TPU: the other one forgets along which mesh
    axes arrays vary.

    Raises:
        Unsupported: inside of `shard_map`, on a JAX whose simulator may wait forever for a thread of the CPU.
    """
    if interpret and axes and jax.__version_info__ < (0, 11):
        raise Unsupported(
            "`pallas_tpu` cannot be interpreted inside of `jax.shard_map`, nor with arrays split over Explicit mesh "
            "axes, which run in one, before JAX 0.11; interpret it with the arrays of one device."
        )
    return pltpu.InterpretParams() if interpret and axes else interpret


def finite(array: jax.Array) -> jax.Array:
    """The array with 0 in place of NaN and inf."""
    wide = array.astype(jnp.float32)  # chosen in float32: a selection of 16 bits would have to pack the flags
    return jnp.where(jnp.isfinite(wide), wide, 0.0).astype(array.dtype)


def infinities(values: jax.Array, product: Callable[[jax.Array], jax.Array]) -> jax.Array:
    """What NaN and inf among values add to a product in which they were 0: NaN counts as inf and -inf.

    Args:
        values: any.
        product: with numbers that are not negative, of an array of 1 where the values are not finite, and 0 elsewhere.
    """
    added: Any = 0.0
    for sign in (1.0, -1.0):
        kind = jnp.where(values.astype(jnp.float32) * sign < jnp.inf, 0.0, 1.0).astype(jnp.bfloat16)
        added = added + jnp.where(product(kind) > 0, sign * jnp.inf, 0.0)
    return added


def positions_given(call: Call) -> tuple[bool, bool]:
    """Whether the positions of queries and of keys are, as far as is known, other than 0, 1, ..."""
    pieces = call.pieces

    def given(positions: Any, length: int) -> bool:
        known = isinstance(positions, np.ndarray) and positions.size == length
        return not (known and np.array_equal(positions.reshape(-1), np.arange(length)))

    return given(pieces.query_positions, call.q_len), given(pieces.key_positions, call.kv_len)
