"""The base class of masks, their boolean algebra (`&`, `|`, `~`), and masks from functions."""

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
"""A hint for arrays with one or two axes, which could mean several things; jattn does not guess which."""


_PAINTERS: list[Callable[..., str]] = []


def paints_masks(function: Callable[..., str]) -> Callable[..., str]:
    """Register the function behind `Mask.picture`.

    A picture shows a plan of tiles, and plans are made from masks. So the plan's module registers its function here,
    and masks import nothing from it.

    Args:
        function: takes the arguments of `Mask.picture`, the mask first.
    """
    _PAINTERS.append(function)
    return function


class Mask(Piece, abc.ABC):
    """Which (query, key) pairs may attend: a boolean function of two absolute token positions.

    To add a mask, subclass `Mask`, decorate the class with `@piece`, and implement `allows` with elementwise JAX
    operations. That one formula is the whole definition:

    - The dense mask is `allows` on broadcast positions (`query [..., 1, q, 1]`, `key [..., 1, 1, k]`). Array fields are
      aligned to `[batch..., head, query, key, own...]` beforehand, with size 1 on axes that they do not have, so plain
      broadcasting is enough.
    - The tile plan traces `allows` with scalars and evaluates its jaxpr with *intervals* of positions. The result says
      for a whole tile whether all, none or some of its pairs are allowed, so block sparsity needs no code of its own. A
      primitive without an interval rule gives "some": slower, never wrong.

    Fields are static Python values or arrays. An array field declares the axes it has: `number("head")` is an int, or
    an int array `[batch..., heads]`; `array("query")` is an array `[batch..., q_len]` (see `jattn.foundation.pieces`).

    >>> import jax.numpy as jnp, jattn
    >>> from jattn.foundation.pieces import number, piece
    >>> @piece
    ... class Every(jattn.masks.Mask):
    ...     "Every `step`-th key."
    ...
    ...     step: int | jnp.ndarray = number("head")
    ...
    ...     def allows(self, query, key):
    ...         return key % self.step == 0
    >>> print(jattn.masks.create(Every(2) & jattn.masks.Causal(), 3, 3)[0].astype(int))
    [[1 0 0]
     [1 0 0]
     [1 0 1]]
    """

    beyond = (
        "If tokens precede its grid, such as a class token, say how many: `jattn.masks.Shifted(mask, 1)`. If tokens "
        "follow it: `jattn.masks.Shifted(mask, 0)`. The grid allows them no pairs; add those that they may attend to "
        "by `|`."
    )
    """What to do about positions past the extent, for the error message."""

    @abc.abstractmethod
    def allows(self, query: jax.Array, key: jax.Array) -> jax.Array:
        """Whether the query at position `query` may attend to the key at position `key`.

        Args:
            query: int32 absolute positions of queries, scalar or broadcastable with `key`.
            key: int32 absolute positions of keys.

        Returns:
            Booleans of the broadcast shape.
        """

    def extent(self) -> tuple[int | None, int | None]:
        """The number of query and of key positions that the mask is defined for, counted from 0; None means no limit.

        A call with positions past the extent is refused. By default it is the smallest extent of the masks that this
        one is made of. Override it in a mask with a fixed size, such as a grid.
        """
        extents = [one.extent() for one in parts(self) if isinstance(one, Mask)]
        queries, keys = (
            [size for size in sizes if size is not None] for sizes in ([q for q, _ in extents], [k for _, k in extents])
        )
        return min(queries, default=None), min(keys, default=None)

    def picture(self, q_len: int, kv_len: int, query_positions: Any = None) -> str:
        """Draw the tiles that attention with this mask visits: `█` all pairs allowed, `▒` some, `·` none (skipped).

        Args:
            q_len: the number of queries.
            kv_len: the number of keys; their positions are `0, ..., kv_len - 1`.
            query_positions: integers `[q_len]`. By default `0, ..., q_len - 1`, if the lengths are equal or the mask
                does not depend on query positions.

        Raises:
            ValueError: the lengths differ and `query_positions` is needed but missing; an array of the mask is traced
                (inside `jit`) or has a shape that does not fit.

        >>> from jattn import masks
        >>> print(masks.SlidingWindow(1, 0).picture(4, 4))
        █···
        ██··
        ·██·
        ··██
        visited 7 of 16 tiles (43.8%), 7 of them full
        tiles of 1 query x 1 key
        """
        return _PAINTERS[-1](self, q_len, kv_len, query_positions)

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
    """Pairs that both masks allow: `left & right`."""

    left: Mask = part()
    right: Mask = part()

    def allows(self, query, key):
        return self.left.allows(query, key) & self.right.allows(query, key)


@piece
class Or(Mask):
    """Pairs that at least one of the masks allows: `left | right`."""

    left: Mask = part()
    right: Mask = part()

    def allows(self, query, key):
        return self.left.allows(query, key) | self.right.allows(query, key)


@piece
class Not(Mask):
    """Pairs that the mask does not allow: `~mask`."""

    mask: Mask = part()

    def allows(self, query, key):
        return ~self.mask.allows(query, key)


@piece
class Function(Mask):
    """A user's function of two positions, or of a batch index, a head index and two positions; made by `of`.

    `heads` and `examples` hold the head and batch indices. They are None if the function does not use them, or until a
    call fills them in.
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
    """A mask from any JAX function `(query_position, key_position) -> bool` of two integer scalars.

    A function of four arguments, `(batch, head, query_position, key_position) -> bool`, is FlexAttention's `mask_mod`
    (Dong et al. 2024, arXiv:2412.05496); replace `torch` by `jnp` in its body. It may index arrays as there, e.g.
    `table[head, q - k]` or `document[batch, q]`; NumPy arrays and lists work too. An index past the end of an array is
    clamped to the last entry; a negative index counts from the end. The function is traced once and its jaxpr is
    evaluated with intervals of positions, so tiles that it rules out are skipped.

    Indices refer to the whole arrays: `batch` to the call's batch axis, of which there must be exactly one, and `head`
    to the query heads, also under `jattn.parallel.Heads`. `jax.vmap` hides the mapped axis, and in your own
    `jax.shard_map` each device sees only its part. There a function that uses an unknown index is refused; pass `heads`
    or `examples`.

    Two functions that trace to the same computation compare equal and share one compilation.

    Args:
        function: takes int32 scalars and returns one boolean. It may close over arrays.
        heads: integers `[heads]`: the index of each query head of the call, if the call has only some of the heads.
        examples: integers `[batch...]`: the index of each batch element, if the call has only some of them.

    Raises:
        ValueError: `function` is not callable, takes a different number of arguments, or does not return one boolean;
            or, at the call, it uses an index that is unknown.

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
    """The conjunction of the masks. None restricts nothing; if all are None, so is the result.

    >>> from jattn import masks
    >>> restricted(None, masks.Causal()), restricted(None, None)
    (Causal(), None)
    """
    given = [as_mask(mask) for mask in masks if mask is not None]
    return functools.reduce(And, given) if given else None


def as_mask(value: Any) -> Mask:
    """Return a mask unchanged, and turn a function into `of(function)`.

    Raises:
        ValueError: anything else.
    """
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
    array = as_array(value)
    if len(getattr(array, "shape", ())) in (1, 2):
        remedy = FEW_AXES
    elif isinstance(array, (np.ndarray, jax.Array)) and jnp.issubdtype(array.dtype, jnp.floating):
        remedy = (
            "Numbers that are added to scores are `scores=jattn.scores.Bias(array)`, or, if they are 0 and very "
            "negative, `jattn.masks.Dense(array > -1)`."
        )
    raise ValueError(
        f"`mask` must be a mask piece, or a function `(query, key)` of positions or `(batch, head, query, key)`; "
        f"got {describe(value)}. {remedy}"
    )


def check_extent(mask: Mask, query_positions: Any, key_positions: Any) -> None:
    """Check that no known position is outside the grid, or the table, that a mask is made for."""
    for name, positions, size in zip(
        ("query_positions", "key_positions"), (query_positions, key_positions), mask.extent(), strict=True
    ):
        if size is not None and isinstance(positions, np.ndarray) and positions.size and positions.max() >= size:
            raise ValueError(
                f"`mask` is made for {size} positions, 0 to {size - 1}; the call has `{name}` up to {positions.max()}. "
                f"{mask.beyond}"
            )
