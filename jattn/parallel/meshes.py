"""Checks of a mesh and the names of its axes."""

from typing import Any

import jax

from ..foundation.arrays import describe
from ..foundation.sharding import AnyMesh


def current_mesh(mesh: AnyMesh | None) -> AnyMesh:
    """Return `mesh`, or by default the mesh set by `jax.set_mesh`.

    Raises:
        ValueError: there is neither.
    """
    if mesh is not None:
        return mesh
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        raise ValueError("`mesh` must be given, or set with `with jax.set_mesh(mesh):`; got None and no mesh is set.")
    return mesh


def check_mesh_axes(mesh: AnyMesh, axes: tuple[str, ...]) -> None:
    """Check that each axis exists and is used at most once.

    Raises:
        ValueError: an axis does not exist or is repeated.
    """
    for axis in axes:
        if axis not in mesh.shape:
            raise ValueError(f"`mesh` must have an axis {axis!r}; its axes are {tuple(mesh.axis_names)}.")
    if len(set(axes)) != len(axes):
        raise ValueError(f"`head` and `batch` must name different mesh axes; got {axes}.")


def check_mesh(mesh: Any) -> None:
    """Check that `mesh` is a mesh or None.

    Raises:
        ValueError: it is something else, such as the name of an axis.
    """
    if mesh is not None and not isinstance(mesh, AnyMesh):
        raise ValueError(
            f"`mesh` must be a `jax.sharding.Mesh`, such as `jax.make_mesh((8,), ('model',))`; got {describe(mesh)}."
        )


def check_batch_axes(batch: Any) -> None:
    """Check `batch`: the name of one mesh axis, or for each batch axis a name, a tuple of names, or None.

    Raises:
        ValueError: it is something else.
    """

    def is_one(axis: Any) -> bool:
        several = isinstance(axis, tuple) and all(isinstance(name, str) for name in axis)
        return axis is None or isinstance(axis, str) or several

    if not (isinstance(batch, str) or (isinstance(batch, tuple | list) and all(is_one(axis) for axis in batch))):
        raise ValueError(
            "`batch` must be the name of a mesh axis, or a tuple with a name (or None) for each batch axis; `()` "
            f"splits none. Got {describe(batch)}."
        )
