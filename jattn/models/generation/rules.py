"""Rules on the next token: what a `GenerationConfig` forbids, forces or makes less likely, in the order it says."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .config import GenerationConfig


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["prompts", "lengths", "suppressed", "suppressed_at_first", "repetition_penalty"],
    meta_fields=["settings", "stop", "new"],
)
@dataclasses.dataclass(frozen=True)
class Rules:
    """The rules for a batch of prompts.

    Args:
        prompts: int32 `[batch, length]`, with -1 for padding, all of it on the left.
        lengths: how many tokens each prompt has, int32 `[batch]`.
        suppressed, suppressed_at_first: booleans `[vocabulary]`, or None.
        repetition_penalty: float32 `[]`, or None.
        settings: all others; those above are at their defaults in it.
        stop: tokens that end a sequence.
        new: the largest number of new tokens.
    """

    prompts: Any
    lengths: Any
    suppressed: Any
    suppressed_at_first: Any
    repetition_penalty: Any
    settings: GenerationConfig
    stop: tuple[int, ...]
    new: int

    @classmethod
    def of(
        cls, settings: GenerationConfig, prompts: np.ndarray, stop: tuple[int, ...], new: int, vocabulary: int
    ) -> "Rules | None":
        """The rules that there are; None if there are none.

        Args:
            settings: what the rules are.
            prompts, stop, new: as in the class.
            vocabulary: the number of tokens of the model.

        Raises:
            ValueError: a token of the settings is out of the vocabulary.
        """
        words = tuple(word for word in settings.bad_words if word not in [(token,) for token in stop])
        first, last = ([] if one is None else [one] for one in (settings.forced_first, settings.forced_last))
        named = {
            "suppressed": settings.suppressed,
            "suppressed_at_first": settings.suppressed_at_first,
            "bad_words": [token for word in words for token in word],
            "forced_first": first,
            "forced_last": last,
        }
        for name, tokens in named.items():
            wrong = [token for token in tokens if not 0 <= token < vocabulary]
            if wrong:
                raise ValueError(
                    f"`settings.{name}` must hold tokens in [0, {vocabulary}), the vocabulary of the model; got "
                    f"{wrong[0]}."
                )
        rest = GenerationConfig(
            no_repeat_ngram=settings.no_repeat_ngram,
            bad_words=words,
            min_length=settings.min_length if stop else 0,
            min_new_tokens=settings.min_new_tokens if stop else 0,
            forced_first=settings.forced_first,
            forced_last=settings.forced_last,
            renormalize=settings.renormalize,
        )
        penalty = None if settings.repetition_penalty == 1 else np.float32(settings.repetition_penalty)
        suppressed = _marks(settings.suppressed, vocabulary)
        at_first = _marks(settings.suppressed_at_first, vocabulary)
        if penalty is None and suppressed is None and at_first is None and rest == GenerationConfig():
            return None
        lengths = (prompts >= 0).sum(-1).astype(np.int32)
        return cls(prompts, lengths, suppressed, at_first, penalty, rest, stop, new)

    def __call__(self, scores: jax.Array, tokens: jax.Array, count: jax.Array) -> jax.Array:
        """Scores by these rules, -inf for tokens that must not come.

        Args:
            scores: logits or log probabilities `[batch, ..., vocabulary]`.
            tokens: the new tokens so far, `[batch, ..., new]`; later places hold anything.
            count: how many there are, int32 `[]`.
        """
        own, vocabulary, between = self.settings, scores.shape[-1], [1] * (tokens.ndim - 2)
        prompts = jnp.reshape(self.prompts, (len(self.prompts), *between, -1))
        prompts = jnp.broadcast_to(prompts, (*tokens.shape[:-1], prompts.shape[-1]))
        before = jnp.where(jnp.arange(tokens.shape[-1]) < count, tokens, -1)
        history, end = jnp.concatenate([prompts, before], -1), prompts.shape[-1] + count
        lengths = jnp.reshape(self.lengths, (-1, *between, 1)) + count
        stops = np.isin(np.arange(vocabulary), self.stop)

        if self.repetition_penalty is not None:
            penalized = jnp.where(scores < 0, scores * self.repetition_penalty, scores / self.repetition_penalty)
            scores = jnp.where(_present(history, vocabulary), penalized, scores)
        forbidden = jnp.zeros(scores.shape, bool)
        if own.no_repeat_ngram:
            forbidden |= _present(_would_repeat(history, end, own.no_repeat_ngram), vocabulary)
        for word in own.bad_words:
            *first, last = word
            comes = _ends_with(history, end, first)[..., None]
            forbidden |= comes & (jnp.arange(vocabulary) == last)
        if own.min_length:
            forbidden |= (lengths < own.min_length) & stops
        if own.min_new_tokens:
            forbidden |= (count < own.min_new_tokens) & stops
        scores = jnp.where(forbidden, -jnp.inf, scores)
        if own.forced_first is not None:
            scores = jnp.where(lengths == 1, _only(own.forced_first, vocabulary), scores)
        if own.forced_last is not None:
            scores = jnp.where(count == self.new - 1, _only(own.forced_last, vocabulary), scores)
        if self.suppressed is not None:
            scores = jnp.where(self.suppressed, -jnp.inf, scores)
        if self.suppressed_at_first is not None:
            forced = (jnp.reshape(self.lengths, (-1, *between, 1)) == 1) & (own.forced_first is not None)
            scores = jnp.where((count == forced) & self.suppressed_at_first, -jnp.inf, scores)
        return jax.nn.log_softmax(scores, -1) if own.renormalize else scores


def _marks(tokens: tuple[int, ...], vocabulary: int) -> np.ndarray | None:
    """Which tokens of the vocabulary are these; None if there are none."""
    return np.isin(np.arange(vocabulary), tokens) if tokens else None


def _only(token: int, vocabulary: int) -> np.ndarray:
    """Scores that leave one token."""
    return np.where(np.arange(vocabulary) == token, 0, -np.inf).astype(np.float32)


def _present(tokens: jax.Array, vocabulary: int) -> jax.Array:
    """Which tokens are among these: `[..., n]`, -1 for none -> booleans `[..., vocabulary]`."""
    flat = tokens.reshape(-1, tokens.shape[-1])
    place = jnp.where(flat < 0, vocabulary, flat)
    marks = jax.vmap(lambda row: jnp.zeros(vocabulary, bool).at[row].set(True, mode="drop"))(place)
    return marks.reshape(*tokens.shape[:-1], vocabulary)


def _last(history: jax.Array, end: jax.Array, count: int) -> jax.Array:
    """The last tokens before `end`: `[..., count]`, -1 before the beginning."""
    padded = jnp.pad(history, [(0, 0)] * (history.ndim - 1) + [(count, 0)], constant_values=-1)
    return jax.lax.dynamic_slice_in_dim(padded, end, count, -1)


def _would_repeat(history: jax.Array, end: jax.Array, n: int) -> jax.Array:
    """Tokens that would repeat an n-gram, else -1: the last of each n-gram whose other tokens end the history."""
    places = history.shape[-1] - n + 1
    if places < 1:
        return jnp.full((*history.shape[:-1], 1), -1)
    last = _last(history, end, n - 1)
    alike = jnp.ones((*history.shape[:-1], places), bool)
    for index in range(n - 1):
        one = history[..., index : index + places]
        alike &= (one == last[..., index : index + 1]) & (one >= 0)
    return jnp.where(alike, history[..., n - 1 :], -1)


def _ends_with(history: jax.Array, end: jax.Array, tokens: list[int]) -> jax.Array:
    """Whether the last tokens before `end` are these: booleans `[...]`."""
    return (_last(history, end, len(tokens)) == np.asarray(tokens, np.int32)).all(-1)
