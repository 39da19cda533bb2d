"""Layers as data: a frozen dataclass of sizes, plus pure functions of a tree of parameters.

`jattn.nnx.Layer` and `jattn.linen.Layer` hold the parameters of any such layer.
"""

import abc
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, of_rank
from ..foundation.sharding import summed_einsum
from ..ops.attention.by_example import by_example
from .parameters import Shape, Sizes, initialize, parameter_shapes

Initializer = Callable[..., Any]
lecun_normal: Initializer = jax.nn.initializers.lecun_normal()
zeros: Initializer = jax.nn.initializers.zeros
ones: Initializer = jax.nn.initializers.ones


def normal(standard_deviation: float) -> Initializer:
    """An initializer: normally distributed numbers with this standard deviation."""
    return jax.nn.initializers.normal(standard_deviation)


def constant(value: Any) -> Initializer:
    """An initializer that returns this value, in its own dtype."""
    return lambda key, shape, dtype: jnp.reshape(jnp.asarray(value), shape)


class Parameter(NamedTuple):
    """An array that a layer trains.

    Attributes:
        shape: the shape of the array.
        init: the initializer, called with `(key, shape, dtype)`, such as `jax.nn.initializers.lecun_normal()`.
        inputs: how many leading axes are summed over when the parameter is applied. `init` is called with the shape of
            the matrix [inputs, outputs], so that its fan-in is right; with 0, with a shape of one axis.
    """

    shape: tuple[int, ...]
    init: Initializer = lecun_normal
    inputs: int = 1

    def first(self, key: jax.Array, dtype: Any = jnp.float32) -> Any:
        """The initial value."""
        return initialize(self.init, key, Shape(self.shape, self.inputs), dtype)


def kernel(*shape: int, inputs: int = 1) -> Parameter:
    """The kernel of a projection: LeCun normal, with the first `inputs` axes as fan-in."""
    return Parameter(shape, lecun_normal, inputs)


def bias(*shape: int, init: Initializer = zeros) -> Parameter:
    """A parameter that is added or multiplied elementwise, not summed over."""
    return Parameter(shape, init, 0)


def multi_head_parameters(features: int, heads: int, *, use_bias: bool, **sizes: int | None) -> dict[str, Any]:
    """`query`, `key`, `value` and `out` with the names and shapes of multi-head attention; biases start at 0.

    `sizes`: `kv_heads` and `head_dim`, as in `Sizes`.
    """

    def one(shape: Shape) -> Parameter:
        return Parameter(shape.shape, lecun_normal if shape.inputs else zeros, shape.inputs)

    shapes = parameter_shapes(Sizes(features, heads, **sizes), use_bias=use_bias, qk_norm=False)
    return {group: {name: one(shape) for name, shape in members.items()} for group, members in shapes.items()}


def project(projection: Mapping[str, Any], inputs: jax.Array, axes: str) -> jax.Array:
    """`einsum(axes, inputs, kernel)`, plus the `bias` if there is one.

    >>> project({"kernel": jnp.ones((3, 2))}, jnp.ones((5, 3)), "...f,fo->...o").shape
    (5, 2)
    """
    found = summed_einsum(axes, inputs, projection["kernel"])
    return found + of_rank(projection["bias"], found.ndim) if "bias" in projection else found


def project_heads(parameters: Mapping[str, Any], inputs: jax.Array) -> list[jax.Array]:
    """Queries, keys and values `[..., length, heads, dim]` from inputs `[..., length, features]`.

    >>> tree = {name: {"kernel": jnp.ones((3, 2, 4))} for name in ("query", "key", "value")}
    >>> [one.shape for one in project_heads(tree, jnp.ones((5, 3)))]
    [(5, 2, 4), (5, 2, 4), (5, 2, 4)]
    """
    return [project(parameters[name], inputs, "...lf,fhd->...lhd") for name in ("query", "key", "value")]


OWN_AXES: Mapping[str, str] = {"__call__": "length features", "prefill": "length features", "step": "features"}
"""`Layer.own_axes` of layers over sequences."""


class Layer(abc.ABC):
    """A layer without its arrays: a frozen dataclass of sizes and options.

    Subclasses declare their parameters in `parameters` and compute in `__call__`. Every other public method that
    computes also takes the parameters as its first argument, named `parameters`. These methods raise a `ValueError` if
    the parameters are not those that the layer declares: an array in their place, a missing name, another shape.
    """

    own_axes: ClassVar[Mapping[str, str] | None] = None
    """For each method that computes every example of the batch by itself, the axes of its inputs after the batch axes.

    None if there is no such method. If inputs are split over Explicit axes, these methods run on each device's own
    examples."""

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for name, axes in (cls.own_axes or {}).items():
            method = vars(cls).get(name)
            if method is not None:
                parameters, inputs = list(inspect.signature(method).parameters)[1:3]  # after `self`
                setattr(cls, name, by_example(by_shape=True, whole=(parameters,), **{inputs: axes})(method))
        for name, method in list(vars(cls).items()):
            public = inspect.isfunction(method) and (name == "__call__" or not name.startswith("_"))
            if public and list(inspect.signature(method).parameters)[1:2] == ["parameters"]:
                setattr(cls, name, _with_checks(name, method))

    @abc.abstractmethod
    def parameters(self) -> Mapping[str, Any]:
        """The declared parameters, as a nested dict of `Parameter`s by name."""

    @abc.abstractmethod
    def __call__(self, parameters: Mapping[str, Any], *inputs: Any, **options: Any) -> Any:
        """Apply the layer: a pure function of parameters and inputs."""

    def init(self, key: jax.Array, dtype: Any = jnp.float32) -> dict[str, Any]:
        """Initial values of all parameters, as a nested dict of arrays."""
        return first_values(dict(self.parameters()), key, dtype)

    def check_call(self, method: str, accepted: Any, arguments: tuple, options: Mapping[str, Any]) -> None:
        """Check the arguments of a method before it runs, `parameters` first.

        Args:
            method: the name of the method.
            accepted: the names of its arguments.
            arguments: the positional arguments.
            options: those given by name.

        Raises:
            ValueError: the parameters are not those that the layer declares.
        """
        del method, accepted
        given = arguments[0] if arguments else options.get("parameters", {})
        if not isinstance(given, Mapping) or given:  # with no parameters at all, states can still be made
            self.check_parameters(given)

    def check_parameters(self, given: Any, /) -> None:
        """Check that a tree has every parameter that the layer declares, in its shape. Others may be there as well.

        Inside a `jax.shard_map` shapes are those of a shard, so only names are checked.

        Raises:
            ValueError: names the parameter, what was received and what was expected.
        """
        layer = type(self).__name__
        if not isinstance(given, Mapping):
            raise ValueError(
                f"`parameters` must be a mapping of arrays by name, as `init(key)` of {layer} makes it, and come "
                f"before all other arguments; got {describe(given)}."
            )
        whole = not jax.sharding.get_abstract_mesh().manual_axes
        for path, shape in self.declared_shapes:
            node: Any = given
            for at, entry in enumerate(path):
                name: Any = getattr(entry, "key", getattr(entry, "idx", None))
                found = (isinstance(node, Mapping) and name in node) or isinstance(node, list | tuple)
                node = node[name] if found else None
                if node is None:
                    raise ValueError(
                        f"`parameters` must have {_dotted(path[: at + 1])!r}, which {layer} declares, as its "
                        f"`init(key)` makes it; got {described(given)}."
                    )
            got = tuple(getattr(node, "shape", None) or np.shape(node))
            if whole and got != shape:
                raise ValueError(
                    f"`parameters` must have {_dotted(path)!r} of shape {shape} for the sizes of this {layer}, as its "
                    f"`init(key)` makes it; got shape {got}."
                )

    @functools.cached_property
    def declared_shapes(self) -> list[tuple[Any, tuple[int, ...]]]:
        """The path and shape of each parameter."""
        leaves = jax.tree_util.tree_leaves_with_path(dict(self.parameters()), is_leaf=is_parameter)
        return [(path, tuple(one.shape)) for path, one in leaves]


def _with_checks(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a layer that checks its arguments first."""
    accepted = frozenset(inspect.signature(method).parameters)

    @functools.wraps(method)
    def run(self: Layer, *arguments: Any, **options: Any) -> Any:
        self.check_call(name, accepted, arguments, options)
        try:
            return method(self, *arguments, **options)
        except KeyError:
            self.check_parameters(arguments[0] if arguments else options.get("parameters"))
            raise

    return run


def described(tree: Mapping[str, Any]) -> str:
    """The names in a tree of parameters, for an error message.

    >>> described({"query": {"kernel": 0}, "out": {"kernel": 0, "bias": 0}})
    'query (kernel), out (kernel, bias)'
    """
    names = [
        f"{name} ({', '.join(map(str, node))})" if isinstance(node, Mapping) else str(name)
        for name, node in tree.items()
    ]
    return ", ".join(names) or "an empty mapping"


def _dotted(path: Any) -> str:
    return ".".join(str(getattr(entry, "key", getattr(entry, "idx", entry))) for entry in path)


def first_values(declared: Any, key: jax.Array, dtype: Any = jnp.float32) -> Any:
    """The initial value of a `Parameter`, or of every one in a nested dict."""
    leaves, tree = jax.tree.flatten(declared, is_leaf=is_parameter)
    keys = jax.random.split(key, max(len(leaves), 1))
    return jax.tree.unflatten(tree, [one.first(at, dtype) for one, at in zip(leaves, keys, strict=False)])


def is_parameter(node: Any) -> bool:
    """Whether a node of a tree is a `Parameter` rather than a dict of them."""
    return isinstance(node, Parameter)


def parameter_count(layer: Layer) -> int:
    """The number of scalars that a layer trains."""
    return sum(math.prod(one.shape) for one in jax.tree.leaves(dict(layer.parameters()), is_leaf=is_parameter))


def check_layer(layer: Any) -> None:
    """Check that `layer` is an instance of `Layer`.

    Raises:
        ValueError: it is something else, such as the class itself.
    """
    if not isinstance(layer, Layer):
        raise ValueError(f"`layer` must be a layer of `jattn`, such as `RetNet(64, 4)`; got {describe(layer)}.")


def method_of(layer: Layer, name: str) -> Callable[..., Any]:
    """A method of a layer, looked up by name.

    Raises:
        ValueError: the layer has no such method.
    """
    method = getattr(layer, name, None) if isinstance(name, str) else None
    if not callable(method):
        found = [one for one in dir(layer) if not one.startswith("_") and callable(getattr(layer, one))]
        raise ValueError(
            f"{type(layer).__name__} has no `{name}`: `method` must be one of {', '.join(found)}; got {name!r}."
        )
    return method
