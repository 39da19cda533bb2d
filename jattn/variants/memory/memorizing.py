"""Memorizing attention (Wu et al. 2022): the most similar of all past keys, found exactly, beside local attention."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_choice, check_multiple, check_positive, check_record, leave_out
from ...foundation.numerics import accumulation_dtype, unit
from ...foundation.shapes import check_shapes
from ...foundation.sharding import vary, varying_axes
from ...layers.layer import OWN_AXES, Layer, bias, kernel
from ...masks import Causal, Dense
from ...masks.base import as_mask
from ...ops.attention.api import partial_attention
from ...ops.attention.by_example import by_example
from ...ops.attention.partial import Partial, merge
from ...similarities import Dot
from ...similarities.dot import grouped_dot
from ..selection.best_keys import largest_of

BLOCK = 4096
"""Places of memory that are scored at a time."""


class RingBuffer(NamedTuple):
    """Past keys and values in a ring buffer; the newest overwrite the oldest. No gradient flows into them.

    keys: `[..., size, kv_heads, dim]`.
    values: `[..., size, kv_heads, v_dim]`.
    written: int32 `[]`, how many have ever been written; the next one is written at index `written % size`.
    """

    keys: jax.Array
    values: jax.Array
    written: jax.Array


def empty_ring_buffer(key: jax.Array, value: jax.Array, size: int) -> RingBuffer:
    """An empty ring buffer of `size` places for keys and values like these `[..., length, kv_heads, dim]`.

    Raises:
        ValueError: `size` is below 1; keys or values are not floating-point arrays with at least three axes.

    >>> import jax.numpy as jnp
    >>> empty_ring_buffer(jnp.ones((2, 5, 4, 8)), jnp.ones((2, 5, 4, 8)), 100).keys.shape
    (2, 100, 4, 8)
    """
    check_positive(size=size)
    check_shapes(key=(key, "... length kv_heads dim"), value=(value, "... length kv_heads v_dim"))
    keys, values = (jnp.zeros((*x.shape[:-3], size, *x.shape[-2:]), x.dtype) for x in (key, value))
    return RingBuffer(keys, values, jnp.zeros((), jnp.int32))


def write_ring_buffer(buffer: RingBuffer, key: jax.Array, value: jax.Array) -> RingBuffer:
    """The buffer after writing these keys and values in order; if they exceed its size, the last ones stay.

    Args:
        buffer: the buffer to write to.
        key: `[..., length, kv_heads, dim]`.
        value: `[..., length, kv_heads, v_dim]`.

    Raises:
        ValueError: shapes do not match.

    >>> import jax.numpy as jnp
    >>> key = jnp.arange(5.0).reshape(5, 1, 1)
    >>> print(write_ring_buffer(empty_ring_buffer(key, key, 3), key, key).keys.ravel())
    [3. 4. 2.]
    """
    check_record("buffer", buffer, RingBuffer)
    check_shapes(
        keys=(buffer.keys, "... size kv_heads dim"),
        values=(buffer.values, "... size kv_heads v_dim"),
        key=(key, "... length kv_heads dim"),
        value=(value, "... length kv_heads v_dim"),
    )
    size, length = buffer.keys.shape[-3], key.shape[-3]
    kept = min(size, length)
    places = (buffer.written + length - kept + jnp.arange(kept)) % size

    def write(old: jax.Array, new: jax.Array) -> jax.Array:
        new = jax.lax.stop_gradient(new[..., length - kept :, :, :]).astype(old.dtype)
        return jax.lax.stop_gradient(old).at[..., places, :, :].set(new)

    return RingBuffer(write(buffer.keys, key), write(buffer.values, value), buffer.written + length)


@by_example(by_shape=True, query="length heads dim")
def ring_buffer_attention(query: jax.Array, buffer: RingBuffer, *, top_k: int = 32, similarity: Any = None) -> Partial:
    """Attention of each query, in each head, over the `top_k` keys of the buffer with the largest dot products.

    Wu, Rabe, Hutchins & Szegedy 2022 (arXiv:2203.08913), with an exact search instead of their approximate one. The
    buffer is scored in blocks of 4096 places, so memory is O(q_len · (4096 + top_k)). No gradient flows into it;
    the gradient of the query is that of attention over the keys found.

    Args:
        query: `[..., q_len, q_heads, dim]`.
        buffer: its number of heads divides `q_heads`; places not written yet are never found.
        top_k: how many keys to find, at most the size of the buffer.
        similarity: the score of a query and a found key; by default `ScaledDot()`. The search itself always uses q·k,
            which gives the same order for `Dot`, `ScaledDot`, and for `Cosine` if all keys have the same norm.

    Returns:
        `Partial(out [..., q_len, q_heads, v_dim], lse [..., q_len, q_heads])`, which `jattn.merge` combines with
        attention over other keys.

    Raises:
        ValueError: the buffer is smaller than `top_k`; shapes do not match.

    >>> import jax
    >>> q, k = jax.random.normal(jax.random.key(0), (5, 2, 4)), jax.random.normal(jax.random.key(1), (9, 2, 4))
    >>> buffer = write_ring_buffer(empty_ring_buffer(k, k, 64), k, k)
    >>> ring_buffer_attention(q, buffer, top_k=3).out.shape
    (5, 2, 4)
    """
    check_record("buffer", buffer, RingBuffer)
    sizes = check_shapes(
        query=(query, "... q_len q_heads dim"),
        keys=(buffer.keys, "... size kv_heads dim"),
        values=(buffer.values, "... size kv_heads v_dim"),
    )
    check_positive(top_k=top_k)
    if top_k > sizes["size"]:
        raise ValueError(f"`top_k` must be at most the size of the memory, {sizes['size']}; got {top_k}.")
    if sizes["q_heads"] % sizes["kv_heads"]:
        raise ValueError(
            f"`query` must have a multiple of the heads of the memory; got {sizes['q_heads']} and {sizes['kv_heads']}."
        )
    keys, values, written = jax.lax.stop_gradient(buffer)
    places, found = _largest(jax.lax.stop_gradient(query), keys, written, top_k)

    def gather(stored: jax.Array) -> jax.Array:  # -> [..., q_len, top_k, q_heads, dim]
        stored = jnp.swapaxes(stored, -2, -3)
        at = places.reshape(*stored.shape[:-2], -1, 1)
        taken = jnp.take_along_axis(stored, at, axis=-2)
        return jnp.moveaxis(taken.reshape(*places.shape, stored.shape[-1]), -4, -2)

    mask = Dense(jnp.swapaxes(found, -3, -2)[..., :, :, None, :])  # [..., q_len, q_heads, 1 query, top_k]
    found = partial_attention(query[..., :, None, :, :], gather(keys), gather(values), mask=mask, similarity=similarity)
    return jax.tree.map(lambda array: jnp.squeeze(array, query.ndim - 2), found)


def _largest(query: jax.Array, keys: jax.Array, written: jax.Array, top_k: int) -> tuple[jax.Array, jax.Array]:
    """The places `[..., q_heads, q_len, top_k]` of the largest dot products, and whether there is a key there."""
    size = keys.shape[-3]
    block = max(min(BLOCK, size), top_k)
    query, keys = jnp.swapaxes(query, -2, -3), jnp.swapaxes(keys, -2, -3)
    best = jnp.full((*query.shape[:-1], top_k), -jnp.inf, accumulation_dtype(query, keys))
    places = jnp.zeros(best.shape, jnp.int32)

    def search(state: tuple, start: Any) -> tuple[tuple, None]:
        here = start + jnp.arange(block, dtype=jnp.int32)
        part = jnp.take(keys, jnp.minimum(here, size - 1), axis=-2)
        scores = jnp.where(here < jnp.minimum(written, size), grouped_dot(query, part), -jnp.inf)
        return largest_of(state, (scores, jnp.broadcast_to(here, scores.shape))), None

    begin = vary((best, places), varying_axes(query, keys, written))
    (best, places), _ = jax.lax.scan(search, begin, jnp.arange(0, size, block, dtype=jnp.int32))
    return jnp.minimum(places, size - 1), ~jnp.isneginf(best)


@dataclasses.dataclass(frozen=True)
class Memorizing(Layer):
    """Memorizing attention: causal attention over the segment and the `top_k` best keys of all earlier segments.

        gated: out = g mem + (1 - g) local, g = sigmoid(b) of each head, each of the two with its own softmax
        joint: one softmax over the keys found and the local ones, a `merge` of their partials

    Wu et al. 2022 (arXiv:2203.08913) is the gated form. Queries and keys are normalized to unit norm, times a learned
    scale per head, so that keys stored long ago remain comparable. The keys of a segment are written to the memory
    after the segment has read it, without gradient. While the memory is empty, the gated form is local attention alone.

    Demonstrated in `examples/experiments/memorizing.py`.

    Args:
        features: features of inputs and output.
        heads: number of heads.
        memory_size: size of the buffer.
        top_k: keys found for each query and head.
        combine: `"gated"` or `"joint"`.
        head_dim: by default `features / heads`.

    Raises:
        ValueError: a size is below 1; the memory is smaller than `top_k`; `combine` is unknown; without `head_dim`,
            `features` is not a multiple of `heads`; at the call, shapes do not match.

    >>> import jax
    >>> layer = Memorizing(16, heads=2, memory_size=100, top_k=4)
    >>> parameters = layer.init(jax.random.key(0))
    >>> out, memory = jax.jit(layer)(parameters, jax.numpy.ones((3, 5, 16)))
    >>> out, memory = jax.jit(layer)(parameters, jax.numpy.ones((3, 5, 16)), memory)
    >>> out.shape, int(memory.written)
    ((3, 5, 16), 10)
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    memory_size: int
    top_k: int = 32
    combine: str = "gated"
    head_dim: int | None = None

    def __post_init__(self):
        check_positive(features=self.features, heads=self.heads, memory_size=self.memory_size, top_k=self.top_k)
        check_choice("combine", self.combine, ("gated", "joint"))
        if self.head_dim is None:
            check_multiple("heads", features=self.features, heads=self.heads, unless="head_dim")
        check_positive(head_dim=self.dim)
        if self.top_k > self.memory_size:
            raise ValueError(f"`memory_size` must be at least `top_k` = {self.top_k}; got {self.memory_size}.")

    @property
    def dim(self) -> int:
        """Features of a head."""
        return self.features // self.heads if self.head_dim is None else self.head_dim

    def parameters(self) -> dict[str, Any]:
        """`query`, `key`, `value` kernels, `scale [heads]`, `out.kernel`; `gate [heads]` in the gated form."""
        into = (self.features, self.heads, self.dim)
        gate = {"gate": bias(self.heads)} if self.combine == "gated" else {}
        return {
            **{name: {"kernel": kernel(*into)} for name in ("query", "key", "value")},
            "scale": bias(self.heads, init=jax.nn.initializers.constant(8.0)),
            **gate,
            "out": {"kernel": kernel(self.heads, self.dim, self.features, inputs=2)},
        }

    def __call__(
        self,
        parameters: Mapping[str, Any],
        inputs: jax.Array,
        memory: RingBuffer | None = None,
        *,
        key_inputs: jax.Array | None = None,
        mask: Any = None,
        **pieces: Any,
    ) -> tuple[jax.Array, RingBuffer]:
        """`(out [..., length, features], memory for the next segment)`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., length, features]`.
            memory: the memory returned by the previous segment; None for the first.
            key_inputs: `[..., length, features]`, the source of the keys; by default the inputs.
            mask: an additional mask for the local attention, which is causal anyway.
            **pieces: arguments of `jattn.attention`, for the local attention, without a `similarity`.
        """
        sources = {"inputs": inputs, "key_inputs": inputs if key_inputs is None else key_inputs}
        check_shapes({"features": self.features}, **{at: (x, "... length features") for at, x in sources.items()})
        query, key, value = (
            jnp.einsum("...tf,fhd->...thd", source, parameters[name]["kernel"])
            for name, source in (("query", inputs), ("key", sources["key_inputs"]), ("value", inputs))
        )
        query, key = unit(query).astype(query.dtype), unit(key).astype(key.dtype)
        memory = empty_ring_buffer(key, value, self.memory_size) if memory is None else memory
        check_record("memory", memory, RingBuffer)
        if memory.keys.shape[-3] != self.memory_size:
            raise ValueError(f"`memory` must have {self.memory_size} places; got keys of shape {memory.keys.shape}.")
        pieces = leave_out(pieces, "it is the cosine times the layer's `scale`", "similarity")
        similarity = Dot(parameters["scale"])
        seen = Causal() if mask is None else Causal() & as_mask(mask)
        local = partial_attention(query, key, value, similarity=similarity, mask=seen, **pieces)
        far = ring_buffer_attention(query, memory, top_k=self.top_k, similarity=similarity)
        if self.combine == "joint":
            joined = merge(local, far).out
        else:
            gate = jax.nn.sigmoid(parameters["gate"].astype(far.lse.dtype))
            gate = jnp.where(jnp.isneginf(far.lse), 0, gate)[..., None]
            joined = (gate * far.out + (1 - gate) * local.out).astype(value.dtype)
        out = jnp.einsum("...thd,hdf->...tf", joined, parameters["out"]["kernel"])
        return out, write_ring_buffer(memory, key, value)
