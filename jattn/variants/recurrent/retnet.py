"""Retention (Sun et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...positions import rotary
from .layer import Grouped, RecurrenceInputs, RecurrentState, projection, to_heads


@dataclasses.dataclass(frozen=True)
class RetNet(Grouped):
    """RetNet: multi-scale retention, a state that decays at a fixed rate per head.

        γ_h = 1 - 2^(-5-h),    S_t = γ_h S_{t-1} + (R_t k_t) v_tᵀ,    o_t = S_tᵀ (R_t q_t) / √k_dim
        out_t = (swish(x_t W_g) ⊙ norm(o_t)) W_o

    Sun et al. 2023 (arXiv:2307.08621). R_t turns the pairs of features (2i, 2i + 1) by t θ_i, the paper's e^{itθ}, with
    θ from 1 to 1/10000 in a geometric row, as in the authors' code; with the decay it makes xPos. Only relative
    positions matter, so packed segments need no separate positions. The norm (in the paper a group norm with one group
    per head) is the root mean square norm, as in the authors' code, but with a learned scale, which their code does not
    have. The paper's three normalizations before it are equivalent to another ε in the norm, and are left out.

    Demonstrated in `examples/experiments/extrapolation.py`.

    Args:
        features: features of inputs and outputs.
        heads: number of heads.
        k_dim: features of a head's keys, even.
        v_dim: features of a head's values.
        kv_heads: heads of keys, values and states, by default `heads`; must divide `heads`, and consecutive queries
            share one. h counts these heads, from 0. The paper does not group heads.
        norm_eps: ε of the norm. The authors' code has 1e-6 (`layernorm_eps`), flash-linear-attention 1e-5.

    Raises:
        ValueError: a size is below 1; heads do not divide; an odd `k_dim`; at the call, shapes do not match.

    >>> import jax
    >>> layer = RetNet(16, 2, 4, 8)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    def __post_init__(self):
        super().__post_init__()
        if self.k_dim % 2:
            raise ValueError(f"`k_dim` must be even, as features are rotated in pairs; got {self.k_dim}.")

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value`, `swish`, `norm` and `out`."""
        return {**super().parameters(), "swish": projection(self.features, self.heads, self.v_dim)}

    def log_decay(self, dtype: Any = jnp.float32) -> jax.Array:
        """log γ, `[kv_heads]`."""
        return jnp.asarray(np.log1p(-(2.0 ** (-5.0 - np.arange(self._memories)))), dtype)

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        del segment_ids
        query, key, value = (to_heads(parameters, name, inputs) for name in ("query", "key", "value"))
        at = state.position + jnp.arange(inputs.shape[-2])
        angles = 10000.0 ** -np.linspace(0, 1, self.k_dim // 2)
        query, key = (rotary(one, at, pairs="interleaved", frequencies=angles) for one in (query, key))
        sequences = {"query": query * self.k_dim**-0.5, "key": key, "value": value}
        return RecurrenceInputs(
            sequences,
            {"log_decay": self.log_decay(state.memory.dtype)},
            to_heads(parameters, "swish", inputs),
            state.past,
        )
