"""Masks from the arrays that describe padded and packed batches in other libraries.

- Padded: each sequence has its own row, padded on the right or left; `attention_mask` is 1 for real tokens.
- Packed: several sequences share a row; `position_ids` restart in each, or `cu_seqlens` holds the boundaries.

These arrays describe the tokens of the call, not positions, so the result does not depend on `query_positions` or
`key_positions`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, known_values
from ..foundation.fields import integers, zeros_and_ones
from .dense import Dense
from .segments import SameSegment


def from_attention_mask(attention_mask: Any) -> Dense:
    """A padding mask: keys where `attention_mask[..., j]` is 1. Padding may be on either side or in between.

    Tiles that contain only padding are skipped, as with `Lengths`. NumPy arrays are known at trace time, so their tiles
    are planned statically. Padding queries still attend; ignore their output, or use
    `SameSegment(attention_mask, padding_id=0)` for self-attention, which gives them output 0. With padding on the left,
    `jattn.positions.from_attention_mask(attention_mask)` numbers positions from the first real token of each row.

    Args:
        attention_mask: zeros and ones (integers or booleans) `[batch..., kv_len]`, one for each key of the call.

    Raises:
        ValueError: the dtype is neither integer nor boolean, or a known value is neither 0 nor 1.

    >>> import numpy as np
    >>> from jattn import masks
    >>> print(masks.from_attention_mask(np.array([0, 0, 1, 1])).array)
    [[[False False  True  True]]]
    """
    remedy = (
        "Ids of packed sequences are `jattn.masks.SameSegment(ids)`; numbers that are added to scores are compared "
        "first, as in `array > -1`."
    )
    flags = zeros_and_ones("attention_mask", attention_mask, "[batch..., kv_len]", remedy)
    return Dense(of_shapes(lambda flags: flags[..., None, None, :] != 0, flags))


def from_position_ids(position_ids: Any) -> SameSegment:
    """Attention within each packed sequence: a new one begins wherever `position_ids` do not increase by 1.

    Token i belongs to the same sequence as token i - 1 if `position_ids[..., i] == position_ids[..., i - 1] + 1`. Pass
    the same `position_ids` to rotary embeddings and, if other masks of the call depend on positions, as
    `query_positions` and `key_positions`.

    Args:
        position_ids: integers `[batch..., length]`.

    Raises:
        ValueError: `position_ids` is not an integer array with at least one axis.

    >>> import numpy as np
    >>> from jattn import masks
    >>> print(masks.from_position_ids(np.array([0, 1, 2, 0, 1, 0])).query_ids)
    [0 0 0 1 1 2]
    """
    positions = integers("position_ids", position_ids, least=-(2**31))
    if isinstance(positions, int) or not positions.shape:
        raise ValueError(f"`position_ids` must be an integer array [batch..., length]; got {describe(position_ids)}.")
    xp: Any = np if isinstance(positions, np.ndarray) else jnp

    def ids(positions: Any) -> Any:
        begins = positions[..., 1:] != positions[..., :-1] + 1
        later = xp.cumsum(begins, -1, dtype=np.int32)
        return xp.concatenate([xp.zeros_like(positions[..., :1], dtype=np.int32), later], -1)

    return SameSegment(of_shapes(ids, positions))


def from_cu_seqlens(
    cu_seqlens: Any, length: int | None = None, *, key_cu_seqlens: Any = None, key_length: int | None = None
) -> SameSegment:
    """Attention within each packed sequence; sequence s has the tokens `cu_seqlens[s] <= i < cu_seqlens[s + 1]`.

    These are the cumulative lengths of flash-attn's `varlen` functions. Sequences may be empty, so an array of fixed
    size can end with repeats of its last entry. Tokens before the first entry and from the last entry on are padding:
    they neither attend nor are attended to. `jattn.positions.from_cu_seqlens` gives each token's position in its own
    sequence.

    Args:
        cu_seqlens: nondecreasing integers `[batch..., sequences + 1]`; the first is usually 0.
        length: the row length. By default the largest last entry, if that is known at trace time.
        key_cu_seqlens: the same for the keys, with as many sequences. By default keys are packed like queries.
        key_length: the row length of the keys.

    Raises:
        ValueError: `cu_seqlens` is not an integer array with at least one entry; known entries decrease or exceed
            `length`; `length` is missing and the entries are traced; or the number of key sequences differs.

    >>> import numpy as np
    >>> from jattn import masks
    >>> print(masks.from_cu_seqlens(np.array([0, 3, 5]), 7).query_ids)
    [0 0 0 1 1 2 2]
    """
    cu_seqlens = check_cu_seqlens("cu_seqlens", cu_seqlens)
    sequences = cu_seqlens.shape[-1] - 1
    query_ids = sequence_ids(cu_seqlens, row_length("cu_seqlens", cu_seqlens, "length", length))
    if key_cu_seqlens is None:
        if key_length is not None:
            raise ValueError("`key_length` needs `key_cu_seqlens`: without them keys are in the row of the queries.")
        return SameSegment(query_ids, padding_id=sequences)
    key_cu_seqlens = check_cu_seqlens("key_cu_seqlens", key_cu_seqlens)
    if key_cu_seqlens.shape[-1] != cu_seqlens.shape[-1]:
        raise ValueError(
            f"`key_cu_seqlens` must have the {cu_seqlens.shape[-1]} entries of `cu_seqlens`, one sequence of keys for "
            f"each of queries; got shape {key_cu_seqlens.shape}."
        )
    key_length = row_length("key_cu_seqlens", key_cu_seqlens, "key_length", key_length)
    return SameSegment(query_ids, sequence_ids(key_cu_seqlens, key_length), padding_id=sequences)


def check_cu_seqlens(name: str, value: Any) -> Any:
    """Check cumulative lengths `[batch..., sequences + 1]`.

    Raises:
        ValueError: not an integer array with at least one entry, or known entries that decrease.
    """
    array = integers(name, value, least=0)
    if isinstance(array, int) or not array.shape or array.shape[-1] == 0:
        raise ValueError(f"`{name}` must be an integer array [batch..., sequences + 1]; got {describe(value)}.")
    values = known_values(array)
    if values is not None and (np.diff(values) < 0).any():
        raise ValueError(f"`{name}` must not decrease: sums of lengths, not lengths; got {values.tolist()}.")
    return array


def sequence_ids(cu_seqlens: Any, length: int) -> Any:
    """The index of each token's sequence, `[batch..., length]`. Padding gets the index `sequences`."""
    xp: Any = np if isinstance(cu_seqlens, np.ndarray) else jnp
    *batch, entries = cu_seqlens.shape
    tokens = np.arange(length, dtype=np.int32)

    def one(bounds: Any) -> Any:
        found = xp.searchsorted(bounds, tokens, side="right").astype(np.int32) - 1
        return xp.where(found < 0, entries - 1, found)

    def every(cu_seqlens: Any) -> Any:
        rows = cu_seqlens.reshape(-1, entries)
        if 0 in rows.shape:
            return xp.zeros((*batch, length), np.int32)
        ids = np.stack([one(row) for row in rows]) if xp is np else jax.vmap(one)(rows)
        return ids.reshape(*batch, length)

    return of_shapes(every if batch else one, cu_seqlens)


def of_shapes(function: Callable[[Any], Any], array: Any) -> Any:
    """`function(array)`; of a `jax.ShapeDtypeStruct`, as `explain` accepts them, the shape and dtype of the result."""
    return jax.eval_shape(function, array) if isinstance(array, jax.ShapeDtypeStruct) else function(array)


def row_length(name: str, cu_seqlens: Any, length_name: str, length: int | None) -> int:
    """The static row length, by default the end of the last sequence.

    Raises:
        ValueError: `length` is None and the array is traced; or a sequence ends past `length`.
    """
    values = known_values(cu_seqlens)
    if length is None:
        if values is None:
            raise ValueError(
                f"`{length_name}` must be given where `{name}` is traced: it is the length of the row, a static shape."
            )
        return int(values[..., -1].max(initial=0))
    if not isinstance(length, (int, np.integer)) or isinstance(length, bool) or length < 0:
        raise ValueError(f"`{length_name}` must be a Python integer, the length of the row; got {length!r}.")
    if values is not None and values[..., -1].max(initial=0) > length:
        raise ValueError(f"`{name}` ends at {int(values[..., -1].max())}, beyond the row's `{length_name}` {length}.")
    return int(length)
