"""The scan: the definition of both recurrences, token by token. The chunked implementation is tested against it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from ..call import Arrays, Call, RecurrenceImplementation, megabytes
from ..nonfinite import FORGET, begin, clean_tokens
from ..tokens import delta_token, linear_token


@dataclasses.dataclass(frozen=True)
class Scan(RecurrenceImplementation):
    """One token after the other. Refuses nothing. The backward pass keeps the state of every token."""

    name = "scan"

    def refusal(self, call: Call) -> str | None:
        return None

    def run(self, call: Call, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        sequences = (arrays.query, arrays.key, arrays.value)
        if call.rule == "delta":
            token, sequences = _delta, (*sequences, arrays.beta)
        else:
            token = functools.partial(_linear, arrays.bonus)
        sequences = (*sequences, arrays.log_decay)
        return scan_tokens(token, sequences, arrays.starts, arrays.state, zero_state=call.zero_state)

    def describe(self, call: Call) -> tuple[None, str]:
        size = call.state_bytes
        kept = megabytes(call.length * size)
        return None, f"forward: a state, {megabytes(size)}; backward: a state for each token, {kept}"


def _linear(bonus, query, key, value, log_decay, state):
    return linear_token(query, key, value, None if log_decay is None else jnp.exp(log_decay), bonus, state)


def _delta(query, key, value, beta, log_decay, state):
    return delta_token(query, key, value, beta[..., 0], None if log_decay is None else jnp.exp(log_decay), state)


def scan_tokens(token, sequences, starts, state, *, zero_state):
    """Run `token(*slices, state) -> (out, state)` along the length.

    Args:
        token: a function of the slices of `sequences` and the state.
        sequences: arrays `[..., length, heads, dim]`, or None. The first is only read; the last is a log decay.
        starts: booleans `[..., length]`, where the state restarts, or None.
        state: the initial state.
        zero_state: the initial state is known to be zero. The finiteness check, which is slow to compile, is skipped.

    Returns:
        The outputs `[..., length, heads, dim]` and the final state. NaN where tokens with NaN or inf are read; they are
        computed with zeros instead, because 0 times NaN would reach the gradients of earlier tokens.
    """
    axis = state.ndim - 3  # the length axis, after the batch axes
    *others, decay = sequences
    decay = None if decay is None else jnp.maximum(decay, FORGET)
    first = begin(state, (sequences, starts), zero_state=zero_state)
    sequences, nonfinite_reads, nonfinite_tokens = clean_tokens([*others, decay])

    def over_time(array, dtype):
        return None if array is None else jnp.moveaxis(array.astype(dtype), axis, 0)

    def body(carried, slices):
        state, nonfinite = carried
        tokens, nonfinite_tokens, start = slices
        if start is not None:
            state = jnp.where(start[..., None, None, None], 0, state)
            nonfinite = nonfinite & ~start[..., None]
        nonfinite = nonfinite | nonfinite_tokens
        out, state = token(*tokens, state)
        return (state, nonfinite), (out, nonfinite)

    tokens = jax.tree.map(lambda array: over_time(array, state.dtype), sequences)
    slices = tokens, over_time(nonfinite_tokens, bool), over_time(starts, bool)
    (state, nonfinite), (out, nonfinite_outputs) = jax.lax.scan(body, first, slices)
    out, nonfinite_outputs = jnp.moveaxis(out, 0, axis), jnp.moveaxis(nonfinite_outputs, 0, axis)
    out = jnp.where((nonfinite_outputs | nonfinite_reads)[..., None], jnp.nan, out)
    return out, jnp.where(nonfinite[..., None, None], jnp.nan, state)
