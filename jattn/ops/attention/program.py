"""JAX's transformations of a streaming implementation: one derivative, `vmap`, meshes, and the target.

The static part of a call is its program; its arrays are operands. The two functions of an implementation, `stream` and
`gradients`, are never differentiated or batched themselves. They are wrapped, from the outside in, by

1. `jax.custom_vjp`: the gradient is `gradients`, given what `stream` returned;
2. `jax.custom_batching.custom_vmap`: `vmap` adds one more batch axis, the first of every array;
3. `run_split`: along axes that `vmap` mapped over Explicit mesh axes, each device runs its own part;
4. `by_target`: each platform that the program is lowered for has its own implementation and plan.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from ...foundation.arrays import Known
from ...foundation.shard_map import run_split
from ...foundation.sharding import layout, split_of, vary, varying_axes
from ...foundation.target import Target, by_target
from ..dispatch import Operation, Unsupported
from .call import Call
from .partial import Partial
from .tile import is_float


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
        name: of the implementation, or of the one for the expected target.
    """

    implementation: Any
    structure: Any
    known: tuple[Known | jax.ShapeDtypeStruct, ...]
    plan: Any
    axes: int = 0
    plans: dict[Target, Any] = dataclasses.field(default_factory=dict, compare=False, repr=False)
    name: str = dataclasses.field(default="", compare=False)

    @classmethod
    def of(cls, implementation: Any, call: Call) -> "Program":
        """The program of a call, whose arrays become its operands."""
        leaves, structure = jax.tree.flatten(call)
        if call.target is not None:
            one = _chosen(implementation, call)
            return cls(one, structure, (), one.plan(call), name=one.name)
        # Each target has its own plan, which depends on the mask and the positions; kernels also ask whether positions
        # are consecutive.
        pieces = call.pieces
        deciding = pieces.mask, pieces.query_positions, pieces.key_positions
        values = {id(leaf) for leaf in jax.tree.leaves(deciding) if isinstance(leaf, np.ndarray)}
        known = tuple(
            Known(leaf) if id(leaf) in values else jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
            for leaf in leaves
        )
        chosen = implementation.choose(call) if isinstance(implementation, Operation) else implementation
        return cls(implementation, structure, known, None, name=chosen.name)

    def batched(self) -> "Program":
        """The program with one more leading batch axis."""
        return dataclasses.replace(self, axes=self.axes + 1)

    def of_target(self, target: Target, operands: Operands) -> tuple[Any, Call]:
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
        call = dataclasses.replace(self.structure.unflatten(leaves), batch=operands.query.shape[:-3])
        return implementation, dataclasses.replace(call, target=target, plan=plan)


def _chosen(implementation: Any, call: Call) -> Any:
    if not isinstance(implementation, Operation):
        reason = implementation.refuses(call)  # now that the target is known
        if reason is not None:
            raise Unsupported(f"implementation `{implementation.name}` refuses this call: {reason}.")
        return implementation
    chosen = implementation.choose(call, None, call.target)
    if not chosen.reverse_mode_only:
        raise Unsupported(
            f"for {call.target} this call runs by `{chosen.name}`, elsewhere by an implementation that streams, and "
            f"one program has both. Name one: `implementation={chosen.name!r}`."
        )
    return chosen


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

    All other split axes were split before the call, which then sees only shards. No mesh axis stays Explicit: a kernel
    for a TPU must not be left to XLA along any.
    """
    rank = arrays[0].query.ndim - 3
    layouts = _batch_first(arrays, rank)
    split = split_of(arrays, layouts)
    if split is None:
        return function(*arrays)
    return run_split(function, arrays, layouts, outs, split, axes=split.explicit)


def _batch_first(tree: Any, rank: int) -> Any:
    """Layouts of arrays that all start with the batch axes."""
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

    return first_order_only(run, program.name)(operands, results, cotangents)


differentiated = jax.jit(_backward, static_argnums=0)


@functools.partial(jax.jit, static_argnums=0)  # otherwise every call outside of `jit` would compile its loops again
def differentiable(program: Program, operands: Operands) -> tuple[jax.Array, jax.Array, jax.Array]:
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


# One derivative, in reverse mode; every other one raises a clear error. JAX implements reverse mode by tracing the
# tangents of forward mode and transposing them; they are only computed if forward mode was requested. So the tangent
# of `reverse_mode_only` is a primitive that can be transposed, but refuses to be computed or batched.

REMEDY = "Use `implementation='reference'`, which has derivatives of any order in both modes."


def _refuse(*unused: Any, name: str) -> NoReturn:
    del unused
    raise Unsupported(
        f"`{name}` has first derivatives in reverse mode only (`jax.grad`, `jax.vjp`), and this is one in forward mode "
        f"(`jax.jvp`, `jax.jacfwd`, `jax.hessian`, `jax.linearize`). {REMEDY}"
    )


_tangent = Primitive("jattn_reverse_mode_tangent")
_tangent.def_impl(_refuse)
_tangent.def_abstract_eval(lambda tangent, name: tangent)
mlir.register_lowering(_tangent, _refuse)
ad.deflinear2(_tangent, lambda cotangent, _, name: [cotangent])
batching.primitive_batchers[_tangent] = _refuse


def _differentiate(primals: tuple, tangents: tuple, name: str) -> tuple[Any, Any]:
    (array,), (tangent,) = primals, tangents
    out = _array.bind(array, name=name)
    return out, tangent if isinstance(tangent, ad.Zero) else _tangent.bind(tangent, name=name)


_array = Primitive("jattn_reverse_mode")
_array.def_impl(lambda array, name: array)
_array.def_abstract_eval(lambda array, name: array)
mlir.register_lowering(_array, lambda context, array, name: [array])
ad.primitive_jvps[_array] = _differentiate
batching.defvectorized(_array)


def reverse_mode_only(array: jax.Array, name: str) -> jax.Array:
    """The array itself. Forward-mode derivatives of anything computed from it raise `Unsupported`.

    Args:
        array: floating-point.
        name: of the implementation, for the message.

    >>> import jax.numpy as jnp
    >>> float(jax.grad(lambda x: reverse_mode_only(x, "tiled") ** 2)(3.0))
    6.0
    """
    return _array.bind(array, name=name)


def first_order_only(function: Any, name: str) -> Any:
    """Wrap the backward pass of a function so that differentiating it again raises a clear error."""
    guarded = jax.custom_jvp(function)

    @guarded.defjvp
    def refuse(primals: Any, tangents: Any) -> NoReturn:
        del primals, tangents
        raise Unsupported(
            f"`{name}` has first derivatives in reverse mode only, and this is a derivative of its gradient. {REMEDY}"
        )

    return guarded
