"""Kernelized attention: weights φ(q)·φ(k), so that keys and values are summed once for all queries."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_batch, check_dtype, check_flags, check_number, check_positive, check_record
from ...foundation.arrays import describe
from ...foundation.numerics import split_nonfinite_rows, widen
from ...foundation.shapes import check_shapes
from ...ops.dispatch import Implementation
from ...ops.recurrence import linear_recurrence, linear_step
from ...ops.recurrence.arguments import check_segments
from ...ops.recurrence.call import check_implementation
from ...ops.recurrence.implementations.registry import LINEAR
from ...ops.recurrence.nonfinite import largest_so_far
from .features import FeatureMap, check_at, check_feature_map


class KernelState(NamedTuple):
    """The state of kernelized attention: sums over previous keys and values.

    sums: `[..., heads, features, v_dim + 1]`, Σ exp(c_j - top) φ(k_j) [v_j, 1]ᵀ, float32 (float64).
    top: `[..., heads]`, the largest c so far; 0 for feature maps without a stabilizer.
    """

    sums: jax.Array
    top: jax.Array


def kernelized_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    features: FeatureMap,
    *,
    causal: bool = False,
    mask: jax.Array | None = None,
    normalize: bool = True,
    epsilon: float = 0.0,
    positions: Any = None,
    key_positions: Any = None,
    initial_state: KernelState | None = None,
    segment_ids: Any = None,
    implementation: str | Implementation | None = None,
    chunk: int = 64,
) -> tuple[jax.Array, KernelState]:
    """Kernelized attention: weights φ(q_i)·φ(k_j) of any feature map, in linear time and memory.

        out_i = Σ_j φ(q_i)·φ(k_j) v_j / (Σ_j φ(q_i)·φ(k_j) + ε)          j ≤ i when causal
              = φ(q_i)ᵀ S / (φ(q_i)ᵀ z + ε),    S = Σ_j φ(k_j) v_jᵀ,   z = Σ_j φ(k_j)

    Katharopoulos et al. 2020 (arXiv:2006.16236), with any feature map. The causal form is `jattn.linear_recurrence`,
    with a column of ones appended to the values for z. If the map has a stabilizer c (random features), keys are summed
    relative to the largest c so far: a running maximum, which enters as a decay and cancels in a normalized output.
    Without `normalize`, out_i = Σ_j φ(q_i)·φ(k_j) v_j, with the stabilizers multiplied back in.

    Args:
        query: `[..., q_len, heads, qk_dim]`. Scaling is up to the map.
        key: `[..., kv_len, heads, qk_dim]`.
        value: `[..., kv_len, heads, v_dim]`.
        features: the feature map, such as `ELU()`.
        causal: whether query i sees keys up to i only; needs `q_len == kv_len`.
        mask: booleans `[..., kv_len]`, False for keys that are padding. φ(k) is 0 there, and the contents of padding,
            NaN included, have no effect.
        normalize: whether to divide by the sum of the weights.
        epsilon: ε, at least 0; 1e-6 in the paper's code. With a stabilizer it is added to the stabilized sum.
        positions: positions of queries, integers `[..., q_len]`, for maps that look at them; by default 0, 1, ...
        key_positions: likewise; by default `positions` in the causal form, else 0, 1, ...
        initial_state: the state after the keys and values before these.
        segment_ids: integers `[..., length]` nondecreasing: packed sequences, causal form only.
        implementation: implementation of the recurrence, as in `jattn.linear_recurrence`.
        chunk: chunk length of the recurrence.

    Returns:
        `[..., q_len, heads, v_dim]` in the value's dtype, and the `KernelState` after the last key. Features and sums
        are float32 (float64). A query whose weights have no positive sum gets 0: without keys, if all features are 0,
        or if a map declared nonnegative is not. In the causal form, NaN and inf in a key or value reach no earlier
        output, no earlier gradient and no other head.

    Raises:
        ValueError: shapes do not match; `causal` or `normalize` is not a flag; `normalize` with a map whose weights may
            be negative; a negative `epsilon`; segments in the noncausal form, or unequal lengths in the causal form; as
            in the recurrence.

    >>> import jax
    >>> from jattn.variants.kernelized import ELU
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 100, 4, 8)) for i in range(3))
    >>> out, state = kernelized_attention(q, k, v, ELU(), causal=True)
    >>> out.shape, state.sums.shape
    ((2, 100, 4, 8), (2, 4, 8, 9))
    """
    check_flags(causal=causal)
    sizes = _check(query, key, value, "q_len", "kv_len", features, normalize, epsilon)
    if causal and sizes["q_len"] != sizes["kv_len"]:
        raise ValueError(
            f"`causal` needs as many queries as keys; got {sizes['q_len']} and {sizes['kv_len']}. To continue "
            "from earlier keys, give their `initial_state`."
        )
    check_implementation(LINEAR, implementation)
    check_positive(chunk=chunk)
    if segment_ids is not None and not causal:
        raise ValueError("`segment_ids` need `causal=True`; otherwise give each sequence a row, padded by `mask`.")
    batch = query.shape[:-3]
    positions = check_at(positions, batch, sizes["q_len"], "query")
    key_positions = positions if causal and key_positions is None else key_positions
    key_positions = check_at(key_positions, batch, sizes["kv_len"], "key")
    query, nonfinite_query = split_nonfinite_rows(widen(query))
    key, value_wide, nonfinite = _split_nonfinite_keys(key, value, mask)
    starts = check_segments(segment_ids, query) if causal else None
    nonfinite = largest_so_far(nonfinite, starts) if causal else nonfinite.any(-2, keepdims=True)

    shift = features.log_scale(query)
    made = features.query(query, positions)
    key_shift = features.log_scale(key)
    keys = features.key(key, key_positions)
    if mask is not None:
        keys = jnp.where(mask[..., None, None], keys, 0)
        key_shift = None if key_shift is None else jnp.where(mask[..., None], key_shift, -jnp.inf)
    state = _checked(initial_state, keys, value_wide, stabilized=key_shift is not None)
    if causal:
        decay, tops = None, state.top[..., None, :]
        if key_shift is not None:
            tops, decay = _tops(key_shift, state.top, starts)
            keys = keys * _rescale(key_shift, tops)[..., None]
        sums, last = linear_recurrence(
            made,
            keys,
            value_wide,
            log_decay=decay,
            initial_state=None if initial_state is None else state.sums,
            segment_ids=segment_ids,
            implementation=implementation,
            chunk=chunk,
        )
        top = tops[..., -1, :] if sizes["kv_len"] else state.top
    else:
        top = state.top
        if key_shift is not None:
            top = jnp.maximum(top, key_shift.max(-2, initial=-jnp.inf))
            keys = keys * _rescale(key_shift, top[..., None, :])[..., None]
        last = state.sums * _rescale(state.top, top)[..., None, None] + jnp.einsum(
            "...jhf,...jhv->...hfv", keys, value_wide
        )
        sums, tops = jnp.einsum("...ihf,...hfv->...ihv", made, last), top[..., None, :]
    out = _finish(sums, shift, tops if key_shift is not None else None, normalize, epsilon)
    out = jnp.where((nonfinite | nonfinite_query)[..., None], jnp.nan, out).astype(value.dtype)
    if sizes["kv_len"]:
        last = jnp.where(nonfinite[..., -1, :, None, None], jnp.nan, last)
    return out, KernelState(last, top)


def kernelized_step(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    features: FeatureMap,
    state: KernelState,
    *,
    normalize: bool = True,
    epsilon: float = 0.0,
    position: Any = 0,
) -> tuple[jax.Array, KernelState]:
    """One token of causal `kernelized_attention`: time and memory do not depend on the number of previous tokens.

    Args:
        query: `[..., heads, qk_dim]`.
        key: `[..., heads, qk_dim]`.
        value: `[..., heads, v_dim]`.
        features: the feature map.
        state: the state before this token; `kernel_state` before the first.
        normalize: as in `kernelized_attention`.
        epsilon: likewise.
        position: position of this token, an integer or integers `[...]`, for maps that look at it.

    Returns:
        `[..., heads, v_dim]` in the value's dtype, and the state after this token.

    Raises:
        ValueError: as `kernelized_attention`; the position is not an integer, or has another shape.

    >>> import jax
    >>> from jattn.variants.kernelized import ELU
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (2, 4, 8)) for i in range(3))
    >>> out, state = kernelized_step(q, k, v, ELU(), kernel_state(ELU(), (2,), 4, 8, 8))
    >>> bool(jax.numpy.allclose(out, v, atol=1e-5))  # the first token has itself alone
    True
    """
    _check(query, key, value, "", "", features, normalize, epsilon)
    query, key, value = query[..., None, :, :], key[..., None, :, :], value[..., None, :, :]
    batch = query.shape[:-3]
    if jnp.shape(position) not in ((), batch) or not jnp.issubdtype(jnp.result_type(position), jnp.integer):
        raise ValueError(f"`position` must be an integer, or integers of shape {batch}; got {describe(position)}.")
    at = jnp.asarray(position)[..., None]
    wide = _with_ones(widen(value))
    made, keys = features.query(widen(query), at), features.key(widen(key), at)
    shift, key_shift = features.log_scale(widen(query)), features.log_scale(widen(key))
    state = _checked(state, keys, wide, stabilized=key_shift is not None)
    decay, top, tops = None, state.top, None
    if key_shift is not None:
        tops, decays = _tops(key_shift, state.top, None)
        keys, decay, top = keys * _rescale(key_shift, tops)[..., None], decays[..., 0, :], tops[..., 0, :]
    sums, last = linear_step(made[..., 0, :, :], keys[..., 0, :, :], wide[..., 0, :, :], state.sums, log_decay=decay)
    out = _finish(sums[..., None, :, :], shift, tops, normalize, epsilon)[..., 0, :, :]
    return out.astype(value.dtype), KernelState(last, top)


def kernel_state(
    features: FeatureMap, batch: tuple[int, ...], heads: int, qk_dim: int, v_dim: int, dtype: Any = jnp.float32
) -> KernelState:
    """The state before the first token: sums of 0.

    Args:
        features: the feature map.
        batch: the batch axes of the tokens to come.
        heads: number of key heads.
        qk_dim: features of a key.
        v_dim: features of a value.
        dtype: dtype of sums.

    Raises:
        ValueError: `features` is no feature map, `batch` is not a tuple of sizes, a size is not positive, or `dtype` is
            not floating-point.

    >>> from jattn.variants.kernelized import ELU
    >>> kernel_state(ELU(), (2,), 4, 8, 16).sums.shape
    (2, 4, 8, 17)
    """
    check_feature_map(features, normalize=False)
    check_batch(batch)
    check_positive(heads=heads, qk_dim=qk_dim, v_dim=v_dim)
    check_dtype("dtype", dtype)

    def made() -> tuple[jax.Array, jax.Array | None]:
        key = jnp.zeros((*batch, 1, heads, qk_dim), dtype)
        return features.key(key, jnp.zeros(1, jnp.int32)), features.log_scale(key)

    keys, shift = jax.eval_shape(made)
    sums = jnp.zeros((*batch, heads, keys.shape[-1], v_dim + 1), dtype)
    return KernelState(sums, jnp.full((*batch, heads), 0 if shift is None else -jnp.inf, dtype))


def _check(query: Any, key: Any, value: Any, q_len: str, kv_len: str, features: Any, normalize: bool, epsilon: Any):
    sizes = check_shapes(
        query=(query, f"... {q_len} heads qk_dim"),
        key=(key, f"... {kv_len} heads qk_dim"),
        value=(value, f"... {kv_len} heads v_dim"),
    )
    check_flags(normalize=normalize)
    check_feature_map(features, normalize)
    check_number("epsilon", epsilon, least=0)
    return sizes


def _checked(state: KernelState | None, keys: jax.Array, values: jax.Array, *, stabilized: bool) -> KernelState:
    """The state, by default the initial one, after checking its shapes against these features."""
    batch, heads = keys.shape[:-3], keys.shape[-2]
    shapes = ((*batch, heads, keys.shape[-1], values.shape[-1]), (*batch, heads))
    dtype = values.dtype
    if state is not None:
        check_record("state", state, KernelState)
    else:
        return KernelState(jnp.zeros(shapes[0], dtype), jnp.full(shapes[1], -jnp.inf if stabilized else 0, dtype))
    got = tuple(map(jnp.shape, state))
    if got != shapes:
        raise ValueError(f"`state` must have sums and top of shapes {shapes} for this call; got {got}.")
    dtypes = [jnp.result_type(one) for one in state]
    if dtypes != [dtype, dtype]:
        raise ValueError(
            f"`state` must be {dtype}, the dtype of states for these inputs; got {dtypes[0]} and {dtypes[1]}. "
            f"Convert it: `jax.tree.map(lambda array: array.astype({dtype.name!r}), state)`."
        )
    return state


def _with_ones(value: jax.Array) -> jax.Array:
    return jnp.concatenate([value, jnp.ones_like(value[..., :1])], -1)


def _split_nonfinite_keys(key: jax.Array, value: jax.Array, mask: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    key, nonfinite_key = split_nonfinite_rows(widen(key))
    value, nonfinite_value = split_nonfinite_rows(widen(value))
    nonfinite = nonfinite_key | nonfinite_value
    if mask is not None:
        got = describe(mask)
        if not hasattr(mask, "dtype") or mask.dtype != jnp.bool_ or jnp.shape(mask) != key.shape[:-2]:
            raise ValueError(
                f"`mask` must be an array of booleans [..., kv_len] of shape {key.shape[:-2]}, False for padding; got "
                f"{got}. Pairs cannot be masked here, except by `causal=True`."
            )
        nonfinite = nonfinite & mask[..., None]
    return key, _with_ones(value), nonfinite


def _tops(shift: jax.Array, first: jax.Array, starts: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """The running maximum of stabilizers, and the log decay of a sum kept relative to it."""
    first = first[..., None, :]
    shift = jax.lax.stop_gradient(shift)
    joined = jnp.concatenate([jnp.broadcast_to(first, (*shift.shape[:-2], 1, shift.shape[-1])), shift], -2)
    if starts is not None:
        starts = jnp.pad(starts, [(0, 0)] * (starts.ndim - 1) + [(1, 0)])
    tops = largest_so_far(joined, starts)
    before, tops = tops[..., :-1, :], tops[..., 1:, :]
    # If the maximum was -inf, nothing has been summed yet. At the start of a segment, the recurrence resets itself.
    decay = jnp.where(jnp.isneginf(before), 0, jnp.minimum(before - jnp.where(jnp.isneginf(tops), 0, tops), 0))
    return tops, decay


def _rescale(shift: jax.Array, top: jax.Array) -> jax.Array:
    """exp(shift - top), 0 for a shift of -inf."""
    absent = jnp.isneginf(shift)
    return jnp.where(absent, 0, jnp.exp(jnp.where(absent, 0, shift - jnp.where(jnp.isneginf(top), 0, top))))


def _finish(sums: jax.Array, shift: Any, tops: Any, normalize: bool, epsilon: float) -> jax.Array:
    """The output of `sums [..., length, heads, v_dim + 1]`, the last column being the sum of the weights."""
    values, weights = sums[..., :-1], sums[..., -1:]
    if normalize:
        total = weights + epsilon
        # Not `total > 0`, because a NaN sum, from a NaN state, must stay NaN.
        return jnp.where(total <= 0, 0, values / jnp.where(total <= 0, 1, total))
    if tops is None:
        return values
    return values * jnp.exp(shift + jnp.where(jnp.isneginf(tops), 0, tops))[..., None]
