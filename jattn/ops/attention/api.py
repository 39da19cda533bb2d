"""The public functions: attention, partial attention, attention weights, and `dot_product_attention`."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType
from jaxtyping import Float

from ...foundation.arguments import check_flags
from ...foundation.arrays import FOREIGN, as_array, as_jax, describe, dtype_of, iota, of_rank
from ...foundation.sharding import mesh_of
from ...foundation.target import expected_target
from ...masks.base import Mask, restricted
from ...normalizers import Normalizer
from ...scores.base import Score
from ...similarities import Similarity
from ..dispatch import WATCHER, Implementation, Unsupported, Watched
from .call import Call, Pieces, check_arrays, prepare, renamed
from .dropout import Dropout
from .implementations import ATTENTION
from .implementations.reference import weights_of
from .observed import OBSERVER, observed
from .partial import Partial
from .select import as_indices, select
from .split import Arrays, run_on_parts
from .streaming import Streaming, attend

Scores = Score | Callable[..., Any] | Sequence[Score | Callable[..., Any]]


def attention(
    query: Float[jax.Array, "*batch q_len q_heads q_dim"],
    key: Float[jax.Array, "*batch kv_len kv_heads k_dim"],
    value: Float[jax.Array, "*batch kv_len kv_heads v_dim"],
    *,
    mask: Mask | Any = None,
    similarity: Similarity | None = None,
    scores: Scores = (),
    normalizer: Normalizer | None = None,
    query_positions: Any = None,
    key_positions: Any = None,
    dropout: Dropout | None = None,
    implementation: str | Implementation | None = None,
) -> Float[jax.Array, "*batch q_len q_heads v_dim"]:
    """Attention: out_i = Σ_j w_ij value_j, with w_i = normalizer(scores(similarity(query_i, key_j)) | mask).

    By default scaled dot-product attention, w = softmax(q·k / √qk_dim) (Vaswani et al. 2017, arXiv:1706.03762).

    Args:
        query: `[..., q_len, q_heads, qk_dim]`, any floating-point dtype, any number of leading batch axes (also none).
        key: `[..., kv_len, kv_heads, qk_dim]`. `q_heads` must be a multiple of `kv_heads`; consecutive query heads
            share a key head (grouped-query attention).
        value: `[..., kv_len, kv_heads, v_dim]`.
        mask: which pairs may attend: a `jattn.masks` piece, or a function `(query_position, key_position) -> bool` or
            `(batch, head, query_position, key_position) -> bool` (see `jattn.masks.of`).
        similarity: gives each pair a number; by default `ScaledDot()`.
        scores: one score or several, applied in this order: biases, ALiBi, soft caps, or functions
            `(score, query_position, key_position) -> score` or
            `(score, batch, head, query_position, key_position) -> score` (see `jattn.scores.of`).
        normalizer: turns a row of scores into weights; by default `Softmax()`.
        query_positions: absolute token positions, integers `[q_len]` or `[..., q_len]`; by default 0, 1, ... NumPy
            arrays are known at trace time, and so is the tile plan that follows from them. Inside of `jax.jit`, so are
            JAX arrays that are not traced.
        key_positions: likewise, `[kv_len]` or `[..., kv_len]`. If there are as many keys as queries, key positions
            alone apply to both (self-attention). Query positions alone are then ambiguous: keys could be at the same
            positions or at 0, 1, ... They are refused if a piece uses key positions, unless they are known to be 0, 1,
            ... If the lengths differ, as in decoding with a cache, the default for keys is 0, 1, ...
        dropout: `Dropout(rate, key)`, applied to the weights.
        implementation: None for the first that accepts the call; `"tiled"`, `"reference"` or an `Implementation` to
            require that one.

    Returns:
        `[..., q_len, q_heads, v_dim]`, in the dtype of `value`. Scores, softmax and sums are float32 (float64 for
        float64 inputs). A query that may attend to nothing gets 0 and zero gradients. NaN or inf in a masked-out key or
        value reaches neither the output nor any gradient.

    Raises:
        ValueError: an argument has the wrong shape, dtype or type; `q_len != kv_len` with a mask or score that uses
            query positions, and no `query_positions`; query positions alone, as above; positions are known to be
            outside of int32 or past a mask's grid; a mask or score is not elementwise.
        Unsupported: (a `ValueError`) the requested implementation refuses the call; the message has its reason.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (1, 100, 8, 16)) for i in range(3))
    >>> out = jattn.attention(q, k, v, mask=lambda q, k: (k <= q) & (q - k < 30))
    >>> out.shape
    (1, 100, 8, 16)
    """
    pieces = Pieces(mask, similarity, scores, normalizer, dropout, query_positions, key_positions)
    arrays = query, key, value

    def run() -> jax.Array:
        return _attend(arrays, pieces, implementation, lse=False).out

    return run() if OBSERVER.get() is None else observed(run, lambda: arrays, pieces)


def partial_attention(
    query: Float[jax.Array, "*batch q_len q_heads q_dim"],
    key: Float[jax.Array, "*batch kv_len kv_heads k_dim"],
    value: Float[jax.Array, "*batch kv_len kv_heads v_dim"],
    *,
    mask: Mask | Any = None,
    similarity: Similarity | None = None,
    scores: Scores = (),
    normalizer: Normalizer | None = None,
    query_positions: Any = None,
    key_positions: Any = None,
    dropout: Dropout | None = None,
    implementation: str | Implementation | None = None,
) -> Partial:
    """Attention over some of the keys, in a form that `merge` can combine with attention over other keys.

    lse_i = log Σ_j exp(score_ij) over the keys that query i may attend to. The arguments are those of `attention`; pass
    `key_positions` if these are not the first keys.

    Returns:
        `Partial(out [..., q_len, q_heads, v_dim], lse [..., q_len, q_heads])`. lse is float32 (float64 for float64
        inputs), -inf if a query attends to nothing. Both are differentiable. `remainder`, the rounding error of lse,
        makes merging exact even for huge scores.

    Raises:
        ValueError: as in `attention`; also if partial results of the normalizer cannot be merged by their lse.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (8, 2, 4)) for i in range(3))
    >>> jattn.partial_attention(q, k, v).lse.shape
    (8, 2)
    """
    if normalizer is not None and not getattr(normalizer, "mergeable", True):
        raise ValueError(
            f"`normalizer` must be a plain `Softmax()` for partial attention; partial results of {normalizer!r} do "
            "not merge by their lse. With a sink: merge plain partials first, then "
            "`Softmax(sink).rescale(merged.out, merged.lse, merged.remainder)`."
        )
    pieces = Pieces(mask, similarity, scores, normalizer, dropout, query_positions, key_positions)
    return _attend((query, key, value), pieces, implementation)


def attention_weights(
    query: Float[jax.Array, "*batch q_len q_heads q_dim"],
    key: Float[jax.Array, "*batch kv_len kv_heads k_dim"],
    *,
    mask: Mask | Any = None,
    similarity: Similarity | None = None,
    scores: Scores = (),
    normalizer: Normalizer | None = None,
    query_positions: Any = None,
    key_positions: Any = None,
    heads: Sequence[int] | None = None,
    queries: Sequence[int] | None = None,
) -> Float[jax.Array, "*batch heads queries kv_len"]:
    """The weights of `attention`, before dropout, recomputed for the requested heads and queries.

    The other arguments are those of `attention`. Memory and time are those of the requested rows.

    Args:
        heads: indices of query heads; by default all.
        queries: indices (not positions) of queries; by default all.

    Returns:
        `[..., heads, queries, kv_len]`, float32 (float64 for float64 inputs). Rows sum to 1, to less with a sink, to
        anything with a sigmoid, and to 0 for a query that attends to nothing.

    Raises:
        ValueError: as in `attention`, or an index is out of range.

    >>> import jax, jattn
    >>> q, k = (jax.random.normal(jax.random.key(i), (1, 100, 8, 16)) for i in range(2))
    >>> jattn.attention_weights(q, k, mask=jattn.masks.Causal(), heads=[0, 3], queries=[99]).shape
    (1, 2, 1, 100)
    """
    pieces = Pieces(mask, similarity, scores, normalizer, None, query_positions, key_positions)
    chosen = (as_indices(name, indices) for name, indices in (("heads", heads), ("queries", queries)))
    whole = heads is not None
    return run_call(_Weights(*chosen), (query, key, key), pieces, "weights", whole_heads=whole)


@dataclasses.dataclass(frozen=True)
class _Weights:
    """The weights of some heads and queries."""

    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None

    def __call__(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        del value
        call, query, key = select(call, query, key, heads=self.heads, queries=self.queries)
        return weights_of(call, query, key)


@dataclasses.dataclass(frozen=True)
class _Attend:
    """The output and its lse, by an implementation."""

    implementation: str | Implementation | None
    lse: bool

    def __call__(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> Partial:
        call = dataclasses.replace(call, exact_lse=self.lse or not call.pieces.normalizer.mergeable)
        chosen = ATTENTION.choose(call, self.implementation, call.target or expected_target(query, key, value))
        open_ = self.implementation is None and call.target is None and ATTENTION.depends_on_platform
        if open_ and isinstance(chosen, Streaming):
            return attend(ATTENTION, call, query, key, value)  # the choice is made when the program is lowered
        return chosen.run(call, query, key, value)


def _attend(
    arrays: Arrays,
    pieces: Pieces,
    implementation: str | Implementation | None,
    *,
    lse: bool = True,
) -> Partial:
    watcher = WATCHER.get()
    named: dict[str, Any] = dict(zip(("query", "key", "value"), arrays, strict=True))
    watch = None if watcher is None else lambda call: watcher(Watched(ATTENTION, call, named, implementation))
    names: Any = ("out", "lse", "lse")
    return run_call(_Attend(implementation, lse), arrays, pieces, Partial(*names), watch=watch)


def run_call(
    function: Callable[..., Any],
    arrays: Arrays,
    pieces: Pieces,
    results: Any,
    *,
    watch: Callable[[Call], None] | None = None,
    whole_heads: bool = False,
) -> Any:
    """Prepare a call and run `function(call, query, key, value)`; over Explicit mesh axes, on each device's own part.

    Args:
        function: from a call to a pytree of results; hashable and comparable, as `run_split` requires.
        arrays: query, key and value.
        pieces: as the caller gave them.
        results: a pytree of the results' names in `split.LAYOUTS`.
        watch: called with the whole call before it runs.
        whole_heads: whether every device needs all heads.

    Raises:
        ValueError: as in `prepare`.
    """
    check_arrays(*arrays)
    query, key, value = as_jax(*arrays)
    if AxisType.Explicit in mesh_of(query, key, value).axis_types:
        return run_on_parts(function, (query, key, value), pieces, results, watch=watch, whole_heads=whole_heads)
    call, query, key = prepare(query, key, value, pieces)
    if watch is not None:
        watch(call)
    return function(call, query, key, value)


def dot_product_attention(
    query: Float[jax.Array, "*batch q_len q_heads dim"],
    key: Float[jax.Array, "*batch kv_len kv_heads dim"],
    value: Float[jax.Array, "*batch kv_len kv_heads v_dim"],
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | Implementation | None = None,
    return_residual: bool = False,
) -> Any:
    """`jax.nn.dot_product_attention`, with its signature: change the import, and nothing else.

    Args:
        query: `[batch, q_len, q_heads, dim]`, or without batch.
        key: `[batch, kv_len, kv_heads, dim]`.
        value: `[batch, kv_len, kv_heads, v_dim]`.
        bias: `[batch, q_heads, q_len, kv_len]`, with size 1 on shared axes; leading axes may be omitted. Added after
            the scale.
        mask: booleans of such a shape; True where a query may attend.
        scale: by default `1/√dim`.
        is_causal: a query attends to keys up to its own index, both counted from 0 (as in `jax.nn`).
        query_seq_lengths: `[batch]`; queries from there on get 0.
        key_value_seq_lengths: `[batch]`; keys from there on are not attended to.
        local_window_size: `(left, right)`, or one int for both, around a query's own index.
        implementation: as in `attention`; `"xla"` means the default. `"cudnn"` is refused.
        return_residual: also return the lse `[batch, q_len, q_heads]`, in the dtype of the query, as `jax.nn` does;
            `partial_attention` returns it in float32.

    Differences from `jax.nn`: a query that may attend to nothing gets 0 (there, the mean of all values), masked NaN
    does not reach the output, memory is linear in the length, and `v_dim` is free.

    Raises:
        ValueError: as in `attention`.
        Unsupported: (a `ValueError`) for `"cudnn"`.

    >>> import jax, jattn
    >>> q, k, v = (jax.random.normal(jax.random.key(i), (1, 10, 2, 4)) for i in range(3))
    >>> jattn.dot_product_attention(q, k, v, is_causal=True).shape
    (1, 10, 2, 4)
    """
    from ... import masks, scores, similarities

    check_arrays(query, key, value)
    if isinstance(implementation, str) and implementation == "cudnn":
        raise Unsupported(
            "`implementation` must not be 'cudnn': jattn has no kernels of cuDNN. Leave it out, or call "
            "`jax.nn.dot_product_attention` on a GPU that has them."
        )
    unbatched = query.ndim == 3
    arrays = [array[None] if unbatched else array for array in (query, key, value)]
    lengths = {"query_seq_lengths": query_seq_lengths, "key_value_seq_lengths": key_value_seq_lengths}
    for name, length in lengths.items():
        if length is not None and np.shape(length) != arrays[0].shape[:-3]:
            raise ValueError(
                f"`{name}` must have the shape {arrays[0].shape[:-3]} of the batch; got {np.shape(length)}."
            )
    check_flags(is_causal=is_causal, return_residual=return_residual)
    window = (local_window_size,) * 2 if isinstance(local_window_size, int | np.integer) else local_window_size
    if window is not None and not (isinstance(window, Sequence) and len(window) == 2 and not isinstance(window, str)):
        raise ValueError(f"`local_window_size` must be one int, or (left, right); got {local_window_size!r}.")
    limited = query_seq_lengths is not None or key_value_seq_lengths is not None
    key_lengths = key.shape[-3] if key_value_seq_lengths is None else key_value_seq_lengths
    with renamed(**_NAMES_OF_JAX):
        whole = restricted(
            None if mask is None else masks.Dense(_with_four_axes("mask", mask)),
            masks.Causal() if is_causal else None,
            None if window is None else masks.SlidingWindow(*window),
            masks.Lengths(key_lengths, query_seq_lengths) if limited else None,
        )
        pieces = Pieces(
            mask=whole,
            similarity=None if scale is None else similarities.Dot(scale),
            scores=() if bias is None else (scores.Bias(_with_four_axes("bias", bias)),),
            query_positions=iota(query.shape[-3]),
        )
        default = isinstance(implementation, str) and implementation == "xla"
        given = arrays[0], arrays[1], arrays[2]
        chosen = None if default else implementation
        residual = observed(lambda: _attend(given, pieces, chosen), lambda: given, pieces)
    out, lse = (array[0] if unbatched else array for array in residual)
    return (out, lse.astype(query.dtype)) if return_residual else out


_NAMES_OF_JAX = {
    "Dense.array": "mask",
    "array": "mask",
    "Bias.values": "bias",
    "Dot.scale": "scale",
    "Lengths.key_lengths": "key_value_seq_lengths",
    "Lengths.query_lengths": "query_seq_lengths",
    "left": "local_window_size",
    "right": "local_window_size",
    "key_lengths": "key_value_seq_lengths",
    "query_lengths": "query_seq_lengths",
}
"""Names in the errors of pieces, and the arguments here that they stand for."""


def _with_four_axes(name: str, array: Any) -> Any:
    """`[batch, heads, q_len, kv_len]`; leading axes that were omitted get size 1."""
    array = as_array(array)
    dtype = dtype_of(array)
    if dtype is None or jnp.issubdtype(dtype, jax.dtypes.extended):
        raise ValueError(f"`{name}` must be an array [batch, heads, q_len, kv_len]; got {describe(array)}. {FOREIGN}")
    if name == "bias" and not jnp.issubdtype(dtype, jnp.floating):
        array = array.astype(np.float32)
    return of_rank(array, max(array.ndim, 4))
