"""Linear-chain conditional random fields: log Z and marginals by normalized forward and backward messages.

The forward message at position t is the log of the total weight of all prefixes that end in each state. It grows with
t, and so does its rounding error, until it exceeds the differences between states that determine the marginals.
Therefore every message is normalized, and log Z is the sum of the logs of the normalizers:

    a_t = θ_t + log Σ_from exp(a_{t-1} + θ(from, to)),    c_t = log Σ exp(a_t),    a_t <- a_t - c_t,    log Z = Σ_t c_t

and likewise from the other end. Marginals of positions and of pairs are normalized products of both messages, so errors
do not accumulate along the chain. They are the gradient of log Z.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from ...foundation.numerics import accumulation_dtype, log_sum_exp, softmax_or_zero
from ...foundation.shapes import check_shapes, token_mask
from ...foundation.sharding import vary, varying_axes
from .log_space import normalized


class Chain(NamedTuple):
    """A checked chain, in float32 (float64), with the length axis first.

    potentials: `[length, ..., states]`; 0 beyond an example's length.
    transitions: `[length - 1, ..., states, states]`, or `[1, ..., states, states]` if it is shared.
    joined: `[length - 1, ...]`, whether both ends of a step are within the length.
    own: `[length, ...]`, whether a position is within the length.
    """

    potentials: jax.Array
    transitions: jax.Array
    joined: jax.Array
    own: jax.Array


def chain_log_partition(potentials: jax.Array, transitions: jax.Array, *, lengths: Any = None) -> jax.Array:
    """log Z of a linear-chain conditional random field.

        Z = Σ_z exp(Σ_i θ_i(z_i) + Σ_i θ(z_{i-1}, z_i)),  over all z of {0, ..., states - 1}^length

    By the forward algorithm in log space, O(length · states²), one step of a `lax.scan` for each position. Messages are
    normalized, so neither log Z nor its gradient, `chain_marginals`, loses precision in a long chain.

    Args:
        potentials: θ_i, floating-point `[..., length, states]`; -inf forbids a state.
        transitions: θ(from, to) `[states, states]`, shared by all steps and examples, or
            `[..., length - 1, states, states]`, one for each step of each example; -inf forbids.
        lengths: integers `[...]`, one for each example, or one for all; by default the length of the arrays. Entries
            beyond are ignored.

    Returns:
        `[...]`, float32 (float64 for float64); -inf if nothing is allowed, with zero gradients. Z = 1 at length 0.
        Differentiable to any order.

    Raises:
        ValueError: shapes do not match; `lengths` are not integers, have another shape, or are too long.

    >>> import jax.numpy as jnp
    >>> print(chain_log_partition(jnp.zeros((3, 2)), jnp.zeros((2, 2))).round(4), jnp.log(8.0).round(4))
    2.0794 2.0794
    """
    chain = _chain(potentials, transitions, lengths)
    return _log_partition(chain)


def chain_marginals(potentials: jax.Array, transitions: jax.Array, *, lengths: Any = None) -> jax.Array:
    """p(z_i = s) under the CRF of `chain_log_partition`, the gradient of log Z with respect to θ_i(s).

    Arguments and errors as there.

    Returns:
        `[..., length, states]`, summing to 1 over the states; 0 beyond an example's length, and everywhere in an
        example where nothing is allowed. Differentiable.

    >>> import jax.numpy as jnp
    >>> print(chain_marginals(jnp.zeros((3, 2)), jnp.array([[2.0, 0.0], [0.0, 2.0]])).round(3))
    [[0.5 0.5]
     [0.5 0.5]
     [0.5 0.5]]
    """
    chain = _chain(potentials, transitions, lengths)
    return jnp.moveaxis(_position_marginals(chain, _messages(chain)), 0, -2)


class _Messages(NamedTuple):
    """Forward messages, or backward ones in reversed order: normalized, before adding θ_t, and the log normalizers."""

    messages: jax.Array
    arriving: jax.Array
    totals: jax.Array


# Without this, every call outside of `jit` would compile its loop again.
@jax.jit
def _run(potentials: jax.Array, transitions: jax.Array, joined: jax.Array) -> _Messages:
    """Forward messages; `transitions` has one step for all, or one for each."""
    length = potentials.shape[0]
    if length == 0:
        return _Messages(potentials, potentials, potentials[..., 0])
    message, total = normalized(potentials[0])
    first = _Messages(message, jnp.zeros_like(message), total)
    shared = transitions[0] if transitions.shape[0] != length - 1 else None

    def step(before, given):
        potential, transition, joined = given
        transition = shared if transition is None else transition
        arriving = jnp.where(joined[..., None], log_sum_exp(before[..., :, None] + transition, -2), 0)
        message, total = normalized(arriving + potential)
        return message, _Messages(message, arriving, total)

    given = (potentials[1:], transitions if shared is None else None, joined)
    _, rest = jax.lax.scan(step, vary(message, varying_axes(message, given, shared)), given)
    return jax.tree.map(lambda one, others: jnp.concatenate([one[None], others]), first, rest)


def _messages(chain: Chain) -> tuple[_Messages, _Messages]:
    """Forward and backward messages, computed in one loop; both in the order of the chain."""

    def both(array, other):
        return jnp.stack([array, jnp.flip(other, 0)], 1)

    found = _run(
        both(chain.potentials, chain.potentials),
        both(chain.transitions, jnp.swapaxes(chain.transitions, -1, -2)),
        both(chain.joined, chain.joined),
    )
    return jax.tree.map(lambda one: one[:, 0], found), jax.tree.map(lambda one: jnp.flip(one[:, 1], 0), found)


def _position_marginals(chain: Chain, messages: tuple[_Messages, _Messages]) -> jax.Array:
    """p(z_t), `[length, ..., states]`."""
    forward, backward = messages
    return jnp.where(chain.own[..., None], softmax_or_zero(forward.messages + backward.arriving, (-1,)), 0)


def _pair_marginals(chain: Chain, messages: tuple[_Messages, _Messages]) -> jax.Array:
    """p(z_t, z_{t+1}), `[length - 1, ..., states, states]`; for a shared transition summed over t, `[1, ...]`."""
    forward, backward = messages
    joint = forward.messages[:-1, ..., :, None] + chain.transitions + backward.messages[1:, ..., None, :]
    found = jnp.where(chain.joined[..., None, None], softmax_or_zero(joint, (-2, -1)), 0)
    return found if found.shape[0] == chain.transitions.shape[0] else found.sum(0, keepdims=True)


@jax.custom_jvp
def _log_partition(chain: Chain) -> jax.Array:
    totals = _run(chain.potentials, chain.transitions, chain.joined).totals
    return jnp.where(chain.own, totals, 0).sum(0)


def _log_partition_jvp(primals: tuple[Chain], tangents: tuple[Any]) -> tuple[jax.Array, jax.Array]:
    (chain,), (along,) = primals, tangents
    messages = _messages(chain)
    total = jnp.where(chain.own, messages[0].totals, 0).sum(0)
    tangent = jnp.zeros_like(total)
    if not isinstance(along.potentials, SymbolicZero):
        tangent += (_position_marginals(chain, messages) * along.potentials).sum((0, -1))
    if not isinstance(along.transitions, SymbolicZero):
        tangent += (_pair_marginals(chain, messages) * along.transitions).sum((0, -2, -1))
    return total, tangent


_log_partition.defjvp(_log_partition_jvp, symbolic_zeros=True)


def _chain(potentials: Any, transitions: Any, lengths: Any) -> Chain:
    """Check the arguments, and set entries beyond each length to zero."""
    batch = _check_chain(potentials, transitions)
    length = potentials.shape[-2]
    dtype = accumulation_dtype(potentials, transitions)
    own = token_mask(lengths, batch, length)
    wide = jnp.where(own[..., None], potentials.astype(dtype), 0)
    if transitions.ndim == 2:
        steps = transitions.astype(dtype)[(None,) * (len(batch) + 1)]
    else:
        steps = jnp.moveaxis(jnp.where(own[..., 1:, None, None], transitions.astype(dtype), 0), -3, 0)
    own = jnp.moveaxis(own, -1, 0)
    return Chain(jnp.moveaxis(wide, -2, 0), steps, own[1:], own)


def _check_chain(potentials: Any, transitions: Any) -> tuple[int, ...]:
    """Check the shapes of a chain; returns its batch axes."""
    sizes = check_shapes(potentials=(potentials, "... length states"))
    if getattr(transitions, "ndim", 0) == 2:
        check_shapes(sizes, transitions=(transitions, "states states"))
    else:
        known: dict[str, Any] = {
            "...": potentials.shape[:-2],
            "steps": max(sizes["length"] - 1, 0),
            "states": sizes["states"],
        }
        check_shapes(known, transitions=(transitions, "... steps states states"))
    return potentials.shape[:-2]
