"""The rows of the CPU benchmark, as data: what is compared, at which shape, and the target."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from .. import masks, scores
from . import compiling, peers
from .sides import Choice, Shape, Side, jattn

LENGTH, LONG, WINDOW = 4096, 16384, 512


@dataclasses.dataclass(frozen=True)
class Bar:
    """The target of a row."""

    value: float
    at_most: bool = False

    def met(self, figure: float) -> bool:
        return figure <= self.value if self.at_most else figure >= self.value


@dataclasses.dataclass(frozen=True)
class Speed:
    """A comparison of running times.

    The figure is `time(other) / time(ours)`, or its inverse if the target is an upper bound, times `factor`.

    Attributes:
        name: selects the row on the command line.
        what: a description for the table.
        shape: the shape for both sides.
        ours: jattn.
        other: another library, or a simpler call of jattn.
        bar: the target.
        factor: from the shape, a factor on the ratio of times; by default 1.
        unit: the unit of the figure.
        rounds: the maximum number of rounds, for slow rows.
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
    """A comparison of the temporary memory of the compiled gradient, at three doubling lengths.

    The target, in MiB, is for the last length. Growth must also be linear: the last doubling may add at most `STEEPEST`
    times what the one before added.
    """

    name: str
    what: str
    shapes: tuple[Shape, ...]
    ours: Side
    other: Side
    bar: Bar


STEEPEST = 2.2
"""Linear growth doubles; 10% more allows for rounding up."""


def causal(shape: Shape) -> masks.Mask:
    del shape
    return masks.Causal()


def window(shape: Shape) -> masks.Mask:
    del shape
    return masks.SlidingWindow(WINDOW, 0)


def packed(documents: int) -> Callable[[Shape], masks.Mask]:
    """A causal mask for several packed documents of equal length."""

    def mask(shape: Shape) -> masks.Mask:
        return masks.Causal() & masks.SameSegment(jnp.arange(shape.length) * documents // shape.length)

    return mask


def _share_of_matmul(shape: Shape) -> float:
    """Operations in the visited tiles over those of the matrix product.

    Two products per tile, with 2 operations per pair and dimension each.
    """
    visited = _visited(causal, shape)
    return 4 * visited * shape.q_heads * shape.dim * shape.batch / (2 * peers.MATMUL**3)


def _tiles_saved(shape: Shape) -> float:
    """The ratio of the pairs visited by causal attention to those visited with the window."""
    return _visited(causal, shape) / _visited(window, shape)


def _visited(mask: Callable[[Shape], masks.Mask], shape: Shape) -> int:
    """The number of pairs in the visited tiles, per head."""
    plan = Choice(mask).plan(shape)
    return plan.counts()[0] * plan.q_tile * plan.k_tile


def cpu(length: int = LENGTH, long: int = LONG) -> tuple[Speed | Memory, ...]:
    """The rows for a CPU.

    Args:
        length: the usual sequence length.
        long: the length of the rows in which most tiles are skipped.
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
        return Speed(name, f"{what}: time vs. plain causal", usual, jattn("jattn", choice), itself, Bar(1.4, True))

    return (
        Speed("torch", "forward vs. PyTorch", usual, forward, peers.torch_attention(), Bar(1.0)),
        Speed(
            "torch-grad", "forward + backward vs. PyTorch", usual, both, peers.torch_attention(backward=True), Bar(0.9)
        ),
        Speed("jax", "forward vs. jax.nn", usual, forward, peers.jax_nn(), Bar(4.5)),
        Speed("jax-grad", "forward + backward vs. jax.nn", usual, both, peers.jax_nn(backward=True), Bar(3.5)),
        Speed("flex", "forward vs. flex_attention", usual, forward, peers.flex_attention(), Bar(1.5)),
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
            f"cost of a visited tile, window {WINDOW} vs. causal",
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
            f"compiling the gradient of {layers} unrolled layers",
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
