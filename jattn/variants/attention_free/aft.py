"""Attention-free transformers: each channel has a softmax over positions that does not depend on the query."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.arguments import check_batch, check_counts, check_flags, check_positive, check_record
from ...foundation.numerics import accumulation_dtype, seen_so_far, split_nonfinite
from ...foundation.shapes import check_shapes
from ...layers.generation import check_state
from ...masks import Causal, SlidingWindow
from ...ops.attention.api import attention, partial_attention
from ...ops.attention.partial import Partial, merge
from ...scores import Bias
from ...similarities import Dot


def aft_full(query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, *, causal: bool = False) -> jax.Array:
    """AFT-full: a gated mean of the values, weighted by the keys and a bias for each pair of positions.

        out_t = σ(query_t) ⊙ Σ_s exp(key_s + bias_ts) ⊙ value_s / Σ_s exp(key_s + bias_ts)

    Zhai et al. 2021 (arXiv:2105.14103). This is `jattn.attention` with one head per feature, scalar keys, and queries
    equal to 1: it streams, skips masked tiles and does not overflow. Time is O(n² features), and only the bias takes
    O(n²) memory.

    Args:
        query: `[..., length, features]`.
        key: `[..., length, features]`; -inf for padding, which then has no weight.
        value: likewise.
        bias: w, `[length, length]`, from row t to column s.
        causal: whether to sum over s ≤ t only.

    Returns:
        `[..., length, features]`, in the dtype of `value`.

    Raises:
        ValueError: shapes do not match, or `causal` is not a flag.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((2, 5, 8))
    >>> aft_full(x, x, x, jnp.zeros((5, 5)), causal=True).shape
    (2, 5, 8)
    """
    check_flags(causal=causal)
    length = _check(query, key, value)
    check_shapes({"length": length}, bias=(bias, "length length"))
    pieces: dict[str, Any] = {"mask": Causal()} if causal else {}
    key, value, nonfinite = split_nonfinite_keys(key, value, causal)
    scores = (Bias(bias[None]), _absent(key))
    mean = attention(*_heads(_present(key), value), similarity=Dot(), scores=scores, **pieces)[..., 0]
    return jnp.where(nonfinite, jnp.nan, gate(query, mean))


def aft_simple(query: jax.Array, key: jax.Array, value: jax.Array, *, causal: bool = False) -> jax.Array:
    """AFT-simple: `aft_full` without the bias, in linear time.

        out_t = σ(query_t) ⊙ Σ_s softmax_s(key)_s ⊙ value_s

    Zhai et al. 2021 (arXiv:2105.14103). The causal form computes prefix sums with the associative operation
    `jattn.merge` of `Partial(value_s, key_s)`. These carry the log of the sum, so no key overflows or underflows.

    Args:
        query: `[..., length, features]`.
        key: `[..., length, features]`; -inf for padding, which then has no weight.
        value: likewise.
        causal: whether to sum over s ≤ t only.

    Returns:
        `[..., length, features]`, in the dtype of `value`.

    Raises:
        ValueError: shapes do not match, or `causal` is not a flag.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((2, 5, 8))
    >>> aft_simple(x, x, x, causal=True).shape
    (2, 5, 8)
    """
    check_flags(causal=causal)
    _check(query, key, value)
    key, value, nonfinite = split_nonfinite_keys(key, value, causal)
    before = prefixes(key, value)
    if not causal:
        before = at_positions(before, slice(-1, None))
    return jnp.where(nonfinite, jnp.nan, gate(query, before.out[..., 0].astype(value.dtype)))


def aft_step(query: jax.Array, key: jax.Array, value: jax.Array, state: Partial) -> tuple[jax.Array, Partial]:
    """One token of causal `aft_simple`, in O(1): the state is the `Partial` of all previous tokens.

    Args:
        query: `[..., features]`.
        key: likewise.
        value: likewise.
        state: the state before this token; `aft_state((..., features))` before the first.

    Returns:
        `[..., features]`, and the state after this token.

    Raises:
        ValueError: shapes do not match; the state has another dtype.

    >>> import jax.numpy as jnp
    >>> out, state = aft_step(jnp.zeros(1), jnp.ones(1), jnp.full(1, 3.0), aft_state((1,)))
    >>> print(out)
    [1.5]
    """
    check_shapes(query=(query, "... features"), key=(key, "... features"), value=(value, "... features"))
    check_record("state", state, Partial)
    one = _partial(key, value)
    check_state(state, one, f"aft_state({key.shape}, {one.out.dtype.name!r})")
    state = merge(state, one)
    return gate(query, state.out[..., 0].astype(value.dtype)), state


def aft_state(shape: tuple[int, ...], dtype: Any = jnp.float32) -> Partial:
    """The state of `aft_step` before the first token: the empty `Partial`.

    Args:
        shape: shape of the keys, `(..., features)`.
        dtype: dtype of sums: float32, or float64 where keys or values are.

    Raises:
        ValueError: `shape` is not a tuple of sizes.

    >>> aft_state((2, 8)).out.shape
    (2, 8, 1)
    """
    check_batch(shape)
    return Partial.empty(jax.ShapeDtypeStruct((*shape, 1), dtype))


def aft_local(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array, *, window: int, causal: bool = False
) -> jax.Array:
    """AFT-local: `aft_full` with a bias that is 0 for positions `window` or more apart, in O(n window).

        out_t = σ(query_t) ⊙ Σ_s exp(key_s + w_ts) ⊙ value_s / Σ_s exp(key_s + w_ts)
        w_ts = bias_ts where |t - s| < window, else 0

    Zhai et al. 2021 (arXiv:2105.14103). All positions are seen: those outside the window through the prefix sums of
    `aft_simple`, those inside through `jattn.attention`, which skips the others; `jattn.merge` combines the two.

    Args:
        query: `[..., length, features]`.
        key: `[..., length, features]`; -inf for padding, which then has no weight.
        value: likewise.
        bias: `[heads, length, length]` or `[length, length]`; consecutive features share a head. With
            `bias_ts = u_{s - t}` for each head, which `relative_bias` makes from u, this is AFT-conv in one dimension.
        window: s in the paper.
        causal: whether to sum over s ≤ t only.

    Returns:
        `[..., length, features]`, in the dtype of `value`.

    Raises:
        ValueError: shapes do not match; the heads do not divide the features; `window` is below 1; `causal` is not a
            flag.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((2, 50, 8))
    >>> aft_local(x, x, x, jnp.zeros((50, 50)), window=4, causal=True).shape
    (2, 50, 8)
    """
    check_positive(window=window)
    check_flags(causal=causal)
    length = _check(query, key, value)
    bias = bias[None] if getattr(bias, "ndim", 0) == 2 else bias
    check_shapes({"length": length}, bias=(bias, "heads length length"))
    heads, features = bias.shape[0], query.shape[-1]
    if heads == 0 or features % heads:
        raise ValueError(
            f"`bias` must have shape [heads, length, length] with length = {length} and a number of heads that divides "
            f"the {features} features; got {bias.shape}."
        )
    if heads > 1:
        bias = jnp.repeat(bias, features // heads, 0)
    key, value, nonfinite = split_nonfinite_keys(key, value, causal)
    near = SlidingWindow(window - 1, 0 if causal else window - 1)
    parts = [windowed(key, value, bias, near, length)]
    # Positions `window` or more before, and (by the same function of the reversed sequence) after.
    parts.append(_shift(prefixes(key, value), window))
    if not causal:
        behind = _shift(prefixes(key[..., ::-1, :], value[..., ::-1, :]), window)
        parts.append(at_positions(behind, slice(None, None, -1)))
    parts = [jax.tree.map(lambda array, dtype=part.lse.dtype: array.astype(dtype), part) for part in parts]
    return jnp.where(nonfinite, jnp.nan, gate(query, merge(*parts).out[..., 0].astype(value.dtype)))


def relative_bias(table: jax.Array, length: int) -> jax.Array:
    """bias_ts = table_{s - t + window - 1}, and 0 outside the table: AFT-conv's bias for `aft_local`.

    Args:
        table: `[heads, 2 window - 1]`, from the farthest previous position to the farthest later one.
        length: length of the sequence.

    Returns:
        `[heads, length, length]`.

    Raises:
        ValueError: the table has another shape or an even size; `length` is not an int, or is negative.

    >>> import jax.numpy as jnp
    >>> print(relative_bias(jnp.array([[1.0, 2.0, 3.0]]), 3)[0])
    [[2. 3. 0.]
     [1. 2. 3.]
     [0. 1. 2.]]
    """
    size = check_shapes(table=(table, "heads distances"))["distances"]
    if size % 2 == 0:
        raise ValueError(f"`table` must have 2 window - 1 distances, an odd number; got {size}.")
    check_counts(length=length)
    at = jnp.arange(length) - jnp.arange(length)[:, None] + size // 2
    return jnp.where((at >= 0) & (at < size), table[:, jnp.clip(at, 0, size - 1)], 0)


def _check(query: Any, key: Any, value: Any) -> int:
    layout = "... length features"
    return check_shapes(query=(query, layout), key=(key, layout), value=(value, layout))["length"]


def gate(query: jax.Array, mean: jax.Array) -> jax.Array:
    """σ(query) ⊙ mean, without 0 · NaN in the gradient of the mean where the query is NaN."""
    dtype, nan = accumulation_dtype(query), jnp.isnan(query)
    gated = jax.nn.sigmoid(jnp.where(nan, 0, query).astype(dtype)) * mean.astype(dtype)
    return jnp.where(nan, jnp.nan, gated).astype(mean.dtype)


def _heads(key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Queries equal to 1 and scalar keys and values, with one head per feature."""
    return jnp.ones((*key.shape, 1), key.dtype), key[..., None], value[..., None]


def _present(key: jax.Array) -> jax.Array:
    return jnp.where(jnp.isneginf(key), 0, key)


def _absent(key: jax.Array) -> Bias:
    """Keys of -inf as a bias, because the gradient of their product with the query would contain 0 · inf = NaN."""
    return Bias(jnp.where(jnp.isneginf(jnp.moveaxis(key, -1, -2)), -jnp.inf, 0.0)[..., None, :])


def _partial(key: jax.Array, value: jax.Array) -> Partial:
    dtype = accumulation_dtype(key, value)
    return Partial(jnp.where(jnp.isneginf(key), 0, value.astype(dtype))[..., None], key.astype(dtype))


def split_nonfinite_keys(key: jax.Array, value: jax.Array, causal: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Keys and values with nonfinite ones replaced, and which outputs these make NaN; a key of -inf has no weight.

    This way, they cannot reach the gradients of earlier outputs as 0 · NaN.
    """
    bad_key = jnp.isnan(key) | jnp.isposinf(key)
    value, nonfinite = split_nonfinite(value)
    nonfinite = bad_key | (nonfinite & ~jnp.isneginf(key))
    seen = seen_so_far(nonfinite) if causal else nonfinite.any(-2, keepdims=True)
    return jnp.where(bad_key, 0, key), value, seen


def windowed(key: jax.Array, value: jax.Array, bias: jax.Array, mask: Any, queries: int) -> Partial:
    """The partial of the keys near a query, for the last `queries` positions of the keys.

    Args:
        key: `[..., length, features]`.
        value: likewise.
        bias: `[features or 1, queries, length]`.
        mask: which pairs are near.
        queries: number of queries.
    """
    length = key.shape[-2]
    ones, keys, values = _heads(_present(key), value)
    return partial_attention(
        ones[..., length - queries :, :, :],
        keys,
        values,
        similarity=Dot(),
        scores=(Bias(bias), _absent(key)),
        mask=mask,
        query_positions=np.arange(length - queries, length),
        key_positions=np.arange(length),
    )


@jax.jit  # outside a jit, each step of the associative scan would be many programs
def prefixes(key: jax.Array, value: jax.Array, before: Partial | None = None) -> Partial:
    """The partial of all positions up to and including each: out `[..., length, features, 1]`.

    `before`, the partial of one position, is prepended and included in all: `[..., 1 + length, features, 1]`.
    """
    one = _partial(key, value)
    axis = key.ndim - 2
    if before is not None:
        one = jax.tree.map(lambda first, rest: jnp.concatenate([jnp.expand_dims(first, axis), rest], axis), before, one)
    return jax.lax.associative_scan(merge, one, axis=axis)


def _shift(partial: Partial, by: int) -> Partial:
    """Each position gets the partial of the position `by` before it; the first ones get the empty partial."""
    length = partial.lse.shape[-2]
    by = min(by, length)
    front = Partial.empty(partial.out[..., :by, :, :])
    rest = at_positions(partial, slice(length - by))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts, partial.lse.ndim - 2), front, rest)


def at_positions(partial: Partial, positions: Any) -> Partial:
    """A partial `[..., length, features, 1]` at one position, a slice or an array of them."""
    lead = (slice(None),) * (partial.lse.ndim - 2)
    return jax.tree.map(lambda array: array[(*lead, positions)], partial)
