"""Talking-heads attention: heads are mixed before and after the softmax."""

from typing import Any

import jax
import jax.numpy as jnp

from ...core.shapes import check_shapes
from ...front import attention
from ...similarities import Dot


def talking_heads(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    before: jax.Array,
    after: jax.Array,
    *,
    scale: float | None = None,
    **pieces: Any,
) -> jax.Array:
    """Scores and weights of every head are linear mixtures over the heads.

        J_h = Σ_i before[i, h] scale q_i·k_i,    W = softmax(J | mask),    out_j = Σ_h after[h, j] W_h v_j

    Shazeer et al. 2020 (arXiv:2003.02436). Both mixtures are linear, so they go into the arrays and one call of
    `jattn.attention` streams it all: head h has the query [before[i, h] q_i]_i and shares the key [k_i]_i, and value
    [v_j]_j, with all others; `after` mixes what comes out. Memory stays linear and tiles are skipped, for
    `softmax_heads` times as many multiplications as without mixing, where mixing scores that are held in memory
    would take 2 softmax_heads / dim times as many.

    Args:
        query: `[..., q_len, qk_heads, dim]`.
        key: `[..., kv_len, qk_heads, dim]`.
        value: `[..., kv_len, v_heads, v_dim]`.
        before: `[qk_heads, softmax_heads]`; the identity leaves the scores as they are.
        after: `[softmax_heads, v_heads]`.
        scale: of the dot products, by default 1/√dim (the paper has none, and takes it into its initialisation).
        **pieces: of `jattn.attention`, but for the similarity. Scores, masks and sinks ride on the softmax heads.

    Returns:
        `[..., q_len, v_heads, v_dim]`, in the dtype of `value`.

    Raises:
        ValueError: shapes that do not fit; all that `jattn.attention` raises.

    >>> import jax, jax.numpy as jnp
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 10, 4, 16)) for i in range(3))
    >>> talking_heads(q, k, v, jnp.eye(4), jnp.eye(4)).shape
    (2, 10, 4, 16)
    """
    sizes = check_shapes(
        query=(query, "... q_len qk_heads dim"),
        key=(key, "... kv_len qk_heads dim"),
        value=(value, "... kv_len v_heads v_dim"),
        before=(before, "qk_heads softmax_heads"),
        after=(after, "softmax_heads v_heads"),
    )
    wide = jnp.promote_types(jnp.result_type(query, before), jnp.float32)
    mixed = jnp.einsum("...qid,ih->...qhid", query.astype(wide), before.astype(wide))
    together = [one.reshape(*one.shape[:-2], one.shape[-2] * one.shape[-1]) for one in (mixed, key, value)]
    out = attention(
        together[0],
        together[1][..., None, :],
        together[2][..., None, :],
        similarity=Dot(sizes["dim"] ** -0.5 if scale is None else scale),
        **pieces,
    )
    out = out.reshape(*out.shape[:-1], sizes["v_heads"], sizes["v_dim"])
    out = jnp.einsum("...qhjd,hj->...qjd", out.astype(wide), after.astype(wide))
    return out.astype(value.dtype)
