"""Many continuations of one prefix, attended once for all; and the positions of documents in one row."""

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
    """A row of a prefix and, behind it, several continuations of it, as a causal mask:

        j ≤ i,  and j is of the prefix (ids[j] = 0) or of the same continuation (ids[j] = ids[i])

    Positions may start again behind the prefix in each continuation (`query_positions`), as rotary embeddings want.

    Args:
        ids: integers `[..., length]`: 0 for the prefix, another number for each continuation.

    Raises:
        ValueError: no integers.

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
    """Shared prefix: continuations attend to a prefix that is kept once, and to themselves.

    Continuations attend a prefix that is kept once, and themselves: the merge of two partial results,

        merge(partial_attention(all queries, prefix), partial_attention(query, key, value, mask))

    in which the queries of all continuations go over the prefix in one call, without copies of it
    (Juravsky et al. 2024, arXiv:2402.05099).

    Args:
        query: `[..., continuations, q_len, heads, dim]`.
        key: `[..., continuations, kv_len, kv_heads, dim]`: a continuation's own keys.
        value: `[..., continuations, kv_len, kv_heads, v_dim]`.
        prefix_key: `[..., prefix_len, kv_heads, dim]`, seen by every query.
        prefix_value: `[..., prefix_len, kv_heads, v_dim]`.
        mask: among a continuation's own queries and keys, positions counted from its start, by default `Causal()`.
        **options: of `jattn.partial_attention` over the own keys: `query_positions`, ...; `similarity` and
            `implementation` of both.

    Returns:
        `[..., continuations, q_len, heads, v_dim]`.

    Raises:
        ValueError: shapes do not match; `scores` or `dropout`, whose positions would differ; as `partial_attention`.

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

    With `key_positions=positions_in_documents(ids)`, which holds for the queries too, and `mask & SameSegment(ids)`,
    any mask of positions holds in each document as if it stood alone.

    Args:
        ids: integers `[..., length]`; a document is a run of equal ids.

    Raises:
        ValueError: no integers.

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
