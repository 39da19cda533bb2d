"""A conversation with a language model, whose cache is kept from turn to turn: each token is read once."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jattn.models.generation.sampling import most_likely

CHUNK = 32
"""Prompts are padded to a multiple of this many tokens, so that few lengths are compiled."""


class Conversation:
    """What was said, and the state of the model after it.

    Args:
        model: a language model of `jattn.models`.
        capacity: the largest number of tokens of the conversation.
        stop: tokens that end an answer.
        temperature: what logits are divided by; 0 for the most likely token.
        top_p: the probability mass that is sampled from.
        seed: of the samples.

    Attributes:
        tokens: all that was said.
        read: how many of them the state has. The last token of an answer is read with the next turn.
    """

    def __init__(
        self,
        model: Any,
        capacity: int,
        stop: Sequence[int],
        *,
        temperature: float = 0.0,
        top_p: float | None = None,
        seed: int = 0,
    ):
        self.graph, self.parameters = nnx.split(model)
        self.capacity, self.stop = capacity, stop
        self.choose = functools.partial(_choose, temperature=temperature, top_p=top_p)
        self.key = jax.random.key(seed)
        self.tokens: list[int] = []
        self.read = 0
        self._state = model.initial_state(1, capacity)

    def answer(self, tokens: Sequence[int], most: int) -> Iterator[int]:
        """The tokens of an answer, one at a time, without the one that stops it.

        Args:
            tokens: what is new since the last answer.
            most: the largest number of tokens of the answer. One that is longer is stopped.

        Raises:
            ValueError: the conversation would be longer than its capacity.
        """
        if len(self.tokens) + len(tokens) + most + 1 > self.capacity:
            raise ValueError(
                f"the conversation must have at most {self.capacity} tokens; it has {len(self.tokens)}, "
                f"{len(tokens)} are new, and an answer may have {most}. Begin a new one, or give a larger --capacity."
            )
        self.tokens += tokens
        for _ in range(most):
            logits = self._next_logits()
            token = int(self.choose(jax.random.fold_in(self.key, len(self.tokens)), logits))
            self.tokens.append(token)
            if token in self.stop:
                return
            yield token
        self.tokens.append(self.stop[0])

    def _next_logits(self) -> jax.Array:
        """Logits of the token after all; those that were not read before are read."""
        new, self.read = self.tokens[self.read :], len(self.tokens)
        if len(new) == 1:
            logits, self._state = _step(self.graph, self.parameters, jnp.array(new), self._state)
            return logits
        padded = np.zeros((1, -(-len(new) // CHUNK) * CHUNK), np.int32)
        padded[0, : len(new)] = new
        valid = np.arange(padded.shape[1])[None] < len(new)
        logits, self._state = _prefill(self.graph, self.parameters, padded, valid, self._state)
        return logits


@functools.partial(jax.jit, static_argnums=0, donate_argnums=4)
def _prefill(graph: Any, parameters: Any, tokens: jax.Array, valid: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    return nnx.merge(graph, parameters).prefill(tokens, state, valid=valid)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _step(graph: Any, parameters: Any, tokens: jax.Array, state: Any) -> tuple[jax.Array, Any]:
    return nnx.merge(graph, parameters).step(tokens, state)


@functools.partial(jax.jit, static_argnames=("temperature", "top_p"))
def _choose(key: jax.Array, logits: jax.Array, temperature: float, top_p: float | None) -> jax.Array:
    log_p = jax.nn.log_softmax(logits[0].astype(jnp.float32))
    if not temperature:
        return log_p.argmax()
    return jax.random.categorical(key, most_likely(log_p / temperature, top_p=top_p))
