"""Causal multi-head attention with a cache of its keys and values: the layer that the others take the place of."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arguments import check_batch, check_flags, check_multiple, check_positive
from ..foundation.arrays import known_values
from ..foundation.shapes import check_shapes
from ..foundation.sharding import gather, split_like
from ..masks import Causal, SameSegment, SlidingWindow
from ..ops.attention.api import attention
from ..ops.recurrence.arguments import check_segments, starts_of
from ..ops.recurrence.chunks import largest_so_far
from ..positions import rotary
from .generation import Generative
from .layer import multi_head_parameters, project, project_heads


class Cache(NamedTuple):
    """The keys and values of the tokens so far.

    keys: `[..., max_len, kv_heads, head_dim]`, float32 (float64), rotated; zeros where there is none yet.
    values: likewise.
    start: `[...]`, the position of the first token of the sequence that goes on; those before are of other segments.
    position: of the next token, an integer.
    gates: what a subclass keeps of each token beside them, or None.
    """

    keys: jax.Array
    values: jax.Array
    start: jax.Array
    position: jax.Array
    gates: Any = None


@dataclasses.dataclass(frozen=True)
class CausalAttention(Generative):
    """Causal multi-head self-attention (Vaswani et al. 2017, arXiv:1706.03762) that generates with a cache.

        q, k, v = R_t x_t W_q,  R_t x_t W_k,  x_t W_v,    out_t = (Σ_{s ≤ t} softmax_s(q_t·k_s / √head_dim) v_s) W_o

    R_t turns pairs of features by angles proportional to t (`jattn.positions.rotary`). The call is that of
    `multi_head` with the same parameters and `mask=Causal()`, and a token the cost of attention over the cache:
    O(max_len) memory, and time as far as the tokens reach.

    Args:
        features: of inputs and outputs.
        heads: of queries.
        max_len: places of the cache, the longest sequence. Tokens beyond are refused where their position is known,
            and where it is traced, all tokens of a call that goes beyond are NaN.
        kv_heads: of keys and values, by default `heads`, a multiple of it.
        head_dim: by default `features / heads`.
        rotary: whether positions turn queries and keys.
        window: how many keys a token sees, its own among them; None for all.

    Raises:
        ValueError: sizes below 1; heads that do not divide; an odd `head_dim` with rotation; at the call, shapes that
            do not fit, more tokens than `max_len`.

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
            raise ValueError(f"`head_dim` must be even, as features are turned in pairs; got {self.head_dim}.")
        if self.window is not None:
            check_positive(window=self.window)

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` and `out`, named and shaped as those of `multi_head`, no biases."""
        sizes = {"kv_heads": self.kv_heads, "head_dim": self.head_dim}
        return multi_head_parameters(self.features, self.heads, use_bias=False, **sizes)

    def initial_state(
        self, parameters: Mapping[str, Any], batch: tuple[int, ...] = (), dtype: Any = jnp.float32
    ) -> Cache:
        """As of `Generative`: no keys."""
        del parameters
        check_batch(batch)
        empty = jnp.zeros((*batch, self.max_len, int(self.kv_heads or 0), int(self.head_dim or 0)), dtype)
        return Cache(empty, empty, jnp.zeros(batch, jnp.int32), jnp.zeros((), jnp.int32))

    def prefill(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        state: Cache | None = None,
        *,
        segment_ids: Any = None,
    ) -> tuple[jax.Array, Cache]:
        """As of `Generative`."""
        length = check_shapes({"features": self.features}, inputs=(inputs, "... length features"))["length"]
        starts = check_segments(segment_ids, inputs[..., None])
        before = self.checked(parameters, inputs, inputs.shape[:-2], state)
        begin = 0 if state is None else known_values(before.position)
        if begin is not None and begin + length > self.max_len:
            raise ValueError(
                f"`inputs` must end before position `max_len` = {self.max_len}, which the cache has places for; they "
                f"end at {begin + length}."
            )
        at = before.position + jnp.arange(length)
        given, inputs = inputs, gather(inputs, -2)
        wrong = ~jnp.isfinite(inputs).all(-1)
        clean = jnp.where(wrong[..., None], 0, inputs)
        query, key, value = project_heads(parameters, clean)
        if self.rotary:
            query, key = rotary(query, at), rotary(key, at)
        keys, values = (
            self._write(kept, jnp.where(wrong[..., None, None], jnp.nan, new), before.position)
            for kept, new in ((before.keys, key), (before.values, value))
        )
        # Segments so far: 0 is the one that goes on.
        ids = jnp.zeros(wrong.shape, jnp.int32) if starts is None else jnp.cumsum(starts, -1, dtype=jnp.int32)
        near = Causal() if self.window is None else SlidingWindow(self.window - 1, 0)
        if state is None:
            mask = near if starts is None else near & SameSegment(ids)
            broken = self._broken(wrong, ids)
        else:
            own = jnp.where(jnp.arange(self.max_len) < before.start[..., None], -1, 0).astype(jnp.int32)
            own = self._write(own, ids, before.position, axis=-1)
            mask = near & SameSegment(ids, own)
            bad = ~jnp.isfinite(keys).all((-2, -1))
            broken = jax.lax.dynamic_slice_in_dim(self._broken(bad, own), before.position, length, wrong.ndim - 1)
            key, value = (jnp.where(bad[..., None, None], 0, one).astype(inputs.dtype) for one in (keys, values))
        scores, gates = self._scores(parameters, clean, wrong, before, fresh=state is None)
        # NaN is kept apart, as for a query that sees it the gradients of all other keys would be 0 times NaN.
        places = {} if state is None else {"query_positions": at, "key_positions": np.arange(self.max_len)}
        out = attention(query, key, value, mask=mask, scores=scores, **places)
        out = project(parameters["out"], out, "...thd,hdf->...tf")
        # What does not fit is written over earlier places.
        out = jnp.where((broken | (before.position + length > self.max_len))[..., None], jnp.nan, out)
        start = before.start
        if starts is not None and length:
            last = jnp.where(starts, at, -1).max(-1)
            start = jnp.where(last >= 0, last, start)
        return split_like(out, given), Cache(keys, values, start, before.position + length, gates)

    def _scores(
        self, parameters: Mapping[str, Any], inputs: jax.Array, wrong: jax.Array, before: Cache, *, fresh: bool
    ) -> tuple[Any, Any]:
        """What modifies the scores, and `Cache.gates` behind these tokens.

        Args:
            parameters: of the layer.
            inputs: with zeros for those that are `wrong`.
            wrong: which hold NaN or inf, `[..., length]`.
            before: the cache.
            fresh: whether the keys are those of the inputs, not of the cache.
        """
        del parameters, inputs, wrong, fresh
        return (), before.gates

    def _broken(self, wrong: jax.Array, ids: jax.Array) -> jax.Array:
        """Which tokens see one that is wrong, `[..., length]`, of tokens in order and the ids of their segments."""
        at = jnp.arange(wrong.shape[-1])
        last = largest_so_far(jnp.where(wrong, at, -1)[..., None], starts_of(ids))[..., 0]
        return (last >= 0) & (True if self.window is None else at - last < self.window)

    @staticmethod
    def _write(kept: jax.Array, new: jax.Array, position: jax.Array, axis: int = -3) -> jax.Array:
        new = gather(new.astype(kept.dtype), axis)
        return jax.lax.dynamic_update_slice_in_dim(split_like(kept, new), new, position, kept.ndim + axis)
