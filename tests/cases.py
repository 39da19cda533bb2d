"""One table: a row is a call, with its counterpart in the oracle.

A row says which arrays its pieces hold, how the call is made from them (`pieces`) and what it means (`truth`). What a
row buys is in test_cases.py.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import oracle

import jattn
from jattn import masks, normalizers, scores, similarities

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
        tile: the tiles that `chunked` is forced to, small enough for several of each kind.
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


def _normal(*shape: int, scale: float = 1.0, shift: float = 0.0):
    return lambda rng: (scale * rng.normal(size=shape) + shift).astype(np.float32)


def _draw(**makers: Callable[[np.random.Generator], np.ndarray]) -> Callable[[np.random.Generator], Arrays]:
    return lambda rng: {name: make(rng) for name, make in makers.items()}


def _mask(name: str, mask: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], **options: Any) -> Case:
    """A row about a mask: other rows test bfloat16 and vmap, where its arrays are none."""
    options = {"bfloat16": False, "vmap": "arrays" in options, "q_heads": 2, "kv_heads": 1, **options}
    return Case(name, lambda a: {"mask": mask(a)}, lambda a: {"mask": truth(a)}, **options)


def _score(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    return Case(name, lambda a: {"scores": pieces(a)}, lambda a: {"scores": truth(a)}, *arrays, **options)


def _similarity(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    return Case(name, lambda a: {"similarity": pieces(a)}, lambda a: {"similarity": truth(a)}, *arrays, **options)


def _normalizer(
    name: str, pieces: Callable[[Arrays], Any], truth: Callable[[Arrays], Any], *arrays: Any, **options: Any
) -> Case:
    options = {"mergeable": False, **options}
    return Case(name, lambda a: {"normalizer": pieces(a)}, lambda a: {"normalizer": truth(a)}, *arrays, **options)


def _causal(q, k):
    return k <= q


def _segment_ids(rng: np.random.Generator) -> np.ndarray:
    ids = np.sort(rng.integers(1, 4, (2, 37)), axis=-1)
    ids[:, 30:] = 0
    return ids.astype(np.int32)


def _neighborhood(q, k):
    """NATTEN on a 5 x 7 grid, window 3 x 5: at a border the window shifts inwards."""
    allowed = (q < 35) & (k < 35)
    for at, other, side, width in ((q // 7, k // 7, 5, 3), (q % 7, k % 7, 7, 5)):
        start = np.clip(at - width // 2, 0, side - width)
        allowed = allowed & (start <= other) & (other < start + width)
    return allowed


SLIM = {"bfloat16": False, "vmap": False}  # what another row tests already

SHAPES = [
    Case("plain", holes=False, **SLIM),
    Case("plain with holes", vmap=False),
    Case("causal", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": _causal}, holes=False, v_dim=6),
    Case("one query, one key", holes=False, q_len=1, kv_len=1, **SLIM),
    Case(
        "length one, masked", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": _causal}, q_len=1, kv_len=1, **SLIM
    ),
    Case("length 63", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": _causal}, q_len=63, kv_len=63, **SLIM),
    Case(
        "length 1000",
        lambda a: {"mask": masks.SlidingWindow(100, 0)},
        lambda a: {"mask": lambda q, k: (k <= q) & (q - k <= 100)},
        batch=(1,),
        q_len=1000,
        kv_len=1000,
        tile=(128, 64),
        vmap=False,
    ),
    Case("default tiles", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": _causal}, tile=(0, 0), **SLIM),
    Case("more keys than queries", holes=False, q_len=9, kv_len=37, v_dim=3, **SLIM),
    Case("more queries than keys", holes=False, q_len=37, kv_len=5, q_heads=4, **SLIM),
    Case("grouped queries", q_heads=6, kv_heads=2, v_dim=5),
    Case(
        "one key head",
        lambda a: {"mask": masks.Causal()},
        lambda a: {"mask": _causal},
        q_heads=4,
        kv_heads=1,
        v_dim=8,
        qk_dim=3,
        holes=False,
        **SLIM,
    ),
    Case(
        "no batch",
        lambda a: {"mask": masks.Causal()},
        lambda a: {"mask": _causal},
        batch=(),
        q_heads=4,
        v_dim=1,
        bfloat16=False,
    ),
    Case(
        "two batch axes", lambda a: {"mask": masks.Causal()}, lambda a: {"mask": _causal}, batch=(2, 3), bfloat16=False
    ),
    Case(
        "last queries of a cache",
        lambda a: {"mask": masks.Causal(), "query_positions": np.arange(28, 37)},
        lambda a: {"mask": _causal, "query_positions": np.arange(28, 37)},
        q_len=9,
        kv_len=37,
        q_heads=4,
        **SLIM,
    ),
    Case(
        "a shard of the keys",
        lambda a: {"mask": masks.Causal(), "query_positions": np.arange(37), "key_positions": np.arange(20, 33)},
        lambda a: {"mask": _causal, "query_positions": np.arange(37), "key_positions": np.arange(20, 33)},
        kv_len=13,
        holes=False,
        **SLIM,
    ),
    Case(
        "positions of each sequence, traced",
        lambda a: {"mask": masks.Causal(), "query_positions": a["rows"], "key_positions": a["columns"]},
        lambda a: {"mask": _causal, "query_positions": a["rows"], "key_positions": a["columns"]},
        _draw(
            rows=lambda rng: rng.integers(0, 40, (2, 1)) + np.arange(11),
            columns=lambda rng: rng.permutation(37)[None],
        ),
        q_len=11,
        holes=False,
        bfloat16=False,
    ),
]

MASKS = [
    _mask("sliding window", lambda a: masks.SlidingWindow(9, 4), lambda a: lambda q, k: (q - k <= 9) & (k - q <= 4)),
    _mask("open window", lambda a: masks.SlidingWindow(9), lambda a: lambda q, k: q - k <= 9),
    _mask(
        "window of each head",
        lambda a: masks.SlidingWindow(a["left"], 0),
        lambda a: lambda q, k: (k <= q) & (q - k <= a["left"].reshape(1, -1, 1, 1)),
        arrays=_draw(left=lambda rng: rng.integers(0, 20, (4,))),
        q_heads=4,
        kv_heads=2,
    ),
    _mask(
        "dilated",
        lambda a: masks.Dilated(3, a["step"]),
        lambda a: (
            lambda q, k: ((q - k) % a["step"].reshape(-1, 1, 1) == 0) & (abs(q - k) <= 3 * a["step"].reshape(-1, 1, 1))
        ),
        arrays=_draw(step=lambda rng: rng.integers(1, 5, (2,))),
    ),
    _mask(
        "sparse transformer",
        lambda a: masks.Causal() & (masks.SlidingWindow(5, 0) | masks.Strided(5)),
        lambda a: lambda q, k: (k <= q) & ((q - k <= 5) | ((q - k) % 5 == 0)),
    ),
    _mask(
        "prefix of each sequence",
        lambda a: masks.Prefix(a["length"]),
        lambda a: lambda q, k: (k <= q) | (k < a["length"].reshape(-1, 1, 1, 1)),
        arrays=_draw(length=lambda rng: rng.integers(0, 30, (2,))),
    ),
    _mask(
        "chunked causal",
        lambda a: masks.Chunked(10) & masks.Causal(),
        lambda a: lambda q, k: (q // 10 == k // 10) & (k <= q),
    ),
    _mask("block causal", lambda a: masks.BlockCausal(10), lambda a: lambda q, k: k // 10 <= q // 10),
    _mask(
        "window and sinks",
        lambda a: masks.SlidingWindow(6, 0) | (masks.Sinks(2) & masks.Causal()),
        lambda a: lambda q, k: (k <= q) & ((q - k <= 6) | (k < 2)),
    ),
    _mask(
        "longformer",
        lambda a: masks.SlidingWindow(4, 4) | masks.Sinks(3) | masks.of(lambda q, k: q < 3),
        lambda a: lambda q, k: (abs(q - k) <= 4) | (k < 3) | (q < 3),
    ),
    _mask("not a window", lambda a: ~masks.SlidingWindow(9, 9), lambda a: lambda q, k: abs(q - k) > 9),
    _mask(
        "packed segments",
        lambda a: masks.Causal() & masks.SameSegment(a["ids"], padding_id=0),
        lambda a: (
            lambda q, k: (
                (k <= q)
                & (a["ids"][:, None, :, None] == a["ids"][:, None, None, :])
                & (a["ids"][:, None, :, None] != 0)
            )
        ),
        arrays=_draw(ids=_segment_ids),
    ),
    _mask(
        "lengths",
        lambda a: masks.Lengths(a["keys"], a["queries"]),
        lambda a: lambda q, k: (k < a["keys"].reshape(-1, 1, 1, 1)) & (q < a["queries"].reshape(-1, 1, 1, 1)),
        arrays=_draw(keys=lambda rng: rng.integers(0, 37, (2,)), queries=lambda rng: rng.integers(0, 37, (2,))),
    ),
    _mask("neighborhood", lambda a: masks.Neighborhood((5, 7), (3, 5)), lambda a: _neighborhood),
    _mask(
        "axial",
        lambda a: masks.Axial((5, 7), 0),
        lambda a: lambda q, k: (q % 7 == k % 7) & (q < 35) & (k < 35),
    ),
    _mask(
        "table of blocks",
        lambda a: masks.Blocks(a["table"], 8),
        lambda a: (
            lambda q, k: (
                a["table"][:, np.minimum(q // 8, 3), np.minimum(k // 8, 3)].reshape(
                    1, -1, *np.broadcast_shapes(q.shape, k.shape)[-2:]
                )
                & (q < 32)
                & (k < 32)
            )
        ),
        arrays=_draw(table=lambda rng: rng.random((2, 4, 4)) < 0.5),
    ),
    _mask(
        "dense",
        lambda a: masks.Dense(a["dense"]),
        lambda a: lambda q, k: a["dense"],
        arrays=_draw(dense=lambda rng: rng.random((2, 1, 37, 37)) < 0.3),
    ),
    _mask(
        "a function over an array",
        lambda a: masks.of(lambda q, k: (k <= q) & (a["group"][q] == a["group"][k])),
        lambda a: lambda q, k: (k <= q) & (a["group"][q] == a["group"][k]),
        arrays=_draw(group=lambda rng: rng.integers(0, 3, (37,))),
    ),
    _mask(
        "a where of two masks",
        lambda a: masks.of(lambda q, k: jattn_where(q % 4 == 0, k <= q, q - k < 5) & (k <= q + 2)),
        lambda a: lambda q, k: np.where(q % 4 == 0, k <= q, q - k < 5) & (k <= q + 2),
    ),
    _mask("nothing", lambda a: masks.of(lambda q, k: k < 0), lambda a: lambda q, k: k < 0),
]

SIMILARITIES = [
    _similarity("dot", lambda a: similarities.Dot(0.3), lambda a: oracle.dot(0.3), **SLIM),
    _similarity(
        "dot, a scale per head",
        lambda a: similarities.Dot(a["scale"]),
        lambda a: oracle.dot(a["scale"]),
        _draw(scale=_normal(2)),
    ),
    _similarity(
        "cosine",
        lambda a: similarities.Cosine(a["temperature"]),
        lambda a: oracle.cosine(a["temperature"]),
        _draw(temperature=lambda rng: rng.uniform(0.2, 1, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    _similarity(
        "bilinear",
        lambda a: similarities.Bilinear(a["weight"]),
        lambda a: oracle.bilinear(a["weight"]),
        _draw(weight=_normal(2, 4, 4, scale=0.5)),
    ),
    _similarity(
        "shared bilinear",
        lambda a: similarities.SharedBilinear(a["weight"]),
        lambda a: oracle.shared_bilinear(a["weight"]),
        _draw(weight=_normal(4, 5, scale=0.4)),
        **SLIM,
    ),
    _similarity(
        "gaussian",
        lambda a: similarities.Gaussian(a["gamma"]),
        lambda a: oracle.gaussian(a["gamma"]),
        _draw(gamma=lambda rng: rng.uniform(0.1, 1, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    _similarity(
        "additive",
        lambda a: similarities.Additive(a["query_weight"], a["key_weight"], a["vector"]),
        lambda a: oracle.additive(a["query_weight"], a["key_weight"], a["vector"]),
        _draw(query_weight=_normal(4, 5), key_weight=_normal(4, 5), vector=_normal(5)),
        q_heads=4,
    ),
]

SCORES = [
    _score(
        "bias", lambda a: scores.Bias(a["bias"]), lambda a: [oracle.bias(a["bias"])], _draw(bias=_normal(2, 2, 37, 37))
    ),
    _score(
        "bias of queries and of keys",
        lambda a: [scores.Bias(a["rows"]), scores.Bias(a["columns"])],
        lambda a: [oracle.bias(a["rows"]), oracle.bias(a["columns"])],
        _draw(rows=_normal(4, 37, 1), columns=_normal(1, 1, 37)),
        q_heads=4,
        bfloat16=False,
    ),
    _score(
        "alibi",
        lambda a: scores.Alibi(a["slopes"]),
        lambda a: [oracle.alibi(a["slopes"])],
        _draw(slopes=lambda rng: rng.uniform(0.05, 0.5, (4,)).astype(np.float32)),
        q_heads=4,
    ),
    _score(
        "relative buckets",
        lambda a: scores.RelativeBuckets(a["table"], max_distance=20),
        lambda a: [oracle.relative_buckets(a["table"], max_distance=20)],
        _draw(table=_normal(12, 2)),
    ),
    _score(
        "relative buckets of the past",
        lambda a: scores.RelativeBuckets(a["table"], bidirectional=False, max_distance=20),
        lambda a: [oracle.relative_buckets(a["table"], bidirectional=False, max_distance=20)],
        _draw(table=_normal(10, 2)),
        **SLIM,
    ),
    _score("soft cap", lambda a: scores.SoftCap(1.5), lambda a: [oracle.soft_cap(1.5)], spread=1.5, vmap=False),
    Case(
        "bias, then soft cap, then alibi, causal",
        lambda a: {
            "scores": [scores.Bias(a["bias"]), scores.SoftCap(2.0), scores.Alibi(a["slopes"])],
            "mask": masks.Causal(),
        },
        lambda a: {
            "scores": [oracle.bias(a["bias"]), oracle.soft_cap(2.0), oracle.alibi(a["slopes"])],
            "mask": _causal,
        },
        _draw(bias=_normal(1, 37, 37), slopes=_normal(2, scale=0.1, shift=0.3)),
    ),
    _score(
        "a function over an array",
        lambda a: scores.of(lambda s, q, k: s * a["gain"] - 0.1 * abs(q - k)),
        lambda a: [lambda s, q, k: s * a["gain"] - 0.1 * abs(q - k).astype(s.value.dtype)],
        _draw(gain=lambda rng: np.asarray(rng.uniform(0.5, 2), np.float32)),
        bfloat16=False,
    ),
]

NORMALIZERS = [
    _normalizer(
        "softmax with a sink",
        lambda a: normalizers.Softmax(a["sink"]),
        lambda a: oracle.softmax(a["sink"]),
        _draw(sink=_normal(4)),
        q_heads=4,
    ),
    _normalizer(
        "off by one",
        lambda a: normalizers.Softmax.off_by_one(),
        lambda a: oracle.softmax(np.zeros(1, np.float32)),
        **SLIM,
    ),
    _normalizer(
        "sigmoid",
        lambda a: normalizers.Sigmoid(a["bias"]),
        lambda a: oracle.sigmoid(a["bias"]),
        _draw(bias=_normal(2, shift=-2)),
    ),
    _normalizer("relu", lambda a: normalizers.Relu(), lambda a: oracle.relu(), vmap=False),
    _normalizer("sparsemax", lambda a: normalizers.Sparsemax(), lambda a: oracle.sparsemax(), vmap=False),
    _normalizer("entmax 1.5", lambda a: normalizers.Entmax15(), lambda a: oracle.entmax15()),
    Case(
        "gaussian, alibi, sink, grouped, window",
        lambda a: {
            "similarity": similarities.Gaussian(a["gamma"]),
            "scores": scores.Alibi(a["slopes"]),
            "normalizer": normalizers.Softmax(a["sink"]),
            "mask": masks.SlidingWindow(15, 0),
        },
        lambda a: {
            "similarity": oracle.gaussian(a["gamma"]),
            "scores": [oracle.alibi(a["slopes"])],
            "normalizer": oracle.softmax(a["sink"]),
            "mask": lambda q, k: (k <= q) & (q - k <= 15),
        },
        _draw(gamma=_normal(1, scale=0.1, shift=0.5), slopes=_normal(4, scale=0.1, shift=0.3), sink=_normal(4)),
        q_heads=4,
        mergeable=False,
        v_dim=7,
    ),
]


def jattn_where(*arguments):
    import jax.numpy as jnp

    return jnp.where(*arguments)


CASES = SHAPES + MASKS + SIMILARITIES + SCORES + NORMALIZERS
TILES = {case.name: jattn.implementations.Chunked(*(size or None for size in case.tile)) for case in CASES}
