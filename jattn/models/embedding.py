"""A table of vectors, one for each token, position or type."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..foundation.numerics import widen


class Embedding(nnx.Embed):
    """y = E[tokens], as `nnx.Embed`; the gradient of a row of E, summed over its tokens, is summed in float32.

    Flax converts the table to `dtype` first, so in bfloat16 that sum loses small terms: if 1,000 tokens read a row, its
    gradient stops growing long before the last. It is also slow on a GPU, which adds bfloat16 to memory by
    compare-and-swap.

    Arguments and methods as in `nnx.Embed`: integers `[...]` from 0 to `num_embeddings` - 1 give `[..., features]`.

    >>> import jax.numpy as jnp
    >>> from flax import nnx
    >>> from jattn.models.embedding import Embedding
    >>> Embedding(5, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))(jnp.array([[0, 4]])).shape
    (1, 2, 3)
    """

    def __call__(self, inputs: jax.Array, out_sharding=None) -> jax.Array:
        # Flax splits the result as `out_sharding` says, and broadcasts a table of one row.
        if out_sharding is not None:
            return super().__call__(inputs, out_sharding)
        # XLA moves the conversion behind the gather, so the table is never converted as a whole.
        table = widen(self.embedding[...])
        if self.num_embeddings == 1:
            return jnp.broadcast_to(table, (*inputs.shape, self.features)).astype(self.dtype)
        return jnp.take(table, inputs, axis=0).astype(self.dtype)


def head_of(
    features: int, vocabulary: int, *, tied: bool, kernel_init: Any = nnx.initializers.lecun_normal(), **options: Any
) -> nnx.Linear | None:
    """The head of a language model; None if it is the embedding.

    Args:
        features, vocabulary: sizes.
        tied: whether it is the embedding.
        kernel_init: the initializer.
        options: `dtype`, `param_dtype` and `rngs`.
    """
    return None if tied else nnx.Linear(features, vocabulary, use_bias=False, kernel_init=kernel_init, **options)


def logits_of(hidden: jax.Array, embedding: Embedding, head: nnx.Linear | None) -> jax.Array:
    """The logits of tokens, `[..., vocabulary]`: the head of hidden states, or these times Eᵀ if there is no head."""
    return embedding.attend(hidden) if head is None else head(hidden)
