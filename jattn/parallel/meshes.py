"""The mesh that a strategy names axes of."""

import jax

from ..foundation.sharding import AnyMesh


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
