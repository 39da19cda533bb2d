"""Gated linear attention (Yang et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from ...foundation.arguments import check_positive
from ...foundation.numerics import widen
from ...layers.short_convolution import ShortConvolution
from .layer import Grouped, RecurrenceInputs, RecurrentState, projection, to_heads
from .low_rank import LowRank


@dataclasses.dataclass(frozen=True)
class GLA(Grouped):
    """GLA: gated linear attention, a state in which every key channel has a token-dependent forget gate.

        α_t = σ(x_t W₁ W₂ + b)^(1/16),    S_t = diag(α_t) S_{t-1} + k_t v_tᵀ,    o_t = S_tᵀ q_t / √k_dim
        out_t = (swish(x_t W_r) ⊙ norm(o_t)) W_o

    Yang et al. 2023 (arXiv:2312.06635). The gate's logits have rank `gate_rank`; τ = 16 keeps gates near 1. The norm is
    the root mean square norm of a head, with a learned scale.

    Demonstrated in `examples/experiments/extrapolation.py`.

    Args:
        features: features of inputs and outputs.
        heads: number of heads.
        k_dim: features of a head's keys.
        v_dim: features of a head's values.
        kv_heads: heads of keys, values, gates and states, by default `heads`; must divide `heads`, and consecutive
            queries share one. The paper does not group heads.
        gate_rank: rank of the gate's logits.
        temperature: τ.
        taps: taps of a short convolution with swish on q, k and v, such as 4; None, as in the paper, for none.
        norm_eps: ε of the norm.

    Raises:
        ValueError: a size is below 1; heads do not divide; at the call, shapes do not match.

    >>> import jax
    >>> layer = GLA(16, 4, 4, 8, kv_heads=2, taps=4)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    gate_rank: int = 16
    temperature: float = 16.0
    taps: int | None = None

    def __post_init__(self):
        super().__post_init__()
        check_positive(gate_rank=self.gate_rank)
        if not isinstance(self.temperature, int | float) or not self.temperature > 0:
            raise ValueError(f"`temperature` must be above 0, so that gates are at most 1; got {self.temperature!r}.")
        if self.taps is not None:
            check_positive(taps=self.taps)

    @property
    def _gate(self) -> LowRank:
        return LowRank(self.features, self.gate_rank, (self._memories, self.k_dim))

    @property
    def _convolution(self) -> ShortConvolution | None:
        channels = self.heads * self.k_dim + self._memories * (self.k_dim + self.v_dim)
        return None if self.taps is None else ShortConvolution(channels, self.taps)

    @property
    def _past(self) -> tuple[int, int]:
        return (0, 0) if self._convolution is None else (self._convolution.taps - 1, self._convolution.channels)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `swish`, a low-rank `gate`, `norm`, `out`, and `convolution` if there are `taps`."""
        made = {
            **super().parameters(),
            "swish": projection(self.features, self.heads, self.v_dim),
            "gate": self._gate.parameters(),
        }
        return made if self._convolution is None else {**made, "convolution": self._convolution.parameters()}

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        arrays, past = [to_heads(parameters, name, inputs) for name in ("query", "key", "value")], state.past
        if self._convolution is not None:
            arrays, past = self._convolution.of_heads(parameters["convolution"], arrays, past, segment_ids)
        query, key, value = arrays
        gates = jax.nn.log_sigmoid(widen(self._gate(parameters["gate"], inputs))) / self.temperature
        sequences = {"query": query * self.k_dim**-0.5, "key": key, "value": value, "log_decay": gates}
        return RecurrenceInputs(sequences, {}, to_heads(parameters, "swish", inputs), past)
