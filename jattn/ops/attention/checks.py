"""All checks of a call's arguments, run once before any work."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from typing import Any

import chex
import jax.numpy as jnp

from ...foundation.arrays import FOREIGN, describe, dtype_of, known_values
from ...foundation.fields import LARGEST
from ...foundation.pieces import Piece
from ...masks.base import Mask, as_mask
from ...normalizers import Normalizer, Softmax
from ...scores.base import Score, as_score
from ...similarities import ScaledDot, Similarity
from .dropout import Dropout

LAYOUTS = {
    "query": "[..., q_len, q_heads, qk_dim]",
    "key": "[..., kv_len, kv_heads, qk_dim]",
    "value": "[..., kv_len, kv_heads, v_dim]",
}


def check_arrays(query: Any, key: Any, value: Any) -> None:
    """Check the ranks, dtypes and sizes of query, key and value.

    Raises:
        ValueError: naming the arrays that disagree, their shapes, and the expected layout.
    """
    arrays = {"query": query, "key": key, "value": value}
    for name, item in arrays.items():
        if dtype_of(item) is None:
            raise ValueError(
                f"`{name}` must be an array {LAYOUTS[name]}, of JAX or NumPy; got {describe(item)}. {FOREIGN}"
            )
        if len(item.shape) < 3:
            raise ValueError(
                f"`{name}` must have at least 3 axes, {LAYOUTS[name]}; got shape {item.shape}. "
                f"One head still needs its axis: `{name}[..., None, :]`."
            )
        if not jnp.issubdtype(item.dtype, jnp.floating):
            raise ValueError(
                f"`{name}` must be floating-point; got {item.dtype}. Convert it: `{name}.astype('float32')`."
            )
        if jnp.finfo(item.dtype).bits < 16:
            raise ValueError(
                f"`{name}` must have at least 16 bits, as attention adds up its numbers; got {item.dtype}. Convert it "
                f"(with its scale): `{name}.astype('bfloat16')`."
            )
    try:
        chex.assert_equal_rank([query, key, value])
        chex.assert_equal_shape_prefix([query, key, value], len(query.shape) - 3)
    except AssertionError:
        raise ValueError(
            f"`query`, `key` and `value` must have the same batch axes (all but the last three); got query "
            f"{query.shape}, key {key.shape}, value {value.shape}. Broadcast them explicitly with `jnp.broadcast_to`."
        ) from None
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(
            f"`key` {LAYOUTS['key']} and `value` {LAYOUTS['value']} must have the same kv_len and kv_heads; "
            f"got key {key.shape} and value {value.shape}."
        )
    if query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"`query` and `key` must have the same qk_dim (last axis); got query {query.shape}, key {key.shape}. "
            "Project one of them to the other's size first."
        )
    if query.shape[-1] == 0:
        raise ValueError(
            f"`query` and `key` must have at least one feature (qk_dim, the last axis); got query {query.shape} and "
            f"key {key.shape}."
        )
    q_heads, kv_heads = query.shape[-2], key.shape[-2]
    if kv_heads == 0 or q_heads == 0 or q_heads % kv_heads:
        raise ValueError(
            f"`query` must have a multiple of the heads of `key`; got {q_heads} query heads and {kv_heads} key heads "
            f"(query {query.shape}, key {key.shape}, layout [..., length, heads, dim]: are length and heads swapped?)."
        )


def check_pieces(mask: Any, similarity: Any, scores: Any, normalizer: Any, dropout: Any) -> tuple:
    """The pieces, with defaults filled in. A function given as `mask` or among `scores` becomes a piece.

    Raises:
        ValueError: an argument is not the right kind of piece.
    """
    mask = None if mask is None else as_mask(mask)
    similarity = ScaledDot() if similarity is None else similarity
    normalizer = Softmax() if normalizer is None else normalizer
    several = isinstance(scores, Iterable) and not isinstance(scores, Score) and dtype_of(scores) is None
    scores = () if scores is None else tuple(scores) if several else (scores,)  # type: ignore[arg-type]
    scores = tuple(as_score(score) for score in scores)
    for name, value, kind in (
        ("similarity", similarity, Similarity),
        ("normalizer", normalizer, Normalizer),
        ("dropout", dropout, Dropout),
        *((f"scores[{i}]", score, Score) for i, score in enumerate(scores)),
    ):
        if value is not None and not isinstance(value, kind):
            raise ValueError(
                f"`{name}` must be a {kind.__name__} (an instance of a piece, such as those of jattn); "
                f"got {describe(value)}.{_hint(value)}"
            )
    return mask, similarity, scores, normalizer, dropout


def _hint(value: Any) -> str:
    """What to write in place of a wrong argument."""
    if isinstance(value, type) and issubclass(value, Piece):
        return f" Make one of it: `{value.__name__}(...)`."
    if isinstance(value, Mask):
        return " A mask goes to `mask=`."
    if isinstance(value, Score):
        return " A score goes to `scores=`."
    if isinstance(value, float):
        return " `jattn.Dropout(rate, key)` makes one of a rate."
    return ""


def check_positions(name: str, positions: Any, batch: tuple[int, ...], length: int, of: str) -> None:
    """Check that positions are integers `[..., length]`, one per element of `of`."""
    dtype = dtype_of(positions)
    if dtype is None or not jnp.issubdtype(dtype, jnp.integer):
        raise ValueError(f"`{name}` must be integers, absolute token indices; got {describe(positions)}.")
    if jnp.iinfo(dtype).max > LARGEST:
        known = known_values(positions)
        if known is not None and known.size and not -LARGEST - 1 <= int(known.min()) <= int(known.max()) <= LARGEST:
            raise ValueError(
                f"`{name}` must fit in 32 bits; got values from {known.min()} to {known.max()}. Count from the first "
                "token of the sequence."
            )
    shape = tuple(positions.shape)
    lead = shape[:-1]
    fits = len(lead) <= len(batch) and all(a in (1, b) for a, b in zip(reversed(lead), reversed(batch), strict=False))
    if not shape or shape[-1] != length or not fits:
        raise ValueError(
            f"`{name}` must have shape [{length}], or [batch..., {length}] with the batch {batch}, one position for "
            f"each element of `{of}`; got {shape}."
        )


@contextlib.contextmanager
def renamed(**names: str) -> Iterator[None]:
    """Errors raised inside use the caller's argument names, as in `renamed(query_positions="positions")`.

    >>> with renamed(query_positions="positions"):
    ...     raise ValueError("`query_positions` must be integers.")
    Traceback (most recent call last):
    ...
    ValueError: `positions` must be integers.
    """
    try:
        yield
    except ValueError as error:
        message = str(error)
        for old, new in names.items():
            message = re.sub(rf"`{re.escape(old)}(?=[`=.\[])", f"`{new}", message)
        error.args = (message,)
        raise


def reject_ambiguous_positions(q_len: int, kv_len: int, what: str) -> None:
    """Refuse different lengths without positions: it is unclear where the queries are among the keys.

    Raises:
        ValueError: always, with both readings.
    """
    raise ValueError(
        f"`{what}` depends on query positions, and q_len {q_len} differs from kv_len {kv_len}: give `query_positions`. "
        f" Bottom-right (the last query sees the last key, as when decoding with a cache): "
        f"`query_positions=numpy.arange({kv_len - q_len}, {kv_len})`. Top-left (query 0 is at key 0): "
        f"`query_positions=numpy.arange({q_len})`."
    )
