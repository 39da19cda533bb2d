"""Attention of RWKV-6 (Peng et al. 2024)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_flags, check_positive
from ...foundation.numerics import widen
from ...layers.layer import bias
from ...layers.norms import layer_norm
from .layer import RecurrenceInputs, Recurrent, RecurrentState, projection, scale, to_heads
from .low_rank import LowRank
from .token_shift import TokenShift


@dataclasses.dataclass(frozen=True)
class RWKV(Recurrent):
    """RWKV-6: a token-dependent forget gate per channel, and a bonus for the current token.

        x^r, x^k, x^v, x^g, x^d = each a mixture of x_t and x_{t-1} (`TokenShift`)
        α_t = exp(-exp(w + tanh(x_t^d W₁) W₂)),    S_t = diag(α_t) S_{t-1} + k_t v_tᵀ
        o_t = (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ r_t,    out_t = (swish(x_t^g W_g) ⊙ norm(o_t)) W_o

    Peng et al. 2024 (arXiv:2404.05892), the time mixing of the "finch" version; r, k and v are projections of their
    mixtures. The norm is the root mean square norm of a head, with a learned scale; with `group_norm` it is the
    paper's, a layer norm of each head with scale and bias (`ln_x` in the authors' code, whose ε is `norm_eps=64e-5`).

    Args:
        features: features of inputs and outputs.
        heads: number of heads.
        k_dim: features of a head's keys.
        v_dim: features of a head's values.
        gate_rank: rank of the decay's function of the token.
        shift_rank: rank of each mixture's function of the token.
        group_norm: whether the norm is a layer norm with a bias.
        norm_eps: ε of the norm.

    Raises:
        ValueError: a size is below 1; a flag is not a boolean; at the call, shapes do not match.

    >>> import jax
    >>> layer = RWKV(16, 2, 4, 8)
    >>> jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 10, 16))).shape
    (3, 10, 16)
    """

    gate_rank: int = 64
    shift_rank: int = 32
    group_norm: bool = False

    def __post_init__(self):
        super().__post_init__()
        check_flags(group_norm=self.group_norm)
        check_positive(gate_rank=self.gate_rank, shift_rank=self.shift_rank)

    @property
    def _shift(self) -> TokenShift:
        return TokenShift(self.features, ("query", "key", "value", "swish", "decay"), self.shift_rank)

    @property
    def _decay(self) -> LowRank:
        return LowRank(self.features, self.gate_rank, (self.heads, self.k_dim), base=-3.0, curved=True)

    @property
    def _past(self) -> tuple[int, int]:
        return (1, self.features)

    def parameters(self) -> dict[str, Any]:
        """`query` (r), `key`, `value`, `swish`, `shift`, a low-rank `decay`, `bonus`, `norm` and `out`."""
        made = {
            **super().parameters(),
            "swish": projection(self.features, self.heads, self.v_dim),
            "shift": self._shift.parameters(),
            "decay": self._decay.parameters(),
            "bonus": scale(self.heads, self.k_dim),
        }
        if self.group_norm:
            made["norm"] = {**made["norm"], "bias": bias(self.heads, self.v_dim)}
        return made

    def _normalized(self, parameters: Mapping[str, Any], out: jax.Array) -> jax.Array:
        if not self.group_norm:
            return super()._normalized(parameters, out)
        return layer_norm(out, parameters["scale"], parameters["bias"], self.norm_eps)

    def _make(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: RecurrentState, segment_ids: Any
    ) -> RecurrenceInputs:
        mixed, past = self._shift(parameters["shift"], inputs, state.past, segment_ids)
        query, key, value, gate = (
            to_heads(parameters, name, mixed[name]) for name in ("query", "key", "value", "swish")
        )
        rates = -jnp.exp(widen(self._decay(parameters["decay"], mixed["decay"])))
        sequences = {"query": query, "key": key, "value": value, "log_decay": rates}
        return RecurrenceInputs(sequences, {"bonus": parameters["bonus"]["scale"]}, gate, past)
