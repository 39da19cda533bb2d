"""The kernels compile for every generation of TPUs, forward and backward, for masks, scores and shapes of all kinds.

The compiler is the real one; there is no TPU, so nothing runs. Values are tested in interpret mode.
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tpu import compiled_gradients, needs_libtpu

import jattn
from jattn import masks, scores, similarities
from jattn.benchmarks.tpu.compiler import GENERATIONS
from jattn.normalizers import Sigmoid, Softmax
from jattn.ops.attention.implementations.pallas_tpu import PallasTPU

pytestmark = needs_libtpu

LENGTH = 1024
TABLE = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1]], bool)  # which topic a document of each topic may read


@dataclasses.dataclass(frozen=True)
class Case:
    """A call of attention.

    Attributes:
        pieces: from the arrays, the options of the call.
        arrays: of the pieces, by name: shape and dtype.
        heads: of queries and of keys.
        dims: of queries and of values.
        length: of queries and of keys.
    """

    pieces: Callable[[Any], Mapping[str, Any]] = lambda given: {"mask": masks.Causal()}
    arrays: Mapping[str, tuple[tuple[int, ...], str]] = dataclasses.field(default_factory=dict)
    heads: tuple[int, int] = (4, 1)
    dims: tuple[int, int] = (128, 128)
    length: int = LENGTH

    def arguments(self, dtype):
        q_heads, kv_heads = self.heads
        shapes = (q_heads, self.dims[0]), (kv_heads, self.dims[0]), (kv_heads, self.dims[1])
        arrays = [jax.ShapeDtypeStruct((1, self.length, *shape), dtype) for shape in shapes]
        return *arrays, {name: jax.ShapeDtypeStruct(*given) for name, given in self.arrays.items()}

    def run(self, query, key, value, given):
        return jattn.attention(query, key, value, implementation=PallasTPU(), **self.pieces(given))


def of(pieces, **given):
    """A case whose arrays are keyword arguments that do not name one of its attributes."""
    known = {field.name for field in dataclasses.fields(Case)}
    arrays = {name: given.pop(name) for name in list(given) if name not in known}
    return Case(pieces, arrays, **given)


ids, f32 = ((1, LENGTH), "int32"), "float32"
CASES = {
    "plain": of(lambda a: {}),
    "causal": of(lambda a: {"mask": masks.Causal()}),
    "window": of(lambda a: {"mask": masks.SlidingWindow(300)}),
    "prefix": of(lambda a: {"mask": masks.Prefix(a["first"])}, first=((1,), "int32")),
    "segments": of(lambda a: {"mask": masks.SameSegment(a["ids"]) & masks.Causal()}, ids=ids),
    "lengths": of(lambda a: {"mask": masks.Lengths(a["lengths"])}, lengths=((1,), "int32")),
    "lambda": of(lambda a: {"mask": lambda q, k: jnp.where(q % 3 == 0, k <= q, (k <= q) & (q - k < 300))}),
    "documents": of(lambda a: {"mask": topics(a["topics"])}, topics=ids),
    "alibi, cap": of(
        lambda a: {"mask": masks.Causal(), "scores": (scores.ALiBi(a["slopes"]), scores.SoftCap(30.0))},
        slopes=((4,), f32),
    ),
    "buckets": of(lambda a: {"scores": scores.RelativeBuckets(a["table"])}, table=((32, 4), f32)),
    "relative logits": of(
        lambda a: {"scores": scores.RelativeLogits(a["logits"], first=-4)}, logits=((4, LENGTH, 9), f32)
    ),
    "key bias": of(lambda a: {"scores": scores.Bias(a["bias"])}, bias=((1, 1, 1, LENGTH), f32)),
    "pair bias": of(lambda a: {"scores": scores.Bias(a["bias"])}, bias=((4, LENGTH, LENGTH), f32)),
    "sinks": of(lambda a: {"mask": masks.Causal(), "normalizer": Softmax(a["sink"])}, sink=((4,), f32)),
    "sigmoid": of(lambda a: {"mask": masks.Causal(), "normalizer": Sigmoid()}),
    "dropout": of(
        lambda a: {"mask": masks.Causal(), "dropout": jattn.Dropout(0.1, a["words"])}, words=((2,), "uint32")
    ),
    "additive": of(
        lambda a: {"mask": masks.Causal(), "similarity": similarities.Additive(a["query"], a["key"], a["vector"])},
        **{"query": ((128, 100), f32), "key": ((128, 100), f32), "vector": ((4, 100), f32)},
    ),
    "32/8 heads": Case(heads=(32, 8)),
    "multi-query": Case(heads=(8, 1)),
    "16 heads": Case(heads=(16, 16)),
    "3 heads": Case(heads=(3, 3)),
    "192/128": Case(heads=(4, 4), dims=(192, 128)),
    "64": Case(dims=(64, 64)),
    "80": Case(dims=(80, 80)),
    "256": Case(dims=(256, 256)),
    "odd": Case(length=1000),
    "short": Case(length=130),
}
"""By name."""


def topics(table):
    """Documents may read those of some other topics: a look-up on both sides."""
    readable = jnp.asarray(TABLE)
    return lambda q, k: readable[table[0, q], table[0, k]]


DTYPES = ("bfloat16", "float32")
MATRIX = [
    (name, generation, DTYPES[place % 2], place)
    for place, name, generation in (
        (row + column, name, generation)
        for (row, name), (column, generation) in itertools.product(enumerate(CASES), enumerate(GENERATIONS))
    )
    if (name, generation) != ("buckets", "v4")  # v4 cannot rotate lanes by a distance that grows with the row
]
"""Every case for every generation, in one of the dtypes, and the number of its diagonal."""


def marks(place):
    """A fifth of the diagonals, which have one program of each case, are compiled in every run, a third with
    `--everything`."""
    if place % 5 == 0:
        return ()
    return (pytest.mark.exhaustive,) if place % 15 in (2, 9) else (pytest.mark.exhaustive, pytest.mark.matrix)


@pytest.mark.parametrize(
    "name, generation, dtype",
    [pytest.param(*row, id="-".join(row).replace(" ", "_"), marks=marks(place)) for *row, place in MATRIX],
)
def test_forward_and_backward(name, generation, dtype):
    case = CASES[name]
    _, text = compiled_gradients(generation, case.run, *case.arguments(dtype))
    assert "jattn_forward" in text and "jattn_backward" in text


def test_what_runs_always_has_everything():
    always = [row for row in MATRIX if not marks(row[-1])]
    assert [{row[column] for row in always} for column in range(3)] == [set(CASES), set(GENERATIONS), set(DTYPES)]
    assert 0.3 < sum(pytest.mark.matrix not in marks(row[-1]) for row in MATRIX) / len(MATRIX) < 0.36


def long_window(length):
    """A window of 4,096 in a long row of 32 query heads and 8 key heads: the memory of both passes."""
    case = of(lambda a: {"mask": masks.SlidingWindow(4095, 0)}, heads=(32, 8), length=length)
    program, _ = compiled_gradients("v5e", case.run, *case.arguments("bfloat16"))
    return program.memory_analysis()


@pytest.mark.exhaustive
def test_a_long_window_fits_one_core_in_linear_memory():
    """131,072 tokens, forward and backward, in the 16 GB of a v5e."""
    half, whole = long_window(65_536), long_window(131_072)
    assert whole.argument_size_in_bytes + whole.output_size_in_bytes + whole.temp_size_in_bytes < 16e9
    assert whole.temp_size_in_bytes < 2.1 * half.temp_size_in_bytes
