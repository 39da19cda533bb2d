"""Compressive memory (Rae et al. 2020): states evicted from memory are compressed rather than dropped."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...foundation.arguments import check_positive, check_record
from ...foundation.numerics import accumulation_dtype
from ...foundation.shapes import check_shapes
from ...layers.layer import OWN_AXES, Layer, bias, kernel
from ...masks import Sinks
from ...ops.attention.api import attention
from .transformer_xl import TransformerXL


class CompressiveMemory(NamedTuple):
    """The memory that a segment leaves for the next one, the newest last; no gradient flows into it.

    compressed: `[..., compressed_len, features]`.
    states: `[..., memory_len, features]`.
    filled: int32 `[2]`, how many of each, counted from the end, are filled.
    """

    compressed: jax.Array
    states: jax.Array
    filled: jax.Array


@dataclasses.dataclass(frozen=True)
class Compressive(Layer):
    """Compressive memory: Transformer-XL that keeps evicted states, compressing every `rate` of them into one.

    A segment of n inputs evicts the n oldest states of the memory. A convolution of width and stride `rate` compresses
    them to n / rate states, which enter the compressed memory while its oldest leave. Attention is over [compressed,
    memory, segment], with distances counted in places, as in `relative_attention`. Rae et al. 2020 (arXiv:1911.05507),
    with its attention-reconstruction loss:

        loss = mean ‖attn(h, evicted) - attn(h, compress(evicted))‖²,  attn(h, m) = softmax(hQ (mK)ᵀ / √dim) mV

    by content alone. Its gradient reaches only the convolution, and no other gradient reaches the convolution: the
    caller adds it to the model's loss.

    Args:
        features: features of inputs and output.
        heads: number of heads.
        memory_len: number of uncompressed states, a multiple of `rate`.
        compressed_len: number of compressed states.
        rate: how many states are compressed into one.
        head_dim: by default `features / heads`.

    Raises:
        ValueError: a size is below 1; `memory_len` is not a multiple of `rate`; at the call, the length of the segment
            is not a multiple of `rate`, or exceeds `memory_len` or `rate * compressed_len`; shapes do not match; as in
            `TransformerXL`.

    >>> import jax
    >>> layer = Compressive(16, heads=2, memory_len=8, compressed_len=4, rate=2)
    >>> out, memory, loss = jax.jit(layer)(layer.init(jax.random.key(0)), jax.numpy.ones((3, 6, 16)))
    >>> out.shape, memory.compressed.shape, memory.filled.tolist()
    ((3, 6, 16), (3, 4, 16), [0, 6])
    """

    own_axes = OWN_AXES

    features: int
    heads: int
    memory_len: int
    compressed_len: int
    rate: int = 3
    head_dim: int | None = None

    def __post_init__(self):
        check_positive(compressed_len=self.compressed_len, rate=self.rate)
        if self.recent.memory_len % self.rate:
            raise ValueError(
                f"`memory_len` must be a multiple of `rate`, so that only whole groups are compressed; got memory_len "
                f"{self.memory_len} and rate {self.rate}."
            )

    @property
    def recent(self) -> TransformerXL:
        """The attention over both memories."""
        return TransformerXL(self.features, self.heads, self.memory_len, self.head_dim)

    def parameters(self) -> dict[str, Any]:
        """The parameters of `TransformerXL`, plus `compress.kernel [rate, features, features]`, `compress.bias`."""
        compress = {"kernel": kernel(self.rate, self.features, self.features, inputs=2), "bias": bias(self.features)}
        return {**self.recent.parameters(), "compress": compress}

    def __call__(
        self, parameters: Mapping[str, Any], inputs: jax.Array, memory: CompressiveMemory | None = None, **pieces: Any
    ) -> tuple[jax.Array, CompressiveMemory, jax.Array]:
        """`(out [..., q_len, features], memory for the next segment, loss [...])`.

        Args:
            parameters: the layer's parameters.
            inputs: `[..., q_len, features]`.
            memory: the memory returned by the previous segment; None for the first.
            **pieces: arguments of `jattn.attention`; positions of a `mask` count from the oldest place of compressed
                memory.
        """
        memory = self._check(inputs, memory)
        q_len = inputs.shape[-2]
        before = jnp.concatenate([memory.compressed, memory.states], -2)
        mask = pieces.pop("mask", None)
        # There is no gap between the two memories: the older one is filled only once the newer is full.
        out = self.recent.attend(parameters, inputs, before, memory.filled.sum(), mask, **pieces)

        evicted = memory.states[..., :q_len, :]
        full = jnp.maximum(q_len - (self.memory_len - memory.filled[1]), 0)  # how many of the evicted hold anything
        made = self.compress(parameters, evicted)
        loss = self._loss(parameters, inputs, evicted, made, full)
        compressed = jnp.concatenate([memory.compressed, made], -2)[..., q_len // self.rate :, :]
        states = jnp.concatenate([memory.states, inputs.astype(memory.states.dtype)], -2)[..., q_len:, :]
        filled = jnp.stack([memory.filled[0] + full // self.rate, memory.filled[1] + q_len])
        filled = jnp.minimum(filled, jnp.array([self.compressed_len, self.memory_len], jnp.int32))
        return out, CompressiveMemory(*jax.lax.stop_gradient((compressed, states)), filled), loss

    def compress(self, parameters: Mapping[str, Any], states: jax.Array) -> jax.Array:
        """`[..., length, features]` -> `[..., length / rate, features]`: a convolution whose stride is its width."""
        groups = states.reshape(*states.shape[:-2], -1, self.rate, self.features)
        made = jnp.einsum("...gri,rio->...go", groups, parameters["compress"]["kernel"])
        return (made + parameters["compress"]["bias"]).astype(states.dtype)

    def _loss(self, parameters: Any, inputs: Any, evicted: jax.Array, made: jax.Array, full: jax.Array) -> jax.Array:
        kernels = {name: jax.lax.stop_gradient(parameters[name]["kernel"]) for name in ("query", "key", "value")}
        query = jnp.einsum("...tf,fhd->...thd", jax.lax.stop_gradient(inputs), kernels["query"])

        def read(states: jax.Array, count: jax.Array) -> jax.Array:
            key, value = (jnp.einsum("...tf,fhd->...thd", states, kernels[name]) for name in ("key", "value"))
            mask = ~Sinks(states.shape[-2] - count)
            return attention(query, key, value, mask=mask).astype(accumulation_dtype(query))

        apart = read(evicted, full) - read(made, full // self.rate)
        return jnp.square(apart).sum((-3, -2, -1)) / max(math.prod(apart.shape[-3:]), 1)

    def _check(self, inputs: jax.Array, memory: CompressiveMemory | None) -> CompressiveMemory:
        check_shapes({"features": self.features}, inputs=(inputs, "... q_len features"))
        *batch, q_len, _ = inputs.shape
        most = min(self.memory_len, self.rate * self.compressed_len)
        if q_len % self.rate or q_len > most:
            raise ValueError(
                f"`inputs` must be of a length that is a multiple of `rate` = {self.rate} and at most {most} (the "
                f"memory, and what the compressed memory takes); got {q_len}. Split the segment, or pad it."
            )
        if memory is None:
            empty = (
                jnp.zeros((*batch, n, self.features), inputs.dtype) for n in (self.compressed_len, self.memory_len)
            )
            compressed, states = empty
            return CompressiveMemory(compressed, states, jnp.zeros(2, jnp.int32))
        check_record("memory", memory, CompressiveMemory)
        check_shapes(kind=jnp.integer, filled=(memory.filled, "2"))
        known: Any = {"...": tuple(batch), "features": self.features}
        known |= {"memory_len": self.memory_len, "compressed_len": self.compressed_len}
        check_shapes(
            known,
            compressed=(memory.compressed, "... compressed_len features"),
            states=(memory.states, "... memory_len features"),
        )
        return memory
