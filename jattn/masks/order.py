"""Masks by the order of positions: who is before whom, how far, and in which step.

A number of these masks is a Python integer (static) or an integer array with the axes `[batch..., head]`, a leaf:
new values never retrace.
"""

import jax.numpy as jnp

from ..foundation.pieces import number, piece
from .arguments import LARGEST, Integers, integers, set_field
from .base import Mask


@piece
class Causal(Mask):
    """No future: `k <= q`. Positions are absolute, so the same mask serves training, decoding and a shard.

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
    """Keys near the query: `q - left <= k <= q + right`, which are `left + 1 + right` keys.

    `right` alone controls access to future keys: `SlidingWindow(left, 0)` is causal by itself, `SlidingWindow(left)`
    is open to the right. A side of -1 leaves the query's own key out too, so `SlidingWindow(-1, 0)`, a window of 0
    keys, allows nothing.

    How a window of `w` is counted elsewhere:

    | where | here |
    |---|---|
    | Hugging Face, `sliding_window=w` of a causal model | `SlidingWindow(w - 1, 0)`: `w` keys, the own one included |
    | Hugging Face, `sliding_window=w` of a bidirectional model | `SlidingWindow(w, w)` |
    | flash-attn, `window_size=(left, right)` | `SlidingWindow(left, right)`, with None for its -1 |
    | xformers, `LocalAttentionFromBottomRightMask(left, right)` | `SlidingWindow(left, right)` |
    | xformers, `make_local_attention(w)` of a causal bias | `SlidingWindow(w - 1, 0)` |
    | `jax.nn`, `local_window_size=(left, right)` | `SlidingWindow(left, right)` |

    flash-attn and xformers align the last query with the last key (`query_positions=numpy.arange(kv_len - q_len,
    kv_len)`), `jax.nn` the first with the first.

    Args:
        left: how many keys before the query, `number("head")`, at least -1; None for all of them.
        right: how many keys after the query, `number("head")`, at least -1; None for all of them.

    Raises:
        ValueError: `left` or `right` is less than -1 or not an integer; both are -1.

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
        # Distances, not `query + right`, which overflows where an enormous `right` stands for no limit.
        near = jnp.full_like(query, True, dtype=bool)
        if self.left is not None:
            near = near & (query - key <= self.left)
        if self.right is not None:
            near = near & (key - query <= self.right)
        if self.left is not None and self.right is not None:
            left, right = self.left, self.right
            if not isinstance(left, int) or not isinstance(right, int) or left < 0 or right < 0:
                # Whether there is any key, for whole tiles: on the diagonal each side alone allows some pairs.
                near = near & ((left > 0) | (right > 0) | ((left >= 0) & (right >= 0)))
        return near


@piece
class Dilated(Mask):
    """A window with holes: `(q - k) mod dilation = 0` and `|q - k| <= window * dilation`.

    So `2 * window + 1` keys, `dilation` apart, centerd on the query; `& Causal()` for the past half. Longformer
    (arXiv:2004.05150), where each head has a dilation of its own.

    Args:
        window: how many keys on either side, `number("head")`.
        dilation: the step between them, `number("head")`, at least 1.

    Raises:
        ValueError: not integers, `window` negative, `dilation` below 1, or their product too large for int32 (not
            seen where one of them is an array).

    >>> import jax.numpy as jnp
    >>> from jattn import masks
    >>> print(masks.Dilated(1, 2).allows(jnp.arange(5)[:, None], jnp.arange(5)).astype(int))
    [[1 0 1 0 0]
     [0 1 0 1 0]
     [1 0 1 0 1]
     [0 1 0 1 0]
     [0 0 1 0 1]]
    """

    window: Integers = number("head")
    dilation: Integers = number("head")

    def __post_init__(self):
        set_field(self, "window", integers("window", self.window, least=0, axes="head"))
        set_field(self, "dilation", integers("dilation", self.dilation, least=1, axes="head"))
        if isinstance(self.window, int) and isinstance(self.dilation, int) and self.window * self.dilation > LARGEST:
            raise ValueError(
                f"`window * dilation` must be at most {LARGEST} (positions are int32); got {self.window} * "
                f"{self.dilation}. For keys at every distance use `Strided(dilation)`."
            )

    def allows(self, query, key):
        distance = query - key
        return (distance % self.dilation == 0) & (jnp.abs(distance) <= self.window * self.dilation)


@piece
class Strided(Mask):
    """Keys a multiple of `stride` away: `(q - k) mod stride = 0`, in the past and in the future.

    The column part of the Sparse Transformer's strided attention (arXiv:1904.10509), which is
    `Causal() & (SlidingWindow(stride, 0) | Strided(stride))`. As the paper writes it, its window has `stride + 1`
    keys; its code has `stride`, self included, which is `SlidingWindow(stride - 1, 0)`.

    Args:
        stride: `number("head")`, at least 1.

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
    """A prefix that everyone sees, causal behind it: `k <= q` or `k < length` (prefix-LM, arXiv:1910.10683).

    Args:
        length: of the prefix, a Python integer or an integer array `[batch...]`, one for each sequence.

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
    """The first keys, for every query: `k < count`. With a window it is `SlidingWindow(left, 0) | Sinks(count)`.

    Not causal by itself: the queries among the first `count` see all of them, unless `& Causal()`. Attention sinks
    as tokens (arXiv:2309.17453); the learned logit without a token is `normalizers.Softmax(sink=...)`.

    Args:
        count: how many keys, `number("head")`.

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
