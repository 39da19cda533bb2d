"""Arrays inside `jax.shard_map`: the mesh axes over which they vary."""

from typing import Any

import jax
import jax.numpy as jnp


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
