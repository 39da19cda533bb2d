"""Generate text from the model, byte by byte."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from .model import GPT, mask_of


def sample(model: GPT, kind: str, prompt: str, count: int, length: int, seed: int, temperature: float = 0.7) -> str:
    """`prompt` and `count` more bytes. There is no cache: each byte recomputes the last `length` bytes."""
    start = np.frombuffer(prompt.encode(), np.uint8)[-length:].astype(np.int32)
    window = np.zeros(length, np.int32)
    window[: len(start)] = start
    definition, state = nnx.split(model)
    made = _continue(definition, kind, count, state, window, len(start), jax.random.key(seed), temperature)
    return (prompt.encode() + np.asarray(made).astype(np.uint8).tobytes()).decode(errors="replace")


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _continue(definition, kind, count, state, window, filled, key, temperature):
    model = nnx.merge(definition, state)
    length = len(window)
    mask = mask_of(kind, length, jnp.ones((1, length), jnp.int32))

    def one(carry, key):
        window, filled, first = carry
        positions = first + jnp.arange(length)  # positions in the text, not in the window
        logits = model(window[None], mask, positions)[0, filled - 1]
        byte = jax.random.categorical(key, logits / temperature).astype(jnp.int32)
        full = filled == length
        window = jnp.where(full, jnp.roll(window, -1), window)
        filled = jnp.where(full, filled, filled + 1)
        return (window.at[filled - 1].set(byte), filled, first + full), byte

    return jax.lax.scan(one, (window, filled, 0), jax.random.split(key, count))[1]
