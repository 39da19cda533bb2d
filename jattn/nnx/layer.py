"""Any layer that is data, in nnx."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers import layer as data
from ..layers.options import check_dtype, check_layer, method_of
from .multi_head import check_rngs


class Layer(nnx.Module):
    """The parameters of a `jattn.layers.Layer`, in nnx.

    Args:
        layer: sizes and choices, such as `jattn.variants.low_rank.Linformer(...)`.
        param_dtype: of the parameters.
        rngs: of the parameters.

    The call, and what it raises, are the layer's own, without its `parameters`; `run` calls its other methods.

    >>> import jax, jattn.nnx
    >>> from flax import nnx
    >>> from jattn.variants.seq2seq import LuongGlobal
    >>> layer = jattn.nnx.Layer(LuongGlobal(16), rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 9, 16))).shape
    (2, 5, 16)
    """

    weights: Any

    def __init__(self, layer: data.Layer, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        check_layer(layer)
        check_dtype("param_dtype", param_dtype)
        check_rngs(rngs)
        self.layer = layer
        declared = dict(layer.parameters())
        self.weights = nnx.data(
            jax.tree.map(
                lambda one: nnx.Param(one.first(rngs.params(), param_dtype)), declared, is_leaf=data.is_parameter
            )
        )

    def __call__(self, *inputs: Any, **options: Any) -> Any:
        """What the layer makes of the inputs."""
        return self.layer(_parameters(self), *inputs, **options)

    def run(self, method: str, *inputs: Any, **options: Any) -> Any:
        """Another method of the layer, such as `"step"`."""
        return method_of(self.layer, method)(_parameters(self), *inputs, **options)

    def parameters(self) -> dict[str, Any]:
        """The arrays, as the layer takes them."""
        return _parameters(self)


def _parameters(module: Layer) -> dict[str, Any]:
    """Not a method: `nnx.tabulate` has a row for each method that is called."""
    return jax.tree.map(lambda one: one[...], module.weights, is_leaf=lambda node: isinstance(node, nnx.Param))
