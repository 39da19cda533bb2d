"""What decoder-only models share: the whole call, prefill and steps over caches, the head of a language model.

    x = embed(tokens, positions)
    x = block(x)                    for each block
    output = head(norm(x))          hidden states if there is no head

A state is a tuple of the caches of the blocks' attention layers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..foundation.arguments import check_choice, check_positive
from ..foundation.arrays import describe
from ..layers.caches import Cache, Contiguous, Rolling, Spec
from ..ops.attention.call import renamed
from .blocks import through
from .config import Config
from .embedding import logits_of
from .layers import as_valid, checked_next, checked_tokens, placed

State = tuple[Any, ...]


class DecoderBlock(nnx.Module):
    """A block whose only access to other tokens is `attention`. Subclasses write `around`.

    Attributes:
        attention: a `jattn.nnx.MultiHeadAttention`.
        window: how many tokens a token sees, itself included; None for all.
    """

    attention: Any
    window: int | None = None

    def around(self, x: jax.Array, attend: Callable[[jax.Array], tuple[jax.Array, Any]]) -> tuple[jax.Array, Any]:
        """The block around `attend`, which returns the output of attention and a state to pass on."""
        raise NotImplementedError

    def __call__(self, x: jax.Array, **options: Any) -> jax.Array:
        """`[..., length, features]` -> `[..., length, features]`; options as in `MultiHeadAttention.__call__`."""
        return self.around(x, lambda y: (self.attention(y, **options), None))[0]

    def prefill(self, x: jax.Array, state: Any, **options: Any) -> tuple[jax.Array, Any]:
        """The next tokens, and the state after them, as in `MultiHeadAttention.prefill`."""
        return self.around(x, lambda y: self.attention.prefill(y, state, **options))


class Decoder(nnx.Module):
    """A stack of causal blocks over tokens. Subclasses make the layers and write `embed`.

    Attributes:
        config: the configuration.
        blocks: `DecoderBlock`s.
        norm: the norm after the last block.
        longest: the largest number of tokens; None if positions are not limited.
        rotates: whether attention depends on positions, not only on the order of tokens.
    """

    config: Config
    blocks: Any
    norm: Any
    longest: int | None = None
    rotates: bool = False

    def embed(self, tokens: jax.Array, positions: jax.Array) -> jax.Array:
        """The input of the first block, `[..., length, features]`."""
        raise NotImplementedError

    def output(self, hidden: jax.Array) -> jax.Array:
        """What the model returns for hidden states: here themselves."""
        return hidden

    def __call__(
        self, tokens: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None
    ) -> jax.Array:
        """Hidden states, or logits of a model with a head.

        Args:
            tokens: integers `[..., length]`.
            attention_mask: ones and zeros `[..., length]`, 0 for padding, which may be on either side: it is not
                attended to, and does not count in positions. Its own output is meaningless.
            mask: a mask of `jattn.masks`, combined with the model's own by `&`; for example `SameSegment(ids)`.
            positions: integers `[length]` or `[..., length]`; by default tokens are counted from 0 in each sequence.
                Hugging Face counts padding on the left, unless `position_ids` are given.

        Returns:
            `[..., length, features]`, or `[..., length, vocabulary]`.

        Raises:
            ValueError: tokens are not integers, or known to be out of the vocabulary; there are more than positions.
        """
        return self.output(self.hidden(tokens, attention_mask=attention_mask, mask=mask, positions=positions))

    def hidden(self, tokens: Any, *, attention_mask: Any = None, mask: Any = None, positions: Any = None) -> jax.Array:
        """The hidden states after the last norm, `[..., length, features]`; arguments as in the call."""
        tokens = self._checked(tokens)
        mask, positions = placed(tokens, attention_mask, mask, positions, self.longest)
        at = {"positions": positions} if self.rotates else {}
        x = self.embed(tokens, np.arange(tokens.shape[-1]) if positions is None else positions)
        return self.norm(through(self.blocks, x, config=self.config, mask=mask, **at))

    def initial_state(
        self, batch: int | tuple[int, ...], capacity: int | None = None, *, cache: Any = "contiguous", dtype: Any = None
    ) -> State:
        """The state that `prefill` and `step` start from: empty caches.

        Args:
            batch: the batch axes, or the size of one.
            capacity: the largest number of tokens of a sequence, new ones included.
            cache: `"contiguous"`; `"rolling"`, where blocks with a window keep only what it sees; or a cache of
                `jattn.layers.caches` for every block, such as `Paged(...)`, instead of `capacity`.
            dtype: the dtype of cached keys and values, by default the one that attention computes in.

        Raises:
            ValueError: `capacity` is missing, or larger than the positions of the model.
        """
        batch = (batch,) if isinstance(batch, int) else batch
        specs = cache_specs(cache, capacity, [block.window for block in self.blocks], self.longest)
        return tuple(
            block.attention.initial_state(batch, cache=spec, dtype=dtype)
            for block, spec in zip(self.blocks, specs, strict=True)
        )

    def prefill(
        self, tokens: Any, state: State, *, valid: Any = None, mask: Any = None, every: bool = False
    ) -> tuple[jax.Array, State]:
        """The next tokens of each sequence: the output at the last, and the state after them.

        However a sequence is divided, outputs are those of a call on the whole.

        Args:
            tokens: integers `[..., new]`.
            state: returned by `initial_state`, `prefill` or `step`.
            valid: booleans, or ones and zeros, `[..., new]`: False for padding on either side. It is not cached.
            mask: combined with the model's own by `&`; it sees positions in the whole sequence.
            every: whether to return the outputs at all tokens, `[..., new, vocabulary]`, not only at the last valid one
                of each sequence, `[..., vocabulary]`.

        Raises:
            ValueError: as in the call, and as in `jattn.nnx.MultiHeadAttention.prefill`.
        """
        tokens = self._checked(tokens)
        self._check_state(state)
        valid = as_valid(valid)
        x = self.embed(tokens, state[0].positions(tokens.shape[-1], valid))
        after = []
        with renamed(inputs="tokens"):
            for block, one in zip(self.blocks, state, strict=True):
                x, one = block.prefill(x, one, valid=valid, mask=mask)
                after.append(one)
        x = self.norm(x if every else last_of(x, valid))
        return self.output(x), tuple(after)

    def step(self, tokens: Any, state: State, *, valid: Any = None, mask: Any = None) -> tuple[jax.Array, State]:
        """The next token of each sequence, `[...]` -> `[..., vocabulary]`, and the state after it.

        Arguments as in `prefill`; `valid [...]` says which sequences advance.
        """
        tokens = checked_next(tokens, self.config.vocabulary)  # pyright: ignore
        valid = as_valid(valid)
        return self.prefill(tokens, state, valid=None if valid is None else jnp.asarray(valid)[..., None], mask=mask)

    def _checked(self, tokens: Any) -> jax.Array:
        return checked_tokens("tokens", tokens, self.config.vocabulary, self.longest)  # pyright: ignore

    def _check_state(self, state: Any) -> None:
        """Check that a state has a cache for each block.

        Raises:
            ValueError: it has not.
        """
        caches = isinstance(state, tuple) and all(isinstance(one, Cache) for one in state)
        if not caches or len(state) != len(self.blocks):
            raise ValueError(
                f"`state` must be what `initial_state`, `prefill` or `step` gave, {len(self.blocks)} caches; got "
                f"{describe(state)}."
            )


class CausalLM(Decoder):
    """A decoder with the head of a language model: logits = x Eᵀ with tied embeddings, or x W.

    Subclasses come before the family's decoder: `class GPT2ForCausalLM(CausalLM, GPT2)`. They have an `embedding`, and
    a `head` that is None if it is tied.
    """

    embedding: Any
    head: Any

    def output(self, hidden: jax.Array) -> jax.Array:
        """The logits of the next token, `[..., vocabulary]`."""
        return logits_of(hidden, self.embedding, self.head)


def cache_specs(
    cache: Any, capacity: int | None, windows: Sequence[int | None], longest: int | None = None
) -> list[Spec]:
    """The cache of each block.

    Args:
        cache: `"contiguous"`, `"rolling"`, or a cache of `jattn.layers.caches` for every block.
        capacity: the largest number of tokens of a sequence.
        windows: how many tokens a token sees in each block; None for all.
        longest: the largest capacity; None for any.

    Raises:
        ValueError: `cache` is something else; `capacity` is missing or too large.

    >>> cache_specs("rolling", 9, [None, 4])
    [Contiguous(length=9), Rolling(window=4, sinks=0)]
    """
    specs: list[Spec]
    if isinstance(cache, Spec):
        specs = [cache] * len(windows)
    else:
        check_choice("cache", cache, ("contiguous", "rolling"))
        windows = [window if cache == "rolling" else None for window in windows]
        if capacity is not None or None in windows:
            check_positive(capacity=capacity)
        specs = [Rolling(one) if one else Contiguous(capacity or 0) for one in windows]
    for spec in specs:
        if longest is not None and isinstance(spec, Contiguous) and spec.length > longest:
            raise ValueError(f"`capacity` must be at most {longest}, the positions of the model; got {spec.length}.")
    return specs


def last_of(x: jax.Array, valid: Any = None) -> jax.Array:
    """The last valid token of each sequence: `[..., length, features]` -> `[..., features]`.

    >>> x = jnp.arange(6).reshape(2, 3, 1)
    >>> last_of(x, np.array([[True, True, False], [True, True, True]])).tolist()
    [[1], [5]]
    """
    length = x.shape[-2]
    if valid is None:
        return x[..., -1, :]
    valid = jnp.broadcast_to(valid, x.shape[:-1])
    at = length - 1 - jnp.argmax(valid[..., ::-1], -1)
    return jnp.take_along_axis(x, at[..., None, None], -2)[..., 0, :]
