"""Masks from the arrays that a padded or a packed batch comes with, as other libraries pass them.

- Padded: every sequence has a row, filled up at its right or left end; `attention_mask` has 1 at its tokens.
- Packed: several sequences share a row; `position_ids` begin again in each, or `cu_seqlens` says where each begins.

All of them ride on tokens, not on positions, so they mean the same whatever positions the call is given.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import describe, known_values
from .arguments import integers, zeros_and_ones
from .dense import Dense
from .segments import SameSegment


def from_attention_mask(attention_mask: Any) -> Dense:
    """Keys that are tokens, of rows with padding on either side (or in between): `attention_mask[..., j] = 1`.

    Tiles of padding alone are skipped, as with `Lengths`; NumPy arrays are known while tracing. Queries of padding
    attend like any other, and what they give is to be ignored; `SameSegment(attention_mask, padding_id=0)` leaves them
    out too (their output is 0) in self-attention. With padding on the left, positions that begin at the first token
    of each row are `jattn.positions.from_attention_mask(attention_mask)`.

    Args:
        attention_mask: ones and zeros (integers or booleans), `[batch..., kv_len]`, one for each key of the call.

    Raises:
        ValueError: another dtype; other numbers, where they are known.

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
    return Dense(flags[..., None, None, :])


def from_position_ids(position_ids: Any) -> SameSegment:
    """Own sequence only, in rows whose positions begin again in each: a new one begins wherever they do not go on.

    Token i belongs to the sequence of token i - 1 if `position_ids[..., i] = position_ids[..., i - 1] + 1`. Give the
    same `position_ids` to a rotation and, if the other masks of the call look at positions, to
    `query_positions` and `key_positions`.

    Args:
        position_ids: integers `[batch..., length]`.

    Raises:
        ValueError: not an integer array with at least one axis.

    >>> import numpy as np
    >>> from jattn import masks
    >>> print(masks.from_position_ids(np.array([0, 1, 2, 0, 1, 0])).query_ids)
    [0 0 0 1 1 2]
    """
    positions = integers("position_ids", position_ids, least=-(2**31))
    if isinstance(positions, int) or not positions.shape:
        raise ValueError(f"`position_ids` must be an integer array [batch..., length]; got {describe(position_ids)}.")
    xp: Any = np if isinstance(positions, np.ndarray) else jnp
    begins = positions[..., 1:] != positions[..., :-1] + 1
    ids = xp.cumsum(begins, -1, dtype=np.int32)
    return SameSegment(xp.concatenate([xp.zeros_like(positions[..., :1], dtype=np.int32), ids], -1))


def from_cu_seqlens(
    cu_seqlens: Any, length: int | None = None, *, key_cu_seqlens: Any = None, key_length: int | None = None
) -> SameSegment:
    """Own sequence only, in rows where the s-th sequence has the tokens `cu_seqlens[s] <= i < cu_seqlens[s + 1]`.

    As flash-attn's `varlen` functions have it. Sequences may be empty, so a list of fixed length may end in repeats of
    the last entry; tokens before the first entry and from the last one on are padding, which attends to nothing and is
    attended to by nothing. The place of each token in its own sequence is `jattn.positions.from_cu_seqlens`.

    Args:
        cu_seqlens: integers that do not decrease, `[batch..., sequences + 1]`, the first one usually 0.
        length: of the row; by default the largest last entry, if that is known while tracing.
        key_cu_seqlens: of the keys, as many sequences; by default those of the queries, for self-attention.
        key_length: of the row of keys, likewise.

    Raises:
        ValueError: no integer array with at least one entry; entries that decrease or lie beyond `length`, where they
            are known; no `length` where they are not; another number of sequences for keys.

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
    """The array `[batch..., sequences + 1]`, whose entries do not decrease, as far as they are known.

    Raises:
        ValueError: it is not.
    """
    array = integers(name, value, least=0)
    if isinstance(array, int) or not array.shape or array.shape[-1] == 0:
        raise ValueError(f"`{name}` must be an integer array [batch..., sequences + 1]; got {describe(value)}.")
    values = known_values(array)
    if values is not None and (np.diff(values) < 0).any():
        raise ValueError(f"`{name}` must not decrease: sums of lengths, not lengths; got {values.tolist()}.")
    return array


def sequence_ids(cu_seqlens: Any, length: int) -> Any:
    """Which sequence each token of a row is in, `[batch..., length]`; padding is in one more, behind the last."""
    xp: Any = np if isinstance(cu_seqlens, np.ndarray) else jnp
    *batch, entries = cu_seqlens.shape
    tokens = np.arange(length, dtype=np.int32)

    def one(bounds: Any) -> Any:
        found = xp.searchsorted(bounds, tokens, side="right").astype(np.int32) - 1
        return xp.where(found < 0, entries - 1, found)

    if not batch:
        return one(cu_seqlens)
    rows = cu_seqlens.reshape(-1, entries)
    ids = np.stack([one(row) for row in rows]) if xp is np else jax.vmap(one)(rows)
    return ids.reshape(*batch, length)


def row_length(name: str, cu_seqlens: Any, length_name: str, length: int | None) -> int:
    """The static length of a row, by default where its last sequence ends.

    Raises:
        ValueError: it is not given where the array is traced; sequences lie beyond it.
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
