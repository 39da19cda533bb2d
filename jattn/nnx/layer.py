"""Any `jattn.layers.Layer` as an nnx module."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import nnx

from ..foundation.arguments import check_dtype
from ..foundation.arrays import describe
from ..layers import layer as data
from ..layers.layer import check_layer, method_of
from ..layers.learned import attach, detach
from ..layers.methods import Methods


class PieceArray(nnx.Variable):
    """An array of a piece that is not trained: part of the module's state, but not a parameter."""


class Layer(Methods, nnx.Module):
    """An nnx module that holds the parameters of a `jattn.layers.Layer`.

    Calling the module calls the layer with its parameters. `prefill`, `step` and `initial_state` do the same for layers
    that generate, and `run` for any other method. Parameters are attributes, under the names that the layer declares.

    Args:
        layer: sizes and options, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: dtype of the parameters.
        rngs: random streams to initialize the parameters.

    Raises:
        ValueError: an argument is of the wrong kind; at the call, as in the layer.

    >>> import jax, jattn.nnx
    >>> from flax import nnx
    >>> from jattn.variants.seq2seq import LuongGlobal
    >>> layer = jattn.nnx.Layer(LuongGlobal(16), rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 9, 16))).shape
    (2, 5, 16)
    """

    _layer: data.Layer
    piece_arrays: Any

    def __init__(self, layer: data.Layer, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        check_layer(layer)
        check_dtype("param_dtype", param_dtype)
        check_rngs(rngs)
        declared = dict(layer.parameters())
        for name, node in declared.items():
            if hasattr(type(self), name):
                raise ValueError(f"a parameter of {type(layer).__name__} cannot be named {name!r} in nnx: it is taken.")
            setattr(self, name, _made(node, param_dtype, rngs))
        self.names = tuple(declared)
        hold(self, layer)

    @property
    def layer(self) -> Any:
        """Sizes and options, with the arrays of pieces that are not trained."""
        held = [one[...] for one in self.piece_arrays]
        return attach(self._layer, held) if held else self._layer

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the layer with the module's parameters."""
        return self.layer(arrays_of(self), *inputs, **options)

    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Call another method of the layer by name, with the module's parameters."""
        return method_of(self.layer, method)(arrays_of(self), *inputs, **options)

    def arrays(self) -> dict[str, Any]:
        """The values of the parameters, as the tree that the layer's functions take."""
        return arrays_of(self)


def hold(module: Layer, layer: data.Layer) -> None:
    """Store a layer in a module: the static part, and the arrays of its pieces that are not trained."""
    _ = layer.declared_shapes  # kept by its copies, so that a call does not declare the parameters again
    module._layer, arrays = detach(layer)
    module.piece_arrays = nnx.data([PieceArray(one) for one in arrays])


class _Group(nnx.Module):
    """A group of parameters by name, such as those of one projection."""

    def __init__(self, declared: Mapping[str, Any], dtype: Any, rngs: nnx.Rngs):
        for name, node in declared.items():
            setattr(self, name, _made(node, dtype, rngs))


def _made(node: Any, dtype: Any, rngs: nnx.Rngs) -> Any:
    if data.is_parameter(node):
        return nnx.Param(node.first(rngs.params(), dtype))
    return _Group(node, dtype, rngs)


def arrays_of(module: Layer) -> dict[str, Any]:
    """The values of a module's parameters. Not a method, because `nnx.tabulate` adds a row for each method called."""
    return {name: _values(getattr(module, name)) for name in module.names}


def _values(node: Any) -> Any:
    if isinstance(node, nnx.Variable):
        return node[...]
    return {name: _values(one) for name, one in vars(node).items() if isinstance(one, (nnx.Variable, _Group))}


def check_rngs(rngs: Any) -> None:
    """Check that `rngs` is an `nnx.Rngs`.

    Raises:
        ValueError: it is something else.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"`rngs` must be streams of random keys, such as `nnx.Rngs(0)`; got {describe(rngs)}.")
