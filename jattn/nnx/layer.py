"""Any layer that is data, in nnx."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.arrays import describe
from ..layers import layer as data
from ..layers.learned import attach, detach
from ..layers.options import check_dtype, check_layer, method_of


class PieceArray(nnx.Variable):
    """An array of a piece that is not trained: state of the module, beside its parameters."""


class Layer(nnx.Module):
    """The parameters of a `jattn.layers.Layer`, in nnx.

    Args:
        layer: sizes and choices, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: of the parameters.
        rngs: of the parameters.

    The call, and what it raises, are the layer's own, without its `parameters`; so are `prefill`, `step` and
    `initial_state` of a layer that generates. `run` calls any other method. Parameters are attributes, named as the
    layer declares them.

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
        """Sizes and choices, with the arrays of pieces that are not trained."""
        return attach(self._layer, [one[...] for one in self.piece_arrays])

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the layer makes of the inputs."""
        return self.layer(arrays_of(self), *inputs, **options)

    def initial_state(self, batch: tuple[int, ...] = (), **options: Any) -> Any:
        """The state before the first token, of a layer that generates.

        Args:
            batch: the batch axes of the inputs to come.
            **options: of the layer, such as `dtype`.
        """
        return self.run("initial_state", batch, **options)

    def prefill(self, inputs: jax.Array, state: Any = None, **options: Any) -> tuple[jax.Array, Any]:
        """The call on the next tokens `[..., length, features]` behind a state: outputs, and the state behind them.

        Args:
            inputs: the tokens.
            state: of `initial_state`, `prefill` or `step`.
            **options: of the layer.
        """
        return self.run("prefill", inputs, state, **options)

    def step(self, inputs: jax.Array, state: Any, **options: Any) -> tuple[jax.Array, Any]:
        """The next token `[..., features]`: its output, and the state behind it.

        Args:
            inputs: the token.
            state: of `initial_state`, `prefill` or `step`.
            **options: of the layer.
        """
        return self.run("step", inputs, state, **options)

    def attention_weights(self, *inputs: Any, **options: Any) -> jax.Array:
        """The attention weights of the call, of a layer that has them."""
        return self.run("attention_weights", *inputs, **options)

    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Another method of the layer, by its name."""
        return method_of(self.layer, method)(arrays_of(self), *inputs, **options)

    def arrays(self) -> dict[str, Any]:
        """The parameters' values, as the tree that the layer's functions take."""
        return arrays_of(self)


def hold(module: Layer, layer: data.Layer) -> None:
    """Keep a layer in a module: what is static, and the arrays of its pieces that are not trained."""
    module._layer, arrays = detach(layer)
    module.piece_arrays = nnx.data([PieceArray(one) for one in arrays])


class _Group(nnx.Module):
    """Parameters by name, such as those of one projection."""

    def __init__(self, declared: Mapping[str, Any], dtype: Any, rngs: nnx.Rngs):
        for name, node in declared.items():
            setattr(self, name, _made(node, dtype, rngs))


def _made(node: Any, dtype: Any, rngs: nnx.Rngs) -> Any:
    if data.is_parameter(node):
        return nnx.Param(node.first(rngs.params(), dtype))
    return _Group(node, dtype, rngs)


def arrays_of(module: Layer) -> dict[str, Any]:
    """Not a method: `nnx.tabulate` has a row for each method that is called."""
    return {name: _values(getattr(module, name)) for name in module.names}


def _values(node: Any) -> Any:
    if isinstance(node, nnx.Variable):
        return node[...]
    return {name: _values(one) for name, one in vars(node).items() if isinstance(one, (nnx.Variable, _Group))}


def check_rngs(rngs: Any) -> None:
    """Streams of random keys, to draw parameters with.

    Raises:
        ValueError: something else.
    """
    if not isinstance(rngs, nnx.Rngs):
        raise ValueError(f"`rngs` must be streams of random keys, such as `nnx.Rngs(0)`; got {describe(rngs)}.")
