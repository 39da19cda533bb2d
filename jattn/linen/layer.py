"""Any `jattn.layers.Layer` as a linen module."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ..foundation.arguments import check_dtype
from ..layers import layer as data
from ..layers.layer import check_layer, method_of
from ..layers.methods import Methods


class Layer(Methods, nn.Module):
    """A linen module that holds the parameters of a `jattn.layers.Layer`.

    Calling the module calls the layer with its parameters. `prefill`, `step` and `initial_state` do the same for layers
    that generate: `module.apply(variables, x, state, method="step")`. `run` calls any other method. With the same
    parameters, outputs equal those of `jattn.nnx.Layer`.

    Attributes:
        layer: sizes and options, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: dtype of the parameters.

    Raises:
        ValueError: an attribute is of the wrong kind; at the call, as in the layer.

    >>> import jax, jattn.linen
    >>> from jattn.variants.seq2seq import LuongGlobal
    >>> module = jattn.linen.Layer(LuongGlobal(16))
    >>> x = jax.numpy.ones((2, 5, 16))
    >>> module.apply(module.init(jax.random.key(0), x, x), x, x).shape
    (2, 5, 16)
    """

    layer: data.Layer
    param_dtype: Any = jnp.float32

    def __post_init__(self) -> None:
        check_layer(self.layer)
        check_dtype("param_dtype", self.param_dtype)
        super().__post_init__()

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """Call the layer with the module's parameters."""
        return self.run("__call__", *inputs, **options)

    @nn.compact
    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Call a method of the layer by name, with the module's parameters."""
        parameters = {name: made(self, name, node, self.param_dtype) for name, node in self.layer.parameters().items()}
        return method_of(self.layer, method)(parameters, *inputs, **options)


class _Group(nn.Module):
    """A group of parameters by name, such as those of one projection."""

    declared: Mapping[str, Any]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return {name: made(self, name, node, self.param_dtype) for name, node in self.declared.items()}


def made(module: nn.Module, name: str, node: Any, dtype: Any) -> Any:
    """Create a declared parameter in a module, or a dict of them."""
    if data.is_parameter(node):
        return module.param(name, node.first, dtype)
    return _Group(node, dtype, name=name)()
