"""Partition specs for every array of a call, derived from the axes that each array declares."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import PartitionSpec

from ..foundation.arrays import describe
from ..foundation.pieces import LAYOUT, Piece, map_fields
from .meshes import check_batch_axes, check_names

MeshAxis = str | tuple[str, ...] | None
"""What one array axis is split over: a mesh axis, several mesh axes, or None."""


def partition_spec(
    shape: tuple[int, ...],
    axes: tuple[str, ...],
    *,
    batch: Sequence[MeshAxis] | str = (),
    name: str = "array",
    **names: MeshAxis,
) -> PartitionSpec:
    """The spec of one array `[batch..., *axes]`.

    Axes that `names` does not mention, and axes of size 1 (shared by all), are not split. The array's batch axes are
    aligned with the last entries of `batch`, as in broadcasting.

    Args:
        shape: the shape of the array.
        axes: the names of its trailing axes.
        batch: for each batch axis of the call, the mesh axis that splits it.
        name: the name of the array, for error messages.
        names: the mesh axis of each named axis, such as `head="model"`.

    Raises:
        ValueError: the array has fewer axes than declared, or more batch axes than a nonempty `batch`; a mesh axis is
            not a name, a tuple of names or None; `names` has an axis that is none of `axes`, nor head, query or key.

    >>> partition_spec((4, 1, 16), ("head", "query"), batch=("data",), head="model", query="sequence")
    P('data', None, 'sequence')
    """
    check_batch_axes(batch)
    check_names(**names)
    known = tuple(dict.fromkeys((*axes, *LAYOUT)))
    unknown = sorted(names.keys() - set(known))
    if unknown:
        raise ValueError(f"`{name}` has no axis {unknown[0]!r} to split; its axes, and those of a call, are {known}.")
    batch = (batch,) if isinstance(batch, str) else tuple(batch)
    lead = len(shape) - len(axes)
    if lead < 0:
        raise ValueError(f"`{name}` must have the axes [batch..., {', '.join(axes)}]; got shape {shape}.")
    if batch and lead > len(batch):
        raise ValueError(
            f"`batch` must have a mesh axis (or None) for each batch axis: {batch} has {len(batch)}, and `{name}` of "
            f"shape {shape} has {lead} in front of [{', '.join(axes)}]."
        )
    wanted = (None,) * (lead - len(batch)) + batch[len(batch) - min(lead, len(batch)) :]
    wanted += tuple(names.get(axis) for axis in axes)
    return PartitionSpec(*(None if size == 1 else over for size, over in zip(shape, wanted, strict=True)))


def partition_specs(
    piece: Any,
    *,
    batch: Sequence[MeshAxis] | str = (),
    head: MeshAxis = None,
    query: MeshAxis = None,
    key: MeshAxis = None,
) -> Any:
    """A copy of a piece (or tuple of pieces, or None) with a `PartitionSpec` in place of each array.

    A field declared `array("head")` is split over the mesh axis `head`, and so on. A piece's own axes (the buckets of a
    table, the features of a projection) and axes of size 1 are replicated. Abstract pieces, whose arrays are
    `ShapeDtypeStruct`s, work too.

    Args:
        piece: a mask, score, similarity, normalizer or dropout.
        batch: for each batch axis of the call, the mesh axis that splits it, or None. A single name is short for one
            batch axis.
        head: the mesh axis that splits the heads.
        query: the mesh axis that splits the queries (sequence parallelism).
        key: the mesh axis that splits the keys.

    Raises:
        ValueError: `piece` is something else; a mesh axis is not a name, a tuple of names or None; an array lacks axes
            that its field declares, or has more batch axes than `batch`.

    >>> import jax.numpy as jnp
    >>> from jattn import scores
    >>> partition_specs(scores.Bias(jnp.zeros((8, 1, 64))), head="model", query="sequence", key="sequence")
    Bias(values=P('model', None, 'sequence'))
    """
    check_batch_axes(batch)
    check_names(head=head, query=query, key=key)
    pieces = _checked(piece)

    def visit(value: Any, axes: tuple[str, ...], name: str) -> PartitionSpec:
        shape = value.shape if hasattr(value, "shape") else np.shape(value)
        return partition_spec(shape, axes, batch=batch, name=name, head=head, query=query, key=key)

    return map_fields(pieces, visit)


def _checked(piece: Any) -> Any:
    """A piece, a tuple of them (also of a list), or None."""
    if isinstance(piece, tuple | list):
        return tuple(_checked(one) for one in piece)
    if piece is None or isinstance(piece, Piece):
        return piece
    remedy = " Make one of a function: `jattn.masks.of(function)`." if callable(piece) else ""
    raise ValueError(f"`piece` must be a piece, a tuple of pieces, or None; got {describe(piece)}.{remedy}")


class ArraySpecs(NamedTuple):
    """The partition specs of the arrays that `jattn.attention` takes and returns."""

    query: PartitionSpec
    key: PartitionSpec
    value: PartitionSpec
    out: PartitionSpec
    query_positions: PartitionSpec
    key_positions: PartitionSpec


def array_specs(
    *,
    batch: Sequence[MeshAxis] | str = (),
    head: MeshAxis = None,
    query: MeshAxis = None,
    key: MeshAxis = None,
) -> ArraySpecs:
    """The partition specs of query, key, value, output and positions.

    The arguments and errors are those of `partition_specs`; `batch` names every batch axis.

    >>> array_specs(batch="data", head="model").query
    P('data', None, 'model', None)
    """
    check_batch_axes(batch)
    check_names(head=head, query=query, key=key)
    batch = (batch,) if isinstance(batch, str) else tuple(batch)
    of_queries = PartitionSpec(*batch, query, head, None)
    of_keys = PartitionSpec(*batch, key, head, None)
    return ArraySpecs(
        query=of_queries,
        key=of_keys,
        value=of_keys,
        out=of_queries,
        query_positions=PartitionSpec(*batch, query),
        key_positions=PartitionSpec(*batch, key),
    )
