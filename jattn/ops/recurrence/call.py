"""A recurrence as a record: what its implementations decide by, and the arrays that they compute with."""

import abc
import dataclasses
import functools
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from ..dispatch import WATCHER, Implementation, Operation, Watched
from .groups import copies_of, over_groups


@dataclasses.dataclass(frozen=True)
class Call:
    """Everything about a recurrence but its arrays, checked.

    Attributes:
        rule: which of the two.
        length: tokens; may be a symbol of `jax.export`.
        chains: how many states are read, over all batch elements and heads.
        states: how many there are.
        k_dim: features of a key.
        v_dim: features of a value.
        dtype: of the state and of all sums.
        decay: None, one number per head, or one per channel.
        chunk: tokens per chunk, for implementations that have chunks.
        refine: whether triangular systems are solved with one step of iterative refinement.
        zero_state: whether the initial state is known to be zero.
        copies: how many output heads share a key.
    """

    rule: Literal["linear", "delta"]
    length: Any
    chains: Any
    states: Any
    k_dim: int
    v_dim: int
    dtype: np.dtype
    decay: Literal["head", "channel"] | None
    chunk: int
    refine: bool
    zero_state: bool
    copies: int

    @property
    def state_bytes(self) -> Any:
        """The size of all states."""
        return self.states * self.k_dim * self.v_dim * self.dtype.itemsize


class Arrays(NamedTuple):
    """The arrays of a recurrence; None where there is none.

    query, key: `[..., length, heads, k_dim]`.
    value: `[..., length, heads, v_dim]`.
    beta: β, `[..., length, heads, 1]`, of the delta rule.
    log_decay: log α, `[..., length, heads, 1 or k_dim]`.
    bonus: u, `[heads, k_dim]`, of the linear recurrence.
    starts: booleans `[..., length]`, where the state restarts.
    state: the initial state, `[..., heads, k_dim, v_dim]`.
    """

    query: jax.Array
    key: jax.Array
    value: jax.Array
    beta: jax.Array | None
    log_decay: jax.Array | None
    bonus: jax.Array | None
    starts: jax.Array | None
    state: jax.Array


class RecurrenceImplementation(Implementation):
    """A way to compute both recurrences; frozen, and equal to others of the same fields."""

    def refuses(self, call: Any) -> str | None:
        """Why this call cannot be run here, or None if it can."""
        if not isinstance(call, Call):
            return "it computes recurrences"
        return self.refusal(call)

    @abc.abstractmethod
    def refusal(self, call: Call) -> str | None:
        """`refuses`, of a recurrence."""

    @abc.abstractmethod
    def run(self, call: Call, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
        """The outputs and the final state."""


def call_of(rule: Literal["linear", "delta"], arrays: Arrays, *, chunk: int, refine: bool, zero_state: bool) -> Call:
    """The record of a call with these arrays."""
    query, value, state, decay = arrays.query, arrays.value, arrays.state, arrays.log_decay
    *batch, heads, k_dim, v_dim = state.shape
    # Sizes of the batch may be symbols, which `math.prod` does not multiply.
    elements = functools.reduce(lambda product, size: product * size, batch, 1)
    return Call(
        rule=rule,
        length=query.shape[-3],
        chains=elements * max(query.shape[-2], heads),
        states=elements * heads,
        k_dim=k_dim,
        v_dim=v_dim,
        dtype=np.dtype(state.dtype),
        decay=None if decay is None else "channel" if decay.shape[-1] != 1 else "head",
        chunk=chunk,
        refine=refine,
        zero_state=zero_state,
        copies=copies_of(query, arrays.key, value),
    )


def check_implementation(operation: Operation, implementation: Any) -> None:
    """An `implementation` that was asked for is one of the recurrences'.

    Raises:
        ValueError: it is something else.
    """
    if implementation is None:
        return
    if not isinstance(operation.named(implementation), RecurrenceImplementation):
        raise ValueError(
            f"`implementation` must be an implementation of recurrences: 'chunked' or 'scan', or such an object; got "
            f"{implementation!r}."
        )


def run_call(operation: Operation, call: Call, arrays: Arrays, implementation: Any) -> tuple[jax.Array, jax.Array]:
    """The outputs, in the dtype of the values, and the final state, by the implementation that `operation` chooses."""
    check_implementation(operation, implementation)
    watcher = WATCHER.get()
    if watcher is not None:
        named = {name: getattr(arrays, name) for name in ("query", "key", "value")}
        watcher(Watched(operation, call, named, implementation))
    return _run(call, operation.choose(call, implementation), arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))  # or every call outside of `jit` would compile its loops again
def _run(call: Call, implementation: Any, arrays: Arrays) -> tuple[jax.Array, jax.Array]:
    def run(query, key, value, beta, log_decay, bonus, state):
        return implementation.run(call, Arrays(query, key, value, beta, log_decay, bonus, arrays.starts, state))

    per_head = {name: getattr(arrays, name) for name in ("value", "beta", "log_decay", "bonus")}
    out, state = over_groups(run, arrays.query, arrays.key, per_head, arrays.state)
    return out.astype(arrays.value.dtype), state


def megabytes(size: Any) -> str:
    """A number of bytes, in words."""
    return f"{size / 2**20:,.1f} MiB" if isinstance(size, int | np.integer) else f"{size} bytes"
