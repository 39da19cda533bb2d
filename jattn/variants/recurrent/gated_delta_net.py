"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.numerics import widen
from ...layers.layer import kernel
from .decay import log_rate, step_size_bias
from .delta_net import DeltaNet
from .layer import RecurrenceInputs, RecurrentState, projection, to_heads


@dataclasses.dataclass(frozen=True)
class GatedDeltaNet(DeltaNet):
    """Gated DeltaNet: the delta rule with a forget gate and an output gate.

        α_t = exp(-exp(a) softplus(x_t w_α + b)),    S_t = α_t (I - β_t k_t k_tᵀ) S_{t-1} + β_t k_t v_tᵀ
        out_t = (swish(x_t W_g) ⊙ norm(S_tᵀ q_t)) W_o

    Yang, Kautz & Hatamizadeh 2024 (arXiv:2412.06464); q, k, v and β with their short convolutions, sizes and errors as
    in `DeltaNet`. The decay is that of Mamba-2, with a and b learned for each value head and initialized as there. The
    layers of Qwen3-Next have fewer key heads than value heads, `scale=k_dim**-0.5`, and one norm scale shared by all
    heads.

    Demonstrated in `examples/experiments/associative_recall_delta.py`.

    >>> import jax
    >>> layer = GatedDeltaNet(16, 2, 4, 8, num_v_heads=4, scale=0.5)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    def parameters(self) -> dict[str, Any]:
        """The parameters of `DeltaNet`, plus `decay` and `swish`."""
        return {
            **super().parameters(),
            "decay": {
                "kernel": kernel(self.features, self._memories),
                "bias": step_size_bias(self._memories),
                "log": log_rate(self._memories),
            },
            "swish": projection(self.features, self._memories, self.v_dim),
        }

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        made = super()._make(parameters, inputs, state, segment_ids)
        decay = parameters["decay"]
        gates = -jnp.exp(widen(decay["log"])) * jax.nn.softplus(widen(inputs @ decay["kernel"] + decay["bias"]))
        sequences = {**made.sequences, "log_decay": gates}
        return made._replace(sequences=sequences, gate=to_heads(parameters, "swish", inputs))
