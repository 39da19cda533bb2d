"""Masks for packed sequences (several per row) and for sequences shorter than their row."""

import jax
import numpy as np

from ..foundation.fields import LARGEST, Integers, integers, set_field
from ..foundation.pieces import array, number, piece
from .base import Mask


@piece
class SameSegment(Mask):
    """Attention within segments: `query_ids[i] == key_ids[j]` for query i and key j of the call.

    For several sequences packed into one row; add `& Causal()` for a language model. Ids belong to the tokens of the
    call, not to positions, so positions may restart in every segment (pass them as `query_positions` and
    `key_positions`).

    Without `padding_id`, padding is one more segment that attends to itself, which costs time and gives it an output.
    With it, tokens of that id neither attend (their output is 0) nor are attended to.

    Args:
        query_ids: integers `[batch..., q_len]`, in any order. Sorted ids let most tiles be skipped.
        key_ids: integers `[batch..., kv_len]`. By default `query_ids`, for self-attention.
        padding_id: a Python int, or None if there is no padding.

    Raises:
        ValueError: ids are not integer arrays with at least one axis, or `padding_id` is not an integer.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> ids = jnp.array([1, 1, 2, 0])
    >>> print(masks.create(masks.SameSegment(ids, padding_id=0), 4, 4)[0].astype(int))
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
        # Store both fields even if they are the same array: one is sliced along queries, the other along keys.
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
            # For one pair either test would do. Testing both proves a tile empty if either of its sides is all padding.
            same = same & (self.query_ids != self.padding_id) & (self.key_ids != self.padding_id)
        return same


def _ids(name: str, value) -> np.ndarray | jax.Array:
    value = integers(name, value, least=-LARGEST - 1)
    if not getattr(value, "shape", ()):
        raise ValueError(f"`{name}` must be an integer array [batch..., length], one id for each token; got {value!r}.")
    return value


@piece
class Lengths(Mask):
    """Sequences shorter than their row (right padding): `k < key_lengths`, and `q < query_lengths` if given.

    Keys past their length are not attended to; queries past theirs attend to nothing (output 0).

    Args:
        key_lengths: an int, or an int array `[batch...]` with one per sequence.
        query_lengths: the same for queries; None keeps all queries. Self-attention over padded rows usually wants both.

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
