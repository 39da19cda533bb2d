"""Many continuations of one prefix, which is stored and read once; and positions in packed documents."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arrays import as_known
from ...foundation.shapes import check_shapes
from ...masks import Causal, SameSegment
from ...masks.base import Mask
from ...ops.attention.api import partial_attention
from ...ops.attention.partial import merge


def shared_prefix_mask(ids: Any) -> Mask:
    """A causal mask for a row that holds a prefix, followed by several continuations of it:

        j ≤ i,  and j is in the prefix (ids[j] = 0) or in the same continuation (ids[j] = ids[i])

    For rotary embeddings, positions may restart after the prefix in each continuation (`query_positions`).

    Args:
        ids: integers `[..., length]`: 0 for the prefix, another number for each continuation.

    Raises:
        ValueError: `ids` are not integers.

    >>> print(shared_prefix_mask([0, 0, 1, 1, 2]).picture(5, 5).rsplit(chr(10), 2)[0])
    █····
    ██···
    ███··
    ████·
    ██··█
    """
    own = SameSegment(ids)
    backend: Any = np if isinstance(own.query_ids, np.ndarray) else jnp
    return (own | SameSegment(backend.zeros_like(own.query_ids), own.query_ids)) & Causal()


def shared_prefix_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    prefix_key: jax.Array,
    prefix_value: jax.Array,
    *,
    mask: Mask | Any = None,
    **options: Any,
) -> jax.Array:
    """Shared prefix: continuations attend to a prefix that is stored once, and to themselves.

    This is the merge of two partial results,

        merge(partial_attention(all queries, prefix), partial_attention(query, key, value, mask))

    in which the queries of all continuations attend to the prefix in one call, without copying it
    (Juravsky et al. 2024, arXiv:2402.05099).

    Args:
        query: `[..., continuations, q_len, heads, dim]`.
        key: `[..., continuations, kv_len, kv_heads, dim]`: the keys of each continuation.
        value: `[..., continuations, kv_len, kv_heads, v_dim]`.
        prefix_key: `[..., prefix_len, kv_heads, dim]`, seen by every query.
        prefix_value: `[..., prefix_len, kv_heads, v_dim]`.
        mask: the mask within a continuation, with positions counted from its start; by default `Causal()`.
        **options: arguments of `jattn.partial_attention` within continuations, such as `query_positions`; `similarity`
            and `implementation` also apply to the prefix.

    Returns:
        `[..., continuations, q_len, heads, v_dim]`.

    Raises:
        ValueError: shapes do not match; `scores` or `dropout` are given, whose positions would differ between the
            calls; as in `partial_attention`.

    >>> import jax
    >>> rows = jax.random.normal(jax.random.key(0), (3, 5, 2, 4))
    >>> prefix = jax.random.normal(jax.random.key(1), (100, 2, 4))
    >>> shared_prefix_attention(rows, rows, rows, prefix, prefix).shape
    (3, 5, 2, 4)
    """
    sizes = check_shapes(
        query=(query, "... continuations q_len heads dim"),
        key=(key, "... continuations kv_len kv_heads dim"),
        value=(value, "... continuations kv_len kv_heads v_dim"),
        prefix_key=(prefix_key, "... prefix_len kv_heads dim"),
        prefix_value=(prefix_value, "... prefix_len kv_heads v_dim"),
    )
    unknown = options.keys() - {"similarity", "implementation", "query_positions", "key_positions"}
    if unknown:
        raise ValueError(
            "the options are `similarity`, `implementation`, `query_positions` and `key_positions`; got "
            f"{sorted(unknown)}. For others, call `jattn.attention` on one row with the mask `shared_prefix_mask`."
        )
    count, q_len = sizes["continuations"], sizes["q_len"]
    own = partial_attention(query, key, value, mask=Causal() if mask is None else mask, **options)
    rows = query.reshape(*query.shape[:-4], count * q_len, *query.shape[-2:])
    both = {name: options[name] for name in ("similarity", "implementation") if name in options}
    prefix = partial_attention(rows, prefix_key, prefix_value, **both)
    return merge(own, jax.tree.map(lambda one, want: one.reshape(want.shape), prefix, own)).out


def positions_in_documents(ids: Any) -> Any:
    """Packed documents: the position of each token in its document, `[..., length]`, int32.

    Krell et al. 2021 (arXiv:2107.02027).

    With `key_positions=positions_in_documents(ids)`, which then applies to the queries too, and
    `mask & SameSegment(ids)`, any mask of positions applies to each document separately.

    Args:
        ids: integers `[..., length]`; a document is a run of equal ids.

    Raises:
        ValueError: `ids` are not integers.

    >>> positions_in_documents([7, 7, 7, 9, 9])
    array([0, 1, 2, 0, 1], dtype=int32)
    """
    ids = as_known(ids)
    length = check_shapes(kind=jnp.integer, ids=(ids, "... length"))["length"]
    at = np.arange(length, dtype=np.int32)
    starts = (ids[..., 1:] != ids[..., :-1]) * at[1:]
    if isinstance(ids, np.ndarray):
        return (at - np.pad(np.maximum.accumulate(starts, -1), [(0, 0)] * (ids.ndim - 1) + [(1, 0)])).astype(np.int32)
    first = jnp.pad(jax.lax.cummax(starts, starts.ndim - 1), [(0, 0)] * (ids.ndim - 1) + [(1, 0)])
    return (at - first).astype(np.int32)
