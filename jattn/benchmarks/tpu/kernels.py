"""The kernels that are compared: each a program for any number of tiles."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ...ops.attention.plan import PARTIAL
from . import decoding, ours, splash, splash_like
from .compiler import GENERATIONS

TILE, DIM, GROUP = 512, 128, 4
"""Queries and keys of a tile, features, and query heads of a key head."""


class Program(NamedTuple):
    """A program of n x n tiles of `TILE` queries and keys, for each of its query heads.

    function: what is compiled.
    arguments: the shapes of its arguments.
    heads: its query heads.
    unrolled: the tiles of one query head in the hot region of the kernel.
    """

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    heads: int
    unrolled: float = 1


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A kernel to compile.

    Attributes:
        name: the name of the kernel in the compiled program.
        program: from n and a generation, the program.
        estimated: whether the compiler's estimate of its cycles is of use.
    """

    name: str
    program: Callable[[int, str], Program]
    estimated: bool = True


def array(heads: int, *rest: int, dtype: Any = jnp.bfloat16) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((heads, *rest), dtype)


def _splash(tiles: int, generation: str) -> Program:
    del generation
    return Program(splash.run(tiles * TILE, TILE), (array(splash.HEADS, tiles * TILE, DIM),) * 3, splash.HEADS)


def _splash_like(tiles: int, generation: str, *, backward: bool) -> Program:
    del generation
    length = tiles * TILE
    query, key = array(GROUP, length, DIM), array(1, length, DIM)
    if not backward:
        return Program(functools.partial(splash_like.forward, tile=TILE), (query, key, key), GROUP)
    numbers = array(GROUP, 1, length, dtype=jnp.float32)
    arguments = (query, key, key, numbers, query, numbers)
    return Program(functools.partial(splash_like.backward, tile=TILE), arguments, GROUP)


def _ours(tiles: int, generation: str, *, setting: ours.Setting) -> Program:
    target = GENERATIONS[generation].target
    heads = setting.heads(GROUP, target)
    function, arguments, unrolled = setting.program(tiles, target, TILE, heads)
    return Program(function, arguments, heads, unrolled)


def _step(tiles: int, generation: str, *, step: decoding.Step) -> Program:
    return Program(*step.program(tiles, GENERATIONS[generation].target), heads=1)


def _settings() -> dict[str, ours.Setting]:
    settings = {
        "full": ours.Setting(GROUP),
        "multi-head": ours.Setting(1),
        "partial": ours.Setting(GROUP, PARTIAL),
        "scored": ours.Setting(GROUP, scored=True),
        "wide": ours.Setting(GROUP, dim=256),
        "float32": ours.Setting(GROUP, dtype="float32"),
    }
    both = {False: "forward", True: "backward"}
    return {
        f"{both[backward]} {name}": dataclasses.replace(setting, backward=backward)
        for name, setting in settings.items()
        for backward in both
    }


GROUPED, LATENT = decoding.Step(32, 8, 128), decoding.Step(128, 1, 576, latent=True)

STEPS = {
    "grouped": GROUPED,
    "grouped partial": dataclasses.replace(GROUPED, partial=True),
    "paged": dataclasses.replace(GROUPED, page=128),
    "small pages": dataclasses.replace(GROUPED, page=16),
    "latent": LATENT,
    "latent partial": dataclasses.replace(LATENT, partial=True),
    "narrow": dataclasses.replace(GROUPED, dim=64),
    "multi-query": decoding.Step(8, 1, 128),
    "float32": dataclasses.replace(GROUPED, dtype="float32"),
}
"""Steps of decoding, by name. All their tiles are full, or all are partial."""

KERNELS = {
    "splash forward": Kernel(splash.FORWARD, _splash, estimated=False),
    "splash backward": Kernel(splash.BACKWARD, _splash, estimated=False),
    "splash-like forward": Kernel(splash_like.FORWARD, functools.partial(_splash_like, backward=False)),
    "splash-like backward": Kernel(splash_like.BACKWARD, functools.partial(_splash_like, backward=True)),
    **{name: Kernel(each.name, functools.partial(_ours, setting=each)) for name, each in _settings().items()},
    **{f"decode {name}": Kernel(each.name, functools.partial(_step, step=each)) for name, each in STEPS.items()},
}
"""By name."""
