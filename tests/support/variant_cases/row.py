"""A row of the table of variants: a function, its definition over `oracle.Num`, and how a row is run."""

import contextlib
import dataclasses
import functools
import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from unittest import mock

import graph
import jax
import numpy as np
import oracle

from jattn import masks

Arrays = dict[str, Any]
QKV = {"query": "bqhd", "key": "bkgd", "value": "bkgv"}


def causal(q, k):
    return k <= q


@dataclasses.dataclass(frozen=True)
class Row:
    """A function and its definition.

    Args:
        name: of the row.
        run: from the arrays, and what the row `accepts` as keywords, to the output.
        truth: from the arrays (floating-point ones as `oracle.Num`), the call's mask as Booleans `[q_len, kv_len]`
            and the dtype of storage (None for none) to the output.
        shapes: of the arrays, a letter for each axis; `sizes` has its size. `q` and `k` are queries and keys: what
            rides on `k` is NaN where nobody may look.
        draws: of arrays that are not normal, from a generator, the shape and all sizes.
        short: the fewest queries and keys.
        accepts: of "mask", "query_positions" and "implementation", which `run` takes.
        rule: the mask of the call, a function of positions; joined with holes: query `q_len // 2` attends nothing,
            and the last three keys are nobody's.
        empty: whether the output of the query that attends nothing is 0.
        lengths: the name of integers `[b]`: keys behind them are padding, and NaN.
        refused: for self-attention, what is said where there are more keys than queries.
        stored: the arrays that are bfloat16 in the test of that; none, where it would not be meaningful.
        stays: the dtype of an output that stays as it is then.
        within: a context in which all calls are made, for small tiles.
    """

    name: str
    run: Callable[..., jax.Array]
    truth: Callable[[Arrays, np.ndarray, Any], oracle.Num]
    shapes: Mapping[str, str] = dataclasses.field(default_factory=lambda: QKV)
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    draws: Mapping[str, Callable[..., np.ndarray]] = dataclasses.field(default_factory=dict)
    short: tuple[int, int] = (1, 1)
    accepts: tuple[str, ...] = ("mask", "query_positions", "implementation")
    rule: Callable[[Any, Any], Any] = causal
    empty: bool = True
    lengths: str | None = None
    refused: str | None = None
    stored: tuple[str, ...] = ("query", "key", "value")
    stays: str | None = None
    within: Callable[[], Any] = contextlib.nullcontext

    __hash__ = object.__hash__

    def size(self, **changes: int) -> dict[str, int]:
        """Lengths are odd and unequal, except in self-attention."""
        usual = {"b": 2, "q": 63, "k": 41 if self.refused is None else 63, "h": 4, "g": 2, "d": 3, "v": 2}
        return {**usual, **self.sizes, **changes}

    def shortest(self) -> dict[str, int]:
        return self.size(q=self.short[0], k=self.short[1])

    def mask(self, sizes: Mapping[str, int], holes: bool) -> Callable[[Any, Any], Any]:
        hole, live = sizes["q"] // 2, sizes["k"] - 3
        return lambda q, k: self.rule(q, k) & (q != hole) & (k < live) if holes else self.rule(q, k)

    def given(self, sizes: Mapping[str, int], holes: bool, implementation: Any) -> dict[str, Any]:
        given = {
            "mask": masks.of(self.mask(sizes, holes)),
            "query_positions": np.arange(sizes["q"]),
            "implementation": implementation,
        }
        return {name: one for name, one in given.items() if name in self.accepts}

    def draw(self, seed: int, sizes: Mapping[str, int], storage: str = "float32") -> Arrays:
        """Arrays, float32; those of a call stored as `storage` hold what it can."""
        rng = np.random.default_rng(seed)
        arrays = {}
        for name, axes in self.shapes.items():
            shape = tuple(sizes[axis] for axis in axes)
            array = np.asarray(self.draws[name](rng, shape, sizes) if name in self.draws else rng.normal(size=shape))
            if is_float(array):
                array = array.astype(oracle.STORAGE[storage] if name in self.stored else np.float32)
                array = array.astype(np.float32)
            arrays[name] = array
        return arrays

    def nowhere(self, arrays: Arrays, sizes: Mapping[str, int]) -> Arrays:
        """Of each array that rides on keys, Booleans broadcast to it: what nobody may attend."""
        live = np.full(sizes["b"], sizes["k"] - 3 if "mask" in self.accepts else sizes["k"])
        if self.lengths is not None:
            live = np.minimum(live, arrays[self.lengths])
        dead = np.arange(sizes["k"]) >= live[:, None]
        found = {}
        for name, axes in self.shapes.items():
            if axes.startswith("b") and "k" in axes:
                place = axes.index("k")
                where = dead.reshape(sizes["b"], *[1] * (place - 1), -1, *[1] * (len(axes) - place - 1))
                found[name] = np.broadcast_to(where, arrays[name].shape)
        return found

    def poisoned(self, arrays: Arrays, sizes: Mapping[str, int]) -> Arrays:
        """With NaN and inf there."""
        nowhere = self.nowhere(arrays, sizes).items()
        broken = (np.float32([np.nan, np.inf][index % 2]) for index in range(len(nowhere)))
        return {
            **arrays,
            **{name: np.where(where, bad, arrays[name]) for (name, where), bad in zip(nowhere, broken, strict=True)},
        }


def is_float(array: Any) -> bool:
    return np.issubdtype(array.dtype, np.floating)


class Truth(NamedTuple):
    out: np.ndarray
    cotangent: np.ndarray  # drawn
    gradients: dict[str, np.ndarray]


@functools.lru_cache(maxsize=256)
def truth(row: Row, seed: int, *, short: bool = False, storage: str | None = None, plain: bool = False) -> Truth:
    """In float64, or as a plain computation has it in float32 or what the arrays are stored in.

    Where it is as short as can be there are no holes.
    """
    sizes = row.shortest() if short else row.size()
    arrays = row.draw(seed, sizes, storage or "float32")
    dtype = np.float32 if plain else np.float64
    stored = oracle.STORAGE[storage] if plain and storage else None
    leaves = {name: oracle.Num(one.astype(dtype)) for name, one in arrays.items() if is_float(one)}
    allowed = np.broadcast_to(
        row.mask(sizes, not short)(np.arange(sizes["q"])[:, None], np.arange(sizes["k"])), (sizes["q"], sizes["k"])
    )
    out = row.truth({**arrays, **leaves}, allowed, stored)
    cotangent = np.random.default_rng(seed + 99).normal(size=out.shape).astype(np.float32)
    gradients = graph.gradients([(out, cotangent)], list(leaves.values()))
    return Truth(out.value, cotangent, dict(zip(leaves, gradients, strict=True)))


def pullback(row: Row, sizes: Mapping[str, int], holes: bool, implementation: Any):
    """A function of (floating-point arrays, others, cotangent): the output and all gradients."""
    given = row.given(sizes, holes, implementation)

    def run(floats, others, cotangent):
        out, pull = jax.vjp(lambda floats: row.run({**others, **floats}, **given), floats)
        return out, *pull(cotangent.astype(out.dtype))

    return run


# Parts that truths are made of. Scores are [b, h, q, k].


def scaled(query: oracle.Num, key: oracle.Num) -> oracle.Num:
    """q·k / √d, with keys of grouped heads."""
    return oracle.scaled_dot()(query, grouped(key, query.shape[2]))


def grouped(key: oracle.Num, heads: int) -> oracle.Num:
    """Every query head with the head of the key that it shares."""
    count = key.shape[2]
    return key if count == heads else oracle.take(key, np.repeat(np.arange(count), heads // count), 2)


def softmax(scores: oracle.Num, allowed: np.ndarray) -> oracle.Num:
    return oracle.softmax()(scores, np.broadcast_to(allowed, scores.shape))


def sums(weights: oracle.Num, value: oracle.Num, storage: Any) -> oracle.Num:
    """Of the values, by weights that are stored as they are."""
    value = grouped(value, weights.shape[1])
    return oracle.rounded(oracle.einsum("bhqk,bkhd->bqhd", oracle.rounded(weights, storage), value), storage)


def qkv(a):
    return a["query"], a["key"], a["value"]


def plainly(a, allowed, storage):
    return sums(softmax(scaled(a["query"], a["key"]), allowed), a["value"], storage)


def small_tiles(module, name):
    """Tiles of 16, of which there are several in a row."""
    return functools.partial(mock.patch.object, importlib.import_module(f"jattn.variants.{module}"), name, 16)


WITHOUT = ("mask", "query_positions")  # what takes no implementation
