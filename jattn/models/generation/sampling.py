"""The choice of a token: the most likely one, or one sampled from the likely ones."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ...foundation.numerics import widen
from .protocol import EncoderDecoder, GenerativeModel


def most_likely(log_p: jax.Array, *, top_k: int | None = None, top_p: Any = None) -> jax.Array:
    """Log probabilities with -inf for tokens that are not sampled.

        S = the k most likely tokens
        kept = { i ∈ S : the tokens of S that are more likely than i have together less than p of the mass of S }

    Top-k sampling is that of Fan et al. 2018 (arXiv:1805.04833), top-p (nucleus) that of Holtzman et al. 2020
    (arXiv:1904.09751). Tokens that are as likely as the last kept one are kept too, so that the result does not depend
    on the order of tokens; at least one is kept.

    Args:
        log_p: `[..., vocabulary]`, up to a constant.
        top_k: how many tokens are kept; None for all.
        top_p: the mass that is kept, in (0, 1]; None for all.

    >>> log_p = jnp.log(jnp.array([0.1, 0.4, 0.2, 0.3]))
    >>> jnp.exp(most_likely(log_p, top_p=0.5)).round(1).tolist()
    [0.0, 0.4000000059604645, 0.0, 0.30000001192092896]
    """
    if top_k is not None and top_k < log_p.shape[-1]:
        log_p = jnp.where(log_p >= jax.lax.top_k(log_p, top_k)[0][..., -1:], log_p, -jnp.inf)
    if top_p is not None:
        ordered = jnp.sort(log_p, -1, descending=True)
        p = jax.nn.softmax(ordered, -1)
        kept = jnp.cumsum(p, -1) - p < top_p
        last = jnp.take_along_axis(ordered, jnp.maximum(kept.sum(-1, keepdims=True) - 1, 0), -1)
        log_p = jnp.where(log_p >= last, log_p, -jnp.inf)
    return log_p


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Progress:
    """Sequences that grow by a token at a time.

    Attributes:
        count: how many tokens each has, int32 `[]`.
        last: the newest, int32 `[batch]`.
        tokens: all, int32 `[batch, max_new_tokens]`; padding from the end of a sequence on.
        lengths: how many of them precede the padding in each sequence, int32 `[batch]`.
        scores: the sum of their log probabilities, float32 `[batch]`.
        ended: which sequences have met a stop token, `[batch]`.
        state: that of the model before `last`.
    """

    count: jax.Array
    last: jax.Array
    tokens: jax.Array
    lengths: jax.Array
    scores: jax.Array
    ended: jax.Array
    state: Any

    @property
    def shown(self) -> jax.Array:
        """The newest token of each sequence, -1 for one that had ended before."""
        return jnp.where(self.lengths == self.count, self.last, -1)

    @property
    def found(self) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Tokens, lengths and scores."""
        return self.tokens, self.lengths, self.scores


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["temperature", "top_p", "keys", "rules"],
    meta_fields=["new", "stop", "pad", "top_k"],
)
@dataclasses.dataclass(frozen=True)
class Sampling:
    """The most likely token, or a sampled one, for each sequence independently of the others.

    Args:
        new: the largest number of tokens.
        stop: tokens that end a sequence.
        pad: the token after its end.
        temperature: what logits are divided by, float32 `[]`; None for the most likely token.
        top_k, top_p: as in `most_likely`.
        keys: a random key for each sequence, `[batch]`.
        rules: a `jattn.models.generation.rules.Rules`, or None.
    """

    new: int
    stop: tuple[int, ...]
    pad: int
    temperature: Any = None
    top_k: int | None = None
    top_p: Any = None
    keys: Any = None
    rules: Any = None

    def start(self, logits: jax.Array, state: Any) -> Progress:
        """The first token, chosen by the logits `[batch, vocabulary]` of the prompts."""
        batch = logits.shape[0]
        empty = Progress(
            jnp.int32(0),
            jnp.zeros(batch, jnp.int32),
            jnp.full((batch, self.new), self.pad, jnp.int32),
            jnp.zeros(batch, jnp.int32),
            jnp.zeros(batch, jnp.float32),
            jnp.zeros(batch, bool),
            None,
        )
        return self._with_next(empty, logits, state)

    def proceeds(self, progress: Progress) -> jax.Array:
        """Whether there is a token left to choose."""
        return (progress.count < self.new) & ~progress.ended.all()

    def advance(self, model: GenerativeModel | EncoderDecoder, progress: Progress) -> Progress:
        """The next token."""
        return self._with_next(progress, *model.step(progress.last, progress.state))

    def choose(self, log_p: jax.Array, count: jax.Array) -> jax.Array:
        """Tokens `[batch]` by their log probabilities up to a constant, `[batch, vocabulary]`, after `count` tokens."""
        if self.temperature is None:
            return jnp.argmax(log_p, -1).astype(jnp.int32)
        # Relative to the largest, so that a small temperature leaves one token at 0 rather than none above -inf.
        scaled = (log_p - log_p.max(-1, keepdims=True)) / jnp.maximum(self.temperature, jnp.finfo(jnp.float32).tiny)
        likely = most_likely(scaled, top_k=self.top_k, top_p=self.top_p)
        keys = jax.vmap(jax.random.fold_in, (0, None))(self.keys, count)
        return jax.vmap(jax.random.categorical)(keys, likely).astype(jnp.int32)

    def _with_next(self, progress: Progress, logits: jax.Array, state: Any) -> Progress:
        log_p = jax.nn.log_softmax(widen(logits), -1)
        allowed = log_p
        if self.rules is not None:
            allowed = self.rules(widen(logits), progress.tokens, progress.count)
        token = self.choose(allowed, progress.count)
        score = jnp.take_along_axis(log_p, token[:, None], -1)[:, 0].astype(jnp.float32)
        token = jnp.where(progress.ended, self.pad, token)
        return Progress(
            progress.count + 1,
            token,
            jax.lax.dynamic_update_slice_in_dim(progress.tokens, token[:, None], progress.count, 1),
            progress.lengths + ~progress.ended,
            progress.scores + jnp.where(progress.ended, 0, score),
            progress.ended | is_one_of(token, self.stop),
            state,
        )


def is_one_of(tokens: jax.Array, stop: tuple[int, ...]) -> jax.Array:
    """Which tokens are stop tokens."""
    return (tokens[..., None] == np.asarray(stop, np.int32)).any(-1)
