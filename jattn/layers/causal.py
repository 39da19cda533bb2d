"""Causal multi-head attention with a cache of fixed length: the baseline for layers with a recurrent state."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_flags, check_multiple, check_positive
from ..foundation.arrays import known_values
from ..foundation.numerics import split_nonfinite_rows
from ..foundation.shapes import check_shapes
from ..foundation.sharding import gather, split_like
from ..masks import Causal, SameSegment, SlidingWindow
from ..ops.attention.api import attention
from ..ops.recurrence.arguments import check_segments, starts_of
from ..ops.recurrence.nonfinite import largest_so_far
from .attention import MultiHeadAttention
from .caches import Cache, Contiguous
from .generation import Generative
from .multi_head import computation_dtype, joined_heads, norm_of, projected


@dataclasses.dataclass(frozen=True)
class CausalAttention(Generative):
    """Causal multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) that generates with a cache.

        q, k, v = R_t x_t W_q,  R_t x_t W_k,  x_t W_v,    out_t = (Σ_{s ≤ t} softmax_s(q_t·k_s / √head_dim) v_s) W_o

    R_t rotates pairs of features by angles proportional to t (`jattn.positions.rotary`). The layer computes what
    `MultiHeadAttention` computes with `mask=Causal()` and without biases. Each step costs attention over the cache:
    O(max_len) memory, and time proportional to the tokens so far.

    Args:
        features: features of inputs and outputs.
        heads: number of query heads.
        max_len: capacity of the cache: the length of the longest sequence. Tokens beyond it raise where their position
            is known; where it is traced, all outputs of the call that exceeds it are NaN.
        kv_heads: number of key and value heads, by default `heads`; must divide `heads`.
        head_dim: features of a head, by default `features / heads`.
        rotary: whether to rotate queries and keys by their positions.
        window: how many keys a token sees, itself included; None for all.

    Raises:
        ValueError: a size is below 1; heads do not divide; `head_dim` is odd with `rotary`; at the call, shapes do not
            match or there are more than `max_len` tokens.

    >>> import jax
    >>> layer = CausalAttention(16, 2, max_len=64)
    >>> parameters = layer.init(jax.random.key(0))
    >>> x = jax.random.normal(jax.random.key(1), (3, 10, 16))
    >>> start, state = jax.jit(layer.prefill)(parameters, x[:, :9])
    >>> last, state = jax.jit(layer.step)(parameters, x[:, 9], state)
    >>> bool(jax.numpy.allclose(last, jax.jit(layer)(parameters, x)[:, 9], atol=1e-5))
    True
    """

    features: int
    heads: int
    max_len: int
    kv_heads: int | None = None
    head_dim: int | None = None
    rotary: bool = True
    window: int | None = None

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, max_len=self.max_len)
        if self.kv_heads is None:
            object.__setattr__(self, "kv_heads", self.heads)
        if self.head_dim is None:
            check_multiple("heads", features=self.features, heads=self.heads, unless="head_dim")
            object.__setattr__(self, "head_dim", self.features // self.heads)
        check_positive(kv_heads=self.kv_heads, head_dim=self.head_dim)
        check_multiple("kv_heads", heads=self.heads, kv_heads=int(self.kv_heads or 0))
        check_flags(rotary=self.rotary)
        if self.rotary and int(self.head_dim or 0) % 2:
            raise ValueError(f"`head_dim` must be even, as features are rotated in pairs; got {self.head_dim}.")
        if self.window is not None:
            check_positive(window=self.window)

    @property
    def attention(self) -> MultiHeadAttention:
        """The same layer as a `MultiHeadAttention`."""
        return MultiHeadAttention(
            self.features,
            self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            use_bias=False,
            rotary=self.rotary,
            mask=Causal() if self.window is None else SlidingWindow(self.window - 1, 0),
        )

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` and `out`, with the names and shapes of `MultiHeadAttention`; no biases."""
        return self.attention.parameters()

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> Cache:
        """As in `Generative`: an empty cache."""
        del parameters
        v_dim = int(self.head_dim or 0) + self._gates_per_key_head
        return Contiguous(self.max_len).create(batch, int(self.kv_heads or 0), int(self.head_dim or 0), v_dim, dtype)

    def prefill(
        self, parameters: Mapping[str, Any], inputs: jax.Array, state: Cache | None = None, *, segment_ids: Any = None
    ) -> tuple[jax.Array, Cache]:
        """As in `Generative`."""
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        starts = check_segments(segment_ids, inputs[..., None])
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        had = np.zeros(1, int) if state is None else known_values(before.lengths)
        if had is not None and had.max(initial=0) + length > self.max_len:
            raise ValueError(
                f"`inputs` must end before position `max_len` = {self.max_len}, the capacity of the cache; they end "
                f"at {had.max(initial=0) + length}."
            )
        clean, nonfinite = split_nonfinite_rows(gather(inputs, -2))
        ids, at = _segments(starts, nonfinite.shape, None if state is None else before.positions(length))
        dtype = computation_dtype(None, parameters, inputs)
        options: dict[str, Any] = {"rotary": self.rotary, "dtype": dtype, "norm": norm_of(None)}
        query, key, value = (projected(name, parameters, clean, at, **options) for name in ("query", "key", "value"))
        gates = self._gates(parameters, clean, nonfinite)
        rows = (
            value
            if gates is None
            else jnp.concatenate([value, gates.reshape(*value.shape[:-1], self._gates_per_key_head)], -1)
        )
        key_rows, rows = (jnp.where(nonfinite[..., None, None], jnp.nan, one) for one in (key, rows))
        if starts is None:
            view, after = before.append(key_rows, rows)
        else:  # only the last segment is continued
            behind = dataclasses.replace(before, lengths=jnp.where(starts.any(-1), 0, before.lengths))
            view, after = behind.append(key_rows, rows, valid=ids == ids[..., -1:])
        if state is not None and starts is None:
            scores = self._scores(self._without_gates(view.value)[1], at)
            attended = view.attend(query, mask=self.attention.mask, scores=scores)
        else:
            kept = None if state is None else before
            attended = self._among(query, key, value, gates, None if starts is None else ids, at, kept)
            # NaN is kept out of attention: for a query that sees it, the gradients of all other keys would be 0 · NaN.
            attended = jnp.where(self._sees_nonfinite(nonfinite, ids)[..., None, None], jnp.nan, attended)
        out = joined_heads(parameters, attended[..., : int(self.head_dim or 0)], dtype)
        full = before.lengths + length > self.max_len
        return split_like(jnp.where(full[..., None, None], jnp.nan, out), inputs), after

    def _among(
        self,
        query: jax.Array,
        key: jax.Array,
        value: jax.Array,
        gates: jax.Array | None,
        ids: Any,
        at: Any,
        before: Cache | None,
    ) -> jax.Array:
        """Attention of new tokens to one another, by segment, and to the tokens `before`, which are segment 0."""
        near: Any = self.attention.mask
        if before is None:
            mask = near if ids is None else near & SameSegment(ids)
            return attention(query, key, value, mask=mask, scores=self._scores(gates, None))
        places = jnp.arange(self.max_len, dtype=jnp.int32)
        filled = places < before.lengths[..., None]
        key_ids = jnp.concatenate([jnp.where(filled, 0, -1), ids], -1)
        key_at = jnp.concatenate([jnp.broadcast_to(places, filled.shape), at], -1)
        old_values, old_gates = self._without_gates(before.values)
        key, value = (
            jnp.concatenate([old.astype(new.dtype), new], -3) for old, new in ((before.keys, key), (old_values, value))
        )
        if gates is not None and old_gates is not None:
            gates = jnp.concatenate([old_gates, gates], -2)
        scores = self._scores(gates, np.arange(self.max_len, key.shape[-3]))
        mask, where = near & SameSegment(ids, key_ids), {"query_positions": at, "key_positions": key_at}
        return attention(query, key, value, mask=mask, scores=scores, **where)

    _gates_per_key_head = 0
    """How many numbers a subclass caches per token and key head, appended to the features of the value."""

    def _gates(self, parameters: Mapping[str, Any], inputs: jax.Array, nonfinite: jax.Array) -> jax.Array | None:
        """These numbers, `[..., length, heads]`, for inputs in which those that are `nonfinite` have been zeroed."""
        del parameters, inputs, nonfinite
        return None

    def _scores(self, gates: jax.Array | None, queries: Any) -> Any:
        """What modifies the scores.

        Args:
            gates: the gates of the keys, `[..., kv_len, heads]`.
            queries: the index of each query among the keys, `[q_len]` or `[..., q_len]`; by default queries are the
                keys.
        """
        del gates, queries
        return ()

    def _without_gates(self, values: jax.Array) -> tuple[jax.Array, jax.Array | None]:
        """Split the values of the cache into values and gates."""
        dim = int(self.head_dim or 0)
        if not self._gates_per_key_head:
            return values, None
        gates = values[..., dim:].reshape(*values.shape[:-2], self.heads)
        return values[..., :dim], jnp.where(jnp.isfinite(gates), gates, 0)

    def _sees_nonfinite(self, nonfinite: jax.Array, ids: jax.Array) -> jax.Array:
        """Which tokens see one that is not finite, `[..., length]`, by order and the ids of their segments."""
        at = jnp.arange(nonfinite.shape[-1])
        last = largest_so_far(jnp.where(nonfinite, at, -1)[..., None], starts_of(ids))[..., 0]
        return (last >= 0) & (True if self.window is None else at - last < self.window)


def _segments(starts: jax.Array | None, shape: tuple[int, ...], positions: Any) -> tuple[jax.Array, Any]:
    """The segment of each token, starting at 0 for the one that continues the state, and its position in the segment.

    Args:
        starts: which tokens start another segment, `[..., length]`, or None.
        shape: `[..., length]`.
        positions: the positions of the tokens if they all belong to segment 0; by default 0, 1, ...
    """
    index = np.arange(shape[-1], dtype=np.int32)
    positions = index if positions is None else positions
    if starts is None:
        return jnp.zeros(shape, jnp.int32), positions
    ids = jnp.cumsum(starts, -1, dtype=jnp.int32)
    begin = largest_so_far(jnp.where(starts, index, 0)[..., None], None)[..., 0]
    return ids, jnp.where(ids == 0, positions, index - begin)
