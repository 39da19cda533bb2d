"""Checks of the arguments of recurrences."""

from typing import Any

import jax
import jax.numpy as jnp

from ...foundation.arrays import known_values
from ...foundation.shapes import check_shapes


def axes_of_decay(log_decay: Any, batch_axes: int) -> str:
    """The axes of a decay after the batch axes: per head, per head and token, or also per channel."""
    rank = jnp.ndim(log_decay)
    return "head" if rank == 1 else "length head" if rank == batch_axes + 2 else "length head dim"


def axes_of_step_decay(log_decay: Any, batch_axes: int) -> str:
    """The same for a single token."""
    return "head" if jnp.ndim(log_decay) in (1, batch_axes + 1) else "head dim"


def widened(dtype: Any, **arrays: Any) -> dict[str, Any]:
    """Convert arrays to the dtype of the state. None stays None."""
    return {name: None if one is None else one.astype(dtype) for name, one in arrays.items()}


def check_sequences(query: Any, key: Any, value: Any, *beta: Any, axis: str = "length ") -> dict[str, int]:
    """Check that queries, keys, values and β match. Returns the named sizes; `heads` are those of values and states.

    Args:
        query: `[..., length, q_heads, k_dim]`.
        key: `[..., length, k_heads, k_dim]`.
        value: `[..., length, heads, v_dim]`.
        beta: `[..., length, heads]`, if the recurrence has one.
        axis: empty for a single token, which has no length axis.

    Raises:
        ValueError: shapes or heads do not match, or β is known to be outside of [0, 2].
    """
    arrays = {
        "query": (query, f"... {axis}q_heads k_dim"),
        "key": (key, f"... {axis}k_heads k_dim"),
        "value": (value, f"... {axis}heads v_dim"),
    }
    if beta:
        arrays["beta"] = (beta[0], f"... {axis}heads")
    sizes = check_shapes(None, **arrays)
    heads, k_heads, q_heads = sizes["heads"], sizes["k_heads"], sizes["q_heads"]
    if heads != k_heads and (not k_heads or heads % k_heads):
        raise ValueError(
            f"`value` must have as many heads as `key`, or a multiple of them, which share its keys; got {heads} and "
            f"{k_heads}."
        )
    if q_heads != k_heads and (not heads or q_heads % heads):
        raise ValueError(
            f"`query` must have as many heads as `key` ({k_heads}), or as `value` ({heads}), or a multiple of the "
            f"latter, which read the same state; got {q_heads}."
        )
    if beta:
        known = known_values(beta[0])
        if known is not None and ((known < 0) | (known > 2)).any():
            raise ValueError(
                f"`beta` must lie in [0, 2], beyond which the state grows without bound; got values from {known.min()} "
                f"to {known.max()}. A sigmoid, or twice one, keeps it there."
            )
    return sizes


def check_log_decay(
    log_decay: Any, query: jax.Array, sizes: dict[str, int], *, per_token: bool, constant: bool
) -> jax.Array | None:
    """The log decay with a channel axis: `[..., length, heads, k_dim or 1]`. A constant stays `[heads, 1]`.

    Args:
        log_decay: the argument.
        query: it must match the batch axes and length of the query.
        sizes: as returned by `check_sequences`.
        per_token: whether the query has a length axis.
        constant: whether `[heads]` is allowed.

    Raises:
        ValueError: the shape does not match, or a known value is above 0.
    """
    if log_decay is None:
        return None
    length = "length " if per_token else ""
    batch = query.shape[: -3 if per_token else -2]
    tokens, heads, k_dim = query.shape[:-2], sizes["heads"], sizes["k_dim"]
    layouts = {
        query.ndim - 1: (f"... {length}heads", (*tokens, heads)),
        query.ndim: (f"... {length}heads k_dim", (*tokens, heads, k_dim)),
    }
    if constant:
        layouts[1] = ("heads", (heads,))  # also what a single token without batch axes has
    if not hasattr(log_decay, "ndim") or log_decay.ndim not in layouts:
        written = " or ".join(
            f"[{', '.join(layout.split())}] = {shape}" for _, (layout, shape) in sorted(layouts.items())
        )
        got = getattr(log_decay, "shape", type(log_decay).__name__)
        raise ValueError(f"`log_decay` must have shape {written}; got {got}.")
    layout, _ = layouts[log_decay.ndim]
    fits: dict[str, Any] = {"...": batch, **sizes}
    check_shapes(fits, log_decay=(log_decay, layout))
    known = known_values(log_decay)
    if known is not None and (known > 0).any():
        raise ValueError(
            f"`log_decay` must be at most 0, the logarithm of a decay in [0, 1]; got values up to {known.max()}. Of a "
            "gate in [0, 1] take `jnp.log(gate)`; of a logit, `jax.nn.log_sigmoid(logit)`."
        )
    return log_decay if layout.endswith("k_dim") else log_decay[..., None]


def check_bonus(bonus: Any, sizes: dict[str, int]) -> None:
    """`[heads, k_dim]`, or None."""
    if bonus is not None:
        check_shapes({axis: sizes[axis] for axis in ("heads", "k_dim")}, bonus=(bonus, "heads k_dim"))


def check_state(name: str, state: Any, query: jax.Array, sizes: dict[str, int], dtype: Any, *, per_token: bool) -> Any:
    """A state `[..., heads, k_dim, v_dim]` of the dtype that states have; zeros where a sequence begins with none."""
    batch = query.shape[: -3 if per_token else -2]
    shape = (*batch, sizes["heads"], sizes["k_dim"], sizes["v_dim"])
    if state is None and per_token:
        return jnp.zeros(shape, dtype)
    if state is None or not hasattr(state, "shape") or not hasattr(state, "dtype"):
        remedy = "" if per_token else f" Zeros of shape {shape} are the state before the first token."
        raise ValueError(f"`{name}` must be an array [..., heads, k_dim, v_dim]; got {type(state).__name__}.{remedy}")
    if tuple(state.shape) != shape:
        raise ValueError(f"`{name}` must have shape {shape}, [..., heads, k_dim, v_dim]; got {tuple(state.shape)}.")
    if state.dtype != dtype:
        raise ValueError(
            f"`{name}` must be {jnp.dtype(dtype)}, the dtype of states for these inputs; got {state.dtype}. "
            f"Convert it: `{name}.astype({jnp.dtype(dtype).name!r})`."
        )
    return jnp.asarray(state)


def check_segments(segment_ids: Any, query: jax.Array) -> jax.Array | None:
    """Where a new segment starts: booleans `[..., length]` with the batch axes of `query`, or None.

    Raises:
        ValueError: the ids have another shape or dtype, or are known to decrease.
    """
    if segment_ids is None:
        return None
    batch, length = query.shape[:-3], query.shape[-3]
    shape = getattr(segment_ids, "shape", None)
    if shape not in ((length,), (*batch, length)) or not jnp.issubdtype(segment_ids.dtype, jnp.integer):
        got = f"{segment_ids.dtype} {shape}" if shape is not None else type(segment_ids).__name__
        raise ValueError(
            f"`segment_ids` must be integers of shape ({length},) or {(*batch, length)}, one for each token; got {got}."
        )
    known = known_values(segment_ids)
    if known is not None and (known[..., 1:] < known[..., :-1]).any():
        raise ValueError(
            "`segment_ids` must not decrease along the length: the state restarts where the id changes, and cannot "
            f"come back to a segment; got {known}. Sort the tokens by segment, or number the segments anew."
        )
    return starts_of(jnp.broadcast_to(segment_ids, (*batch, length)))


def starts_of(ids: jax.Array) -> jax.Array:
    """Where ids `[..., length]` change. The first token starts nothing."""
    changes = ids[..., 1:] != ids[..., :-1]
    return jnp.pad(changes, [(0, 0)] * (ids.ndim - 1) + [(min(ids.shape[-1], 1), 0)])
