"""Attention in linear time: linear recurrences and the delta rule, as a scan, in chunks, or one step at a time.

The state of a head is a matrix S `[k_dim, v_dim]`. Each token decays it, writes its key and value, and reads it with
its query:

    linear recurrence:  S_t = diag(α_t) S_{t-1} + k_t v_tᵀ                             out_t = S_tᵀ q_t
    delta rule:         S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ      out_t = S_tᵀ q_t

`tokens` is the definition, one token at a time. `implementations` has the ways to compute it for a whole sequence: the
scan, token by token, and chunks, with attention within a chunk and a state between chunks. `call` chooses among them,
`groups` handles heads that share keys or states, and `nonfinite` keeps NaN and inf where they belong.
"""

from .delta import delta_rule, delta_step
from .linear import linear_recurrence, linear_step

__all__ = ["delta_rule", "delta_step", "linear_recurrence", "linear_step"]
