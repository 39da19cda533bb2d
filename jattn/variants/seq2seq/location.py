"""Location attention: weights that depend only on the query."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive, leave_out
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel
from ...ops.attention.api import attention
from ...similarities import Dot


@dataclasses.dataclass(frozen=True)
class Location(Layer):
    """Location attention: softmax(W h) over positions, independent of the contents of the sources.

        c_t = Σ_s softmax_s(W h_t)_s h̄_s

    Luong, Pham & Manning 2015 (arXiv:1508.04025), "location". Row s of W acts as the key of position s, so this is a
    streamed `jattn.attention` with dot products. The source length is limited, and, as in the paper, there is no bias.

    Args:
        features: features of the states.
        max_length: number of rows of W, the largest kv_len.

    Raises:
        ValueError: a size is below 1; at the call, there are more than `max_length` sources or shapes do not match; as
            in `jattn.attention`.

    >>> import jax
    >>> layer = Location(16, max_length=50)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 9, 8))).shape
    (2, 5, 8)
    """

    own_axes = OWN_AXES

    features: int
    max_length: int

    def __post_init__(self):
        check_positive(features=self.features, max_length=self.max_length)

    def parameters(self) -> dict[str, Any]:
        """`kernel [features, max_length]`, W transposed."""
        return {"kernel": kernel(self.features, self.max_length)}

    def __call__(self, parameters: Mapping[str, Any], states: jax.Array, sources: jax.Array, **pieces: Any) -> Any:
        """`[..., q_len, v_dim]`.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., q_len, features]`.
            sources: h̄, `[..., kv_len, v_dim]`; source s is at position s.
            **pieces: arguments of `jattn.attention`, except the similarity: `mask` (`jattn.masks.Lengths`), `scores`,
                ...
        """
        known = {"features": self.features}
        sizes = check_shapes(known, states=(states, "... q_len features"), sources=(sources, "... kv_len v_dim"))
        if sizes["kv_len"] > self.max_length:
            raise ValueError(
                f"`sources` of shape {sources.shape} has {sizes['kv_len']} places, but there are weights for "
                f"`max_length` = {self.max_length} only: truncate it, or make the layer with a larger `max_length`."
            )
        pieces = leave_out(pieces, "places are chosen by dot products with W", "similarity")
        places = parameters["kernel"][:, : sizes["kv_len"]].T
        keys = jnp.broadcast_to(places, (*states.shape[:-2], *places.shape))
        return attention(states[..., None, :], keys[..., None, :], sources[..., None, :], similarity=Dot(), **pieces)[
            ..., 0, :
        ]
