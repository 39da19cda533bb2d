"""Models on a mesh of devices: which axis of each parameter is split over which mesh axis.

    batch        data parallelism: each device computes with its own examples
    heads        each device has its own heads, and its own features inside of feed-forward layers (Shoeybi et al. 2019,
                 arXiv:1909.08053): per block, the outputs of attention and of the feed-forward layer are summed once
    parameters   each device keeps its part of every parameter, and gathers the whole when a layer uses it (FSDP:
                 Rajbhandari et al. 2020, arXiv:1910.02054; Zhao et al. 2023, arXiv:2304.11277)

Values and gradients are those of one device. The computation stays as it is written: what is split is said by the
shardings of parameters (`OnMesh.spec`), by attention layers, which get `Heads`, by feed-forward layers, which get the
sharding of their batch, and by `SplitParam`. So the mesh has Auto axes. On Explicit axes, JAX asks each layer how its
result is split: of the lookup in a sharded embedding, and of every product that sums over a split axis, most of which
are layers of Flax. `Mesh(mesh.devices, mesh.axis_names)` has the same devices on Auto axes; inside of `jax.jit`,
`jax.device_put(array, NamedSharding(that mesh, spec))` takes an array from Explicit axes to it.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
from flax import nnx
from jax.core import Tracer
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ..foundation.arrays import describe, is_tracing
from ..foundation.sharding import mesh_axes
from ..layers import MultiHeadAttention as MultiHeadData
from ..nnx import Layer
from ..parallel import Heads
from .config import Config
from .experts import Experts
from .layers import MLP, FeedForward

Axes = str | tuple[str, ...] | None


class SplitParam(nnx.Param):
    """A parameter whose parts lie on different devices, and which is gathered where a traced function uses it.

    The gather is part of the layer that uses the parameter. With `config.remat`, the gradient gathers it once more
    instead of keeping it.

    Metadata:
        kept: the sharding of its value, and of its gradient.
        used: the sharding of its value in use.
    """

    def get_value(self, **options: Any) -> Any:
        """The value, gathered if it is traced; options as in `nnx.Variable.get_value`."""
        value = super().get_value(**options)
        whole = options.get("index", ...) is ...
        if not whole or not isinstance(value, Tracer):
            return value
        kept = jax.lax.with_sharding_constraint(value, self.get_metadata("kept"))  # as the gradient will be
        return jax.lax.with_sharding_constraint(kept, self.get_metadata("used"))


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """Which mesh axes split the batch, the heads and the parameters of a model; as in `shard`.

    `from_directory(path, shardings=OnMesh(...))` reads each parameter straight onto its devices.

    Args:
        mesh, batch, heads, parameters: as in `shard`.

    Raises:
        ValueError: as in `shard`.

    >>> import jax
    >>> from jattn.models import OnMesh
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",), (jax.sharding.AxisType.Auto,))
    >>> OnMesh(mesh, batch="data", parameters="data").spec((3, 64 * mesh.size))
    P(None, 'data')
    """

    mesh: Mesh
    _: dataclasses.KW_ONLY
    batch: Axes = None
    heads: str | None = None
    parameters: Axes = None

    def __post_init__(self):
        if not isinstance(self.mesh, Mesh):
            raise ValueError(
                "`mesh` must be a `jax.sharding.Mesh`, such as `jax.make_mesh((8,), ('data',), "
                f"(jax.sharding.AxisType.Auto,))`; got {describe(self.mesh)}."
            )
        given = {"batch": self.batch, "heads": self.heads, "parameters": self.parameters}
        for name, axes in given.items():
            names = axes if isinstance(axes, tuple) and name != "heads" else (axes,)
            for axis in names:
                if axis is not None and axis not in self.mesh.axis_names:
                    raise ValueError(
                        f"`{name}` must name an axis of the mesh, which has {self.mesh.axis_names}; got {axis!r}."
                    )
            if len(set(names)) != len(names):
                raise ValueError(f"`{name}` must name each axis of the mesh once; got {axes!r}.")
        for name in ("batch", "parameters"):
            if self.heads is not None and self.heads in mesh_axes(given[name]):
                raise ValueError(
                    f"`heads` and `{name}` must be different axes of the mesh; got {self.heads!r} for both. (`batch` "
                    "and `parameters` may be the same.)"
                )
        if all(axes is None for axes in given.values()):
            raise ValueError(
                "`batch`, `heads` or `parameters` must name an axis of the mesh, or nothing is split; got None for "
                "each."
            )
        explicit = [
            name
            for name, kind in zip(self.mesh.axis_names, self.mesh.axis_types, strict=True)
            if kind != AxisType.Auto and name in mesh_axes(*given.values())
        ]
        if explicit:
            raise ValueError(
                f"`mesh` must have the axes {', '.join(map(repr, explicit))} as Auto axes, which leave activations to "
                "the compiler: `jax.sharding.Mesh(mesh.devices, mesh.axis_names)` has them, on the same devices; got "
                f"{self.mesh.axis_types}."
            )

    def spec(self, shape: tuple[int, ...], by_heads: int | None = None, *, used: bool = False) -> PartitionSpec:
        """How a parameter is split.

        Args:
            shape: its shape.
            by_heads: the axis that is split over `heads`, if there is one.
            used: whether to say how it is split where it is used, not how it is kept.
        """
        spec: list[Axes] = [None] * len(shape)
        if by_heads is not None:
            spec[by_heads] = self.heads
        parts = math.prod(self.mesh.shape[axis] for axis in mesh_axes(self.parameters))
        free = [axis for axis, size in enumerate(shape) if spec[axis] is None and size % parts == 0 and size]
        if parts > 1 and free and not used:
            spec[max(free, key=lambda axis: shape[axis])] = self.parameters
        return PartitionSpec(*spec)

    def place(self, model: nnx.Module) -> None:
        """Split the parameters of a model, or of its shapes, and tell attention layers how heads are split."""
        by_heads = dict(_axes_of_heads(model, self.mesh.shape[self.heads])) if self.heads is not None else {}
        nodes = dict(nnx.iter_graph(model))
        parallel = None
        if self.heads is not None or self.batch is not None:
            parallel = Heads(self.heads, batch=() if self.batch is None else (self.batch,), mesh=self.mesh)
        for node in nodes.values():
            if isinstance(node, Layer) and isinstance(node._layer, MultiHeadData):
                node._layer = dataclasses.replace(node._layer, parallel=parallel)
            if isinstance(node, FeedForward):
                node.batch = None if self.batch is None else NamedSharding(self.mesh, PartitionSpec(self.batch))
        for path, node in nodes.items():
            if isinstance(node, nnx.Variable):
                self._place(nodes[path[:-1]], path[-1], node, by_heads.get(id(node)))

    def _place(self, parent: Any, name: Any, variable: nnx.Variable, by_heads: int | None) -> None:
        value = variable.get_value()
        stored = self.spec(value.shape, by_heads) if isinstance(variable, nnx.Param) else PartitionSpec()
        value = _on(value, NamedSharding(self.mesh, stored))
        used = self.spec(value.shape, by_heads, used=True)
        if stored == used or not isinstance(variable, nnx.Param):
            variable.set_value(value)
            return
        places: dict[str, Any] = {"kept": NamedSharding(self.mesh, stored), "used": NamedSharding(self.mesh, used)}
        split = SplitParam(value, **(variable.get_metadata() | places))
        if isinstance(name, int):
            parent[name] = split
        else:
            setattr(parent, name, split)


def shard(
    model: Any,
    mesh: Mesh,
    *,
    batch: Axes = None,
    heads: str | None = None,
    parameters: Axes = None,
) -> Any:
    """Split a model over a mesh of devices. Values and gradients are those of one device.

        batch        examples are split: each device computes its own
        heads        heads, and features inside of feed-forward layers, are split: one sum over devices after the output
                     projection of each attention, and one after each feed-forward layer
        parameters   each parameter is split along its largest axis that devices divide, and gathered where it is used

    Give one name, or several: `batch="data", parameters="data"` is fully sharded data parallelism. Arrays made of
    parameters, such as the state of an optimizer, have their shardings. Inputs are given as always; put large ones on
    `NamedSharding(mesh, P(batch))`. Caches that generation keeps are split as batch and heads are. What has neither
    heads nor features of a feed-forward layer (embeddings, norms, the output projection to the vocabulary) is whole on
    every device of `heads`. Where `heads` does not divide the key heads of grouped queries, their projections are
    whole.

    Args:
        model: a model of `jattn.models`, or a function that makes one, whose parameters are then made where they
            belong, without ever being whole: `shard(lambda: Llama(config, rngs=nnx.Rngs(0)), mesh, ...)`. A model of
            shapes, from `nnx.eval_shape`, gets the shardings in its shapes.
        mesh: a mesh with Auto axes; not those of `jax.make_mesh` by default, which are Explicit.
        batch: the mesh axis that splits the batch, the first and only axis before the length; a tuple for several.
        heads: the mesh axis that splits heads; must divide those of every attention.
        parameters: the mesh axis that splits parameters; a tuple for several. May be that of `batch`.

    Returns:
        The model, which is changed in place.

    Raises:
        ValueError: an axis is not in the mesh, or is not Auto; `heads` is also the axis of another; it does not divide
            the heads or features of a layer; `model` is none of `jattn.models`. At a call: the batch is not divisible.

    >>> import jax
    >>> from flax import nnx
    >>> from jattn import models
    >>> from jattn.models.gpt2 import GPT2Config, GPT2ForCausalLM
    >>> config = GPT2Config(vocabulary=11, features=64, depth=1, heads=8, max_length=9)
    >>> mesh = jax.make_mesh((1, jax.device_count()), ("data", "model"), (jax.sharding.AxisType.Auto,) * 2)
    >>> model = models.shard(lambda: GPT2ForCausalLM(config, rngs=nnx.Rngs(0)), mesh, batch="data", heads="model")
    >>> model.blocks[0].mlp.up.kernel.get_value().sharding.spec
    P(None, 'model')
    """
    on_mesh = OnMesh(mesh, batch=batch, heads=heads, parameters=parameters)
    if isinstance(model, nnx.Module) or not callable(model):
        check_model(model)
        if is_tracing():
            raise ValueError("`shard` must be called outside of `jax.jit`; a function that makes a model is compiled.")
        on_mesh.place(model)
        return model
    made: Any = nnx.eval_shape(model)
    check_model(made)
    on_mesh.place(made)
    leaves, tree = jax.tree.flatten(nnx.state(made))
    build: Callable[[], Any] = model
    values = jax.jit(lambda: jax.tree.leaves(nnx.state(build())), out_shardings=[leaf.sharding for leaf in leaves])()
    nnx.update(made, tree.unflatten(values))
    return made


def check_model(model: Any) -> None:
    """Check that this is a model of `jattn.models`.

    Raises:
        ValueError: it is not.
    """
    if not isinstance(model, nnx.Module) or not isinstance(getattr(model, "config", None), Config):
        raise ValueError(
            f"`model` must be a model of `jattn.models`, or a function that makes one; got {describe(model)}."
        )


def _on(value: Any, sharding: NamedSharding) -> Any:
    """An array, or the shape of one, on its devices."""
    if not isinstance(value, jax.Array):
        return jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=sharding)
    return jax.device_put(value, sharding)


def _axes_of_heads(model: nnx.Module, devices: int) -> Iterator[tuple[int, int]]:
    """The variables that `heads` splits, by identity, and the axis of each that is split.

    Raises:
        ValueError: an axis is not divisible.
    """
    for path, node in nnx.iter_graph(model):
        if isinstance(node, MLP | Experts):
            groups = [(name, getattr(node, name)) for name in ("up", "gate", "down")]
            found = [(name, group, -1 if name != "down" else -2) for name, group in groups if group is not None]
            shared = None
        elif isinstance(node, Layer):
            groups = [(name, group) for name, group in nnx.iter_graph(node) if name and hasattr(group, "kernel")]
            found = [(name[-1], group, -2 if name[-1] != "out" else -3) for name, group in groups]
            shared = node._layer.kv_heads if isinstance(node._layer, MultiHeadData) else None
        else:
            continue
        for name, group, axis in found:
            if name in ("key", "value") and shared is not None and shared % devices:
                continue
            yield from _axes_of_group(".".join(map(str, (*path, name))), group, axis, devices)


def _axes_of_group(name: str, group: Any, axis: int, devices: int) -> Iterator[tuple[int, int]]:
    """A kernel, split along an axis; its bias too, if that is an axis of the results."""
    kernel, bias = group.kernel, getattr(group, "bias", None)
    size, rank = kernel.get_value().shape[axis], len(kernel.get_value().shape)
    if size % devices:
        what = "features" if rank == 2 else "heads"
        raise ValueError(
            f"`heads` must be an axis of the mesh whose {devices} devices divide the {size} {what} of `{name}`; use "
            f"one of {math.gcd(size, devices)}."
        )
    yield id(kernel), axis % rank
    results = 1 if rank == 2 else rank - 1
    if bias is not None and axis >= -results:
        yield id(bias), axis % len(bias.get_value().shape)
