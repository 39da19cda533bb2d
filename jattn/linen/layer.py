"""Any layer that is data, in linen."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ..layers import layer as data
from ..layers.options import check_dtype, check_layer, method_of


class Layer(nn.Module):
    """The parameters of a `jattn.layers.Layer`, in linen; with the same numbers equal to `jattn.nnx.Layer`.

    Attributes:
        layer: sizes and choices, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: of the parameters.

    The call, and what it raises, are the layer's own, without its `parameters`; so are `prefill`, `step` and
    `initial_state` of a layer that generates, called as `module.apply(variables, x, state, method="step")`. `run` calls
    any other method.

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
        """What the layer makes of the inputs."""
        return self.run("__call__", *inputs, **options)

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

    @nn.compact
    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """A method of the layer, by its name."""
        parameters = {name: made(self, name, node, self.param_dtype) for name, node in self.layer.parameters().items()}
        return method_of(self.layer, method)(parameters, *inputs, **options)


class _Group(nn.Module):
    """Parameters by name, such as those of one projection."""

    declared: Mapping[str, Any]
    param_dtype: Any

    @nn.compact
    def __call__(self) -> dict[str, Any]:
        return {name: made(self, name, node, self.param_dtype) for name, node in self.declared.items()}


def made(module: nn.Module, name: str, node: Any, dtype: Any) -> Any:
    """A declared parameter of a module, or a dict of them."""
    if data.is_parameter(node):
        return module.param(name, node.first, dtype)
    return _Group(node, dtype, name=name)()
