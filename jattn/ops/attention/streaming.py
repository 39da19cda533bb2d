"""What JAX's transformations make of an implementation that streams: its gradient, vmap, meshes, the target.

A streaming implementation gives two functions of plain arrays, `stream` and `gradients`; neither is differentiated or
batched itself. Everything around them is the same for all, and is here:

- `jax.grad` runs `gradients` with what `stream` returned (`jax.custom_vjp`). Any other derivative is an error that says
  so, rather than a wrong number.
- `jax.vmap` makes one more batch axis (`jax.custom_batching.custom_vmap`): every array of a call is aligned, so its new
  axis comes first.
- On Explicit mesh axes that `vmap` mapped over, each device runs its own part.
- The target is what the program is lowered for (`by_target`): each platform gets its own tiles, and perhaps its own
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

from ...foundation.known import Known
from ...foundation.numerics import accumulation_dtype
from ...foundation.sharding import layout, run_split, split_of
from ...foundation.target import Target, by_target
from ...foundation.varying import full, vary, varying_axes
from ..dispatch import Implementation, Operation, Unsupported
from .call import Call, Pieces
from .partial import Partial
from .reverse_mode import first_order_only, reverse_mode_only


class Streaming(Implementation):
    """An implementation of attention that keeps neither scores nor weights, and computes them again for its gradient.

    Subclass it with `stream`, `gradients`, `refuses` and `describe`. With s_ij the scores of the pairs that may attend:

        softmax normalizers:      p_ij = exp(s_ij - lse_i),    lse_i = log Σ_j exp(s_ij)
        elementwise normalizers:  p_ij = activation(s_ij),     lse_i = log(number of keys that i may attend to)

        stream:  out_i = Σ_j p_ij d_ij value_j          (d: what dropout multiplies a weight by, 1 without)

    `run` applies `Normalizer.rescale` to that. The forward pass never has a row of scores at once. It keeps the largest
    score so far m, the mass l = Σ exp(s - m) and the sum a = Σ exp(s - m) d value, and for each tile of keys, with
    scores s' and values v' (online softmax, Milakov & Gimelshein 2018, arXiv:1805.02867; Rabe & Staats 2021,
    arXiv:2112.05682):

        m' = max(m, max_j s'_j),    c = exp(m - m')
        l' = c l + Σ_j exp(s'_j - m'),    a' = c a + Σ_j exp(s'_j - m') d_j v'_j

    and in the end lse = m + log l, out = a / l. The backward pass is derived at `gradients`.
    """

    reverse_mode_only = True

    @abc.abstractmethod
    def stream(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        """The sum, its lse and the remainder, before `Normalizer.rescale`; in the dtype of accumulation.

        Args:
            call: its `target` is known, and it has at least one batch element, query and key. `call.batch` may have
                axes in front, of `jax.vmap`, on which arrays in pieces have size 1.
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
        """The gradients of what `stream` computes, over these keys, from the results over all keys. See `gradients`."""

    def plan(self, call: Call) -> Hashable | None:
        """What is known of the call while tracing, such as the tiles to visit; None if that is decided at run time.

        It comes back as `call.plan`. Programs with equal plans share a compilation, outside of `jit`. It must have a
        method `batched()`, the plan with one more batch axis, of size 1, in front.

        Args:
            call: arrays in its pieces that are not known are not NumPy arrays, and may be anything.
        """
        del call

    def run(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        return attend(self, call, query, key, value)


class Gradients(NamedTuple):
    """Of query, key, value, each in its dtype; and of every floating-point array in the pieces, None for the others."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: Pieces


def attend(
    implementation: Streaming | Operation, call: Call, query: jax.Array, key: jax.Array, value: jax.Array
) -> Partial:
    """The output, its lse and the remainder, by streaming; differentiable once, in reverse mode.

    Args:
        implementation: or an operation, whose first that accepts the call is taken for each target the program is
            lowered for.
        call: prepared, as query and key are.
        query, key, value: as of `Streaming.stream`.
    """
    if 0 in (*call.batch, call.q_len, call.kv_len):
        streamed = _empty(call, query, key, value)
    else:
        program = Program.of(implementation, call)
        # Behind this, any derivative but the first in reverse mode is an error that says so.
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
    """Every array of a call. All but query, key and value are aligned, so that a batch axis is axis 0 of each."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """The static part of a call. Equal programs share a compilation.

    Attributes:
        implementation: or the operation that chooses one for each target.
        structure: of the call as a tree.
        known: for each of its arrays its value, where that decides the plans of targets; else its shape. Empty if the
            target is known.
        plan: if the target is known.
        axes: how many batch axes `vmap` has added.
        plans: those found so far.
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
        # Each target has a plan of its own, made of the mask and the positions.
        pieces = call.pieces
        deciding = () if pieces.mask is None else (pieces.mask, pieces.query_positions, pieces.key_positions)
        values = {id(leaf) for leaf in jax.tree.leaves(deciding) if isinstance(leaf, np.ndarray)}
        known = tuple(
            Known(leaf) if id(leaf) in values else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
            for leaf in leaves
        )
        return cls(implementation, structure, known, None)

    def batched(self) -> "Program":
        """With one more batch axis in front."""
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
            if plan is None:  # what is known still makes the tiles that are found at run time fewer
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
    """Whether a gradient is due."""
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
    """`function(*arrays)`; on each device's part of the batch axes that `vmap` added over Explicit mesh axes.

    Every other axis that is split was so before the call: there, shards are all that is seen of it.
    """
    rank = arrays[0].query.ndim - 3
    layouts = _batch_first(arrays, rank)
    split = split_of(arrays, layouts)
    return function(*arrays) if split is None or not split.kept else run_split(function, arrays, layouts, outs, split)


def _batch_first(tree: Any, rank: int) -> Any:
    """The layouts of arrays that all have the batch axes in front."""
    return jax.tree.map(lambda leaf: layout(rank, *[None] * (jnp.ndim(leaf) - rank)), tree)


def _with_batch_axis(tree: Any, batched: Any, size: int, *, repeat: Callable[[Any], bool]) -> Any:
    """Give every leaf a leading axis: repeated where it is indexed per element or its gradient summed, else 1."""

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
        # Gradients are asked for per example, so what is differentiated is repeated too.
        arrays = (
            _with_batch_axis(tree, has_axis, size, repeat=is_float)
            for tree, has_axis in zip(arrays, batched, strict=True)
        )
        grads = _backward(program.batched(), *arrays)
        return grads, jax.tree.map(lambda _: True, grads)

    return first_order_only(run)(operands, results, cotangents)


@functools.partial(jax.jit, static_argnums=0)  # or every call outside of `jit` would compile its loops again
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
    # Inside `shard_map` a shared array meets sharded ones: made alike here, JAX sums its gradient over the mesh.
    return run(*vary(arguments, varying_axes(arguments)))
