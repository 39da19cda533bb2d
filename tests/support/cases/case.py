"""The row of the table, and shorthands for writing one."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

Arrays = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Case:
    """A call.

    Args:
        name: of the row.
        pieces: from the arrays (as JAX arrays) to keyword arguments of `jattn.attention`.
        truth: from the same arrays (floating-point ones as `oracle.Num`, others NumPy) to those of `oracle.attention`.
        arrays: draws the arrays in the pieces.
        holes: row `hole` attends nothing and the last keys are nobody's, NaN and inf in both key and value; the call's
            mask is joined with that, so that every row says what the meaning table promises.
        mergeable: whether `partial_attention` takes it, so that the lse and its cotangent are tested too.
        batch, q_len, kv_len, q_heads, kv_heads, qk_dim, v_dim: shapes.
        spread: the standard deviation of query and key.
        tile: the tiles that `tiled` is forced to, small enough for several of each kind.
        bfloat16, vmap: whether to test these for the row, where another row does not do it already.
    """

    name: str
    pieces: Callable[[Arrays], dict[str, Any]] = lambda a: {}
    truth: Callable[[Arrays], dict[str, Any]] = lambda a: {}
    arrays: Callable[[np.random.Generator], Arrays] = lambda rng: {}
    holes: bool = True
    mergeable: bool = True
    batch: tuple[int, ...] = (2,)
    q_len: int = 37
    kv_len: int = 37
    q_heads: int = 2
    kv_heads: int = 2
    qk_dim: int = 4
    v_dim: int = 4
    spread: float = 1.0
    tile: tuple[int, int] = (8, 16)
    bfloat16: bool = True
    vmap: bool = True

    @property
    def hole(self) -> int:
        return self.q_len // 2

    @property
    def live_keys(self) -> int:
        return self.kv_len - min(3, self.kv_len // 2)


SLIM = {"bfloat16": False, "vmap": False}  # what another row tests already


def normal(*shape: int, scale: float = 1.0, shift: float = 0.0):
    return lambda rng: (scale * rng.normal(size=shape) + shift).astype(np.float32)


def draw(**makers: Callable[[np.random.Generator], np.ndarray]) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: {name: make(rng) for name, make in makers.items()}


def mask_row(name: str, mask: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], **options: Any) -> Case:
    """A row about a mask: other rows test bfloat16 and vmap, where its arrays are none."""
    options = {"bfloat16": False, "vmap": "arrays" in options, "q_heads": 2, "kv_heads": 1, **options}
    return Case(name, lambda a: {"mask": mask(a)}, lambda a: {"mask": truth(a)}, **options)


def score_row(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    return Case(name, lambda a: {"scores": pieces(a)}, lambda a: {"scores": truth(a)}, *arrays, **options)


def similarity_row(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    return Case(name, lambda a: {"similarity": pieces(a)}, lambda a: {"similarity": truth(a)}, *arrays, **options)


def normalizer_row(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    options = {"mergeable": False, **options}
    return Case(name, lambda a: {"normalizer": pieces(a)}, lambda a: {"normalizer": truth(a)}, *arrays, **options)


def causal(q, k):
    return k <= q
