"""What a recording keeps of one call: weights, and what their scores are made of.

A similarity turns the caller's query and key into the arrays whose products are the scores,

    scores = scale · q̂ k̂ᵀ        then `scores=`, the mask, the normalizer and dropout.

Kept are `q = scale · q̂` and `k = k̂`, in the dtype of the scores. So `softmax(q kᵀ | mask)` are the weights unless
something else is done to the scores; `besides` names what.
"""

import dataclasses

import jax
import jax.numpy as jnp

from ....foundation.numerics import accumulation_dtype
from ....normalizers import Softmax
from ....scores import Bias
from ..call import Call, Pieces
from ..implementations.reference import applied_weights
from ..select import select
from ..split import Arrays, split_of_call
from ..tile import allowed_pairs
from .choice import Choice


@dataclasses.dataclass(frozen=True)
class Kept:
    """A function of a call: the chosen arrays of some heads and queries, by name. Hashable, as `run_call` requires.

    Attributes:
        heads, queries: indices; None for all.
        keep: some of `choice.KEPT`.
        pairs: whether to return which pairs may attend, as booleans.
        bits: the layout of these pairs as bits: "weights", or "pairs" if they are the same for all heads; or None.
        alone: whether query heads are split over devices otherwise than key heads; the key is then repeated for each
            query head, so that a device keeps the keys of its own heads.
    """

    heads: tuple[int, ...] | None
    queries: tuple[int, ...] | None
    keep: tuple[str, ...]
    pairs: bool
    bits: str | None
    alone: bool

    @property
    def results(self) -> dict[str, str]:
        """For each array the name of its layout."""
        found = {name: name for name in self.keep}
        if self.alone and "key" in found:
            found["key"] = "keys of heads"
        if self.bits is not None:
            found["bits"] = self.bits
        return found | ({"allowed": "weights"} if self.pairs else {})

    def __call__(self, call: Call, query: jax.Array, key: jax.Array, value: jax.Array) -> dict[str, jax.Array]:
        del value
        call, query, key = select(call, query, key, heads=self.heads, queries=self.queries)
        found = {}
        if "weights" in self.keep:
            found["weights"], allowed = applied_weights(call, query, key)
            if self.pairs:
                found["allowed"] = allowed
        if self.bits is not None:
            shape = (*call.batch, call.q_heads if self.bits == "weights" else 1, call.q_len, call.kv_len)
            allowed = allowed_pairs(call.pieces)
            found["bits"] = jnp.packbits(jnp.broadcast_to(True if allowed is None else allowed, shape), axis=-1)
        dtype = accumulation_dtype(query, key)
        if "query" in self.keep:
            found["query"] = query.astype(dtype) * call.scale
        if "key" in self.keep:
            group = call.q_heads // call.kv_heads if self.alone else 1
            found["key"] = jnp.repeat(key.astype(dtype), group, axis=-2)
        return found


def kept_of(choice: Choice, arrays: Arrays, call: Call | None, pairs: bool) -> Kept:
    """The function for a call with these arrays.

    Args:
        choice: what to keep.
        arrays: query, key and value.
        call: the whole call, if a query or key is kept.
        pairs: as in `Kept`.
    """
    split = split_of_call(arrays, choice.heads is not None)
    alone = split is not None and split.over("head") != split.over("key head")
    bits = None
    if call is not None and call.pieces.mask is not None:
        like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), call.pieces)
        shape = jax.eval_shape(allowed_pairs, like).shape
        bits = "weights" if len(shape) > 2 and shape[-3] > 1 else "pairs"
    return Kept(choice.heads, choice.queries, choice.keep, pairs, bits, alone)


def head_major(array: jax.Array) -> jax.Array:
    """`[..., length, heads, features]` -> `[..., heads, length, features]`."""
    return jnp.swapaxes(array, -3, -2)


def besides(call: Call, pieces: Pieces) -> tuple[str, ...]:
    """What makes the weights of a call besides softmax(q kᵀ | mask): names of pieces, in the order of their effect.

    Args:
        call: the call.
        pieces: its pieces as the caller gave them.
    """
    given = pieces.checked()
    normalizer, similarity = given.normalizer, given.similarity
    after = len(given.scores) + len(normalizer.extra_scores())
    own = list(call.pieces.scores[: len(call.pieces.scores) - after])
    if similarity.rewrites_key:
        own.pop()  # marks keys that are not finite, and is 0 elsewhere
    own = [one for one in own if not (isinstance(one, Bias) and one.values.shape[-1] == 1)]  # the same for all keys
    found = [] if similarity.is_dot and not own else [type(similarity).__name__]
    found += [type(one).__name__ for one in given.scores]
    if type(normalizer) is not Softmax:
        found.append(type(normalizer).__name__)
    elif normalizer.sink is not None or normalizer.query_sink is not None:
        found.append("Softmax with a sink")
    return (*found, *(["Dropout"] if given.dropout is not None else []))
