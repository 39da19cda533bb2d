"""Local attention of Luong et al. 2015 around a predicted position (local-p)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive, leave_out
from ...foundation.arrays import as_jax
from ...foundation.numerics import widen
from ...foundation.shapes import check_lengths, check_shapes
from ...layers.layer import OWN_AXES, Layer, kernel
from ...masks import Lengths, as_mask
from ...masks.near import Near
from ...ops.attention.api import partial_attention
from ...ops.attention.call import check_pieces
from ...scores.gaussian_window import GaussianWindow


def local_p(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    centers: jax.Array,
    distance: Any,
    *,
    mask: Any = None,
    scores: Any = (),
    **pieces: Any,
) -> jax.Array:
    """Attention inside a window around each query's center, with weights multiplied by a Gaussian.

        a_is = softmax_{s: |s - p_i| <= D}(score_is) exp(-(s - p_i)² / (2 σ²)),    σ = D / 2,    out_i = Σ_s a_is v_s

    Luong, Pham & Manning 2015 (arXiv:1508.04025), "local-p". The weights are *not* renormalized, so they sum to less
    than 1. The gradient reaches the centers through the Gaussian, not through the edges of the window.

    Computed by two calls of `jattn.attention`, which skip tiles outside the windows. With the logarithm of the Gaussian
    added to the scores, the softmax gives the desired weights up to a factor for each query, exp(lse with the Gaussian
    - lse without), by which the output is multiplied.

    Args:
        query: `[..., q_len, q_heads, qk_dim]`.
        key: `[..., kv_len, kv_heads, qk_dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        centers: p, floating-point `[..., q_heads or 1, q_len]`, or `[q_len]` for all, in key positions.
        distance: D, a positive number, or an array of shape `[..., q_heads]` or `[]`, so that it can be annealed.
            Traced values are not checked; one that is not positive gives an empty window.
        mask: an additional mask, such as `jattn.masks.Lengths` for padded sources.
        scores: as in `jattn.attention`.
        **pieces: arguments of `jattn.attention`, except the normalizer, which is the softmax, and dropout.

    Returns:
        `[..., q_len, q_heads, v_dim]`; 0 if the window is empty.

    Raises:
        ValueError: a normalizer or dropout is given; the centers have another shape; a distance is not positive; as in
            `jattn.attention`.

    >>> import jax, jax.numpy as jnp
    >>> h, s = jax.random.normal(jax.random.key(0), (2, 7, 1, 16)), jax.random.normal(jax.random.key(1), (2, 20, 1, 16))
    >>> local_p(h, s, s, jnp.linspace(0, 19, 7), 4.0).shape
    (2, 7, 1, 16)
    """
    pieces = leave_out(pieces, "local-p has the softmax and its Gaussian", "normalizer", "dropout")
    query, key, value, centers, distance = as_jax(query, key, value, centers, distance)
    near = Near(centers, distance)
    pieces["mask"] = near if mask is None else near & as_mask(mask)
    plain = check_pieces(None, None, scores, None, None)[2]
    bent = partial_attention(query, key, value, scores=(*plain, GaussianWindow(centers, distance)), **pieces)
    whole = partial_attention(query, key, jnp.zeros_like(value[..., :1]), scores=plain, **pieces)
    some = ~(jnp.isneginf(whole.lse) | jnp.isneginf(bent.lse))
    log_share = whole.log_share(jnp.where(some, bent.lse, 0)) + bent.remainder
    share = jnp.where(some, jnp.exp(jnp.where(some, log_share, 0)), 0)
    return (bent.out.astype(share.dtype) * share[..., None]).astype(value.dtype)


@dataclasses.dataclass(frozen=True)
class LuongLocal(Layer):
    """Luong local-p: attention in a Gaussian window around a position predicted from the decoder state.

        p_t = S sigmoid(v_pᵀ tanh(W_p h_t)),    c_t = local_p(h_t, h̄, h̄, p_t, D),    out_t = tanh(W_c [c_t; h_t])

    Luong, Pham & Manning 2015 (arXiv:1508.04025), with S the length of each example's source and positions 0, ..., S -
    1. With a narrow window, p gets no gradient from distant positions: start with a wide window and anneal it. For
    local-m use `LuongGlobal` with `mask=jattn.masks.SlidingWindow(D, D)`.

    Demonstrated in `examples/experiments/local_p.py`.

    Args:
        features: features of decoder states, source states and the output.
        hidden: output features of W_p; by default `features`.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match, or lengths exceed the sources; as in `local_p`.

    >>> import jax
    >>> layer = LuongLocal(16)
    >>> parameters = layer.init(jax.random.key(0))
    >>> jax.jit(layer)(parameters, jax.numpy.ones((2, 5, 16)), jax.numpy.ones((2, 9, 16)), 4.0).shape
    (2, 5, 16)
    """

    own_axes = OWN_AXES

    features: int
    hidden: int | None = None

    def __post_init__(self):
        check_positive(features=self.features)
        if self.hidden is not None:
            check_positive(hidden=self.hidden)

    def parameters(self) -> dict[str, Any]:
        """`position.hidden [features, hidden]`, `position.vector [hidden, 1]`, `out.kernel [2 features, features]`."""
        hidden = self.features if self.hidden is None else self.hidden
        return {
            "position": {"hidden": kernel(self.features, hidden), "vector": kernel(hidden, 1)},
            "out": {"kernel": kernel(2 * self.features, self.features)},
        }

    def centers(self, parameters: Mapping[str, Any], states: jax.Array, lengths: Any) -> jax.Array:
        """p, `[..., q_len]`, float32 (float64).

        Args:
            parameters: the layer's parameters.
            states: h, `[..., q_len, features]`.
            lengths: S, a number or integers `[...]`.
        """
        weights = parameters["position"]
        number_of = (jnp.tanh(states @ weights["hidden"]) @ weights["vector"])[..., 0]
        number_of = widen(number_of)
        return jnp.asarray(lengths)[..., None] * jax.nn.sigmoid(number_of)

    def __call__(
        self,
        parameters: Mapping[str, Any],
        states: jax.Array,
        sources: jax.Array,
        distance: Any,
        *,
        lengths: Any = None,
        mask: Any = None,
        **pieces: Any,
    ) -> Any:
        """`[..., q_len, features]`.

        Args:
            parameters: the layer's parameters.
            states: h, `[..., q_len, features]`.
            sources: h̄, `[..., kv_len, features]`.
            distance: D, as in `local_p`.
            lengths: lengths of the sources, integers `[...]`, or one for all; the rest is padding. By default kv_len.
            mask: an additional mask.
            **pieces: arguments of `local_p`.
        """
        check_shapes(
            {"features": self.features}, states=(states, "... q_len features"), sources=(sources, "... kv_len features")
        )
        if lengths is None:
            lengths = sources.shape[-2]
        else:
            lengths = check_lengths(lengths, states.shape[:-2], sources.shape[-2])
            inside = Lengths(lengths)
            mask = inside if mask is None else inside & as_mask(mask)
        centers = self.centers(parameters, states, lengths)[..., None, :]
        query, key = states[..., None, :], sources[..., None, :]
        context = local_p(query, key, key, centers, distance, mask=mask, **pieces)[..., 0, :]
        return jnp.tanh(jnp.concatenate([context, states], -1) @ parameters["out"]["kernel"])
