"""Forgetting Attention: forget gates of the tokens between a query and a key lower the pair's score.

The bias of a pair is a sum of log gates over an interval, that is, a difference of two running sums. In float32 such a
difference loses precision in two ways, and each has its remedy:

- Forward, running sums grow without bound: after 100,000 tokens with gates of 0.9, differences are off by 1e-3. So a
  running sum is stored as an integer part, whose differences are exact, and a fraction.
- Backward, the gradient of a gate is the sum of the gradients of all pairs whose interval contains it. Computed as
  cumulative row sums minus cumulative column sums, the other pairs cancel only up to rounding errors, which accumulate
  over the sequence. So pairs within one block of tokens take their gradient through running sums that restart in
  each block.
"""

from typing import Any, ClassVar, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import known_values
from ..foundation.fields import floats
from ..foundation.numerics import widen
from ..foundation.pieces import array, piece
from .base import Score

LEAST = -1e4
"""Stands in for log 0; its exponential is 0 in float32."""
BLOCK = 256
"""The number of tokens in a block whose running sums restart."""


@piece
class Forget(Score):
    """score + Σ_{j < l ≤ i} log f_l, for the query at i and the key at j ("FoX"; Lin et al. 2025, arXiv:2503.02130).

    Construct it from log gates with `Forget.of`. The paper is causal; for a key after the query, the log gates between
    the two are added likewise. Storage is linear in the length: each array has a query axis or a key axis, never both,
    so a tile or shard takes its slice.

    Attributes:
        query_whole: the integer part of the running sum of log gates at each query, int32 `[batch..., heads, q_len]`.
        query_rest: the fractional part, floating-point, of the same shape.
        query_near: zeros that carry the gradient of pairs within a block, of the same shape.
        query_block: the block index of each query, int32, of the same shape.
        key_whole, key_rest, key_near, key_block: the same for keys, `[batch..., heads, kv_len]`.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (10, 2, 4)) for i in range(3))
    >>> log_gates = jax.nn.log_sigmoid(jax.random.normal(jax.random.key(3), (2, 10)))
    >>> jattn.attention(q, k, v, mask=jattn.masks.Causal(), scores=jattn.scores.Forget.of(log_gates)).shape
    (10, 2, 4)
    """

    query_whole: jax.Array | np.ndarray = array("head", "query")
    query_rest: jax.Array | np.ndarray = array("head", "query")
    query_near: jax.Array | np.ndarray = array("head", "query")
    query_block: jax.Array | np.ndarray = array("head", "query")
    key_whole: jax.Array | np.ndarray = array("head", "key")
    key_rest: jax.Array | np.ndarray = array("head", "key")
    key_near: jax.Array | np.ndarray = array("head", "key")
    key_block: jax.Array | np.ndarray = array("head", "key")
    finite_at_zero = True
    given_as: ClassVar[dict[str, str]] = {
        **dict.fromkeys(("query_whole", "query_rest", "query_near", "query_block"), "Forget.of(log_gates, queries)"),
        **dict.fromkeys(("key_whole", "key_rest", "key_near", "key_block"), "Forget.of(log_gates)"),
    }

    @classmethod
    def of(cls, log_gates: Any, *, queries: Any = None) -> Self:
        """Construct the score from log gates.

        Args:
            log_gates: log f of each key's token, at most 0, floating-point `[batch..., heads, kv_len]`, with the query
                heads or 1. From a logit, `jax.nn.log_sigmoid(logit)`. -inf forgets everything before the token and is
                treated as -1e4. Traced values are not checked.
            queries: integers `[q_len]` or `[batch..., q_len]`, the index of each query among the keys; by default
                queries and keys are the same tokens. When decoding with a cache, the index of the new token.

        Raises:
            ValueError: `log_gates` is not floating-point, has too few axes, or has a known value above 0 or NaN;
                `queries` is not an integer array of those axes.
        """
        remedy = "Of a logit take `jax.nn.log_sigmoid(logit)`."
        log_gates = floats("log_gates", log_gates, ("head", "key"), remedy=remedy)
        known = known_values(log_gates)
        if known is not None and not (known <= 0).all():
            raise ValueError(
                f"`log_gates` must be at most 0, the logarithms of gates in [0, 1]; got values up to {known.max()}. "
                f"{remedy}"
            )
        of_keys = running_sums(jnp.asarray(log_gates))
        if queries is None:
            return cls(*of_keys, *of_keys)
        queries = queries if hasattr(queries, "dtype") else np.asarray(queries)
        batch = log_gates.shape[:-2]
        if queries.shape[:-1] not in ((), batch) or not jnp.issubdtype(queries.dtype, jnp.integer) or not queries.ndim:
            raise ValueError(
                f"`queries` must be integers [q_len], or [batch..., q_len] with the batch {batch}, the places of the "
                f"queries among the keys; got {queries.dtype} of shape {queries.shape}."
            )
        queries = queries.reshape(
            (1,) * (log_gates.ndim - queries.ndim - 1) + (*queries.shape[:-1], 1, queries.shape[-1])
        )
        of_queries = RunningSums(*(jnp.take_along_axis(one, queries, -1, mode="clip") for one in of_keys))
        return cls(*of_queries, *of_keys)

    def modify(self, scores, query, key):
        whole = (self.query_whole - self.key_whole).astype(scores.dtype)
        rest = self.query_rest.astype(scores.dtype) - self.key_rest.astype(scores.dtype)
        near = self.query_near.astype(scores.dtype) - self.key_near.astype(scores.dtype)
        together = self.query_block == self.key_block
        kept = whole + jnp.where(together, jax.lax.stop_gradient(rest) + near, rest)
        return scores + jnp.where(key <= query, kept, -kept)


class RunningSums(NamedTuple):
    """Running sums along the last axis, inclusive. The sum is `whole + rest`.

    whole: the integer part, int32.
    rest: the fraction, in [-1/2, 1/2], float32 (float64); it carries the gradient of the sum.
    near: zeros that carry the gradient of the sum since the start of the block.
    block: the block index, int32 `[..., length]` with size 1 on all other axes.
    """

    whole: jax.Array
    rest: jax.Array
    near: jax.Array
    block: jax.Array | np.ndarray


def running_sums(terms: jax.Array) -> RunningSums:
    """Running sums of terms that are at most 0, summed in a tree: rounding errors grow with the log of the length.

    >>> import jax.numpy as jnp
    >>> sums = running_sums(jnp.full(30000, -100.3))
    >>> print(sums.whole[-1] - sums.whole[-2] + (sums.rest[-1] - sums.rest[-2]).round(3))
    -100.3
    """
    length, last = terms.shape[-1], terms.ndim - 1
    block = (np.arange(length, dtype=np.int32) // BLOCK).reshape((1,) * last + (length,))
    whole, rest, near = _running_sums(terms)
    return RunningSums(whole, rest, near, block)


@jax.jit  # outside a jit, each step of the tree would be several programs
def _running_sums(terms: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`whole`, `rest` and `near` of `RunningSums`."""
    length, last = terms.shape[-1], terms.ndim - 1
    # Raise the lower bound for long sequences, so that the integer part cannot overflow int32.
    least = max(LEAST, -float((2**31 - 1) // (length + 1)))
    terms = jnp.maximum(widen(terms), least)

    def split(numbers):
        whole = jax.lax.stop_gradient(jnp.round(numbers))
        return whole.astype(jnp.int32), numbers - whole

    def add(left, right):
        carried, rest = split(left[1] + right[1])
        return left[0] + right[0] + carried, rest

    whole, rest = jax.lax.associative_scan(add, split(terms), axis=last)
    blocks = -(-length // BLOCK)
    padded = jnp.pad(terms, [(0, 0)] * last + [(0, blocks * BLOCK - length)]).reshape(*terms.shape[:-1], blocks, BLOCK)
    near = jnp.cumsum(padded, -1).reshape(*terms.shape[:-1], blocks * BLOCK)[..., :length]
    return whole, rest, near - jax.lax.stop_gradient(near)
