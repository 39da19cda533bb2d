"""The delta rule: each token overwrites what the state recalls for its key."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...foundation.arguments import check_flags, check_positive
from ...foundation.arrays import as_jax
from ...foundation.numerics import accumulation_dtype
from ..attention.by_example import by_example
from ..dispatch import Implementation
from .arguments import (
    axes_of_decay,
    axes_of_step_decay,
    check_log_decay,
    check_segments,
    check_sequences,
    check_state,
    widened,
)
from .call import Arrays, call_of, run_call
from .groups import over_groups
from .implementations.registry import DELTA
from .tokens import delta_token


@by_example(
    ("length head dim", "head dim dim"),
    query="length head dim",
    key="length head dim",
    value="length head dim",
    beta="length head",
    log_decay=axes_of_decay,
    initial_state="head dim dim",
)
def delta_rule(
    query: Float[jax.Array, "*batch length q_heads k_dim"],
    key: Float[jax.Array, "*batch length k_heads k_dim"],
    value: Float[jax.Array, "*batch length heads v_dim"],
    beta: Float[jax.Array, "*batch length heads"],
    *,
    log_decay: jax.Array | None = None,
    initial_state: Float[jax.Array, "*batch heads k_dim v_dim"] | None = None,
    segment_ids: Any = None,
    implementation: str | Implementation | None = None,
    chunk: int = 64,
    refine: bool = True,
) -> tuple[Float[jax.Array, "*batch length out_heads v_dim"], Float[jax.Array, "*batch heads k_dim v_dim"]]:
    """A state that learns key-value pairs by the delta rule, in time and memory linear in the length.

        S_t = (I - β_t k_t k_tᵀ) diag(α_t) S_{t-1} + β_t k_t v_tᵀ,    out_t = S_tᵀ q_t

    Schlag et al. 2021 (arXiv:2102.11174), Yang et al. 2024 (arXiv:2406.06484); with a decay per head Yang et al. 2024
    (arXiv:2412.06464), per channel Kimi Team 2025 (arXiv:2510.26692). There is no scale inside, and keys are not
    normalized: with β ‖k‖² > 2 the state grows without bound, so pass keys of unit length. If β is near 2 and keys are
    nearly identical, the triangular systems of the chunks are ill-conditioned; the error of the output is then up to
    5e-5 of its root mean square in float32 (5e-4 without `refine`). State, dtypes and NaN are as in
    `linear_recurrence`.

    Args:
        query: `[..., length, q_heads, k_dim]`, any number of leading batch axes; heads as in `linear_recurrence`.
        key: `[..., length, k_heads, k_dim]`.
        value: `[..., length, heads, v_dim]`.
        beta: β in [0, 2], `[..., length, heads]`. Traced values are not checked.
        log_decay: log α, at most 0; -inf forgets everything. None (α = 1), `[..., length, heads]` (Gated DeltaNet), or
            `[..., length, heads, k_dim]` (Kimi Delta Attention). Traced values are not checked.
        initial_state: S_0, `[..., heads, k_dim, v_dim]`, float32; by default zeros. It belongs to the first segment.
        segment_ids: integers `[..., length]` or `[length]` that never decrease. The state restarts at zero where they
            change. Traced ids are not checked.
        implementation: as in `linear_recurrence`; `"chunked"` uses the WY representation, with a triangular system per
            chunk.
        chunk: tokens per chunk. Affects speed, not results beyond rounding.
        refine: apply one step of iterative refinement to the systems of `"chunked"`. Unnecessary if no β ‖k‖² exceeds
            1.

    Returns:
        The output `[..., length, heads, v_dim]` in the value's dtype (with `q_heads` if there are more), and the final
        state, float32.

    Raises:
        ValueError: shapes or dtypes do not match; a gate is known to be out of range; ids are known to decrease;
            `implementation` is unknown; `refine` is neither True nor False.
        Unsupported: (a `ValueError`) the implementation that was named refuses the call.

    >>> import jax, jax.numpy as jnp
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 100, 2, 16)) / 4
    >>> out, state = delta_rule(query, key, value, jnp.full((100, 2), 0.5))
    >>> out.shape, state.shape
    ((100, 2, 16), (2, 16, 16))
    """
    sizes = check_sequences(query, key, value, beta)
    query, key, value, beta, log_decay = as_jax(query, key, value, beta, log_decay)
    dtype = accumulation_dtype(query, key, value)
    decay = check_log_decay(log_decay, query, sizes, per_token=True, constant=False)
    state = check_state("initial_state", initial_state, query, sizes, dtype, per_token=True)
    starts = check_segments(segment_ids, query)
    check_positive(chunk=chunk)
    check_flags(refine=refine)
    arrays = Arrays(query, key, value, beta[..., None], decay, None, starts, state)
    call = call_of("delta", arrays, chunk=chunk, refine=refine, zero_state=initial_state is None)
    return run_call(DELTA, call, arrays, implementation)


@by_example(
    ("head dim", "head dim dim"),
    query="head dim",
    key="head dim",
    value="head dim",
    beta="head",
    log_decay=axes_of_step_decay,
    state="head dim dim",
)
def delta_step(
    query: Float[jax.Array, "*batch q_heads k_dim"],
    key: Float[jax.Array, "*batch k_heads k_dim"],
    value: Float[jax.Array, "*batch heads v_dim"],
    beta: Float[jax.Array, "*batch heads"],
    state: Float[jax.Array, "*batch heads k_dim v_dim"],
    *,
    log_decay: jax.Array | None = None,
) -> tuple[Float[jax.Array, "*batch out_heads v_dim"], Float[jax.Array, "*batch heads k_dim v_dim"]]:
    """One token of `delta_rule`, for decoding.

    Args:
        query: `[..., q_heads, k_dim]`, with heads as in `delta_rule`.
        key: `[..., k_heads, k_dim]`.
        value: `[..., heads, v_dim]`.
        beta: `[..., heads]`.
        state: `[..., heads, k_dim, v_dim]`, float32; zeros for the first token.
        log_decay: None, `[..., heads]` or `[..., heads, k_dim]`.

    Returns:
        The output `[..., heads, v_dim]` in the value's dtype, and the new state.

    Raises:
        ValueError: shapes or dtypes do not match, or a gate is known to be out of range.

    >>> import jax.numpy as jnp
    >>> pair = jnp.ones((2, 4)) / 2
    >>> out, state = delta_step(pair, pair, jnp.ones((2, 3)), jnp.ones(2), jnp.zeros((2, 4, 3)))
    >>> out  # the query equals the key, so it reads the value that was written
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    sizes = check_sequences(query, key, value, beta, axis="")
    query, key, value, beta, log_decay = as_jax(query, key, value, beta, log_decay)
    dtype = accumulation_dtype(query, key, value)
    decay = check_log_decay(log_decay, query, sizes, per_token=False, constant=False)
    state = check_state("state", state, query, sizes, dtype, per_token=False)
    arrays = widened(dtype, query=query, key=key, value=value, beta=beta[..., None], decay=decay)
    if decay is not None:
        arrays["decay"] = jnp.exp(arrays["decay"])

    def token(query, key, value, beta, decay, state):
        return delta_token(query, key, value, beta[..., 0], decay, state)

    out, state = over_groups(token, arrays.pop("query"), arrays.pop("key"), arrays, state)
    return out.astype(value.dtype), state
