"""Token shift: each input is mixed with the previous one, in a proportion that depends on both (Peng et al. 2024)."""

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
    """Data-dependent linear interpolation between a token and the previous one, once for each of several uses.

        mixed_n = x_t + (x_{t-1} - x_t) ⊙ (λ_n + tanh(y W₁ⁿ) W₂ⁿ),    y = x_t + (x_{t-1} - x_t) ⊙ μ

    Peng et al. 2024 (arXiv:2404.05892), "ddlerp". The token before the first is 0. μ and λ are initialized to 1/2 (in
    the paper, to values that depend on channel and layer).

    Args:
        features: features of inputs and outputs.
        names: names of the uses.
        rank: rank of W₁.

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
        """`shared`, μ; and for each use λ and the two matrices, named as in `LowRank`."""
        return {
            "shared": bias(self.features, init=HALF),
            **{name: self._share.parameters() for name in self.names},
        }

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, past: jax.Array | None = None, segment_ids: Any = None
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        """The mixed inputs for each use, and the last token `[..., 1, features]`, to pass as `past` to the next call.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            past: the token before the first segment, `[..., 1, features]`; by default 0.
            segment_ids: `[..., length]` or `[length]`; tokens of different segments are not mixed.
        """
        seen = shifts(inputs, 2, past, segment_ids)
        here, before = seen.values
        # Mix without NaN and inf; the outputs that depend on them are set to NaN afterward.
        nonfinite = jnp.stack(seen.nonfinite).any((0, -1))[..., None]
        share = self._share
        rough = here + (before - here) * parameters["shared"]
        mixed = {name: here + (before - here) * share(parameters[name], rough) for name in self.names}
        return {name: jnp.where(nonfinite, jnp.nan, one) for name, one in mixed.items()}, seen.past
