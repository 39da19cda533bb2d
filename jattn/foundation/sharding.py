"""Arrays on a mesh of devices: which axes are split, and how to run a function on each device's shards.

A mesh axis has one of three types, and a function with a loop in it must treat each differently:

- *Explicit* (the default of `jax.make_mesh`): the sharding is part of an array's type, `jax.typeof(x).sharding`, and
  slicing along a split axis is an error. `run_split` therefore runs the function inside `jax.shard_map`, over exactly
  the mesh axes that the arrays' batch and head axes are split over.
- *Auto*: only the mesh is visible, not the sharding. XLA keeps an axis split as long as nothing slices it. A loop
  therefore writes the axis as (major, minor), with `major_size` as the major part, and slices only the minor part.
- *Manual* (inside `jax.shard_map`): an array is one device's shard. Nothing needs to be done.

An array's *layout* names its axes in order. An axis that may stay split has a name shared by all arrays of the call
(here the number of a batch axis, or "head"). An axis that must be whole is None, or `Whole(name)` if the result should
be split along it as the array was.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from .arrays import Known

AnyMesh = Mesh | AbstractMesh


class Layout(tuple):
    """The names of an array's axes, None for one that must be whole. A leaf of a pytree, like the array."""


def layout(batch_axes: int, *axes: Hashable | None) -> Layout:
    """The layout of an array `[batch..., *axes]`.

    Batch axes are numbered from the last, -1, so that arrays may have fewer of them.

    >>> layout(2, None, "head", None)
    (-2, -1, None, 'head', None)
    """
    return Layout((*range(-batch_axes, 0), *axes))


def mesh_axes(*names: Any) -> tuple[str, ...]:
    """All mesh axes in a mix of names, tuples of names and None."""
    axes: list[str] = []
    for name in names:
        axes.extend(mesh_axes(*name) if isinstance(name, tuple) else [] if name is None else [name])
    return tuple(axes)


def mesh_of(*trees: Any) -> AbstractMesh:
    """The mesh in the type of the arrays, else that of the context (`jax.set_mesh`), which may be empty."""
    meshes = (jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(trees) if isinstance(leaf, jax.Array))
    return next((mesh for mesh in meshes if not mesh.empty), jax.sharding.get_abstract_mesh())


def spec_of(array: Any) -> tuple[Any, ...]:
    """What each axis of an array is split over, according to its type (Explicit axes)."""
    spec = tuple(jax.typeof(array).sharding.spec) if isinstance(array, jax.Array) else ()
    return spec + (None,) * (np.ndim(array) - len(spec))


def auto_devices(*trees: Any) -> int:
    """The number of devices that XLA may have split the arrays over, along Auto mesh axes; 1 without such axes."""
    mesh = mesh_of(*trees)
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return math.prod(mesh.shape[name] for name, kind in kinds if kind == AxisType.Auto)


def major_size(size: int, devices: int) -> int:
    """The part of an axis of this size that a loop must not slice, so that XLA can keep it split over `auto_devices`.

    Which mesh axes it is split over is unknown. The result is a multiple of the number of parts, whichever they are.
    """
    return math.gcd(size, devices) if isinstance(size, int) else 1  # a symbolic size, in `jax.export`


class Whole(str):
    """The name of an axis that is gathered for a function and split again in its result."""


@dataclasses.dataclass(frozen=True)
class Split:
    """The Explicit mesh axes that each named axis of a call is split over."""

    mesh: AbstractMesh
    axes: tuple[tuple[Hashable, tuple[str, ...]], ...]

    @property
    def kept(self) -> tuple[str, ...]:
        """The mesh axes that the function runs over."""
        return tuple(dict.fromkeys(mesh_axes(*(over for name, over in self.axes if not isinstance(name, Whole)))))

    @property
    def explicit(self) -> tuple[str, ...]:
        """All Explicit mesh axes, whether anything is split over them or not, without those that `vmap` has taken."""
        kinds = zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
        others = [name for name, kind in kinds if kind == AxisType.Explicit and name not in self.kept]
        return (*self.kept, *(name for name in others if self._may_be_manual(name)))

    def _may_be_manual(self, name: str) -> bool:
        mesh = self.mesh if jax.sharding.get_abstract_mesh().empty else None
        probe = jax.shard_map(lambda: 0, mesh=mesh, in_specs=(), out_specs=PartitionSpec(), axis_names={name})
        try:
            jax.eval_shape(probe)
        except ValueError:  # JAX does not tell otherwise that a `vmap` around this maps over the axis
            return False
        return True

    def over(self, name: Hashable) -> tuple[str, ...]:
        """The mesh axes that a named axis is split over."""
        return dict(self.axes).get(name, ())

    def parts(self, name: Hashable) -> int:
        """The number of parts that a named axis is split into."""
        return math.prod(self.mesh.shape[axis] for axis in self.over(name))

    def spec(self, names: Layout, shape: tuple[int, ...], *, gathered: bool = True) -> PartitionSpec:
        """The spec of an array, as an input of the function or (not `gathered`) as a result.

        An axis that the devices do not divide, such as one of size 1, is whole.
        """

        spec: list[Any] = []
        for name, size in zip(names, shape, strict=True):
            axes = self.over(name)
            whole = not axes or size % self.parts(name) or (gathered and isinstance(name, Whole))
            taken = set(axes) & set(mesh_axes(*spec))
            spec.append(None if whole or taken else axes if len(axes) > 1 else "".join(axes))
        return PartitionSpec(*spec)


def split_of(arrays: Any, layouts: Any) -> Split | None:
    """How the arrays of a call are split, or None without Explicit axes.

    The first array that is split along a named axis decides for that name.

    Args:
        arrays: a tree of arrays, in order of precedence.
        layouts: a tree with a `Layout` for each of them.
    """
    leaves = jax.tree.leaves(arrays)
    mesh = mesh_of(leaves)
    if AxisType.Explicit not in mesh.axis_types:
        return None
    given = [
        item
        for leaf, names in zip(leaves, _layouts(layouts), strict=True)
        for item in zip(names, spec_of(leaf), strict=True)
    ]
    found: dict[Hashable, tuple[str, ...]] = {}
    kept: set[str] = set()
    for name, over in sorted(given, key=lambda item: isinstance(item[0], Whole)):  # gathered axes come last
        axes = mesh_axes(over)
        if name is not None and axes and name not in found and not set(axes) & kept:
            found[name] = axes
            kept |= set() if isinstance(name, Whole) else set(axes)
    return Split(mesh, tuple(found.items()))


def _layouts(layouts: Any) -> list[Layout]:
    return [names for names in jax.tree.leaves(layouts, is_leaf=lambda node: isinstance(node, Layout))]


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
        for leaf, names in zip(jax.tree.leaves(arrays), _layouts(layouts), strict=True)
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


def reshard(array: Any, mesh: AnyMesh, spec: PartitionSpec) -> Any:
    """The array, resharded to `spec` on a mesh with Explicit axes."""
    here = jax.typeof(array).sharding if isinstance(array, jax.Array) else None
    if here is not None and here.mesh == mesh and tuple(here.spec) == tuple(spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


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


def summed_einsum(equation: str, *arrays: Any, **options: Any) -> jax.Array:
    """`jnp.einsum` over axes that may be split over Explicit axes, where JAX requires an output sharding.

    Each axis of the result is split as in the first array that has it.

    >>> summed_einsum("...qhd,hdf->...qf", jnp.ones((2, 3, 4, 5)), jnp.ones((4, 5, 6))).shape
    (2, 3, 6)
    """
    mesh = mesh_of(*arrays)
    if AxisType.Explicit not in mesh.axis_types:
        return jnp.einsum(equation, *arrays, **options)
    placed = _mesh_of_devices(*arrays) or mesh
    arrays = tuple(_on_mesh(array, placed) for array in arrays)
    inputs, result = equation.replace(" ", "").split("->")
    found: dict[Any, Any] = {}
    for names, array in zip(inputs.split(","), arrays, strict=True):
        letters = names.replace("...", "")
        lead = np.ndim(array) - len(letters) if "..." in names else 0
        for name, over in zip([*range(-lead, 0), *letters], spec_of(array), strict=True):
            found[name] = found.get(name) or over
    lead = [name for name in found if isinstance(name, int)] if "..." in result else []
    order = [*sorted(lead), *result.replace("...", "")]
    if not any(over for name, over in found.items() if name not in order):
        return jnp.einsum(equation, *arrays, **options)
    taken: set[str] = set()
    spec = []
    for name in order:
        axes = set(mesh_axes(found[name]))
        spec.append(None if axes & taken else found[name])
        taken |= axes
    return jnp.einsum(equation, *arrays, out_sharding=NamedSharding(mesh, PartitionSpec(*spec)), **options)


def _mesh_of_devices(*arrays: Any) -> Mesh | None:
    """The mesh of concrete arrays, outside `jit`: there JAX needs a mesh of devices, not of names alone."""
    given = (array.sharding for array in arrays if isinstance(array, jax.Array) and not isinstance(array, Tracer))
    return next((one.mesh for one in given if isinstance(one, NamedSharding) and isinstance(one.mesh, Mesh)), None)


def _on_mesh(array: Any, mesh: AnyMesh) -> jax.Array:
    """Replicate an array that is not on a mesh yet (a parameter, a constant) over all devices of this one."""
    if isinstance(array, jax.Array) and not jax.typeof(array).sharding.mesh.empty:
        return array
    if isinstance(mesh, Mesh):
        return jax.device_put(array, NamedSharding(mesh, PartitionSpec()))
    return reshard(array, mesh, PartitionSpec())


@contextlib.contextmanager
def mesh_context(array: Any) -> Iterator[None]:
    """Outside of `jit`, the mesh of an array with Explicit axes as that of the context, without which JAX cannot
    move other arrays to it, nor JAX 0.10 run some functions of split arrays."""
    mesh = _mesh_of_devices(array)
    with contextlib.ExitStack() as stack:
        if mesh is not None and AxisType.Explicit in mesh.axis_types and jax.sharding.get_abstract_mesh().empty:
            with contextlib.suppress(ValueError):  # inside of `jit` (and `grad`) JAX refuses, for a constant array
                stack.enter_context(jax.set_mesh(mesh))
        yield


def gather(array: jax.Array, axis: int) -> jax.Array:
    """The array with this axis whole on every device, if it was split over Explicit axes."""
    spec = list(spec_of(array))
    if not spec or spec[axis] is None:
        return array
    spec[axis] = None
    return reshard(array, mesh_of(array), PartitionSpec(*spec))


def split_like(array: jax.Array, other: jax.Array) -> jax.Array:
    """The array with its axes split over the Explicit axes of `other`, where the number of devices divides them."""
    mesh = mesh_of(other)
    if AxisType.Explicit not in mesh.axis_types:
        return array
    names = Layout(range(array.ndim))
    split = Split(mesh, tuple((axis, mesh_axes(over)) for axis, over in enumerate(spec_of(other))))
    return reshard(array, mesh, split.spec(names, array.shape))
