"""Programs inside `jax.shard_map`: a function on each device's shards, and a jaxpr that was traced outside."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, Literal, Var
from jax.sharding import AxisType, Mesh, PartitionSpec

from .arrays import Known
from .sharding import AnyMesh, Split, layouts_of, mesh_axes, reshard, vary, varying_axes


def run_split(
    function: Callable[..., Any],
    arrays: tuple,
    layouts: tuple,
    out_layouts: Any,
    split: Split,
    *,
    axes: tuple[str, ...] | None = None,
    shared_vary: bool = True,
) -> Any:
    """`function(*arrays)` on each device's shards, as `split` says; other axes are gathered first.

    Differentiable, also under `vmap` over an axis that is itself split. The gradient of each array has the array's own
    sharding; gradients of arrays shared by several devices are summed over them.

    Args:
        function: takes local arrays. Outside `jit`, it is not recompiled if it compares equal to that of an earlier
            call (a module-level function, or a frozen dataclass with `__call__`).
        arrays: trees of arrays. NumPy arrays that are not split stay NumPy inside, hence known at trace time.
        layouts: trees with the `Layout` of each array.
        out_layouts: the layouts of the result.
        split: from `split_of`.
        axes: the mesh axes that are Manual inside; by default those that something is split over.
        shared_vary: as in `run_on_shards`.
    """
    specs = [
        split.spec(names, np.shape(leaf))
        for leaf, names in zip(jax.tree.leaves(arrays), layouts_of(layouts), strict=True)
    ]
    # The sizes of the result are not known yet: assume that they are divisible (0 is divisible by everything).
    out_specs = jax.tree.map(lambda names: split.spec(names, (0,) * len(names)), out_layouts)
    axes = split.kept if axes is None else axes
    out = run_on_shards(function, arrays, specs, out_specs, mesh=split.mesh, axes=axes, shared_vary=shared_vary)
    return jax.tree.map(
        lambda array, names: reshard(array, split.mesh, split.spec(names, array.shape, gathered=False)),
        out,
        out_layouts,
    )


def run_on_shards(
    function: Callable[..., Any],
    arrays: tuple,
    specs: Any,
    out_specs: Any,
    *,
    mesh: AnyMesh,
    axes: tuple[str, ...] | None = None,
    shared_vary: bool = True,
) -> Any:
    """`function(*arrays)` on each device with its shards: a `jax.shard_map` that leaves known arrays known.

    Inside, every array varies over all the mesh axes that any spec names (in JAX's types), so that the gradients of
    shared arrays are summed over the devices once, where the array enters.

    Args:
        function: takes local arrays.
        arrays: trees of arrays. NumPy arrays that are not split stay NumPy, so what is known at trace time (positions,
            a table of blocks) stays known, and so does the plan of tiles.
        specs: trees with a `PartitionSpec` for each array.
        out_specs: the specs of the result.
        mesh: the mesh whose axes are named.
        axes: the mesh axes that are Manual inside; by default all. The others keep their types.
        shared_vary: False if shared arrays must not vary, because a result that is shared is computed from them alone;
            their gradients are then summed at every use.
    """
    leaves, tree = jax.tree.flatten(arrays)
    specs = jax.tree.leaves(specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    if len(leaves) != len(specs):
        raise ValueError(f"`specs` must have a PartitionSpec for each array: {len(specs)} for {len(leaves)}.")
    known = [isinstance(leaf, np.ndarray) and not mesh_axes(*spec) for leaf, spec in zip(leaves, specs, strict=True)]
    moved = [leaf for leaf, stays in zip(leaves, known, strict=True) if not stays]
    kept = tuple(Known(leaf) if stays else None for leaf, stays in zip(leaves, known, strict=True))
    moved_specs = tuple(spec for spec, stays in zip(specs, known, strict=True) if not stays)
    out_leaves, out_tree = jax.tree.flatten(out_specs, is_leaf=lambda node: isinstance(node, PartitionSpec))
    shards = _Shards(function, tree, kept, moved_specs, tuple(out_leaves), out_tree, mesh, axes, shared_vary)
    if axes is None:
        return shards(*moved)
    # Inside a `jit`, because outside of one JAX 0.10 has no `shard_map` over part of the mesh.
    return _compiled(shards)(*moved)


@dataclasses.dataclass(frozen=True)
class _Shards:
    """The static part of `run_on_shards`; called with the arrays that are not known."""

    function: Callable[..., Any]
    tree: Any
    known: tuple[Known | None, ...]
    specs: tuple[PartitionSpec, ...]
    out_specs: tuple[PartitionSpec, ...]
    out_tree: Any
    mesh: AnyMesh
    axes: tuple[str, ...] | None
    shared_vary: bool

    def __call__(self, *arrays: Any) -> Any:
        placed = [self.placed(array, spec) for array, spec in zip(arrays, self.specs, strict=True)]
        context = jax.sharding.get_abstract_mesh()
        if self.axes == ():
            abstract = self.mesh.abstract_mesh if isinstance(self.mesh, Mesh) else self.mesh
            # Nothing is split: the arrays are whole, but their types name the mesh, so the function's own arrays must
            # name it too.
            with jax.sharding.use_abstract_mesh(abstract) if context.empty else contextlib.nullcontext():
                return self.local(*placed)
        out_specs = self.out_tree.unflatten(self.out_specs)
        mesh = self.mesh if self.axes is None or context.empty else None
        names = set() if self.axes is None else set(self.axes)  # the empty set means all axes
        run = jax.shard_map(self.entering, mesh=mesh, in_specs=self.specs, out_specs=out_specs, axis_names=names)
        return run(*placed)

    def placed(self, array: Any, spec: PartitionSpec) -> Any:
        """The array resharded to `spec`: Explicit axes require it to be explicit, other axes are resharded by XLA."""
        if AxisType.Explicit in self.mesh.axis_types:
            return reshard(array, self.mesh, spec)
        return array

    def entering(self, *arrays: Any) -> Any:
        used = dict.fromkeys(axis for spec in self.specs for axis in mesh_axes(*spec)) if self.shared_vary else ()
        return self.local(
            *(
                jax.lax.pcast(array, tuple(axis for axis in used if axis not in mesh_axes(*spec)), to="varying")
                for array, spec in zip(arrays, self.specs, strict=True)
            )
        )

    def local(self, *arrays: Any) -> Any:
        rest = iter(arrays)
        return self.function(*self.tree.unflatten([next(rest) if one is None else one.array for one in self.known]))


@functools.lru_cache(maxsize=128)
def _compiled(shards: _Shards) -> Callable[..., Any]:
    return jax.jit(shards)


# --- a jaxpr that was traced outside ---


def evaluate_varying(jaxpr: Jaxpr, constants: Sequence[Any], arguments: Sequence[Any]) -> list[Any]:
    """Evaluate a jaxpr on values inside `shard_map`.

    There, all operands of a primitive must vary over the same mesh axes. JAX's functions arrange this when they are
    traced inside; a jaxpr traced outside contains constants that vary over none, also in its branches and loops.
    Operands are therefore cast to vary over the axes that any of them varies over.
    """
    known: dict[Var, Any] = {}
    known.update(zip(jaxpr.constvars, constants, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, Literal) else known[atom]

    for equation in jaxpr.eqns:
        results = apply_varying(equation, [read(atom) for atom in equation.invars])
        known.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def apply_varying(equation: Any, values: Sequence[Any]) -> list[Any]:
    """The results of one equation of such a jaxpr, for the values of its inputs."""
    axes = varying_axes(values)
    typed = [
        jnp.asarray(value, jnp.result_type(atom.aval)) for value, atom in zip(values, equation.invars, strict=True)
    ]
    values = list(vary(typed, axes))
    rule = _RULES.get(equation.primitive.name)
    results = rule(equation, values, axes) if rule is not None and axes else None
    if results is not None:
        return list(results)
    parameters = equation.primitive.get_bind_params(equation.params)
    found = equation.primitive.bind(*values, **parameters)
    return list(found) if equation.primitive.multiple_results else [found]


def carries_alone(equation: Any) -> bool:
    """Whether a `scan` has only carries: no per-step inputs and no stacked outputs."""
    body = equation.params["jaxpr"].jaxpr
    inner = [variable.aval.shape for variable in (*body.invars, *body.outvars)]
    outer = [variable.aval.shape for variable in (*equation.invars, *equation.outvars)]
    return inner == outer  # a per-step slice has fewer axes than the array


def _within(closed: Any, axes: tuple[str, ...]) -> Callable[..., tuple[Any, ...]]:
    """A nested jaxpr as a function whose results vary over the axes."""
    return lambda *values: tuple(vary(evaluate_varying(closed.jaxpr, closed.consts, values), axes))


def _call(equation: Any, values: Sequence[Any], axes: tuple[str, ...]) -> Any:
    del axes
    inner = equation.params["jaxpr"]
    return evaluate_varying(inner.jaxpr, inner.consts, values)


def _cond(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    which, *operands = values
    return jax.lax.switch(which, [_within(branch, axes) for branch in equation.params["branches"]], *operands)


def _scan(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    if not carries_alone(equation):
        return None
    params = equation.params
    fixed = len(values) - len(equation.outvars)
    body = _within(params["jaxpr"], axes)

    def step(carry, _):
        return body(*values[:fixed], *carry), None

    return jax.lax.scan(step, tuple(values[fixed:]), None, length=params["length"])[0]


def _while(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    params = equation.params
    of_test, of_body = params["cond_nconsts"], params["body_nconsts"]
    for_test, for_body, start = values[:of_test], values[of_test : of_test + of_body], values[of_test + of_body :]
    test, body = _within(params["cond_jaxpr"], axes), _within(params["body_jaxpr"], axes)
    return jax.lax.while_loop(
        lambda carry: test(*for_test, *carry)[0], lambda carry: body(*for_body, *carry), tuple(start)
    )


def _own(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    """A primitive that JAX itself defines in terms of others."""
    del axes
    expand = getattr(equation.params.get("_prim"), "expand", None)
    return None if expand is None else jax.tree.leaves(expand(*values))


# Functions with their own derivative. Its rule was written for values that vary over no axes, so it is traced on such,
# and what it does is evaluated like the rest.


def _own_jvp(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    """A call of a `jax.custom_jvp` function, such as `jax.nn.relu`."""
    plain = _bound(equation)

    @jax.custom_jvp
    def run(*given: Any) -> list[Any]:
        return _floats(plain(*given))

    @run.defjvp
    def rule(given: tuple, tangents: tuple) -> tuple[list[Any], list[Any]]:
        def of_floats(given: Any, tangents: Any) -> tuple[list[Any], list[Any]]:
            return jax.jvp(lambda *given: _floats(plain(*given)), tuple(given), tuple(_filled(given, tangents)))

        found = vary(_traced(of_floats, list(given), _floats(tangents, given)), axes)
        return found[: len(found) // 2], found[len(found) // 2 :]

    return _with_floats(plain(*jax.lax.stop_gradient(values)), run(*values))


def _own_vjp(equation: Any, values: list[Any], axes: tuple[str, ...]) -> Any:
    """A call of a `jax.custom_vjp` function."""
    plain = _bound(equation)

    @jax.custom_vjp
    def run(*given: Any) -> list[Any]:
        return _floats(plain(*given))

    def forward(*given: Any) -> tuple[list[Any], tuple]:
        return run(*given), given

    def backward(given: tuple, cotangents: list[Any]) -> tuple:
        def of_floats(given: Any, cotangents: Any) -> list[Any]:
            _, pull = jax.vjp(lambda *given: _floats(plain(*given)), *given)
            return _floats(pull(cotangents), given)

        return tuple(_filled(given, vary(_traced(of_floats, list(given), cotangents), axes)))

    run.defvjp(forward, backward)
    return _with_floats(plain(*jax.lax.stop_gradient(values)), run(*values))


def _bound(equation: Any) -> Callable[..., list[Any]]:
    parameters = equation.primitive.get_bind_params(equation.params)
    return lambda *values: list(equation.primitive.bind(*values, **parameters))


def _traced(function: Callable[..., Any], *arguments: list[Any]) -> list[Any]:
    shapes = [[jax.ShapeDtypeStruct(np.shape(one), one.dtype) for one in part] for part in arguments]
    closed = jax.make_jaxpr(function)(*shapes)
    return evaluate_varying(closed.jaxpr, closed.consts, [one for part in arguments for one in part])


def _is_float(value: Any) -> bool:
    return bool(jnp.issubdtype(value.dtype, jnp.inexact))


def _floats(values: Sequence[Any], of: Sequence[Any] | None = None) -> list[Any]:
    """Those that are floating-point (or, `of` others, belong to such). Only they have tangents and cotangents."""
    return [one for one, kind in zip(values, values if of is None else of, strict=True) if _is_float(kind)]


def _with_floats(values: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
    """The values, with these in place of the floating-point ones."""
    rest = iter(floats)
    return [next(rest) if _is_float(one) else one for one in values]


def _filled(values: Sequence[Any], floats: Sequence[Any]) -> list[Any]:
    """Tangents or cotangents of all values, given those of the floating-point ones."""
    rest = iter(floats)
    return [next(rest) if _is_float(one) else np.zeros(np.shape(one), jax.dtypes.float0) for one in values]


_RULES = {
    "custom_jvp_call": _own_jvp,
    "custom_vjp_call": _own_vjp,
    "jit": _call,
    "pjit": _call,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
    "call_hi_primitive": _own,
}
