"""An output modulated by a context vector, in four forms."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_choice, check_positive
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel, zeros

KINDS = ("gate", "scalar", "tanh", "film")


@dataclasses.dataclass(frozen=True)
class Modulation(Layer):
    """Context modulation: a context c modulates the output y of an attention (or of anything else).

        "gate"      σ(W [c; y] + b) ⊙ y                one gate per feature
        "scalar"    σ(cᵀ W y + b) y                    one gate for all features
        "tanh"      tanh(W [c; y] + b)                 the two joined, as in Luong et al. 2015 (arXiv:1508.04025)
        "film"      (1 + W_γ c + b_γ) ⊙ y + W_β c + b_β   Perez et al. 2018 (arXiv:1709.07871)

    The bilinear form cᵀ W y by itself is a single number and cannot replace an output: it is only useful as a score
    (`jattn.similarities.Bilinear`) or inside a sigmoid, as in "scalar". FiLM's scale is written 1 + ..., and its kernel
    is initialized to zero, so that at first y is unchanged.

    Args:
        features: features of y and of the result.
        context_features: features of c.
        kind: one of the four.

    Raises:
        ValueError: a size is below 1; `kind` is unknown; at the call, shapes do not match.

    >>> import jax
    >>> layer = Modulation(16, 8, "film")
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 5, 8))).shape
    (2, 5, 16)
    """

    own_axes = OWN_AXES

    features: int
    context_features: int
    kind: Literal["gate", "scalar", "tanh", "film"] = "gate"

    def __post_init__(self):
        check_positive(features=self.features, context_features=self.context_features)
        check_choice("kind", self.kind, KINDS)

    def parameters(self) -> dict[str, Any]:
        """`kernel` and `bias`.

        "gate" and "tanh": `[context_features + features, features]`, context first, and `[features]`.
        "scalar": `[context_features, features]` and `[]`. "film": `[context_features, 2, features]` and
        `[2, features]`, γ first.
        """
        context, features = self.context_features, self.features
        if self.kind == "scalar":
            return {"kernel": kernel(context, features), "bias": bias()}
        if self.kind == "film":
            return {"kernel": kernel(context, 2, features)._replace(init=zeros), "bias": bias(2, features)}
        return {"kernel": kernel(context + features, features), "bias": bias(features)}

    def __call__(self, parameters: Mapping[str, Any], outputs: jax.Array, context: jax.Array) -> jax.Array:
        """`[..., features]`, in the dtype of `outputs`; sums and sigmoids in float32 (float64).

        Args:
            parameters: the layer's parameters.
            outputs: y, `[..., features]`.
            context: c, `[..., context_features]`, with the same leading axes; repeat a context shared by many outputs
                with `jax.numpy.broadcast_to`.
        """
        known = {"features": self.features, "context_features": self.context_features}
        check_shapes(known, outputs=(outputs, "... features"), context=(context, "... context_features"))
        weight, shift = parameters["kernel"], parameters["bias"]
        dtype = accumulation_dtype(outputs, context, weight, shift)
        y, c, weight, shift = (array.astype(dtype) for array in (outputs, context, weight, shift))
        if self.kind == "scalar":
            out = jax.nn.sigmoid((c @ weight * y).sum(-1, keepdims=True) + shift) * y
        elif self.kind == "film":
            scale, offset = jnp.moveaxis(jnp.einsum("...c,cnf->...nf", c, weight) + shift, -2, 0)
            out = (1 + scale) * y + offset
        else:
            joined = jnp.concatenate([c, y], -1) @ weight + shift
            out = jnp.tanh(joined) if self.kind == "tanh" else jax.nn.sigmoid(joined) * y
        return out.astype(outputs.dtype)
