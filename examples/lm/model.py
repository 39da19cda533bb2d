"""A byte-level GPT: pre-LN blocks with rotary positions, built from `jattn.nnx`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jattn
import jattn.nnx
from jattn.parallel import Heads

from .text import VOCABULARY


@dataclasses.dataclass(frozen=True)
class Size:
    """The sizes of a model, and its training settings unless a flag overrides them."""

    layers: int
    features: int
    heads: int
    length: int
    batch: int
    steps: int
    learning_rate: float


SIZES = {
    "tiny": Size(layers=2, features=64, heads=4, length=64, batch=8, steps=200, learning_rate=1e-2),
    "small": Size(layers=3, features=128, heads=4, length=256, batch=6, steps=450, learning_rate=5e-3),
    "medium": Size(layers=6, features=384, heads=6, length=512, batch=32, steps=2000, learning_rate=1e-3),
    "large": Size(layers=12, features=768, heads=12, length=1024, batch=32, steps=4000, learning_rate=6e-4),
}


class Block(nnx.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, size: Size, dtype: jnp.dtype, parallel: Heads | None, *, rngs: nnx.Rngs):
        self.attention_norm = nnx.LayerNorm(size.features, dtype=dtype, rngs=rngs)
        self.attention = jattn.nnx.MultiHeadAttention(
            size.features,
            size.heads,
            rotary=True,
            qk_norm=True,
            use_bias=False,
            dtype=dtype,
            parallel=parallel,
            rngs=rngs,
        )
        self.mlp_norm = nnx.LayerNorm(size.features, dtype=dtype, rngs=rngs)
        self.widen = nnx.Linear(size.features, 4 * size.features, dtype=dtype, rngs=rngs)
        self.narrow = nnx.Linear(4 * size.features, size.features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, mask: jattn.masks.Mask, positions: jax.Array | np.ndarray | None) -> jax.Array:
        x = x + self.attention(self.attention_norm(x), mask=mask, positions=positions)
        return x + self.narrow(nnx.gelu(self.widen(self.mlp_norm(x))))


class GPT(nnx.Module):
    """From bytes `[batch, length]` to the logits of the next byte, `[batch, length, 256]` in float32.

    `parallel` says how attention is split over devices. Parameters and inputs have their own shardings.
    """

    def __init__(self, size: Size, dtype: jnp.dtype, parallel: Heads | None = None, *, rngs: nnx.Rngs):
        self.dtype = dtype
        self.embed = nnx.Embed(VOCABULARY, size.features, embedding_init=nnx.initializers.normal(0.02), rngs=rngs)
        self.blocks = nnx.List([Block(size, dtype, parallel, rngs=rngs) for _ in range(size.layers)])
        self.norm = nnx.LayerNorm(size.features, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(size.features, VOCABULARY, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self, tokens: jax.Array, mask: jattn.masks.Mask, positions: jax.Array | np.ndarray | None = None
    ) -> jax.Array:
        # Converted afterward, so that the gradient of a byte's row is summed in float32: bfloat16 would lose small
        # terms, and a GPU has no fast addition to memory for it.
        x = self.embed(tokens).astype(self.dtype)
        for block in self.blocks:
            x = block(x, mask, positions)
        return self.head(self.norm(x)).astype(jnp.float32)


def mask_of(kind: str, length: int, topic: jax.Array | np.ndarray) -> jattn.masks.Mask:
    """The mask: all earlier bytes, the last quarter of the length, or all earlier bytes of the same topic."""
    if kind == "causal":
        return jattn.masks.Causal()
    if kind == "window":
        return jattn.masks.SlidingWindow(length // 4 - 1, 0)
    return jattn.masks.Causal() & jattn.masks.SameSegment(topic)


def bits_per_byte(model: GPT, kind: str, tokens: jax.Array, topic: jax.Array) -> jax.Array:
    """The mean of -log2 p(next byte). With packed topics, the first byte of a topic is not predicted."""
    mask = mask_of(kind, tokens.shape[1] - 1, topic[:, :-1])
    logits = model(tokens[:, :-1], mask)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    counted = topic[:, 1:] == topic[:, :-1] if kind == "packed" else jnp.ones_like(nats, bool)
    return jnp.sum(nats, where=counted) / counted.sum() / np.log(2)
