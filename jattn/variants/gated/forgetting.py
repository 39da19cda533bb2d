"""Forgetting Attention: softmax attention whose keys fade by learned gates (Lin et al. 2025)."""

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
    """Forgetting attention (FoX): softmax attention in which the forget gate of each token fades all keys before it.

        f_t = σ(w_f·x_t + b_f),    out_t = (Σ_{s ≤ t} softmax_s(q_t·k_s / √head_dim + Σ_{s < l ≤ t} log f_l) v_s) W_o

    Lin, Nikishin, He & Courville 2025 (arXiv:2503.02130), a gate for each head of queries, by `jattn.scores.Forget`.
    The rest is `CausalAttention`, whose cache here holds the log gates, too. As in the paper's "LLaMA" architecture,
    there is no rotation unless `rotary` asks for it. Of its "Pro" architecture nothing is built in: a gate and a norm
    of the output, norms of queries and keys, and keys and values mixed with those of the token before. Heads may share
    keys, which the authors' code leaves out.

    Args and errors as in `jattn.layers.CausalAttention`; `rotary` is False.

    >>> import jax
    >>> layer = ForgettingAttention(16, 2, max_len=64)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (3, 10, 16))
    >>> start, state = layer.prefill(parameters, x[:, :9])
    >>> last, state = layer.step(parameters, x[:, 9], state)
    >>> bool(jax.numpy.allclose(last, layer(parameters, x)[:, 9], atol=1e-5))
    True
    """

    rotary: bool = False

    def parameters(self) -> dict[str, Any]:
        """Those of `CausalAttention`, and `forget`: a `kernel [features, heads]` and `bias [heads]`."""
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
