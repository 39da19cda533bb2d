"""What JAX's transformations make of the tile loops: the backward pass, and vmap as one more batch axis."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap

from .....foundation.sharding import layout, run_split, split_of
from .....foundation.varying import vary, varying_axes
from ...plan import Plan
from ...reverse_mode import first_order_only
from . import backward, forward
from .tile import Lists, Pieces
from .tiling import Tiling, with_ragged_partial


class Operands(NamedTuple):
    """Every array of a call. All but query, key and value are aligned, so that a batch axis is axis 0 of each."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    pieces: Pieces
    states: Any  # the plan's, if it is traced


@dataclasses.dataclass(frozen=True, eq=False)
class Program:
    """The static part of a call: what to loop over, and the plan if it is known. Equal programs share a compilation."""

    tiling: Tiling
    scale: float
    plan: Plan

    @functools.cached_property
    def _identity(self) -> tuple:
        states = self.plan.states
        known = None if states is None else (states.shape, states.tobytes())
        return self.tiling, self.scale, self.plan.q_tile, self.plan.k_tile, known

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Program) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    def lists(self, states: Any) -> Lists:
        """The plan of each block, as lists."""
        plan = self.plan if states is None else dataclasses.replace(self.plan, states=states)
        states = self.tiling.fold.aligned(with_ragged_partial(plan.states, self.tiling))
        lists = dataclasses.replace(plan, states=states).coarse(self.tiling.whole, self.tiling.q_heads).lists("query")
        backend = np if isinstance(lists.order, np.ndarray) else jnp
        bounds = backend.stack([lists.start, lists.full_stop, lists.stop], -1)
        return Lists(jnp.asarray(lists.order), jnp.asarray(bounds))

    def wider(self, states: Any) -> "Program":
        """The program of the forward pass."""
        return dataclasses.replace(self, tiling=self.tiling.wider(self.plan.states if states is None else states))

    def on(self, query: jax.Array) -> "Program":
        """The program for a part of the batch."""
        return self._with_batch(query.shape[:-3])

    def _with_batch(self, batch: tuple[int, ...]) -> "Program":
        fold = dataclasses.replace(self.tiling.fold, batch=batch)
        return dataclasses.replace(self, tiling=dataclasses.replace(self.tiling, fold=fold))

    def batched(self, size: int) -> "Program":
        """The program with one more batch axis in front."""
        states = self.plan.states
        plan = dataclasses.replace(self.plan, states=states[None]) if isinstance(states, np.ndarray) else self.plan
        return dataclasses.replace(self, plan=plan)._with_batch((size, *self.tiling.fold.batch))


def _with_batch_axis(tree: Any, batched: Any, size: int, *, repeat: Callable[[Any], bool]) -> Any:
    """Give every leaf a leading axis: repeated where the loops index it per element or sum its gradient, else 1."""

    def one(leaf, has_axis):
        if has_axis:
            return leaf
        return jnp.broadcast_to(leaf, (size if repeat(leaf) else 1, *jnp.shape(leaf)))

    return jax.tree.map(one, tree, batched)


@dataclasses.dataclass(frozen=True)
class _ForwardPass:
    """The loops of the forward pass over local arrays."""

    program: Program

    def __call__(self, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
        program = self.program.on(operands.query).wider(operands.states)
        lists, fold = program.lists(operands.states), program.tiling.fold
        query, key, value = map(fold.rows, operands[:3])
        pieces = jax.tree.map(fold.aligned, operands.pieces)
        out, lse, remainder = forward.attend(query, key, value, pieces, lists, program.tiling, program.scale)
        return fold.unfolded_rows(out), fold.unfolded_rows(lse), fold.unfolded_rows(remainder)


@dataclasses.dataclass(frozen=True)
class _BackwardPass:
    """The loops of the backward pass over local arrays."""

    program: Program

    def __call__(self, operands: Operands, results: tuple) -> tuple:
        program = self.program.on(operands.query)
        lists, fold = program.lists(operands.states), program.tiling.fold
        query, key, value, *saved = map(fold.rows, (*operands[:3], *results))
        pieces = jax.tree.map(
            lambda leaf: (fold.apart if backward.is_float(leaf) else fold.aligned)(leaf), operands.pieces
        )
        *grads, d_floats = backward.gradients(query, key, value, pieces, lists, program.tiling, program.scale, *saved)
        floats, _ = backward.split(operands.pieces)
        d_floats = [fold.together(grad, leaf) for grad, leaf in zip(d_floats, floats, strict=True)]
        return *map(fold.unfolded_rows, grads), d_floats


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


def _forward(program: Program, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
    @custom_vmap
    def run(operands):
        rank = len(program.tiling.fold.batch)
        outs = layout(rank, None, None, None), layout(rank, None, None), layout(rank, None, None)
        return _on_devices(_ForwardPass(program), (operands,), outs)

    @run.def_vmap
    def rule(size, batched, operands):
        def one(name):  # the loops index query, key and value per example; anything else may be shared
            repeat = name in ("query", "key", "value")
            return _with_batch_axis(getattr(operands, name), getattr(batched[0], name), size, repeat=lambda _: repeat)

        operands = Operands(**{name: one(name) for name in Operands._fields})
        return _forward(program.batched(size), operands), (True, True, True)

    return run(operands)


def _backward(program: Program, operands: Operands, results: tuple) -> tuple:
    @custom_vmap
    def run(operands, results):
        floats, _ = backward.split(operands.pieces)
        outs = _batch_first((operands.query, operands.key, operands.value, floats), operands.query.ndim - 3)
        return _on_devices(_BackwardPass(program), (operands, results), outs)

    @run.def_vmap
    def rule(size, batched, operands, results):
        # Gradients are asked for per example, so what is differentiated is repeated too.
        operands = _with_batch_axis(operands, batched[0], size, repeat=backward.is_float)
        results = _with_batch_axis(results, batched[1], size, repeat=backward.is_float)
        grads = _backward(program.batched(size), operands, results)
        return grads, jax.tree.map(lambda _: True, grads)

    return first_order_only(run)(operands, results)


@functools.partial(jax.jit, static_argnums=0)  # or every call outside of `jit` would compile its loops again
def differentiable(program: Program, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The streamed sum, its log mass and the remainder of that, with the recomputing backward pass."""
    leaves, tree = jax.tree.flatten(operands.pieces)
    floating = [backward.is_float(leaf) for leaf in leaves]

    def pieces_of(floats, others):
        floats, others = iter(floats), iter(others)
        return jax.tree.unflatten(tree, [next(floats) if one else next(others) for one in floating])

    @jax.custom_vjp
    def run(query, key, value, floats, others, states):
        return _forward(program, Operands(query, key, value, pieces_of(floats, others), states))

    def run_forward(*arguments):
        results = run(*arguments)
        return results, (arguments, results)

    def run_backward(saved, cotangents):
        (query, key, value, floats, others, states), results = saved
        operands = Operands(query, key, value, pieces_of(floats, others), states)
        return *_backward(program, operands, (*results, *cotangents[:2])), None, None

    run.defvjp(run_forward, run_backward)
    floats = [leaf for leaf, one in zip(leaves, floating, strict=True) if one]
    others = [leaf for leaf, one in zip(leaves, floating, strict=True) if not one]
    arguments = (operands.query, operands.key, operands.value, floats, others, operands.states)
    # Inside `shard_map` a shared array meets sharded ones: made alike here, JAX sums its gradient over the mesh.
    return run(*vary(arguments, varying_axes(arguments)))
