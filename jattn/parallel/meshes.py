"""Checks of a mesh and the names of its axes."""

from typing import Any

import jax
from jax.sharding import AxisType

from ..foundation.arrays import describe
from ..foundation.sharding import AnyMesh


def current_mesh(mesh: AnyMesh | None) -> AnyMesh:
    """Return `mesh`, or by default the mesh set by `jax.set_mesh`.

    Inside of a `jax.shard_map` over some axes of `mesh`, it is the mesh there, on which these are Manual.

    Raises:
        ValueError: there is neither.
    """
    context = jax.sharding.get_abstract_mesh()
    if mesh is not None:
        return context if context.manual_axes and context.shape == mesh.shape else mesh
    mesh = context
    if mesh.empty:
        raise ValueError("`mesh` must be given, or set with `with jax.set_mesh(mesh):`; got None and no mesh is set.")
    return mesh


def check_mesh_axes(mesh: AnyMesh, axes: tuple[str, ...]) -> None:
    """Check that each axis exists, is used at most once, and can still be split.

    Raises:
        ValueError: an axis does not exist, is repeated, or is Manual.
    """
    kinds = dict(zip(mesh.axis_names, mesh.axis_types, strict=True))
    for axis in axes:
        if axis not in kinds:
            raise ValueError(f"`mesh` must have an axis {axis!r}; its axes are {tuple(mesh.axis_names)}.")
        if kinds[axis] == AxisType.Manual:
            raise ValueError(
                f"`axis` and `batch` must not name mesh axis {axis!r} inside of a `jax.shard_map` over it, where each "
                "device already holds its own part of the arrays; `jattn.attention` attends with this part."
            )
    if len(set(axes)) != len(axes):
        raise ValueError(f"`axis` and `batch` must name different mesh axes; got {axes}.")


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
    if not (isinstance(batch, str) or (isinstance(batch, tuple | list) and all(map(_is_over, batch)))):
        raise ValueError(
            "`batch` must be the name of a mesh axis, or a tuple with a name (or None) for each batch axis; `()` "
            f"splits none. Got {describe(batch)}."
        )


def check_names(**names: Any) -> None:
    """Check what axes are split over: each the name of a mesh axis, a tuple of names, or None.

    Raises:
        ValueError: one is something else.
    """
    for axis, over in names.items():
        if not _is_over(over):
            raise ValueError(
                f"`{axis}` must be the name of a mesh axis, a tuple of names, or None; got {describe(over)}."
            )


def _is_over(axis: Any) -> bool:
    several = isinstance(axis, tuple) and all(isinstance(name, str) for name in axis)
    return axis is None or isinstance(axis, str) or several
