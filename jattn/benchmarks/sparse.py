"""The rows on sparse patterns: time and memory as sequences grow."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import masks
from ..foundation.pieces import align
from ..ops.attention.api import attention
from ..ops.attention.explain import explain_calls
from ..ops.attention.implementations.tiled import Tiled
from ..variants.sparse import bigbird_mask, longformer_mask, random_blocks, strided_attention
from .cases import LENGTH, Bar, Memory, Speed
from .sides import Shape, Side, gradient_temporaries, jax_run

INPUTS = 4
"""The limit on the gradient's temporaries, as a multiple of the bytes of queries, keys and values."""


@dataclasses.dataclass(frozen=True)
class Pattern:
    """A sparse pattern for any length.

    Attributes:
        name: the pattern's name.
        attend: from the shape, a function `attend(query, key, value)` that skips tiles.
        mask: from the shape, the pattern as a mask.
    """

    name: str
    attend: Callable[[Shape], Callable[..., jax.Array]]
    mask: Callable[[Shape], Any]

    def ratio(self, shape: Shape) -> float:
        """Pairs in the visited tiles, relative to those that causal attention visits."""
        return _pairs(shape, self.attend(shape)) / _pairs(shape, functools.partial(attention, mask=masks.Causal()))


def side(pattern: Pattern) -> Side:
    """jattn with a pattern."""
    return Side(
        "jattn",
        lambda shape: jax_run(pattern.attend(shape), shape, backward=False),
        lambda shape: gradient_temporaries(pattern.attend(shape), shape),
    )


def dense_side(pattern: Pattern, shape: Shape) -> Side:
    """`jax.nn.dot_product_attention` with a dense mask; missing if its scores do not fit in memory."""
    pairs = shape.batch * shape.q_heads * shape.length**2
    needed = (2 * 4 + 1) * pairs  # scores and their softmax, float32; the mask

    def attend(query, key, value, allowed):
        return jax.nn.dot_product_attention(query, key, value, mask=allowed)

    def allowed(shape: Shape) -> jax.Array:
        at = jnp.arange(shape.length)
        sizes = {"head": shape.q_heads, "query": shape.length, "key": shape.length}
        mask = align(pattern.mask(shape), (shape.batch,), sizes)
        found = jax.jit(lambda: mask.allows(at[:, None], at))()
        return found.reshape(*[1] * (4 - found.ndim), *found.shape)

    def missing() -> str | None:
        available = _free_bytes()
        if needed <= available:
            return None
        return f"scores, softmax and mask take {needed / 2**30:.0f} GiB, {available / 2**30:.0f} are free"

    return Side(
        "jax.nn, dense mask",
        lambda shape: jax_run(attend, shape, allowed(shape), backward=False),
        lambda shape: gradient_temporaries(
            attend, shape, jax.ShapeDtypeStruct((1, 1, shape.length, shape.length), "bool")
        ),
        missing,
    )


def _free_bytes() -> int:
    """Available memory of this machine; 8 GiB if it does not say."""
    try:
        found = re.search(r"MemAvailable: +(\d+) kB", Path("/proc/meminfo").read_text(encoding="ascii"))
    except OSError:
        found = None
    return int(found[1]) * 2**10 if found else 8 * 2**30


def causal_side() -> Side:
    """jattn with plain causal attention."""
    attend = functools.partial(attention, mask=masks.Causal())
    return Side(
        "causal",
        lambda shape: jax_run(attend, shape, backward=False),
        lambda shape: gradient_temporaries(attend, shape),
    )


def _pairs(shape: Shape, attend: Callable[..., jax.Array]) -> float:
    """Pairs in the visited tiles, averaged over heads."""
    array = jax.ShapeDtypeStruct(shape.query(), "float32")
    plans = [each.plan for each in explain_calls(attend, array, array, array)]
    return sum(plan.counts()[0] * plan.q_tile * plan.k_tile / plan.states.shape[-3] for plan in plans)


def _by_mask(name: str, mask: Callable[[Shape], Any], tiles: Tiled | None) -> Pattern:
    return Pattern(
        name,
        lambda shape: functools.partial(attention, mask=mask(shape), implementation=tiles),
        mask,
    )


def _longformer(shape: Shape) -> Any:
    return longformer_mask(256, global_tokens=[0], length=shape.length)


def _bigbird(shape: Shape) -> Any:
    return bigbird_mask(shape.length, 64, random_blocks(shape.length, 64, heads=shape.q_heads, count=3, seed=0))


def _strided() -> Pattern:
    tiles = Tiled(128, 128)

    def stride(shape: Shape) -> int:
        return int(np.sqrt(shape.length))

    def mask(shape: Shape) -> Any:
        return masks.Causal() & (masks.SlidingWindow(stride(shape) - 1, 0) | masks.Strided(stride(shape)))

    def attend(shape: Shape) -> Callable[..., jax.Array]:
        return functools.partial(strided_attention, stride=stride(shape), implementation=tiles)

    return Pattern("strided", attend, mask)


PATTERNS = (
    _by_mask("Longformer", _longformer, Tiled(64, 64)),
    _by_mask("BigBird", _bigbird, Tiled(64, 64)),
    _strided(),
)
"""Longformer: a window of 256 on each side and one global token. BigBird: blocks of 64, three random ones per head.
Strided: stride √length.
"""


def sparse(length: int = LENGTH, long: int = 16 * LENGTH) -> tuple[Speed | Memory, ...]:
    """The rows on sparse patterns, at lengths from `length` to `long` in steps of a factor of four.

    Args:
        length: the shortest length.
        long: the longest length.
    """
    rows: list[Speed | Memory] = []
    for pattern in PATTERNS:
        ours, name = side(pattern), pattern.name.lower()
        size = length
        while size <= long:
            shape = Shape("Transformer base", size, q_heads=8, kv_heads=8, dim=64)
            tiles = f"{pattern.name}, {100 * pattern.ratio(shape):.0f}% of the causal pairs visited"
            rounds = 9 if size <= 4096 else 3
            for key, other in (("causal", causal_side()), ("jax", dense_side(pattern, shape))):
                rows.append(Speed(f"{name}-{key}-{size}", tiles, shape, ours, other, Bar(1.0), rounds=rounds))
            shapes = tuple(dataclasses.replace(shape, length=size // part) for part in (4, 2, 1))
            what = f"{pattern.name}, temporaries of the compiled gradient"
            bar = Bar(INPUTS * 3 * math.prod(shape.query()) * 4 / 2**20, True)
            rows.append(Memory(f"{name}-memory-{size}", what, shapes, ours, other, bar))
            size *= 4
    return tuple(rows)
