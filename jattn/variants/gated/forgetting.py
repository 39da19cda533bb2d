"""Forgetting attention: softmax attention with learned forget gates (Lin et al. 2025)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.numerics import accumulation_dtype
from ...layers.causal import CausalAttention
from ...layers.layer import bias, kernel
from ...scores import Forget


@dataclasses.dataclass(frozen=True)
class ForgettingAttention(CausalAttention):
    """Forgetting attention (FoX): softmax attention in which each token's forget gate down-weights all earlier keys.

        f_t = σ(w_f·x_t + b_f),    out_t = (Σ_{s ≤ t} softmax_s(q_t·k_s / √head_dim + Σ_{s < l ≤ t} log f_l) v_s) W_o

    Lin, Nikishin, He & Courville 2025 (arXiv:2503.02130), with a gate per query head, by `jattn.scores.Forget`. The
    rest is `CausalAttention`, whose cache here also holds the log gates. As in the paper's "LLaMA" architecture, there
    is no rotation unless `rotary` is set. Its "Pro" architecture is not built in: output gate and norm, norms of
    queries and keys, and mixing of keys and values with those of the previous token. Unlike in the authors' code, heads
    may share keys.

    Args and errors as in `jattn.layers.CausalAttention`; `rotary` is False.

    >>> import jax
    >>> layer = ForgettingAttention(16, 2, max_len=64)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (3, 10, 16))
    >>> start, state = jax.jit(layer.prefill)(parameters, x[:, :9])
    >>> last, state = jax.jit(layer.step)(parameters, x[:, 9], state)
    >>> bool(jax.numpy.allclose(last, jax.jit(layer)(parameters, x)[:, 9], atol=1e-5))
    True
    """

    rotary: bool = False

    def parameters(self) -> dict[str, Any]:
        """The parameters of `CausalAttention`, plus `forget`: a `kernel [features, heads]` and a `bias [heads]`."""
        gate = {"kernel": kernel(self.features, self.heads), "bias": bias(self.heads)}
        return {**super().parameters(), "forget": gate}

    @property
    def _gates_per_key_head(self) -> int:  # type: ignore[override]  (a number in the layers without gates)
        return self.heads // int(self.kv_heads or 1)

    def _gates(self, parameters: Mapping[str, Any], inputs: jax.Array, nonfinite: jax.Array) -> jax.Array:
        logits = inputs @ parameters["forget"]["kernel"] + parameters["forget"]["bias"]
        gates = jax.nn.log_sigmoid(logits.astype(accumulation_dtype(logits)))
        return jnp.where(nonfinite[..., None], 0, gates)

    def _scores(self, gates: Any, queries: Any) -> Any:
        return Forget.of(jnp.swapaxes(gates, -1, -2), queries=queries)
