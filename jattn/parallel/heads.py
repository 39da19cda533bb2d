"""Head parallelism: each device attends with its own heads, without communication until their outputs are summed."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ..foundation.arrays import describe
from ..foundation.shard_map import run_on_shards
from ..foundation.sharding import AnyMesh, mesh_axes, reshard, split_axes
from ..ops.attention.api import attention
from ..ops.attention.call import Pieces, check_arrays, prepare
from ..ops.attention.dropout import Dropout
from ..ops.attention.observed import observed, observer_is
from ..ops.attention.split import own_key_heads
from .meshes import check_batch_axes, check_mesh, check_mesh_axes, current_mesh
from .specs import MeshAxis, array_specs, partition_spec, partition_specs


@dataclasses.dataclass(frozen=True)
class Heads:
    """Split the heads over a mesh axis (tensor parallelism; Shoeybi et al. 2019, arXiv:1909.08053).

    With n devices on the axis, device i has the query heads `i * q_heads / n` to `(i + 1) * q_heads / n - 1` and their
    key heads. If n does not divide the key heads, every device is given all of them and takes those that it needs.
    Arrays in pieces that are per head (slopes, sinks, biases, windows) are split likewise. Attention itself
    needs no communication. Multi-head attention needs one float32 all-reduce after the output projection. Outputs and
    gradients equal those of one device, including dropout. A function that uses the batch or head index (`masks.of`)
    sees the indices of the whole arrays. Mesh axes may be Explicit or Auto, also some of each. Inside of a
    `jax.shard_map` over other axes, give indices to dropout and to such functions, as in `attention`.

    Args:
        axis: the mesh axis over which heads are split. None splits only the batch (data parallelism).
        batch: for each batch axis of the call, the mesh axis that splits it, or None. A single name is short for one
            batch axis; `()` splits none.
        mesh: the mesh; by default the one set by `jax.set_mesh`. Everything is replicated over its other axes.

    Raises:
        ValueError: `axis` or `batch` are not names of mesh axes, `mesh` is not a mesh, or nothing is split; at the
            call, the mesh has no such axis, or a `jax.shard_map` around the call is already over it.

    >>> import jax, jattn
    >>> from jattn.parallel import Heads
    >>> mesh = jax.make_mesh((jax.device_count(),), ("model",))
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (1, 10, 8, 4)) for i in range(3))
    >>> out = Heads("model", mesh=mesh).attention(q, k, v, mask=jattn.masks.Causal())
    >>> out.sharding.spec[2]
    'model'
    >>> data = Heads(None, batch="model", mesh=mesh)
    >>> data.attention(q.swapaxes(0, 2), k.swapaxes(0, 2), v.swapaxes(0, 2)).sharding.spec[0]
    'model'
    """

    axis: str | None
    batch: tuple[MeshAxis, ...] | str = ()
    mesh: AnyMesh | None = None

    def __post_init__(self):
        if self.axis is not None and not isinstance(self.axis, str):
            raise ValueError(f"`axis` must be the name of one mesh axis, such as 'model'; got {describe(self.axis)}.")
        check_batch_axes(self.batch)
        if isinstance(self.batch, list):
            object.__setattr__(self, "batch", tuple(self.batch))  # hashable
        if self.axis is None and not mesh_axes(self.batch):
            raise ValueError(
                "`axis` must be the name of one mesh axis, such as 'model', or `batch` must name one to split the "
                f"batch alone, `Heads(None, batch='data')`; got axis None and batch {self.batch!r}."
            )
        check_mesh(self.mesh)

    def attention(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        *,
        mask: Any = None,
        similarity: Any = None,
        scores: Any = (),
        normalizer: Any = None,
        query_positions: Any = None,
        key_positions: Any = None,
        dropout: Dropout | None = None,
        implementation: Any = None,
    ) -> jax.Array:
        """`jattn.attention`, with every array split over the devices.

        Returns:
            `[..., q_len, q_heads, v_dim]`, sharded as `array_specs(batch=batch, head=axis).out`.

        Raises:
            ValueError: as in `attention`; also if a mesh axis does not exist, or does not divide the query heads or
                a batch axis.
        """
        check_arrays(query, key, value)
        batch, q_heads, kv_heads = query.shape[:-3], query.shape[-2], key.shape[-2]
        mesh = self.check(batch, q_heads)
        of_keys = self.key_axis(kv_heads)
        given = Pieces(mask, similarity, scores, normalizer, dropout, query_positions, key_positions)
        given = given.checked().indexed(batch, q_heads, split_axes(query, key, value))
        # Check the whole arrays here: checks on each device would report the sizes of shards.
        jax.eval_shape(lambda query, key, value: prepare(query, key, value, given)[1:], query, key, value)
        pieces = dict(vars(given))
        positions = {name: pieces.pop(name) for name in ("query_positions", "key_positions")}

        def local(arrays: tuple, pieces: dict, positions: dict) -> jax.Array:
            query, *others = arrays
            if of_keys != self.axis:
                others = (self.own_key_heads(one, q_heads, kv_heads, -2) for one in others)
            return attention(query, *others, **pieces, **positions, implementation=implementation)

        names = self.batch_axes(len(batch))
        whole, keys = array_specs(batch=names, head=self.axis), array_specs(batch=names, head=of_keys)
        whole = whole._replace(key=keys.key, value=keys.value)
        specs = ((whole.query, whole.key, whole.value), self.specs(pieces), self.specs_of_positions(positions))

        def run() -> jax.Array:
            with observer_is(None):
                return run_on_shards(local, ((query, key, value), pieces, positions), specs, whole.out, mesh=mesh)

        def placed() -> Any:
            split = zip((query, key, value), (whole.query, whole.key, whole.value), strict=True)
            return tuple(place(array, mesh, spec) for array, spec in split)

        return observed(run, placed, given)

    def sum_over_heads(
        self, function: Callable[..., jax.Array], operands: tuple, specs: tuple, batch_axes: int
    ) -> jax.Array:
        """The sum of `function(*operands)` over the devices of the head axis, each on its own shards: one all-reduce.

        Args:
            function: takes local arrays and returns this device's summand `[batch..., length, features]`.
            operands: pytrees of arrays.
            specs: pytrees with a `PartitionSpec` for each array.
            batch_axes: the number of batch axes of the result.
        """

        def summed(*shards: Any) -> jax.Array:
            part = function(*shards)
            return part if self.axis is None else jax.lax.psum(part, self.axis)

        names = self.batch_axes(batch_axes)
        return run_on_shards(summed, operands, specs, PartitionSpec(*names, None, None), mesh=self._mesh(*names))

    def specs(self, pieces: dict[str, Any]) -> dict[str, Any]:
        """The partition specs of the arrays in these pieces."""
        batch = (self.batch,) if isinstance(self.batch, str) else self.batch
        return {name: partition_specs(piece, batch=batch, head=self.axis) for name, piece in pieces.items()}

    def specs_of_inputs(self, inputs: tuple) -> tuple:
        """The partition specs of arrays `[batch..., length, features]`."""
        return tuple(
            None if item is None else partition_spec(item.shape, ("length", "feature"), batch=self.batch)
            for item in inputs
        )

    def specs_of_positions(self, positions: dict[str, Any]) -> dict[str, Any]:
        """The partition specs of arrays `[batch..., length]`."""
        return {
            name: None if item is None else partition_spec(item.shape, ("length",), batch=self.batch, name=name)
            for name, item in positions.items()
        }

    def batch_axes(self, count: int) -> tuple[MeshAxis, ...]:
        """The mesh axes of `count` batch axes.

        Raises:
            ValueError: `batch` names a different number of axes.
        """
        batch = (self.batch,) if isinstance(self.batch, str) else self.batch
        if batch and len(batch) != count:
            raise ValueError(
                f"`batch` must name a mesh axis (or None) for each of the {count} batch axes of the call; got {batch}."
            )
        return batch or (None,) * count

    def key_axis(self, kv_heads: int) -> str | None:
        """The mesh axis that splits this many key heads; None if every device is given all of them."""
        return None if self.axis is None or kv_heads % self._mesh().shape[self.axis] else self.axis

    def own_key_heads(self, array: jax.Array, q_heads: int, kv_heads: int, axis: int) -> jax.Array:
        """On one device, of an array of all key heads those of its query heads: one for each, or one for all."""
        assert self.axis is not None
        own = q_heads // current_mesh(self.mesh).shape[self.axis]
        return own_key_heads(array, self.axis, own, q_heads // kv_heads, axis)

    def check(self, batch: Sequence[int], q_heads: int) -> AnyMesh:
        """Check that the mesh divides these sizes, and return it.

        Raises:
            ValueError: it does not.
        """
        names = self.batch_axes(len(batch))
        mesh = self._mesh(*names)
        devices = math.prod(mesh.shape[name] for name in mesh_axes(self.axis))
        if q_heads % devices:
            raise ValueError(
                f"`q_heads` must be a multiple of the {devices} devices on mesh axis {self.axis!r}, which each have as "
                f"many query heads; got {q_heads}. Use a mesh axis of {math.gcd(devices, q_heads)}, or another number "
                "of heads."
            )
        for axis, (size, name) in enumerate(zip(batch, names, strict=True)):
            parts = math.prod(mesh.shape[one] for one in mesh_axes(name))
            if size % parts:
                raise ValueError(
                    f"batch axis {axis} of `query` must be a multiple of the {parts} devices on mesh axis {name!r}; "
                    f"got size {size}."
                )
        return mesh

    def _mesh(self, *batch: MeshAxis) -> AnyMesh:
        """The mesh, after checking that it has the axis of the heads and those of the batch."""
        mesh = current_mesh(self.mesh)
        check_mesh_axes(mesh, mesh_axes(self.axis, *batch))
        return mesh


def place(array: Any, mesh: AnyMesh, spec: PartitionSpec) -> Any:
    """The array, split as `spec` says over Explicit axes or, by XLA, over Auto axes."""
    if AxisType.Explicit in mesh.axis_types:
        return reshard(array, mesh, spec)
    return jax.lax.with_sharding_constraint(array, NamedSharding(mesh, spec))
