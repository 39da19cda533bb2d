"""A mask says which (query, key) pairs may attend; masks combine by `&`, `|` and `~`."""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ..foundation.arrays import describe
from ..functions import Traced, trace
from ..pieces import Piece, constants, part, piece


class Mask(Piece, abc.ABC):
    """Who may attend: a boolean function of an absolute query position and an absolute key position.

    `allows` is the whole definition. It is written for one pair of positions, by elementwise operations, and is then
    evaluated on broadcast arrays (`query [..., 1, q, 1]`, `key [..., 1, 1, k]`, the mask's own arrays aligned to
    `[batch..., head, query, key]`), on scalars (to read its jaxpr), and, through that jaxpr, on intervals.
    """

    @abc.abstractmethod
    def allows(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """True where the query at position `query` may attend the key at position `key`."""

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
        from ..tiles.picture import picture_of_mask

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
    """A user's own function of two positions (see `of`)."""

    function: Traced
    captured: tuple[jax.Array, ...] = constants()

    def allows(self, query, key):
        return self.function(self.captured, query, key)


def of(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Mask:
    """The mask `function(query_position, key_position) -> bool`, from any JAX function of two integer scalars.

    Tiles that the function rules out are skipped: its jaxpr is read with intervals of positions.

    Args:
        function: takes two int32 scalars and returns one boolean. It may close over arrays.

    Raises:
        ValueError: `function` is not callable; it returns something that is not a boolean scalar.

    >>> import jattn
    >>> window = jattn.masks.of(lambda q, k: (k <= q) & (q - k < 300))
    """
    if not callable(function):
        raise ValueError(f"`function` must be a function of two positions; got {function!r}.")
    traced, captured, result = trace(function, jnp.int32, jnp.int32)
    if getattr(result, "dtype", None) != jnp.bool_ or result.shape != ():
        raise ValueError(
            "`function` must return one boolean for a pair of positions (an elementwise comparison); got "
            f"{result}. Scores that are numbers are `jattn.scores`."
        )
    return Function(traced, captured)


def as_mask(value: Any) -> Mask:
    """`value` itself if it is a mask; a function becomes `of(function)`."""
    if isinstance(value, Mask):
        return value
    if isinstance(value, type):
        made = f"an instance, `{value.__name__}(...)`" if issubclass(value, Mask) else "a mask"
        raise ValueError(f"`mask` must be {made}; got {describe(value)}.")
    if callable(value):
        return of(value)  # pyright: ignore[reportArgumentType]  (what it returns is checked by `of`)
    raise ValueError(
        f"`mask` must be a mask piece or a function of two positions; got {describe(value)}. "
        "A boolean array [batch..., heads, q_len, kv_len] is `jattn.masks.Dense(array)`."
    )
