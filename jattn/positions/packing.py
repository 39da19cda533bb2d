"""Positions of tokens in a padded or a packed batch, from the arrays that it comes with."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from ..masks.arguments import zeros_and_ones
from ..masks.packing import check_cu_seqlens, row_length, sequence_ids


def from_attention_mask(attention_mask: Any) -> Any:
    """The number of tokens before each one in its row, so that every row begins at 0 wherever its padding is.

    For a rotation or a position embedding, and for `query_positions` and `key_positions` alike, next to
    `jattn.masks.from_attention_mask(attention_mask)`. Padding has the position of the token before it, 0 at the left.

    Args:
        attention_mask: ones and zeros (integers or booleans), `[batch..., length]`.

    Returns:
        int32, as `attention_mask`; NumPy for NumPy, so that it is known while tracing.

    Raises:
        ValueError: another dtype; other numbers, where they are known.

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
    """The place of each token in its own sequence, in rows as `jattn.masks.from_cu_seqlens` has them.

    Give it to a rotation and to `query_positions` and `key_positions` alike. Where the queries of a sequence are the
    last ones of more keys, as with a cache, `key_cu_seqlens` moves them there: query i of n has the position
    i + (keys - n), which is how flash-attn's `causal` and `window_size` count.

    Args:
        cu_seqlens: integers that do not decrease, `[batch..., sequences + 1]`.
        length: of the row; by default the largest last entry, if that is known while tracing.
        key_cu_seqlens: of the keys, as many sequences.

    Returns:
        int32 `[batch..., length]`, 0 for padding; NumPy where the arguments are.

    Raises:
        ValueError: as `jattn.masks.from_cu_seqlens`.

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
    first = cu_seqlens[..., :-1]  # of each sequence: what to subtract
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
