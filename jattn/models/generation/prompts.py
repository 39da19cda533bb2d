"""Prompts of different lengths, as one padded array."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...foundation.arrays import as_array, describe, dtype_of, known_values
from ..layers import checked_tokens


@dataclasses.dataclass(frozen=True)
class Prompts:
    """The prompts of a batch.

    Attributes:
        tokens: int32 `[batch, length]`.
        valid: booleans `[batch, length]`, False for padding; None if there is none.
        lengths: how many tokens each prompt has, `[batch]`.
    """

    tokens: np.ndarray
    valid: np.ndarray | None
    lengths: np.ndarray

    @classmethod
    def of(cls, tokens: Any, attention_mask: Any, vocabulary: int) -> "Prompts":
        """Prompts as the caller has them.

        Args:
            tokens: integers `[batch, length]`, or a sequence of sequences of integers, of any lengths.
            attention_mask: ones and zeros `[batch, length]`, 0 for padding on either side; None for none.
            vocabulary: tokens are below it.

        Raises:
            ValueError: they are something else; a prompt is empty; a token is out of the vocabulary.

        >>> prompts = Prompts.of([[3, 1, 4], [1]], None, vocabulary=5)
        >>> prompts.tokens.tolist(), prompts.lengths.tolist()
        ([[3, 1, 4], [1, 0, 0]], [3, 1])
        """
        tokens, attention_mask = in_one_array(tokens, attention_mask, "tokens", "attention_mask")
        array = as_array(tokens)
        if dtype_of(array) is None or array.ndim != 2:
            raise ValueError(
                "`tokens` must be integers [batch, length], or a list of lists of integers: one prompt is a batch of "
                f"one, `[prompt]`; got {describe(tokens)}."
            )
        if not array.shape[0]:
            raise ValueError(f"`tokens` must have at least one prompt; got shape {array.shape}.")
        if not array.shape[1]:
            raise ValueError(f"`tokens` must have at least one token in each prompt; got shape {array.shape}.")
        given = known_values(checked_tokens("tokens", array, vocabulary))
        valid = valid_of(attention_mask, array.shape, "attention_mask", "tokens")
        if given is None:
            raise ValueError("`tokens` must have known values: `generate` compiles on its own, outside of `jax.jit`.")
        lengths = np.full(len(given), given.shape[1]) if valid is None else valid.sum(-1)
        if not lengths.all():
            raise ValueError(
                "`tokens` must have at least one token in each prompt, such as a token that begins a text; got empty "
                f"prompts in the rows {np.flatnonzero(lengths == 0).tolist()}."
            )
        return cls(given.astype(np.int32), None if valid is None or valid.all() else valid, lengths)

    @property
    def on_the_right(self) -> np.ndarray:
        """The tokens with all padding on the left, int32 `[batch, length]`; -1 there."""
        if self.valid is None:
            return self.tokens
        order = np.argsort(self.valid, -1, kind="stable")
        return np.take_along_axis(np.where(self.valid, self.tokens, -1), order, -1).astype(np.int32)

    def repeated(self, times: int) -> "Prompts":
        """Each prompt several times, adjacent."""
        valid = None if self.valid is None else self.valid.repeat(times, 0)
        return Prompts(self.tokens.repeat(times, 0), valid, self.lengths.repeat(times))


def in_one_array(tokens: Any, mask: Any, name: str, mask_name: str) -> tuple[Any, Any]:
    """Sequences of any lengths, padded on the right, and their mask; an array, and its mask, as they are.

    Args:
        tokens: an array, or a sequence of sequences of integers.
        mask: ones and zeros for an array.
        name, mask_name: the names of both.

    Raises:
        ValueError: there is a mask of sequences; one of them is not of integers.
    """
    if dtype_of(tokens) is not None or not _is_ragged(tokens):
        return tokens, mask
    if mask is not None:
        raise ValueError(
            f"`{mask_name}` belongs to `{name}` in one array; lists have no padding. Leave it out, or pad."
        )
    return _padded(tokens, name)


def _is_ragged(tokens: Any) -> bool:
    """Whether these are several sequences."""
    return isinstance(tokens, Sequence) and any(np.ndim(one) or isinstance(one, Sequence) for one in tokens)


def _padded(prompts: Sequence[Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Prompts padded on the right, and which tokens are not padding.

    Raises:
        ValueError: a prompt is not a sequence of integers.
    """
    rows = []
    for index, prompt in enumerate(prompts):
        row = np.asarray(prompt)
        if row.ndim != 1 or (row.size and not np.issubdtype(row.dtype, np.integer)):
            raise ValueError(f"`{name}[{index}]` must be a list of integers; got {describe(prompt)}.")
        rows.append(row)
    longest = max(len(row) for row in rows)
    valid = np.arange(longest) < np.array([len(row) for row in rows])[:, None]
    padded = np.zeros(valid.shape, np.int64)
    for place, row in zip(padded, rows, strict=True):
        place[: len(row)] = row
    return padded, valid


def valid_of(mask: Any, shape: tuple[int, ...], name: str, of: str) -> np.ndarray | None:
    """Which tokens are not padding; None for all.

    Args:
        mask: ones and zeros of this shape, or None.
        shape: `[batch, length]`.
        name, of: the names of the mask, and of what it belongs to.

    Raises:
        ValueError: the mask is not of ones and zeros, or has another shape.
    """
    if mask is None:
        return None
    values = known_values(as_array(mask))
    if values is None or values.shape != shape or not np.isin(values, (0, 1)).all():
        raise ValueError(f"`{name}` must be ones and zeros of the shape {shape} of `{of}`; got {describe(mask)}.")
    return values != 0
