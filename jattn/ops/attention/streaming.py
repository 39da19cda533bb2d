"""How JAX transforms a streaming implementation: gradients, `vmap`, meshes, and the target.

A streaming implementation provides two functions of plain arrays, `stream` and `gradients`, which are neither
differentiated nor batched themselves. Everything around them is here, once for all:

- `jax.grad` calls `gradients` with the results of `stream` (`jax.custom_vjp`). Any other derivative raises an error.
- `jax.vmap` adds a batch axis (`jax.custom_batching.custom_vmap`). All arrays of a call are aligned, so the new axis is
  the first one.
- If `vmap` maps over an axis that is split over Explicit mesh axes, each device runs its own part.
- The target is what the program is lowered for (`by_target`): each platform gets its own tiles, and possibly its own
  implementation.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from ...foundation.arrays import Known
from ...foundation.numerics import accumulation_dtype
from ...foundation.sharding import layout, run_split, split_of
from ...foundation.target import Target, by_target
from ...foundation.varying import full, vary, varying_axes
from ..dispatch import Implementation, Operation, Unsupported
from .call import Call, Pieces
from .partial import Partial
from .reverse_mode import first_order_only, reverse_mode_only


class Streaming(Implementation):
    """An implementation of attention that stores neither scores nor weights, and recomputes them in the backward pass.

    Subclasses implement `stream`, `gradients`, `refuses` and `describe`. Let s_ij be the scores of the pairs that may
    attend, and d_ij the factor of dropout (1 without):

        softmax normalizers:      p_ij = exp(s_ij - lse_i),    lse_i = log Σ_j exp(s_ij)
        elementwise normalizers:  p_ij = activation(s_ij),     lse_i = log(number of keys that i may attend to)

        stream:  out_i = Σ_j p_ij d_ij value_j

    `run` applies `Normalizer.rescale` to this. The forward pass never holds a whole row of scores. It keeps the maximum
    score so far m, the mass l = Σ exp(s - m) and the sum a = Σ exp(s - m) d value, and updates them for each tile of
    keys with scores s' and values v' (online softmax; Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021,
    arXiv:2112.05682):

        m' = max(m, max_j s'_j),    c = exp(m - m')
        l' = c l + Σ_j exp(s'_j - m'),    a' = c a + Σ_j exp(s'_j - m') d_j v'_j

    At the end lse = m + log l and out = a / l. `gradients` has the equations of the backward pass.
    """

    reverse_mode_only = True

    @abc.abstractmethod
    def stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The streamed sum, its lse and the remainder, before `Normalizer.rescale`, in the accumulation dtype.

        Args:
            call: its `target` is known, and it has at least one batch element, query and key. `call.batch` may begin
                with axes of `jax.vmap`, on which arrays in pieces have size 1.
            query: `[batch..., q_len, q_heads, qk_dim]`, prepared.
            key: `[batch..., kv_len, kv_heads, qk_dim]`, prepared.
            value: `[batch..., kv_len, kv_heads, v_dim]`.
        """

    @abc.abstractmethod
    def gradients(  # type: ignore[override]
        self,
        call: Call,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        results: Partial,
        cotangents: Partial,
    ) -> "Gradients":
        """The gradients of `stream`: query, key, value, and every floating-point array in the pieces.

        With the cotangents dout and dlse, for a softmax normalizer:

            dp_ij   = d_ij dout_i · value_j
            ds_ij   = p_ij (dp_ij - dout_i · out_i + dlse_i)
            dvalue_j = Σ_i p_ij d_ij dout_i

        and for an elementwise normalizer ds_ij = activation'(s_ij) dp_ij. ds goes back through the scores and the
        similarity by `jax.vjp`. The keys may be a part of those of the call: p, out and lse are then those of the whole
        call, which is why the results are arguments.

        Args:
            call: as in `stream`.
            query: as in `stream`.
            key: as in `stream`.
            value: as in `stream`.
            results: what `stream` returned for all keys.
            cotangents: of `out` and `lse`. `remainder` has none.
        """

    def plan(self, call: Call) -> Hashable | None:
        """What is known about the call at trace time, such as the tiles to visit; None if it is decided at run time.

        It is passed back as `call.plan`. Outside of `jit`, programs with equal plans share a compilation. It must have
        a method `batched()` that returns the plan with one more leading batch axis, of size 1.

        Args:
            call: unknown arrays in its pieces may be anything but NumPy arrays.
        """
        del call

    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        return attend(self, call, query, key, value)


class Gradients(NamedTuple):
    """Gradients of query, key and value, each in its dtype, and of the pieces' floating-point arrays (else None)."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: Pieces


def attend(
    implementation: Streaming | Operation, call: Call, query: jax.Array, key: jax.Array, value: jax.Array
) -> Partial:
    """The output, its lse and the remainder, by streaming. Differentiable once, in reverse mode.

    Args:
        implementation: an implementation; or an operation, whose first implementation that accepts the call is taken
            for each target that the program is lowered for.
        call: prepared.
        query: prepared, as in `Streaming.stream`.
        key: prepared, as in `Streaming.stream`.
        value: as in `Streaming.stream`.
    """
    if 0 in (*call.batch, call.q_len, call.kv_len):
        streamed = _empty(call, query, key, value)
    else:
        program = Program.of(implementation, call)
        # From here on, any derivative other than the first in reverse mode raises an error.
        operands = Operands(query, key, value, tuple(jax.tree.leaves(call)))
        operands = jax.tree.map(lambda leaf: reverse_mode_only(leaf) if is_float(leaf) else leaf, operands)
        streamed = Partial(*_differentiable(program, operands))
    out = call.pieces.normalizer.rescale(streamed.out, streamed.lse, streamed.remainder)
    return dataclasses.replace(streamed, out=out.astype(value.dtype))


def _empty(call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
    """The result over no keys (or for no queries)."""
    dtype, axes = accumulation_dtype(query, key, value), varying_axes(query, key, value)
    shape = (*call.batch, call.q_len, call.q_heads)
    return Partial(
        full((*shape, call.v_dim), 0, dtype, axes), full(shape, -jnp.inf, dtype, axes), full(shape, 0, dtype, axes)
    )


class Operands(NamedTuple):
    """All arrays of a call. All but query, key and value are aligned, so a batch axis is axis 0 of each."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a call. Equal programs share a compilation.

    Attributes:
        implementation: an implementation, or the operation that chooses one for each target.
        structure: the pytree structure of the call.
        known: for each array of the call, its value if plans depend on it, otherwise its shape. Empty if the target is
            known.
        plan: the plan, if the target is known.
        axes: the number of batch axes that `vmap` has added.
        plans: the plans computed so far.
    """

    implementation: Streaming | Operation
    structure: Any
    known: tuple[Known | jax.ShapeDtypeStruct, ...]
    plan: Any
    axes: int = 0
    plans: dict[Target, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def of(cls, implementation: Streaming | Operation, call: Call) -> "Program":
        """The program of a call, whose arrays become its operands."""
        leaves, structure = jax.tree.flatten(call)
        if call.target is not None:
            one = _chosen(implementation, call)
            return cls(one, structure, (), one.plan(call))
        # Each target has its own plan, which depends on the mask and the positions.
        pieces = call.pieces
        deciding = () if pieces.mask is None else (pieces.mask, pieces.query_positions, pieces.key_positions)
        values = {id(leaf) for leaf in jax.tree.leaves(deciding) if isinstance(leaf, np.ndarray)}
        known = tuple(
            Known(leaf) if id(leaf) in values else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
            for leaf in leaves
        )
        return cls(implementation, structure, known, None)

    def batched(self) -> "Program":
        """The program with one more leading batch axis."""
        return dataclasses.replace(self, axes=self.axes + 1)

    def of_target(self, target: Target, operands: Operands) -> tuple[Streaming, Call]:
        """The implementation for a target, and the call of the operands."""
        leaves, implementation, plan = list(operands.pieces), self.implementation, self.plan
        if self.known:
            known = [one.array if isinstance(one, Known) else one for one in self.known]
            whole = dataclasses.replace(self.structure.unflatten(known), target=target)
            implementation = _chosen(implementation, whole)
            if target not in self.plans:
                self.plans[target] = implementation.plan(whole)
            plan = self.plans[target]
            if plan is None:  # known values still reduce the tiles that are found at run time
                leaves = [
                    value.reshape((1,) * self.axes + value.shape) if isinstance(value, np.ndarray) else leaf
                    for leaf, value in zip(leaves, known, strict=True)
                ]
        for _ in range(self.axes):
            plan = plan and plan.batched()
        assert isinstance(implementation, Streaming)
        call = dataclasses.replace(self.structure.unflatten(leaves), batch=operands.query.shape[:-3])
        return implementation, dataclasses.replace(call, target=target, plan=plan)


def _chosen(implementation: Streaming | Operation, call: Call) -> Streaming:
    if isinstance(implementation, Streaming):
        return implementation
    chosen = implementation.choose(call, None, call.target)
    if not isinstance(chosen, Streaming):
        raise Unsupported(
            f"for {call.target} this call runs by `{chosen.name}`, elsewhere by an implementation that streams, and "
            f"one program has both. Name one: `implementation={chosen.name!r}`."
        )
    return chosen


def is_float(leaf: Any) -> bool:
    """Whether an array has a gradient."""
    return jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


@dataclasses.dataclass(frozen=True)
class _Stream:
    """The forward pass over local arrays."""

    program: Program

    def __call__(self, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
        return by_target(self.for_target, operands)

    def for_target(self, target: Target, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
        implementation, call = self.program.of_target(target, operands)
        streamed = implementation.stream(call, *operands[:3])
        return streamed.out, streamed.lse, streamed.remainder


@dataclasses.dataclass(frozen=True)
class _Gradients:
    """The backward pass over local arrays: gradients of query, key, value, and a list of those of the pieces."""

    program: Program

    def __call__(self, operands: Operands, results: tuple, cotangents: tuple) -> tuple:
        return by_target(self.for_target, operands, results, cotangents)

    def for_target(self, target: Target, operands: Operands, results: tuple, cotangents: tuple) -> tuple:
        implementation, call = self.program.of_target(target, operands)
        found = implementation.gradients(call, *operands[:3], Partial(*results), Partial(*cotangents))
        return found.query, found.key, found.value, jax.tree.leaves(found.pieces)


def _on_devices(function: Callable, arrays: tuple, outs: tuple) -> Any:
    """`function(*arrays)`, on each device's part of the batch axes that `vmap` added over Explicit mesh axes.

    All other split axes were split before the call, which then sees only shards.
    """
    rank = arrays[0].query.ndim - 3
    layouts = _batch_first(arrays, rank)
    split = split_of(arrays, layouts)
    return function(*arrays) if split is None or not split.kept else run_split(function, arrays, layouts, outs, split)


def _batch_first(tree: Any, rank: int) -> Any:
    """Layouts of arrays that all begin with the batch axes."""
    return jax.tree.map(lambda leaf: layout(rank, *[None] * (jnp.ndim(leaf) - rank)), tree)


def _with_batch_axis(tree: Any, batched: Any, size: int, *, repeat: Callable[[Any], bool]) -> Any:
    """Give each leaf a leading axis: repeated if it is indexed per element or its gradient is summed, else size 1."""

    def one(leaf, has_axis):
        if has_axis:
            return leaf
        return jnp.broadcast_to(leaf, (size if repeat(leaf) else 1, *jnp.shape(leaf)))

    return jax.tree.map(one, tree, batched)


def _forward(program: Program, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
    @custom_vmap
    def run(operands):
        rank = operands.query.ndim - 3
        outs = layout(rank, None, None, None), layout(rank, None, None), layout(rank, None, None)
        return _on_devices(_Stream(program), (operands,), outs)

    @run.def_vmap
    def rule(size, batched, operands):
        def one(name):  # query, key and value are indexed per example; anything else may be shared
            repeat = name != "pieces"
            return _with_batch_axis(getattr(operands, name), getattr(batched[0], name), size, repeat=lambda _: repeat)

        operands = Operands(**{name: one(name) for name in Operands._fields})
        return _forward(program.batched(), operands), (True, True, True)

    return run(operands)


def _backward(program: Program, operands: Operands, results: tuple, cotangents: tuple) -> tuple:
    @custom_vmap
    def run(operands, results, cotangents):
        floats = [leaf for leaf in operands.pieces if is_float(leaf)]
        outs = _batch_first((operands.query, operands.key, operands.value, floats), operands.query.ndim - 3)
        return _on_devices(_Gradients(program), (operands, results, cotangents), outs)

    @run.def_vmap
    def rule(size, batched, *arrays):
        # vmap returns per-example gradients, so broadcast differentiable operands.
        arrays = (
            _with_batch_axis(tree, has_axis, size, repeat=is_float)
            for tree, has_axis in zip(arrays, batched, strict=True)
        )
        grads = _backward(program.batched(), *arrays)
        return grads, jax.tree.map(lambda _: True, grads)

    return first_order_only(run)(operands, results, cotangents)


@functools.partial(jax.jit, static_argnums=0)  # otherwise every call outside of `jit` would compile its loops again
def _differentiable(program: Program, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
    floating = [is_float(leaf) for leaf in operands.pieces]

    def joined(floats, others):
        floats, others = iter(floats), iter(others)
        return tuple(next(floats) if one else next(others) for one in floating)

    @jax.custom_vjp
    def run(query, key, value, floats, others):
        return _forward(program, Operands(query, key, value, joined(floats, others)))

    def run_forward(*arguments):
        results = run(*arguments)
        return results, (arguments, results)

    def run_backward(saved, cotangents):
        (query, key, value, floats, others), results = saved
        operands = Operands(query, key, value, joined(floats, others))
        return *_backward(program, operands, results, cotangents[:2]), None

    run.defvjp(run_forward, run_backward)
    floats = [leaf for leaf, one in zip(operands.pieces, floating, strict=True) if one]
    others = [leaf for leaf, one in zip(operands.pieces, floating, strict=True) if not one]
    arguments = (operands.query, operands.key, operands.value, floats, others)
    # Inside of `shard_map` replicated arrays meet sharded ones. Mark all as varying; JAX then sums their gradients.
    return run(*vary(arguments, varying_axes(arguments)))
