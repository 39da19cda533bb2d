"""Running a function on the shards of its arrays: `jax.shard_map` that keeps what is known known."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AnyMesh = Mesh | AbstractMesh


def current_mesh(mesh: AnyMesh | None) -> AnyMesh:
    """`mesh`, or the one of the context (`jax.set_mesh`).

    Raises:
        ValueError: neither.
    """
    if mesh is not None:
        return mesh
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError("`mesh` must be given, or set with `with jax.set_mesh(mesh):`; got None and no mesh is set.")
    return mesh


def mesh_axes(*names: Any) -> tuple[str, ...]:
    """The mesh axes that are named, from names, tuples of names and None."""
    axes: list[str] = []
    for name in names:
        axes.extend(mesh_axes(*name) if isinstance(name, tuple) else [] if name is None else [name])
    return tuple(axes)


def check_mesh_axes(mesh: AnyMesh, axes: tuple[str, ...]) -> None:
    """Every axis exists, and none is used twice.

    Raises:
        ValueError: otherwise.
    """
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(f"`mesh` must have an axis {axis!r}; its axes are {tuple(mesh.axis_names)}.")
    if len(set(axes)) != len(axes):
        raise ValueError(f"`head` and `batch` must name different mesh axes; got {axes}.")


def run_sharded(function: Callable[..., Any], operands: tuple, specs: tuple, out_specs: Any, *, mesh: AnyMesh) -> Any:
    """`function(*operands)`, on each device with its shards.

    Inside, every array varies over all the mesh axes that any spec names, so that the gradients of what is shared are
    summed over the devices once, where the array enters. NumPy arrays that are not split stay NumPy: what is known
    while tracing (positions, a table of blocks) stays known, and with it the plan of tiles.

    Args:
        function: of local arrays.
        operands: trees of arrays.
        specs: likewise trees, with a `PartitionSpec` for each array.
        out_specs: of the result.
        mesh: whose axes are named.
    """

    def is_spec(node: Any) -> bool:
        return isinstance(node, PartitionSpec)

    leaves, tree = jax.tree.flatten(operands)
    leaf_specs = jax.tree.leaves(specs, is_leaf=is_spec)
    if len(leaves) != len(leaf_specs):
        raise ValueError(f"`specs` must have a PartitionSpec for each array: {len(leaf_specs)} for {len(leaves)}.")
    known = [
        isinstance(leaf, np.ndarray) and not mesh_axes(*spec) for leaf, spec in zip(leaves, leaf_specs, strict=True)
    ]
    moved_specs = [spec for spec, stays in zip(leaf_specs, known, strict=True) if not stays]
    moved = [
        _placed(leaf, spec, mesh) for leaf, spec, stays in zip(leaves, leaf_specs, known, strict=True) if not stays
    ]
    used = dict.fromkeys(axis for spec in moved_specs for axis in mesh_axes(*spec))

    def local(*arrays: Any) -> Any:
        entering = iter(
            jax.lax.pcast(array, tuple(axis for axis in used if axis not in mesh_axes(*spec)), to="varying")
            for array, spec in zip(arrays, moved_specs, strict=True)
        )
        whole = [leaf if stays else next(entering) for leaf, stays in zip(leaves, known, strict=True)]
        return function(*tree.unflatten(whole))

    return jax.shard_map(local, mesh=mesh, in_specs=tuple(moved_specs), out_specs=out_specs)(*moved)


def _placed(array: Any, spec: PartitionSpec, mesh: AnyMesh) -> Any:
    """The array laid out as `spec`: a mesh with explicit axes wants that said, others do it on their own."""
    if any(kind == AxisType.Explicit for kind in mesh.axis_types):
        return jax.sharding.reshard(array, NamedSharding(mesh, spec))
    return array
