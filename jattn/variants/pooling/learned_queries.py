"""Attention pooling: a sequence summarized by learned queries."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.arrays import of_rank
from ...foundation.numerics import without_nonfinite
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, normal
from ...ops.attention.api import attention
from ...similarities import Dot


@dataclasses.dataclass(frozen=True)
class AttentionPooling(Layer):
    """Attention pooling: learned queries summarize a sequence, with one weight per input and query.

        u_s = tanh(W x_s + b),    out = Σ_s softmax_s(q·u_s) x_s

    Yang et al. 2016 (Hierarchical Attention Networks, NAACL). Without `hidden`, u_s = x_s. This is `jattn.attention`
    with queries shared by the whole batch; mask padding as usual.

    Args:
        features: features of the inputs.
        hidden: features of the hidden layer of u; None for u = x.
        queries: number of queries.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match; as in `jattn.attention`.

    >>> import jax
    >>> layer = AttentionPooling(16, hidden=8, queries=3)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 9, 16))).shape
    (2, 3, 16)
    """

    own_axes = OWN_AXES

    features: int
    hidden: int | None = None
    queries: int = 1

    def __post_init__(self):
        check_positive(features=self.features, queries=self.queries)
        if self.hidden is not None:
            check_positive(hidden=self.hidden)

    def parameters(self) -> dict[str, Any]:
        """`query [queries, hidden or features]`; with `hidden`, `kernel [features, hidden]` and `bias [hidden]`."""
        width = self.features if self.hidden is None else self.hidden
        declared = {"query": bias(self.queries, width, init=normal(width**-0.5))}
        if self.hidden is not None:
            declared |= {"kernel": kernel(self.features, width), "bias": bias(width)}
        return declared

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, **pieces: Any) -> Any:
        """`[..., queries, features]`.

        Args:
            parameters: the layer's parameters.
            inputs: x, `[..., kv_len, features]`.
            **pieces: arguments of `jattn.attention`: `mask` (`jattn.masks.Lengths`), `scores`, ... There is no
                1/√hidden unless `similarity=jattn.similarities.ScaledDot()`.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... kv_len features"))
        keys = inputs
        if self.hidden is not None:
            # The zero gradient of a masked key must not meet NaN here; of one that is attended, the value still has it.
            keys = without_nonfinite(inputs) @ parameters["kernel"]
            keys = jnp.tanh(keys + of_rank(parameters["bias"], keys.ndim))
        query = jnp.broadcast_to(parameters["query"], (*inputs.shape[:-2], *parameters["query"].shape))
        pieces.setdefault("similarity", Dot())
        return attention(query[..., None, :], keys[..., None, :], inputs[..., None, :], **pieces)[..., 0, :]
