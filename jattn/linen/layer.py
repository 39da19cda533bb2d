"""Any layer that is data, in linen."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from ..layers import layer as data
from ..layers.options import check_dtype, check_layer, method_of


class Layer(nn.Module):
    """The parameters of a `jattn.layers.Layer`, in linen; with the same numbers equal to `jattn.nnx.Layer`.

    Attributes:
        layer: sizes and choices, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: of the parameters.

    The call, and what it raises, are the layer's own, without its `parameters`. Other methods of the layer are called
    with `module.apply(variables, "step", *inputs, method="run")`.

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

    @nn.compact
    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """A method of the layer, by name."""
        parameters = {
            name: self.param(name, functools.partial(data.first_values, declared), self.param_dtype)
            for name, declared in self.layer.parameters().items()
        }
        return method_of(self.layer, method)(parameters, *inputs, **options)
