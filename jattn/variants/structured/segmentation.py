"""Segmentation attention of Kim et al. 2017: a linear-chain conditional random field selects the inputs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.shapes import check_lengths, check_shapes, token_mask
from ...layers.layer import OWN_AXES, Layer, bias, kernel, normal
from .chain import chain_marginals


def segmentation_attention(
    scores: jax.Array, transitions: jax.Array, values: jax.Array, *, lengths: Any = None
) -> jax.Array:
    """Inputs weighted by the marginals of a binary chain: c = Σ_i p(z_i = 1) x_i.

        p(z) ∝ exp(Σ_i θ_i z_i + Σ_i θ(z_{i-1}, z_i)),  z_i in {0, 1}

    Kim, Denton, Hoang & Rush 2017 (arXiv:1702.00887), section 3.1, with its pairwise potentials written as a score for
    each position plus a transition. The weights are marginals: each is in [0, 1], and they do not sum to 1.

    Args:
        scores: θ_i `[..., length]`.
        transitions: θ(from, to) `[2, 2]` or `[..., length - 1, 2, 2]`.
        values: x `[..., length, features]`.
        lengths: as in `chain_log_partition`; values beyond, even NaN, are ignored.

    Returns:
        `[..., features]`, in the dtype of `values`; 0 if nothing is allowed.

    Raises:
        ValueError: as in `chain_log_partition`.

    >>> import jax.numpy as jnp
    >>> values = jnp.eye(3)
    >>> print(segmentation_attention(jnp.array([9.0, 0.0, -9.0]), jnp.zeros((2, 2)), values).round(2))
    [1.  0.5 0. ]
    """
    check_shapes(scores=(scores, "... length"), values=(values, "... length features"))
    weights = chain_marginals(jnp.stack([jnp.zeros_like(scores), scores], -1), transitions, lengths=lengths)[..., 1]
    own = token_mask(lengths, scores.shape[:-1], scores.shape[-1])
    wide = jnp.where(own[..., None], values, 0).astype(weights.dtype)
    return jnp.einsum("...t,...tf->...f", weights, wide).astype(values.dtype)


@dataclasses.dataclass(frozen=True)
class Segmentation(Layer):
    """Segmentation attention: weights are the marginals of linear-chain CRFs over the whole sequence.

        θ_i = w_h·x_i + b_h,  θ_i(z_{i-1}, z_i) = (U_h x_i + t_h)(z_{i-1}, z_i),  c_h = Σ_i p_h(z_i = 1) V_h x_i

    Kim et al. 2017 (arXiv:1702.00887). Each head is one `segmentation_attention`. To use a query, concatenate it to the
    inputs, or add its score.

    Demonstrated in `examples/experiments/brackets.py`.

    Args:
        features: features of the inputs.
        heads: number of chains.
        head_dim: features of each head's values; by default `features`.

    Raises:
        ValueError: a size is below 1; at the call, shapes do not match; as in `chain_log_partition`.

    >>> import jax
    >>> layer = Segmentation(8, heads=2, head_dim=4)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 5, 8)), lengths=4).shape
    (3, 2, 4)
    """

    own_axes = OWN_AXES

    features: int
    heads: int = 1
    head_dim: int | None = None

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, head_dim=self.dim)

    @property
    def dim(self) -> int:
        """Features of each head's values."""
        return self.features if self.head_dim is None else self.head_dim

    def parameters(self) -> dict[str, Any]:
        """`score` (w and b), `transition` (U and t, the latter `[heads, 2, 2]`), and `value.kernel` (V)."""
        return {
            "score": {"kernel": kernel(self.features, self.heads), "bias": bias(self.heads)},
            "transition": {
                "kernel": kernel(self.features, self.heads, 2, 2),
                "bias": bias(self.heads, 2, 2, init=normal(0.1)),
            },
            "value": {"kernel": kernel(self.features, self.heads, self.dim)},
        }

    def __call__(self, parameters: Mapping[str, Any], inputs: jax.Array, *, lengths: Any = None) -> jax.Array:
        """`[..., heads, head_dim]`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            lengths: integers `[...]`, or one for all.
        """
        check_shapes({"features": self.features}, inputs=(inputs, "... length features"))
        *batch, length, _ = inputs.shape
        lengths = check_lengths(lengths, tuple(batch), length)
        inputs = jnp.where(token_mask(lengths, lengths.shape, length)[..., None], inputs, 0)
        scores = inputs @ parameters["score"]["kernel"] + parameters["score"]["bias"]
        values = jnp.einsum("...tf,fhd->...thd", inputs, parameters["value"]["kernel"])
        transitions = jnp.einsum("...tf,fhab->...thab", inputs[..., 1:, :], parameters["transition"]["kernel"])
        transitions = transitions + parameters["transition"]["bias"]
        chains = jax.vmap(
            lambda scores, transitions, values: segmentation_attention(scores, transitions, values, lengths=lengths),
            in_axes=(-1, -3, -2),
            out_axes=-2,
        )
        return chains(scores, transitions, values)
