"""DeltaNet (Yang et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ...core.shapes import check_positive
from ...modules.layer import kernel
from ...recurrent import delta_rule, delta_step
from ..convolutional.short_convolution import ShortConvolution
from .layer import Made, Recurrent, RecurrentState, to_heads, unit, wide


@dataclasses.dataclass(frozen=True)
class DeltaNet(Recurrent):
    """A memory in which a token replaces what was stored for its key.

        q, k, v = swish(short(x W_q)), swish(short(x W_k)), swish(short(x W_v)),    β_t = σ(x_t w_β)
        q, k ← q / ‖q‖, k / ‖k‖
        S_t = (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ,    out_t = norm(S_tᵀ q_t) W_o

    Yang et al. 2024 (arXiv:2406.06484), after Schlag et al. 2021 (arXiv:2102.11174). short is a causal convolution of
    each channel with `taps` taps. The norm is the root mean square of a head, times a learnt scale.

    Args:
        features: of inputs and outputs.
        heads: how many.
        k_dim: of a head's keys.
        v_dim: of a head's values.
        taps: of the short convolution.

    Raises:
        ValueError: sizes below 1; at the call, shapes that do not fit.

    >>> import jax
    >>> layer = DeltaNet(16, 2, 4, 8)
    >>> layer(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    taps: int = 4

    def __post_init__(self):
        super().__post_init__()
        check_positive(taps=self.taps)

    @property
    def _convolution(self) -> ShortConvolution:
        return ShortConvolution(self.heads * (2 * self.k_dim + self.v_dim), self.taps)

    @property
    def _past(self) -> tuple[int, int]:
        return (self.taps - 1, self._convolution.channels)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `beta`, `convolution` (channels of q, k and v in this order), `norm` and `out`."""
        return {
            **super().parameters(),
            "beta": {"kernel": kernel(self.features, self.heads)},
            "convolution": self._convolution.parameters(),
        }

    def _make(self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any) -> Made:
        arrays = [to_heads(parameters, name, inputs) for name in ("query", "key", "value")]
        arrays, past = self._convolution.of_heads(parameters["convolution"], arrays, state.past, segment_ids)
        query, key, value = arrays
        beta = jax.nn.sigmoid(wide(inputs @ parameters["beta"]["kernel"]))
        return Made({"query": unit(query), "key": unit(key), "value": value, "beta": beta}, {}, None, past)

    def _whole(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return delta_rule(**arrays, correct=False)  # β ‖k‖² is below 1

    def _single(self, **arrays: Any) -> tuple[jax.Array, jax.Array]:
        return delta_step(**arrays)
