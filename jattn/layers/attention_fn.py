"""jattn as the `attention_fn` of Flax's own modules."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_rate
from ..foundation.arrays import iota
from ..foundation.pieces import array, piece
from ..masks import Dense, Mask
from ..ops.attention.api import attention, attention_weights
from ..ops.attention.call import check_pieces
from ..ops.attention.dropout import Dropout
from ..scores import Bias


@piece
class _IndexCausal(Mask):
    """What Flax calls causal: a query sees keys up to its own index in the array, regardless of positions."""

    query_index: np.ndarray = array("query")
    key_index: np.ndarray = array("key")

    def allows(self, query, key):
        del query, key
        return self.key_index <= self.query_index


def attention_fn(
    *,
    mask: Any = None,
    similarity: Any = None,
    scores: Any = (),
    normalizer: Any = None,
    query_positions: Any = None,
    key_positions: Any = None,
    implementation: Any = None,
) -> Callable[..., jax.Array]:
    """A function to pass to `flax.nnx.MultiHeadAttention(attention_fn=...)` or to the linen module of that name.

    Arguments as in `jattn.attention`. Whatever the Flax module passes at a call is either honored or rejected with a
    `ValueError` that names it; nothing is ignored:

    - `mask`, an array that broadcasts to `[batch..., heads, q_len, kv_len]`, allows the pairs where it is nonzero
      (Flax's own helpers make float32 masks of 0 and 1), combined with the mask given here by `&`;
    - `bias`, an array that broadcasts likewise, is added to the similarity, before the scores given here;
    - `is_causal`: a query sees keys up to its own index in the array. If `q_len != kv_len` it is rejected, because the
      positions of the queries are ambiguous. The exception is a single query with a mask, as when Flax decodes with a
      cache: it is the last token and sees every key that the mask allows;
    - `decode=True`: a single query with a mask over more keys gets the position of the last key that the mask allows,
      so that windows, ALiBi and other pieces that depend on positions compute at each step what they compute in a call
      on the whole sequence;
    - `dropout_rate`, `dropout_rng`, `deterministic`; `broadcast_dropout` drops the same pairs in every batch element
      and head. The rate is the same as Flax's, the random bits are not;
    - `dtype`, `promote_dtype`: query, key and value are converted first. Scores and softmax are always at least
      float32, so `force_fp32_for_softmax` changes nothing;
    - `module`: the weights are recomputed and sown as `attention_weights`;
    - `input_positions`: positions of queries and keys, for pieces that depend on positions;
    - a `precision` other than the default, `einsum_dot_general`, `qk_attn_weights_einsum` and
      `attn_weights_value_einsum` are rejected.

    A query that may attend to nothing gets 0 (in Flax, the mean of the values). Arrays in the pieces given here are
    constants of the function: to train them, use `jattn.nnx.MultiHeadAttention(learned=...)` or the linen module of
    that name.

    Raises:
        ValueError: a piece is of the wrong kind; at a call, an argument is rejected; as in `jattn.attention`.

    >>> import jax, jattn
    >>> from flax import nnx
    >>> from jattn.layers import attention_fn
    >>> windowed = attention_fn(mask=lambda q, k: (k <= q) & (q - k < 4))
    >>> layer = nnx.MultiHeadAttention(4, 32, attention_fn=windowed, decode=False, rngs=nnx.Rngs(0))
    >>> layer(jax.numpy.ones((2, 10, 32))).shape
    (2, 10, 32)
    """
    own_mask, similarity, own_scores, normalizer, _ = check_pieces(mask, similarity, scores, normalizer, None)
    at = {"query_positions": query_positions, "key_positions": key_positions}

    # Linen passes only the arguments that it finds in the signature, so the signature lists everything Flax may pass.
    def attend(
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        bias: jax.Array | None = None,
        mask: jax.Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: jax.Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: Any = None,
        precision: Any = None,
        module: Any = None,
        force_fp32_for_softmax: bool = False,
        einsum_dot_general: Any = None,
        qk_attn_weights_einsum: Any = None,
        attn_weights_value_einsum: Any = None,
        *,
        promote_dtype: Callable[..., Any] | None = None,
        is_causal: bool = False,
        input_positions: Any = None,
    ) -> jax.Array:
        del force_fp32_for_softmax  # it always is
        _refuse(
            precision=None if _is_default_precision(precision) else precision,
            einsum_dot_general=einsum_dot_general,
            qk_attn_weights_einsum=qk_attn_weights_einsum,
            attn_weights_value_einsum=attn_weights_value_einsum,
        )
        query, key, value = _promoted(query, key, value, dtype, promote_dtype)
        q_len, kv_len = query.shape[-3], key.shape[-3]
        pieces = dict(
            mask=_combined(own_mask, mask, is_causal, q_len, kv_len),
            similarity=similarity,
            scores=own_scores if bias is None else (Bias(_with_heads("bias", bias)), *own_scores),
            normalizer=normalizer,
            **_positions(at, input_positions, q_len, kv_len, mask),
        )
        dropout = None
        check_rate("dropout_rate", dropout_rate)
        if dropout_rate > 0 and not deterministic:
            if dropout_rng is None:
                raise ValueError(f"`dropout_rng` must be a random key for `dropout_rate` {dropout_rate}; got None.")
            dropout = _dropout(dropout_rate, dropout_rng, broadcast_dropout, query.shape)
        if module is not None:
            _sow(module, attention_weights(query, key, **pieces).astype(query.dtype))
        return attention(query, key, value, **pieces, dropout=dropout, implementation=implementation)

    return attend


def _refuse(**arguments: Any) -> None:
    for name, value in arguments.items():
        if value is not None:
            remedy = "compute the products in another way inside jattn's attention, so leave it None."
            if name == "precision":
                remedy = (
                    "choose it for part of a call only, so leave it None, and set it for a whole program: "
                    "`jax.config.update('jax_default_matmul_precision', ...)`."
                )
            raise ValueError(f"`{name}` is not supported by jattn's `attention_fn`; got {value!r}. It cannot {remedy}")


def _is_default_precision(precision: Any) -> bool:
    both = precision if isinstance(precision, tuple) else (precision,)
    return all(one in (None, "default", jax.lax.Precision.DEFAULT) for one in both)


def _promoted(query: Any, key: Any, value: Any, dtype: Any, promote_dtype: Any) -> tuple[Any, Any, Any]:
    if promote_dtype is not None:
        return tuple(promote_dtype((query, key, value), dtype=dtype))  # type: ignore[return-value]  (three, as it got)
    dtype = jnp.result_type(query, key, value) if dtype is None else dtype
    return query.astype(dtype), key.astype(dtype), value.astype(dtype)


def _combined(own: Mask | None, given: Any, is_causal: bool, q_len: int, kv_len: int) -> Mask | None:
    """The conjunction of the mask given here, the array that Flax passes, and causality."""
    whole = own
    if given is not None:
        given = _with_heads("mask", given)
        dense = Dense(given if given.dtype == bool else given != 0)
        whole = dense if whole is None else whole & dense
    if is_causal and not (q_len == 1 < kv_len and given is not None):
        if q_len != kv_len:
            raise ValueError(
                f"`is_causal` with q_len {q_len} and kv_len {kv_len} leaves open where the queries are among the keys. "
                "Leave it False and give the causal part in `mask`, or make the `attention_fn` with "
                "`mask=jattn.masks.Causal()` and `query_positions`."
            )
        causal = _IndexCausal(iota(q_len), iota(kv_len))
        whole = causal if whole is None else whole & causal
    return whole


def _with_heads(name: str, value: Any) -> jax.Array:
    """The array with at least its last three axes, heads, q_len and kv_len, written out."""
    value = jnp.asarray(value)
    if value.ndim == 0:
        raise ValueError(
            f"`{name}` must be an array that broadcasts to [batch..., heads, q_len, kv_len]; got a scalar."
        )
    return value.reshape((1,) * (3 - value.ndim) + value.shape)


def _positions(at: dict[str, Any], given: Any, q_len: int, kv_len: int, mask: Any) -> dict[str, Any]:
    if given is None:
        if q_len == 1 < kv_len and mask is not None and at["query_positions"] is None:
            return at | {"query_positions": _last_key(_with_heads("mask", mask), at["key_positions"])}
        return at
    if any(positions is not None for positions in at.values()):
        raise ValueError("`input_positions` is given at the call of an `attention_fn` that was made with positions.")
    if q_len != kv_len:
        raise ValueError(
            f"`input_positions` are of queries and keys both; got a call with q_len {q_len} and kv_len {kv_len}. "
            "Make the `attention_fn` with `query_positions` and `key_positions`."
        )
    return {"query_positions": given, "key_positions": given}


def _last_key(mask: jax.Array, key_positions: Any) -> jax.Array:
    """The position `[batch..., 1]` of the last key that a mask `[batch..., heads, 1, kv_len]` allows."""
    allowed = (mask != 0).any(-3)
    index = jnp.where(allowed, jnp.arange(mask.shape[-1]), 0).max(-1)
    if key_positions is None:
        return index
    positions = jnp.broadcast_to(key_positions, (*allowed.shape[:-2], mask.shape[-1]))
    return jnp.take_along_axis(positions, index, -1)


def _dropout(rate: float, key: jax.Array, shared: bool, shape: tuple[int, ...]) -> Dropout:
    if not shared:
        return Dropout(rate, key)
    return Dropout(rate, key, heads=np.zeros(shape[-2], np.uint32), examples=np.zeros(shape[:-3], np.uint32))


def _sow(module: Any, weights: jax.Array) -> None:
    from flax import nnx  # a Flax module called us, so Flax is loaded; `jattn.layers` itself does without

    kind = nnx.Intermediate if isinstance(module, nnx.Module) else "intermediates"
    module.sow(kind, "attention_weights", weights)
