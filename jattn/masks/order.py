"""Masks defined by the order and distance of positions: causal, windowed, dilated, strided, with a prefix or sinks.

The numeric parameters of these masks are Python ints (static) or int arrays `[batch..., heads]` (pytree leaves).
Changing the values of an array never retraces.
"""

import jax.numpy as jnp

from ..foundation.fields import LARGEST, Integers, integers, set_field
from ..foundation.pieces import number, piece
from .base import Mask


@piece
class Causal(Mask):
    """Causal attention: `k <= q`. Positions are absolute, so the same mask serves training, decoding and shards.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Causal().allows(jnp.arange(3)[:, None], jnp.arange(3)).astype(int))
    [[1 0 0]
     [1 1 0]
     [1 1 1]]
    """

    def allows(self, query, key):
        return key <= query


@piece
class SlidingWindow(Mask):
    """A window of `left + 1 + right` keys around the query: `q - left <= k <= q + right`.

    `right` alone controls access to future keys: `SlidingWindow(left, 0)` is causal by itself, while
    `SlidingWindow(left)` sees all future keys. A side of -1 excludes the query's own position too, so
    `SlidingWindow(-1, 0)` is a window of 0 keys and allows nothing.

    `jattn/masks/README.md` has a table that translates the window arguments of other libraries.

    Args:
        left: the number of keys before the query, at least -1: an int, or an int array `[batch..., heads]`. None means
            all.
        right: the number of keys after the query, likewise.

    Raises:
        ValueError: `left` or `right` is less than -1 or not an integer, or both are -1.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.SlidingWindow(1, 0).allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 0 0 0]
     [1 1 0 0]
     [0 1 1 0]
     [0 0 1 1]]
    """

    left: Integers | None = number("head", default=None)
    right: Integers | None = number("head", default=None)

    def __post_init__(self):
        for name in ("left", "right"):
            if getattr(self, name) is not None:
                set_field(self, name, integers(name, getattr(self, name), least=-1, axes="head"))
        if isinstance(self.left, int) and isinstance(self.right, int) and self.left + 1 + self.right < 0:
            raise ValueError(
                f"`left` and `right` must leave a window of at least 0 keys, left + 1 + right; got {self.left} and "
                f"{self.right}. All keys on a side (flash-attn's -1) are None here."
            )

    def allows(self, query, key):
        # Compare distances: `query + right` would overflow for a huge `right` that stands for no limit.
        near = jnp.full_like(query, True, dtype=bool)
        if self.left is not None:
            near = near & (query - key <= self.left)
        if self.right is not None:
            near = near & (key - query <= self.right)
        if self.left is not None and self.right is not None:
            left, right = self.left, self.right
            if not isinstance(left, int) or not isinstance(right, int) or left < 0 or right < 0:
                # Lets the plan drop tiles of an empty window: on the diagonal each side alone allows some pairs.
                near = near & ((left > 0) | (right > 0) | ((left >= 0) & (right >= 0)))
        return near


@piece
class Dilated(Mask):
    """A dilated window: `(q - k) % dilation == 0` and `|q - k| <= reach * dilation` (Longformer, arXiv:2004.05150).

    That is `2 * reach + 1` keys, `dilation` apart, centered on the query. `& Causal()` keeps the past half. Longformer
    gives every head its own dilation: pass an array.

    Args:
        reach: the number of keys on each side: an int, or an int array `[batch..., heads]`.
        dilation: the distance between keys, at least 1: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: an argument is not an integer, `reach` is negative, `dilation` is below 1, or their product
            overflows int32 (checked only if both are Python ints).

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Dilated(1, 2).allows(jnp.arange(5)[:, None], jnp.arange(5)).astype(int))
    [[1 0 1 0 0]
     [0 1 0 1 0]
     [1 0 1 0 1]
     [0 1 0 1 0]
     [0 0 1 0 1]]
    """

    reach: Integers = number("head")
    dilation: Integers = number("head")

    def __post_init__(self):
        set_field(self, "reach", integers("reach", self.reach, least=0, axes="head"))
        set_field(self, "dilation", integers("dilation", self.dilation, least=1, axes="head"))
        if isinstance(self.reach, int) and isinstance(self.dilation, int) and self.reach * self.dilation > LARGEST:
            raise ValueError(
                f"`reach * dilation` must be at most {LARGEST} (positions are int32); got {self.reach} * "
                f"{self.dilation}. For keys at every distance use `Strided(dilation)`."
            )

    def allows(self, query, key):
        distance = query - key
        return (distance % self.dilation == 0) & (jnp.abs(distance) <= self.reach * self.dilation)


@piece
class Strided(Mask):
    """Keys at a distance that is a multiple of `stride`, past and future: `(q - k) % stride == 0`.

    The Sparse Transformer's strided pattern (Child et al. 2019, arXiv:1904.10509) is
    `Causal() & (SlidingWindow(stride, 0) | Strided(stride))`. That follows the paper, whose window has `stride + 1`
    keys; the authors' code has `stride` including the query's own, which is `SlidingWindow(stride - 1, 0)`.

    Args:
        stride: at least 1: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: `stride` is not an integer of at least 1.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> mask = masks.Strided(2) & masks.Causal()
    >>> print(mask.allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 0 0 0]
     [0 1 0 0]
     [1 0 1 0]
     [0 1 0 1]]
    """

    stride: Integers = number("head")

    def __post_init__(self):
        set_field(self, "stride", integers("stride", self.stride, least=1, axes="head"))

    def allows(self, query, key):
        return (query - key) % self.stride == 0


@piece
class Prefix(Mask):
    """Prefix LM: every query sees the prefix, and the rest is causal: `k <= q` or `k < length` (arXiv:1910.10683).

    Args:
        length: the prefix length: an int, or an int array `[batch...]` with one per sequence.

    Raises:
        ValueError: `length` is negative or not an integer.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Prefix(2).allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 1 0 0]
     [1 1 0 0]
     [1 1 1 0]
     [1 1 1 1]]
    """

    length: Integers = number()

    def __post_init__(self):
        set_field(self, "length", integers("length", self.length, least=0))

    def allows(self, query, key):
        return (key <= query) | (key < self.length)


@piece
class Sinks(Mask):
    """Attention sinks: every query sees the first `count` keys, `k < count` (StreamingLLM, arXiv:2309.17453).

    StreamingLLM itself is `Causal() & (SlidingWindow(left, 0) | Sinks(count))`. `Sinks` alone is not causal: the first
    `count` queries see all of the first `count` keys. For a learned sink logit without a token, see
    `normalizers.Softmax(sink=...)`.

    Args:
        count: the number of sink keys: an int, or an int array `[batch..., heads]`.

    Raises:
        ValueError: `count` is negative or not an integer.

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> mask = masks.Causal() & (masks.SlidingWindow(1, 0) | masks.Sinks(1))
    >>> print(mask.allows(jnp.arange(4)[:, None], jnp.arange(4)).astype(int))
    [[1 0 0 0]
     [1 1 0 0]
     [1 1 1 0]
     [1 0 1 1]]
    """

    count: Integers = number("head")

    def __post_init__(self):
        set_field(self, "count", integers("count", self.count, least=0, axes="head"))

    def allows(self, query, key):
        del query
        return key < self.count
