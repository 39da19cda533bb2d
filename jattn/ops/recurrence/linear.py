"""The linear recurrence: a decaying state, to which each token adds the outer product of its key and value."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from ...foundation.arguments import check_positive
from ...foundation.arrays import as_jax
from ...foundation.numerics import accumulation_dtype
from ..attention.by_example import by_example
from ..dispatch import Implementation
from .arguments import (
    axes_of_decay,
    axes_of_step_decay,
    check_bonus,
    check_log_decay,
    check_segments,
    check_sequences,
    check_state,
    widened,
)
from .call import Arrays, call_of, run_call
from .groups import over_groups
from .implementations.registry import LINEAR
from .tokens import linear_token


@by_example(
    ("length head dim", "head dim dim"),
    query="length head dim",
    key="length head dim",
    value="length head dim",
    log_decay=axes_of_decay,
    bonus="head dim",
    initial_state="head dim dim",
)
def linear_recurrence(
    query: Float[jax.Array, "*batch length q_heads k_dim"],
    key: Float[jax.Array, "*batch length k_heads k_dim"],
    value: Float[jax.Array, "*batch length heads v_dim"],
    *,
    log_decay: jax.Array | None = None,
    bonus: Float[jax.Array, "heads k_dim"] | None = None,
    initial_state: Float[jax.Array, "*batch heads k_dim v_dim"] | None = None,
    segment_ids: Any = None,
    implementation: str | Implementation | None = None,
    chunk: int = 64,
) -> tuple[Float[jax.Array, "*batch length out_heads v_dim"], Float[jax.Array, "*batch heads k_dim v_dim"]]:
    """Causal linear attention with decay, in time and memory linear in the length.

        S_t = diag(α_t) S_{t-1} + k_t v_tᵀ,    out_t = S_tᵀ q_t

    There is no scale inside; scale the query. With a `bonus` u, as in RWKV-5 and RWKV-6, the current token has the
    weight u, and the state is read before it decays:

        out_t = (S_{t-1} + diag(u) k_t v_tᵀ)ᵀ q_t

    The state and all sums are float32 (float64 for float64 inputs). NaN and inf never reach earlier tokens, their
    gradients, or other segments. In a key, value or gate they make all later outputs of that head and segment NaN.

    Args:
        query: `[..., length, q_heads, k_dim]`, any number of leading batch axes. `q_heads` equals `k_heads`, or is a
            multiple of `heads`; then consecutive queries read the same state.
        key: `[..., length, k_heads, k_dim]`.
        value: `[..., length, heads, v_dim]`. `heads` is a multiple of `k_heads`: consecutive values share a key, but
            have their own states and decays. Keys are not repeated in memory.
        log_decay: log α, at most 0; -inf forgets everything. None (α = 1), `[heads]` (RetNet), `[..., length, heads]`
            (Mamba-2), or `[..., length, heads, k_dim]` (GLA). Traced values are not checked.
        bonus: u, `[heads, k_dim]`, or None.
        initial_state: S_0, `[..., heads, k_dim, v_dim]`, float32; by default zeros. It belongs to the first segment.
        segment_ids: integers `[..., length]` or `[length]` that never decrease. The state restarts at zero where they
            change. Traced ids are not checked.
        implementation: by default the first of these that does not refuse the call: `"chunked"`, with matrix products
            within a chunk and a state between chunks; `"scan"`, the definition, token by token. For the backward pass
            the former recomputes the inside of a chunk, and the latter keeps the state of every token. Also
            an instance of an implementation. `jattn.explain_calls` says what would run.
        chunk: tokens per chunk. Affects speed, not results beyond rounding.

    Returns:
        The output `[..., length, heads, v_dim]` in the value's dtype (with `q_heads` if there are more), and the final
        state, float32.

    Raises:
        ValueError: shapes or dtypes do not match; a gate is known to be above 0; ids are known to decrease;
            `implementation` is unknown.
        Unsupported: (a `ValueError`) the implementation that was named refuses the call.

    >>> import jax, jax.numpy as jnp, jattn
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 100, 2, 16))
    >>> out, state = linear_recurrence(query, key, value, log_decay=jnp.log(jnp.array([0.9, 0.99])))
    >>> out.shape, state.shape
    ((100, 2, 16), (2, 16, 16))
    >>> jattn.explain_calls(linear_recurrence, query, key, value)[0].implementation
    'chunked'
    """
    sizes = check_sequences(query, key, value)
    query, key, value, log_decay, bonus = as_jax(query, key, value, log_decay, bonus)
    dtype = accumulation_dtype(query, key, value)
    decay = check_log_decay(log_decay, query, sizes, per_token=True, constant=True)
    check_bonus(bonus, sizes)
    state = check_state("initial_state", initial_state, query, sizes, dtype, per_token=True)
    starts = check_segments(segment_ids, query)
    check_positive(chunk=chunk)
    if bonus is not None:
        bonus = bonus.astype(dtype)
    if decay is not None:
        decay = decay.astype(dtype)
        if log_decay is not None and log_decay.ndim == 1:
            decay = jnp.broadcast_to(decay, (*value.shape[:-1], 1))
    arrays = Arrays(query, key, value, None, decay, bonus, starts, state)
    call = call_of("linear", arrays, chunk=chunk, refine=False, zero_state=initial_state is None)
    return run_call(LINEAR, call, arrays, implementation)


@by_example(
    ("head dim", "head dim dim"),
    query="head dim",
    key="head dim",
    value="head dim",
    log_decay=axes_of_step_decay,
    bonus="head dim",
    state="head dim dim",
)
def linear_step(
    query: Float[jax.Array, "*batch q_heads k_dim"],
    key: Float[jax.Array, "*batch k_heads k_dim"],
    value: Float[jax.Array, "*batch heads v_dim"],
    state: Float[jax.Array, "*batch heads k_dim v_dim"],
    *,
    log_decay: jax.Array | None = None,
    bonus: Float[jax.Array, "heads k_dim"] | None = None,
) -> tuple[Float[jax.Array, "*batch out_heads v_dim"], Float[jax.Array, "*batch heads k_dim v_dim"]]:
    """One token of `linear_recurrence`, for decoding. Time and memory do not depend on the number of earlier tokens.

    Args:
        query: `[..., q_heads, k_dim]`, with heads as in `linear_recurrence`.
        key: `[..., k_heads, k_dim]`.
        value: `[..., heads, v_dim]`.
        state: `[..., heads, k_dim, v_dim]`, float32; zeros for the first token.
        log_decay: None, `[heads]`, `[..., heads]` or `[..., heads, k_dim]`.
        bonus: `[heads, k_dim]`, or None.

    Returns:
        The output `[..., heads, v_dim]` in the value's dtype, and the new state.

    Raises:
        ValueError: shapes or dtypes do not match, or a gate is known to be above 0.

    >>> import jax.numpy as jnp
    >>> out, state = linear_step(jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones((2, 3)), jnp.zeros((2, 4, 3)))
    >>> out.shape, state.shape
    ((2, 3), (2, 4, 3))
    """
    sizes = check_sequences(query, key, value, axis="")
    query, key, value, log_decay, bonus = as_jax(query, key, value, log_decay, bonus)
    dtype = accumulation_dtype(query, key, value)
    decay = check_log_decay(log_decay, query, sizes, per_token=False, constant=True)
    check_bonus(bonus, sizes)
    state = check_state("state", state, query, sizes, dtype, per_token=False)
    arrays = widened(dtype, query=query, key=key, value=value, decay=decay, bonus=bonus)
    if decay is not None:
        arrays["decay"] = jnp.broadcast_to(jnp.exp(arrays["decay"]), (*value.shape[:-1], decay.shape[-1]))
    out, state = over_groups(linear_token, arrays.pop("query"), arrays.pop("key"), arrays, state)
    return out.astype(value.dtype), state
