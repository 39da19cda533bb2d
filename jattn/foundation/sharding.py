"""Arrays on a mesh of devices: which axes are split, and over which mesh axes values vary.

A mesh axis has one of three types, and a function with a loop in it must treat each differently:

- *Explicit* (the default of `jax.make_mesh`): the sharding is part of an array's type, `jax.typeof(x).sharding`, and
  slicing along a split axis is an error. `shard_map.run_split` therefore runs the function inside `jax.shard_map`,
  over exactly the mesh axes that the arrays' batch and head axes are split over.
- *Auto*: only the mesh is visible, not the sharding. XLA keeps an axis split as long as nothing slices it. A loop
  therefore writes the axis as (major, minor), with `major_size` as the major part, and slices only the minor part.
- *Manual* (inside `jax.shard_map`): an array is one device's shard. Nothing needs to be done.

An array's *layout* names its axes in order. An axis that may stay split has a name shared by all arrays of the call
(here the number of a batch axis, or "head"). An axis that must be whole is None, or `Whole(name)` if the result should
be split along it as the array was.
"""

import contextlib
import dataclasses
import math
from collections.abc import Hashable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

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
        for leaf, names in zip(leaves, layouts_of(layouts), strict=True)
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


def layouts_of(layouts: Any) -> list[Layout]:
    """The layouts in a tree of them."""
    return [names for names in jax.tree.leaves(layouts, is_leaf=lambda node: isinstance(node, Layout))]


def reshard(array: Any, mesh: AnyMesh, spec: PartitionSpec) -> Any:
    """The array, resharded to `spec` on a mesh with Explicit axes. XLA takes care of its other axes."""
    explicit = {name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind == AxisType.Explicit}
    named = ([name for name in mesh_axes(over) if name in explicit] for over in spec)
    spec = PartitionSpec(*(None if not names else names[0] if len(names) == 1 else tuple(names) for names in named))
    here = jax.typeof(array).sharding if isinstance(array, jax.Array) else None
    if here is not None and here.mesh == mesh and tuple(here.spec) == tuple(spec):
        return array
    return jax.sharding.reshard(array, NamedSharding(mesh, spec))


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
def mesh_context(array: Any, mesh: AnyMesh | None = None) -> Iterator[None]:
    """Outside of `jit`, the mesh of an array with Explicit axes, or else `mesh`, as that of the context, without which
    JAX cannot move other arrays to it, nor JAX 0.10 run some functions of split arrays."""
    mesh = _mesh_of_devices(array) or (mesh if isinstance(mesh, Mesh) else None)
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


# --- inside of `jax.shard_map` ---


def varying_axes(*trees: Any) -> tuple[str, ...]:
    """The mesh axes over which any of the arrays varies between devices. None outside of `shard_map`."""
    axes: set[str] = set()
    for leaf in jax.tree.leaves(trees):
        kind = jax.typeof(leaf)
        manual = getattr(kind, "manual_axis_type", None)  # older JAX has only `vma`
        axes |= set(manual.varying if manual is not None else getattr(kind, "vma", ()))
    return tuple(sorted(axes))


def vary(tree: Any, axes: tuple[str, ...]) -> Any:
    """The same values, marked as varying over `axes` too. JAX then sums their gradients over these axes."""

    def one(leaf: Any) -> Any:
        missing = tuple(axis for axis in axes if axis not in varying_axes(leaf))
        return jax.lax.pcast(jnp.asarray(leaf), missing, to="varying") if missing else leaf

    return jax.tree.map(one, tree)


def full(shape: tuple[int, ...], value: float, dtype: Any, axes: tuple[str, ...]) -> jax.Array:
    """A constant initial value for a loop, varying over `axes` like the loop's result."""
    return vary(jnp.full(shape, value, dtype), axes)


def varying_shape(sizes: tuple[int, ...], dtype: Any, axes: tuple[str, ...]) -> jax.ShapeDtypeStruct:
    """The shape of a kernel's output that varies over `axes`; inside of `shard_map` a kernel must say so."""
    if not jax.sharding.get_abstract_mesh().manual_axes:
        return jax.ShapeDtypeStruct(sizes, dtype)
    like = jax.typeof(vary(jnp.zeros((), dtype), axes))
    manual = getattr(like, "manual_axis_type", None)
    varying = {"vma": like.vma} if manual is None else {"manual_axis_type": manual}
    return jax.ShapeDtypeStruct(sizes, dtype, **varying)


def split_axes(*trees: Any) -> tuple[str, ...]:
    """The mesh axes over which the arrays may be split inside of a `shard_map`, so that each device holds a part.

    With `check_vma=False` JAX does not track this; then all manual axes.
    """
    axes = varying_axes(*trees)
    manual = tuple(sorted(jax.sharding.get_abstract_mesh().manual_axes))
    if axes or not manual or varying_axes(jax.lax.axis_index(manual[0])):
        return axes
    return manual


def without_mesh() -> Any:
    """A context in which functions of scalars are traced without a mesh, so that the program can run under any mesh."""
    return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), ()))
