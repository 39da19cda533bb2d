"""The rows of the benchmark, as data: what is compared, at which shape, and the bar."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from .. import masks, scores
from . import compiling, peers
from .sides import Choice, Shape, Side, jattn

LENGTH, LONG, WINDOW = 4096, 16384, 512


@dataclasses.dataclass(frozen=True)
class Bar:
    """The figure that a row should reach."""

    value: float
    at_most: bool = False

    def met(self, figure: float) -> bool:
        return figure <= self.value if self.at_most else figure >= self.value


@dataclasses.dataclass(frozen=True)
class Speed:
    """`ours` beside `other`, both timed.

    Attributes:
        name: to ask for the row by.
        what: in words.
        shape: of both sides.
        ours: this library.
        other: a peer, or this library doing something plainer.
        bar: for the figure.
        factor: from the shape to what multiplies the ratio of times: 1 for a plain ratio.
        unit: of the figure.
        rounds: at most so many, where one takes long.

    The figure is `time(other) / time(ours)`, or the other way round where the bar is a most.
    """

    name: str
    what: str
    shape: Shape
    ours: Side
    other: Side
    bar: Bar
    factor: Callable[[Shape], float] = lambda shape: 1.0
    unit: str = "x"
    rounds: int | None = None


@dataclasses.dataclass(frozen=True)
class Memory:
    """Temporaries of the compiled gradient of both sides at doubling lengths; the bar, in MiB, is for the last.

    They must grow linearly too: what the last doubling adds is at most `STEEPEST` times what the one before added.
    """

    name: str
    what: str
    shapes: tuple[Shape, ...]
    ours: Side
    other: Side
    bar: Bar


STEEPEST = 2.2
"""Twice, and a tenth for what rounds up."""


def causal(shape: Shape) -> masks.Mask:
    del shape
    return masks.Causal()


def window(shape: Shape) -> masks.Mask:
    del shape
    return masks.SlidingWindow(WINDOW, 0)


def packed(documents: int) -> Callable[[Shape], masks.Mask]:
    """Causal within each of several documents of equal length."""

    def mask(shape: Shape) -> masks.Mask:
        return masks.Causal() & masks.SameSegment(jnp.arange(shape.length) * documents // shape.length)

    return mask


def _share_of_matmul(shape: Shape) -> float:
    """Work of the visited tiles by that of the matrix product: two products of 2 operations a pair and dimension."""
    visited, _, _ = _counts(causal, shape)
    return 4 * visited * shape.q_heads * shape.dim * shape.batch / (2 * peers.MATMUL**3)


def _tiles_saved(shape: Shape) -> float:
    """Causal tiles by window tiles."""
    return _counts(causal, shape)[0] / _counts(window, shape)[0]


def _counts(mask: Callable[[Shape], masks.Mask], shape: Shape) -> tuple[int, int, int]:
    """Pairs in the visited, the full and all tiles of a head."""
    plan = Choice(mask).plan(shape)
    area = plan.q_tile * plan.k_tile
    visited, full, total = plan.counts()
    return visited * area, full * area, total * area


def cpu(length: int = LENGTH, long: int = LONG) -> tuple[Speed | Memory, ...]:
    """The rows for a CPU.

    Args:
        length: the usual length.
        long: that of the rows in which most tiles are skipped.
    """

    def base(length: int) -> Shape:
        return Shape("Transformer base", length, q_heads=8, kv_heads=8, dim=64)

    usual, far = base(length), base(long)
    plain = Choice(causal)
    layers = 12 if length >= 1024 else 1
    forward = jattn("jattn", plain)
    both = jattn("jattn", plain, backward=True)
    itself = jattn("plain causal", plain)

    def argument(name: str, what: str, choice: Choice) -> Speed:
        return Speed(name, f"{what}: time beside plain causal", usual, jattn("jattn", choice), itself, Bar(1.4, True))

    return (
        Speed("torch", "forward beside PyTorch", usual, forward, peers.torch_attention(), Bar(1.0)),
        Speed("torch-grad", "forward + backward", usual, both, peers.torch_attention(backward=True), Bar(0.9)),
        Speed("jax", "forward beside jax.nn", usual, forward, peers.jax_nn(), Bar(4.5)),
        Speed("jax-grad", "forward + backward", usual, both, peers.jax_nn(backward=True), Bar(3.5)),
        Speed("flex", "forward beside flex_attention", usual, forward, peers.flex_attention(), Bar(1.5)),
        Speed(
            "flex-window",
            f"forward, window {WINDOW}, plan included",
            far,
            jattn("jattn", Choice(window), plan_included=True),
            peers.flex_attention(WINDOW, mask_included=True),
            Bar(1.5),
        ),
        Speed(
            "matmul",
            "share of the matmul rate in the visited tiles",
            usual,
            forward,
            peers.matmul(),
            Bar(0.75),
            _share_of_matmul,
            "of the rate",
        ),
        Speed(
            "tiles",
            f"cost of a visited tile, window {WINDOW} beside causal",
            far,
            jattn("jattn", Choice(window)),
            itself,
            Bar(1.5, True),
            _tiles_saved,
        ),
        Memory(
            "memory",
            "temporaries of the compiled gradient",
            tuple(base(each) for each in (length // 2, length, 2 * length)),
            both,
            peers.jax_nn(backward=True),
            Bar(51, True),
        ),
        Speed(
            "compile",
            f"compiling the gradient of {layers} layers",
            base(min(length, 1024)),
            compiling.ours(layers),
            compiling.jax_nn(layers),
            Bar(4.0, True),
        ),
        argument("alibi", "ALiBi", Choice(causal, lambda shape: (scores.ALiBi.standard(shape.q_heads),))),
        argument("soft-cap", "soft cap", Choice(causal, lambda shape: (scores.SoftCap(30.0),))),
        argument("segments", "segment ids, one document", Choice(packed(1))),
        argument("packed", "segment ids, four documents", Choice(packed(4))),
        argument("grouped", "8 query heads, 2 key heads", Choice(causal, kv_heads=2)),
    )
