"""Masks by where a sequence ends: several packed in one row, or one that is shorter than its row."""

import jax
import numpy as np

from ..foundation.pieces import array, number, piece
from .arguments import LARGEST, Integers, integers, set_field
from .base import Mask


@piece
class SameSegment(Mask):
    """Own segment only: `query_ids[i] = key_ids[j]`, for the i-th query and the j-th key of the call.

    Several sequences packed in one row attend each one to itself; with `& Causal()` for language models. Ids ride on
    the arrays, not on positions, so positions that start again in each segment are fine, given as `query_positions` and
    as `key_positions`.

    Padding: without a `padding_id` padding is one more segment and attends to itself, which costs time and leaves
    numbers in its output. Tokens whose id is `padding_id` attend nothing (their output is 0) and are attended by
    nothing.

    Args:
        query_ids: integers, `array("query")`: `[batch..., q_len]`. In any order; sorted ids skip most tiles.
        key_ids: integers, `array("key")`: `[batch..., kv_len]`. None means `query_ids`, for self-attention.
        padding_id: a Python integer, or None for no padding.

    Raises:
        ValueError: ids are no integer arrays with at least one axis; `padding_id` is not an integer.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> ids = jnp.array([1, 1, 2, 0])
    >>> mask = masks.SameSegment(ids, padding_id=0)
    >>> from jattn.foundation.pieces import align
    >>> aligned = align(mask, batch=(), sizes={"head": 1, "query": 4, "key": 4})
    >>> print(aligned.allows(jnp.arange(4)[:, None], jnp.arange(4))[0].astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [0 0 1 0]
     [0 0 0 0]]
    """

    query_ids: np.ndarray | jax.Array = array("query")
    key_ids: np.ndarray | jax.Array | None = array("key", default=None)
    padding_id: int | None = None

    def __post_init__(self):
        set_field(self, "query_ids", _ids("query_ids", self.query_ids))
        # From here on the two fields are arrays of their own: each must ride on its own axis.
        set_field(self, "key_ids", self.query_ids if self.key_ids is None else _ids("key_ids", self.key_ids))
        if self.padding_id is not None:
            padding = integers("padding_id", self.padding_id, least=-LARGEST - 1)
            if not isinstance(padding, int):
                raise ValueError(f"`padding_id` must be a Python integer; got an array of shape {padding.shape}.")
            set_field(self, "padding_id", padding)

    def allows(self, query, key):
        del query, key
        same = self.query_ids == self.key_ids
        if self.padding_id is not None:
            # Either test would do for a pair; both, so that a tile of padding alone is empty whatever faces it.
            same = same & (self.query_ids != self.padding_id) & (self.key_ids != self.padding_id)
        return same


def _ids(name: str, value) -> np.ndarray | jax.Array:
    value = integers(name, value, least=-LARGEST - 1)
    if not getattr(value, "shape", ()):
        raise ValueError(f"`{name}` must be an integer array [batch..., length], one id for each token; got {value!r}.")
    return value


@piece
class Lengths(Mask):
    """Sequences that end before their row: `k < key_lengths`, and `q < query_lengths` where given.

    Keys beyond the length are attended by nothing; queries beyond theirs attend nothing (their output is 0).

    Args:
        key_lengths: a Python integer, or an integer array `[batch...]`, one for each sequence.
        query_lengths: the same for queries; None leaves all of them. Self-attention over padded rows wants both.

    Raises:
        ValueError: a length is negative or not an integer.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Lengths(2).allows(jnp.arange(3)[:, None], jnp.arange(3)).astype(int))
    [1 1 0]
    >>> masks.Lengths(jnp.array([5, 3, 7]))  # a batch of three
    Lengths(key_lengths=Array([5, 3, 7], dtype=int32), query_lengths=None)
    """

    key_lengths: Integers = number()
    query_lengths: Integers | None = number(default=None)

    def __post_init__(self):
        set_field(self, "key_lengths", integers("key_lengths", self.key_lengths, least=0))
        if self.query_lengths is not None:
            set_field(self, "query_lengths", integers("query_lengths", self.query_lengths, least=0))

    def allows(self, query, key):
        inside = key < self.key_lengths
        if self.query_lengths is not None:
            inside = inside & (query < self.query_lengths)
        return inside
