"""Local attention of Luong et al. 2015 around the query's own position (local-m)."""

from typing import Any

import jax

from ...masks import SlidingWindow, as_mask
from ...ops.attention.api import attention


def local_m(
    query: jax.Array, key: jax.Array, value: jax.Array, distance: int, *, mask: Any = None, **pieces: Any
) -> jax.Array:
    """Luong local-m: attention to the keys in `[t - distance, t + distance]`, with t the position of the query.

    Luong, Pham & Manning 2015 (arXiv:1508.04025), "local-m", which assumes that source and target are aligned. This is
    `jattn.attention` with the mask `SlidingWindow(distance, distance)`; tiles outside the window are skipped.

    Args:
        query: `[..., q_len, q_heads, qk_dim]`.
        key: `[..., kv_len, kv_heads, qk_dim]`.
        value: `[..., kv_len, kv_heads, v_dim]`.
        distance: D, an integer of at least 0.
        mask: an additional mask, such as `jattn.masks.Lengths` for padded sources.
        **pieces: arguments of `jattn.attention`; if there are as many queries as keys, `query_positions` are not
            needed.

    Returns:
        `[..., q_len, q_heads, v_dim]`.

    Raises:
        ValueError: `distance` is negative; as in `jattn.attention`.

    >>> import jax
    >>> h, s = (jax.random.normal(jax.random.key(i), (2, 20, 1, 16)) for i in range(2))
    >>> local_m(h, s, s, 3).shape
    (2, 20, 1, 16)
    """
    near = SlidingWindow(distance, distance)
    return attention(query, key, value, mask=near if mask is None else near & as_mask(mask), **pieces)
