"""Kimi Delta Attention (Kimi Team 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive
from ...foundation.numerics import widen
from .decay import log_rate, step_size_bias
from .delta_net import DeltaNet
from .layer import RecurrenceInputs, RecurrentState
from .low_rank import LowRank


@dataclasses.dataclass(frozen=True)
class KimiDelta(DeltaNet):
    """Kimi Delta Attention: the delta rule with a forget gate per key channel, and an output gate.

        α_t = exp(-exp(a) softplus(x_t W₁ W₂ + b)),    S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ
        out_t = (σ(x_t W₃ W₄ + c) ⊙ norm(S_tᵀ q_t)) W_o

    Kimi Team 2025 (arXiv:2510.26692); q, k, v and β with their short convolutions, sizes, options and errors as in
    `DeltaNet`. a is learned for each head and b for each channel, both initialized as in Mamba-2. Both gates have rank
    `gate_rank`.

    Defaults differ from the paper's: there q is multiplied by 1 / √k_dim (`scale=k_dim**-0.5`), and ε of the norm is
    1e-5 (`norm_eps`). The norm has a scale per head, where the paper shares one; the Kimi Linear model has c = 0. The
    paper does not say how b is initialized; in flash-linear-attention it was 0.

    Args:
        gate_rank: rank of both gates; by default `v_dim`, as in the authors' code.

    >>> import jax
    >>> layer = KimiDelta(16, 2, 4, 8)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    gate_rank: int | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self):
        super().__post_init__()
        if self.gate_rank is None:
            object.__setattr__(self, "gate_rank", self.v_dim)
        check_positive(gate_rank=self.gate_rank)

    def _low_rank(self, dim: int) -> LowRank:
        return LowRank(self.features, int(self.gate_rank or 0), (self._memories, dim))

    def parameters(self) -> dict[str, Any]:
        """The parameters of `DeltaNet`, plus a low-rank `decay` with the `log` of its rate, and a low-rank `gate`."""
        return {
            **super().parameters(),
            "decay": {
                **self._low_rank(self.k_dim).parameters(),
                "bias": step_size_bias(self._memories, self.k_dim),
                "log": log_rate(self._memories),
            },
            "gate": self._low_rank(self.v_dim).parameters(),
        }

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        made = super()._make(parameters, inputs, state, segment_ids)
        decay = parameters["decay"]
        rates = jnp.exp(widen(decay["log"]))[:, None]
        gates = -rates * jax.nn.softplus(widen(self._low_rank(self.k_dim)(decay, inputs)))
        gate = self._low_rank(self.v_dim)(parameters["gate"], inputs)
        return made._replace(sequences={**made.sequences, "log_decay": gates}, gate=gate)

    def _activation(self, gate: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(gate)
