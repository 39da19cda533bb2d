"""Token shift: each input mixed with the one before, in a proportion that depends on both (Peng et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...layers.layer import OWN_AXES, Layer, bias
from ...ops.convolution.short import shifts
from .low_rank import LowRank

HALF = jax.nn.initializers.constant(0.5)


@dataclasses.dataclass(frozen=True)
class TokenShift(Layer):
    """The data-dependent linear interpolation between a token and the one before, once for each of several uses.

        mixed_n = x_t + (x_{t-1} - x_t) ⊙ (λ_n + tanh(y W₁ⁿ) W₂ⁿ),    y = x_t + (x_{t-1} - x_t) ⊙ μ

    Peng et al. 2024 (arXiv:2404.05892), "ddlerp". Before the first token stands 0; μ and λ start at 1/2 (in the
    paper at numbers that depend on channel and layer).

    Args:
        features: of inputs and outputs.
        names: of the uses.
        rank: of W₁.

    Raises:
        ValueError: a size is below 1.

    >>> import jax
    >>> layer = TokenShift(16, ("key", "value"))
    >>> mixed, past = layer(layer.init(jax.random.key(0)), jax.numpy.ones((2, 10, 16)))
    >>> mixed["key"].shape, past.shape
    ((2, 10, 16), (2, 1, 16))
    """

    own_axes = OWN_AXES

    features: int
    names: tuple[str, ...]
    rank: int = 32

    def __post_init__(self):
        check_positive(features=self.features, rank=self.rank)

    @property
    def _share(self) -> LowRank:
        return LowRank(self.features, self.rank, (self.features,), base=0.5, curved=True)

    def parameters(self) -> dict[str, Any]:
        """`shared`, μ; and for each use λ and the two matrices, as `LowRank` names them."""
        return {
            "shared": bias(self.features, init=HALF),
            **{name: self._share.parameters() for name in self.names},
        }

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, past: jax.Array | None = None, segment_ids: Any = None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The mixed inputs of each use, and the last token `[..., 1, features]`, the `past` of the next call.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            past: the token before the first, `[..., 1, features]`, of the first segment; by default 0.
            segment_ids: `[..., length]` or `[length]`; no token is mixed with one of another segment.
        """
        seen = shifts(inputs, 2, past, segment_ids)
        here, before = seen.values
        # Of NaN and inf no mixture is made; it is put back behind, where it was seen.
        nonfinite = jnp.stack(seen.nonfinite).any((0, -1))[..., None]
        share = self._share
        rough = here + (before - here) * parameters["shared"]
        mixed = {name: here + (before - here) * share(parameters[name], rough) for name in self.names}
        return {name: jnp.where(nonfinite, jnp.nan, one) for name, one in mixed.items()}, seen.past
