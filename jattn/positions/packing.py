"""Token positions of padded and packed batches, from the arrays that describe them in other libraries."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..foundation.fields import zeros_and_ones
from ..masks.packing import check_cu_seqlens, row_length, sequence_ids


def from_attention_mask(attention_mask: Any) -> Any:
    """The number of real tokens before each token of its row, so that every row counts from 0 wherever its padding is.

    Use it for position embeddings and for `query_positions` and `key_positions` alike, together with
    `jattn.masks.from_attention_mask(attention_mask)`. Padding has the position of the token before it, or 0 at the
    start.

    Args:
        attention_mask: zeros and ones (integers or booleans) `[batch..., length]`.

    Returns:
        int32 `[batch..., length]`; a NumPy array if the argument is one, so that it is known at trace time.

    Raises:
        ValueError: the dtype is neither integer nor boolean, or a known value is neither 0 nor 1.

    >>> import numpy as np
    >>> from jattn import positions
    >>> print(positions.from_attention_mask(np.array([0, 0, 1, 1, 1])))
    [0 0 0 1 2]
    """
    remedy = "Positions of packed sequences are `jattn.positions.from_cu_seqlens`."
    flags = zeros_and_ones("attention_mask", attention_mask, "[batch..., length]", remedy)
    xp: Any = np if isinstance(flags, np.ndarray) else jnp
    return xp.maximum(xp.cumsum(flags, -1, dtype=np.int32) - 1, 0)


def from_cu_seqlens(cu_seqlens: Any, length: int | None = None, *, key_cu_seqlens: Any = None) -> Any:
    """Each token's position in its own sequence, for rows packed as in `jattn.masks.from_cu_seqlens`.

    Use it for position embeddings and for `query_positions` and `key_positions` alike. If each sequence has more keys
    than queries, as with a cache, pass `key_cu_seqlens`: the queries are then the last tokens of their sequence, and
    query i of n has position i + (keys - n). This is the alignment of flash-attn's `causal` and `window_size`.

    Args:
        cu_seqlens: nondecreasing integers `[batch..., sequences + 1]`.
        length: the row length. By default the largest last entry, if that is known at trace time.
        key_cu_seqlens: the same for the keys, with as many sequences.

    Returns:
        int32 `[batch..., length]`, 0 for padding; a NumPy array if the arguments are.

    Raises:
        ValueError: as in `jattn.masks.from_cu_seqlens`.

    >>> import numpy as np
    >>> from jattn import positions
    >>> print(positions.from_cu_seqlens(np.array([0, 3, 5]), 6))
    [0 1 2 0 1 0]
    >>> print(positions.from_cu_seqlens(np.array([0, 1, 2]), key_cu_seqlens=np.array([0, 3, 5])))
    [2 1]
    """
    cu_seqlens = check_cu_seqlens("cu_seqlens", cu_seqlens)
    length = row_length("cu_seqlens", cu_seqlens, "length", length)
    sequences = cu_seqlens.shape[-1] - 1
    first = cu_seqlens[..., :-1]  # per sequence, the offset to subtract from token indices
    if key_cu_seqlens is not None:
        key_cu_seqlens = check_cu_seqlens("key_cu_seqlens", key_cu_seqlens)
        if key_cu_seqlens.shape != cu_seqlens.shape:
            raise ValueError(
                f"`key_cu_seqlens` must have the shape of `cu_seqlens`, {cu_seqlens.shape}; got {key_cu_seqlens.shape}."
            )
        first = first - ((key_cu_seqlens[..., 1:] - key_cu_seqlens[..., :-1]) - (cu_seqlens[..., 1:] - first))
    if not sequences:
        return np.zeros((*cu_seqlens.shape[:-1], length), np.int32)
    ids = sequence_ids(cu_seqlens, length)
    xp: Any = np if isinstance(ids, np.ndarray) and isinstance(first, np.ndarray) else jnp
    own = xp.take_along_axis(xp.asarray(first), xp.minimum(ids, sequences - 1), axis=-1)
    return xp.where(ids < sequences, np.arange(length) - own, 0).astype(np.int32)
