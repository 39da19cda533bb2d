"""A mask says which (query, key) pairs may attend; masks combine by `&`, `|` and `~`."""

import abc
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..foundation.arrays import as_array, describe
from ..foundation.functions import Traced, fill_indices, given_indices, indices_of, takes_indices, trace
from ..foundation.pieces import Piece, array, constants, part, parts, piece

FEW_AXES = (
    "Ones and zeros [batch, kv_len], one for each key, are `jattn.masks.from_attention_mask(array)`; ids of packed "
    "sequences [batch, length] are `jattn.masks.SameSegment(array)`, positions that begin again in each "
    "`jattn.masks.from_position_ids(array)`, and bounds of sequences [sequences + 1] "
    "`jattn.masks.from_cu_seqlens(array)`; booleans [q_len, kv_len] are `jattn.masks.Dense(array[None])`."
)
"""What arrays of one or two axes may stand for, which is not guessed."""


class Mask(Piece, abc.ABC):
    """Who may attend: a boolean function of an absolute query position and an absolute key position.

    `allows` is the whole definition. It is written for one pair of positions, by elementwise operations, and is then
    evaluated on broadcast arrays (`query [..., 1, q, 1]`, `key [..., 1, 1, k]`, the mask's own arrays aligned to
    `[batch..., head, query, key]`), on scalars (to read its jaxpr), and, through that jaxpr, on intervals.
    """

    @abc.abstractmethod
    def allows(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """True where the query at position `query` may attend the key at position `key`."""

    def extent(self) -> tuple[int | None, int | None]:
        """How many query and key positions the mask is made for, from 0 on; None for any number.

        A call with positions beyond is refused. A mask joined of others has the smallest of theirs.
        """
        extents = [one.extent() for one in parts(self) if isinstance(one, Mask)]
        queries, keys = (
            [size for size in sizes if size is not None] for sizes in ([q for q, _ in extents], [k for _, k in extents])
        )
        return min(queries, default=None), min(keys, default=None)

    def picture(self, q_len: int, kv_len: int, query_positions: Any = None) -> str:
        """The tiles that attention with this mask visits, as text: `█` every pair attends, `▒` some, `·` none.

        Args:
            q_len: number of queries.
            kv_len: number of keys, at the positions `0, ..., kv_len - 1`.
            query_positions: `[q_len]`; by default `0, ..., q_len - 1`, if the lengths are equal or the mask does not
                look at them.

        Raises:
            ValueError: the lengths differ and `query_positions` is needed; an array of the mask is not known yet
                (inside `jit`), or has a shape that does not fit.

        >>> from jattn import masks
        >>> print(masks.SlidingWindow(1, 0).picture(4, 4))
        █···
        ██··
        ·██·
        ··██
        visited 7 of 16 tiles (43.8%), 7 of them full
        tiles of 1 queries x 1 keys
        """
        # Here, not above: tiles are a later layer, which reads masks. Only this method, for people, looks ahead.
        from ..ops.attention.plan.picture import picture_of_mask

        return picture_of_mask(self, q_len, kv_len, query_positions)

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, as_mask(other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, as_mask(other))

    def __rand__(self, other: "Mask") -> "Mask":
        return And(as_mask(other), self)

    def __ror__(self, other: "Mask") -> "Mask":
        return Or(as_mask(other), self)

    def __invert__(self) -> "Mask":
        return Not(self)


@piece
class And(Mask):
    """Pairs that both masks allow."""

    left: Mask = part()
    right: Mask = part()

    def allows(self, query, key):
        return self.left.allows(query, key) & self.right.allows(query, key)


@piece
class Or(Mask):
    """Pairs that either mask allows."""

    left: Mask = part()
    right: Mask = part()

    def allows(self, query, key):
        return self.left.allows(query, key) | self.right.allows(query, key)


@piece
class Not(Mask):
    """Pairs that the mask does not allow."""

    mask: Mask = part()

    def allows(self, query, key):
        return ~self.mask.allows(query, key)


@piece
class Function(Mask):
    """A user's own function of two positions, or of a batch index, a head index and two positions (see `of`).

    The indices are None where the function does not read them, and until a call fills them in.
    """

    function: Traced
    captured: tuple[jax.Array, ...] = constants()
    heads: jax.Array | np.ndarray | None = array("head", default=None)
    examples: jax.Array | np.ndarray | None = array(default=None)

    def indexed(self, batch, q_heads, split=()):
        return fill_indices(self, batch, q_heads, split, reader="masks.of")

    def allows(self, query, key):
        return self.function(self.captured, *indices_of(self), query, key)


def of(function: Callable[..., jax.Array], *, heads: Any = None, examples: Any = None) -> Mask:
    """The mask `function(query_position, key_position) -> bool`, from any JAX function of two integer scalars.

    With four arguments it is `function(batch, head, query_position, key_position)`, the `mask_mod` of FlexAttention
    (Dong et al. 2024, arXiv:2412.05496), whose lines can be copied with `jnp` for `torch`. Arrays are indexed as there,
    `table[head, q - k]` or `document[batch, q]`, also NumPy arrays and lists. An index beyond an array is moved to its
    end; a negative one counts from there. Tiles that the function rules out are skipped: its jaxpr is read with
    intervals of positions.

    The indices are those of the whole arrays: `batch` along the batch axis of the call, which must be one, and `head`
    of the query heads, also with `jattn.parallel.Heads`. Under `jax.vmap` the mapped axis is not seen, and inside a
    `jax.shard_map` of your own each device sees a part: a function that reads an index which is not known is refused,
    unless the index is given.

    Two functions that do the same are equal, and compiled once, wherever they are written.

    Args:
        function: takes int32 scalars and returns one boolean. It may close over arrays.
        heads: integers `[heads]`, the index of each query head of the call, if these are not all heads.
        examples: integers `[batch...]`, the index of each batch element of the call, if these are not all.

    Raises:
        ValueError: `function` is not callable, takes another number of arguments, or returns something that is not a
            boolean scalar; at the call, an index that is not known.

    >>> import jax.numpy as jnp, jattn
    >>> window = jattn.masks.of(lambda q, k: (k <= q) & (q - k < 300))
    >>> document = jnp.array([[0, 0, 1], [0, 1, 1]])
    >>> packed = jattn.masks.of(lambda b, h, q, k: document[b, q] == document[b, k])
    """
    if not callable(function):
        raise ValueError(f"`function` must be a function of two positions; got {function!r}.")
    indexed = takes_indices(function, 2, "(query, key) or (batch, head, query, key)")
    traced, captured, result = trace(function, *[jnp.int32] * (4 if indexed else 2))
    if getattr(result, "dtype", None) != jnp.bool_ or result.shape != ():
        raise ValueError(
            "`function` must return one boolean for a pair of positions (an elementwise comparison); got "
            f"{result}. Scores that are numbers are `jattn.scores`."
        )
    return Function(traced, captured, **given_indices(traced, heads, examples))


def restricted(*masks: Any) -> Mask | None:
    """What all of the masks allow; None among them restricts nothing, and so does no mask at all.

    >>> from jattn import masks
    >>> restricted(None, masks.Causal()), restricted(None, None)
    (Causal(), None)
    """
    given = [as_mask(mask) for mask in masks if mask is not None]
    return functools.reduce(And, given) if given else None


def as_mask(value: Any) -> Mask:
    """`value` itself if it is a mask; a function becomes `of(function)`."""
    if isinstance(value, Mask):
        return value
    if isinstance(value, type):
        made = f"an instance, `{value.__name__}(...)`" if issubclass(value, Mask) else "a mask"
        raise ValueError(f"`mask` must be {made}; got {describe(value)}.")
    if callable(value):
        return of(value)  # pyright: ignore[reportArgumentType]  (what it returns is checked by `of`)
    remedy = "A boolean array [batch..., heads, q_len, kv_len] is `jattn.masks.Dense(array)`."
    if isinstance(value, (tuple, list)) and any(isinstance(one, Mask) for one in value):
        remedy = "Masks are joined by `&` or `|`."
    if len(getattr(as_array(value), "shape", ())) in (1, 2):
        remedy = FEW_AXES
    raise ValueError(
        f"`mask` must be a mask piece, or a function `(query, key)` of positions or `(batch, head, query, key)`; "
        f"got {describe(value)}. {remedy}"
    )
