"""Attention in linear time: linear recurrences and the delta rule, as a scan, in chunks, or one step at a time.

The state of a head is a matrix S `[k_dim, v_dim]`. Each token decays it, writes its key and value, and reads it with
its query:

    linear recurrence:  S_t = diag(α_t) S_{t-1} + k_t v_tᵀ                             out_t = S_tᵀ q_t
    delta rule:         S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ      out_t = S_tᵀ q_t

The scan (`scan`) is the definition. The chunked form (`chunked`) computes attention within a chunk and a state between
chunks, with matrix products. `decays` has the decays within a chunk, `triangular` the delta rule's systems of
equations, and `groups` heads that share keys or states.
"""

from .delta import delta_rule, delta_step
from .linear import linear_recurrence, linear_step

__all__ = ["delta_rule", "delta_step", "linear_recurrence", "linear_step"]
