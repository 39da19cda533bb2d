"""Forgetting Attention: what lies between a query and a key fades the key, by a gate of each token.

The bias of a pair is a sum of log gates that its tile does not see: it is the difference of two running sums. In
float32 such a difference loses digits in two ways.

- Forward, running sums grow: after 100,000 tokens that each keep nine tenths, differences are off by 1e-3. So a running
  sum is kept as a whole number, whose difference is exact, and a fraction.
- Backward, the gradient of a gate is the sum of the gradients of all pairs around it. Written as row sums minus column
  sums of all tokens behind it, the pairs that are not around it cancel up to rounding, which adds up over the length.
  So pairs within a block of tokens have running sums of their own, which begin with the block, for the gradient alone.
"""

from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import known_values
from ..foundation.pieces import array, piece
from .arguments import floats
from .base import Score

LEAST = -1e4
"""In place of log 0: its exponential is 0."""
BLOCK = 256
"""Tokens whose pairs have running sums of their own."""


@piece
class Forget(Score):
    """score + Σ_{j < l ≤ i} log f_l for a key j before the query i (Lin et al. 2025, arXiv:2503.02130, "FoX").

    Made of the log gates by `Forget.of`. The paper is causal; for a key behind the query the gates between the two
    count likewise. Every array rides on one axis: no bias of pairs is stored, and a shard or a tile takes its part.

    Attributes:
        query_whole: whole part of the running sum of log gates at each query, int32 `[batch..., head, query]`.
        query_rest: the running sum less its whole part, floating-point, as it.
        query_near: zeros, through which pairs within a block have their gradient, as it.
        query_block: which block each query is in, int32, as it.
        key_whole, key_rest, key_near, key_block: the same of each key, `[batch..., head, key]`.

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

    @classmethod
    def of(cls, log_gates: Any, *, queries: Any = None) -> Self:
        """The score of these gates.

        Args:
            log_gates: log f of each key's token, at most 0, floating-point `[batch..., head, key]`, `head` those of the
                queries, or 1 for all; of a logit, `jax.nn.log_sigmoid(logit)`. -inf forgets all that came before, as
                -1e4 does. Traced values are not checked.
            queries: which of the keys' tokens the queries are, integers `[q_len]`; by default all of them. In decoding
                with a cache, their places in it.

        Raises:
            ValueError: not floating-point, or too few axes; a known value above 0, or NaN; `queries` that are no
                integers of one axis.
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
        if queries.ndim != 1 or not jnp.issubdtype(queries.dtype, jnp.integer):
            raise ValueError(
                f"`queries` must be integers [q_len], the places of the queries among the keys; got {queries.dtype} of "
                f"shape {queries.shape}."
            )
        of_queries = RunningSums(*(jnp.take(one, queries, -1, mode="clip") for one in of_keys))
        return cls(*of_queries, *of_keys)

    def modify(self, scores, query, key):
        whole = (self.query_whole - self.key_whole).astype(scores.dtype)
        rest = self.query_rest.astype(scores.dtype) - self.key_rest.astype(scores.dtype)
        near = self.query_near.astype(scores.dtype) - self.key_near.astype(scores.dtype)
        together = self.query_block == self.key_block
        kept = whole + jnp.where(together, jax.lax.stop_gradient(rest) + near, rest)
        return scores + jnp.where(key <= query, kept, -kept)


class RunningSums(NamedTuple):
    """Of terms along the last axis, up to and with each; `whole + rest` is the sum.

    whole: int32.
    rest: within 1/2 of 0, float32 (float64), with the gradient of the sum.
    near: zeros with the gradient of the sum since the block began.
    block: which, int32, `[..., length]` with size 1 on all other axes.
    """

    whole: jax.Array
    rest: jax.Array
    near: jax.Array
    block: jax.Array | np.ndarray


def running_sums(terms: jax.Array) -> RunningSums:
    """The sums of terms at most 0. Summed in a tree, whose rounding errors grow with the logarithm of the length.

    >>> import jax.numpy as jnp
    >>> sums = running_sums(jnp.full(30000, -100.3))
    >>> print(sums.whole[-1] - sums.whole[-2] + (sums.rest[-1] - sums.rest[-2]).round(3))
    -100.3
    """
    length, last = terms.shape[-1], terms.ndim - 1
    # Not so low that the whole numbers could overflow.
    least = max(LEAST, -float((2**31 - 1) // (length + 1)))
    terms = jnp.maximum(terms.astype(jnp.promote_types(terms.dtype, jnp.float32)), least)

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
    block = (np.arange(length, dtype=np.int32) // BLOCK).reshape((1,) * last + (length,))
    return RunningSums(whole, rest, near - jax.lax.stop_gradient(near), block)
