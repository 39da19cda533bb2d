"""Rows about masks."""

import jax.numpy as jnp
import numpy as np

from jattn import masks

from .case import draw, mask_row


def _segment_ids(rng: np.random.Generator) -> np.ndarray:
    ids = np.sort(rng.integers(1, 4, (2, 37)), axis=-1)
    ids[:, 30:] = 0
    return ids.astype(np.int32)


def _chosen(indices, query_size, key_size):
    """indices [b or 1, h or 1, row, choice]."""
    rows = lambda q: indices[:, :, np.minimum(q // query_size, indices.shape[2] - 1).reshape(-1)]  # noqa: E731
    return lambda q, k: (rows(q)[..., None, :] == (k // key_size).reshape(-1, 1)).any(-1)


MASKS = [
    mask_row("sliding window", lambda a: masks.SlidingWindow(9, 4), lambda a: lambda q, k: (q - k <= 9) & (k - q <= 4)),
    mask_row("open window", lambda a: masks.SlidingWindow(9), lambda a: lambda q, k: q - k <= 9),
    mask_row(
        "window of each head",
        lambda a: masks.SlidingWindow(a["left"], 0),
        lambda a: lambda q, k: (k <= q) & (q - k <= a["left"].reshape(1, -1, 1, 1)),
        arrays=draw(left=lambda rng: rng.integers(0, 20, (4,))),
        q_heads=4,
        kv_heads=2,
    ),
    mask_row(
        "dilated",
        lambda a: masks.Dilated(3, a["step"]),
        lambda a: (
            lambda q, k: ((q - k) % a["step"].reshape(-1, 1, 1) == 0) & (abs(q - k) <= 3 * a["step"].reshape(-1, 1, 1))
        ),
        arrays=draw(step=lambda rng: rng.integers(1, 5, (2,))),
    ),
    mask_row(
        "sparse transformer",
        lambda a: masks.Causal() & (masks.SlidingWindow(5, 0) | masks.Strided(5)),
        lambda a: lambda q, k: (k <= q) & ((q - k <= 5) | ((q - k) % 5 == 0)),
    ),
    mask_row(
        "prefix of each sequence",
        lambda a: masks.Prefix(a["length"]),
        lambda a: lambda q, k: (k <= q) | (k < a["length"].reshape(-1, 1, 1, 1)),
        arrays=draw(length=lambda rng: rng.integers(0, 30, (2,))),
    ),
    mask_row(
        "chunked causal",
        lambda a: masks.Chunked(10) & masks.Causal(),
        lambda a: lambda q, k: (q // 10 == k // 10) & (k <= q),
    ),
    mask_row("block causal", lambda a: masks.BlockCausal(10), lambda a: lambda q, k: k // 10 <= q // 10),
    mask_row(
        "window and sinks",
        lambda a: masks.SlidingWindow(6, 0) | (masks.Sinks(2) & masks.Causal()),
        lambda a: lambda q, k: (k <= q) & ((q - k <= 6) | (k < 2)),
    ),
    mask_row(
        "longformer",
        lambda a: masks.SlidingWindow(4, 4) | masks.Sinks(3) | masks.of(lambda q, k: q < 3),
        lambda a: lambda q, k: (abs(q - k) <= 4) | (k < 3) | (q < 3),
    ),
    mask_row("not a window", lambda a: ~masks.SlidingWindow(9, 9), lambda a: lambda q, k: abs(q - k) > 9),
    mask_row(
        "packed segments",
        lambda a: masks.Causal() & masks.SameSegment(a["ids"], padding_id=0),
        lambda a: (
            lambda q, k: (
                (k <= q)
                & (a["ids"][:, None, :, None] == a["ids"][:, None, None, :])
                & (a["ids"][:, None, :, None] != 0)
            )
        ),
        arrays=draw(ids=_segment_ids),
    ),
    mask_row(
        "lengths",
        lambda a: masks.Lengths(a["keys"], a["queries"]),
        lambda a: lambda q, k: (k < a["keys"].reshape(-1, 1, 1, 1)) & (q < a["queries"].reshape(-1, 1, 1, 1)),
        arrays=draw(keys=lambda rng: rng.integers(0, 37, (2,)), queries=lambda rng: rng.integers(0, 37, (2,))),
    ),
    mask_row(
        "table of blocks",
        lambda a: masks.Shifted(masks.Blocks(a["table"], 8), 0),  # tokens behind the table attend to nothing
        lambda a: (
            lambda q, k: (
                a["table"][:, np.minimum(q // 8, 3), np.minimum(k // 8, 3)].reshape(
                    1, -1, *np.broadcast_shapes(q.shape, k.shape)[-2:]
                )
                & (q < 32)
                & (k < 32)
            )
        ),
        arrays=draw(table=lambda rng: rng.random((2, 4, 4)) < 0.5),
    ),
    mask_row(
        "blocks of two sizes",
        lambda a: masks.Blocks(a["table"], (5, 10)),
        lambda a: lambda q, k: a["table"][:, q // 5, k // 10].reshape(1, -1, q.size, k.size),
        arrays=draw(table=lambda rng: rng.random((2, 8, 4)) < 0.4),
        vmap=False,
    ),
    mask_row(
        "keys chosen by each query",
        lambda a: masks.Selected(a["indices"]) & masks.Causal(),
        lambda a: lambda q, k: _chosen(a["indices"], 1, 1)(q, k) & (k <= q),
        arrays=draw(indices=lambda rng: rng.integers(-3, 37, (2, 1, 37, 6))),
    ),
    mask_row(
        "key blocks chosen by query blocks of each head",
        lambda a: masks.Selected(a["indices"], (8, 4)),
        lambda a: _chosen(a["indices"], 8, 4),
        arrays=draw(indices=lambda rng: rng.integers(-1, 10, (1, 2, 5, 3))),
        bfloat16=True,
        vmap=False,
    ),
    mask_row(
        "dense",
        lambda a: masks.Dense(a["dense"]),
        lambda a: lambda q, k: a["dense"],
        arrays=draw(dense=lambda rng: rng.random((2, 1, 37, 37)) < 0.3),
    ),
    mask_row(
        "flags of queries and keys, and of heads that see summaries",
        lambda a: masks.Flagged(a["rows"], a["columns"]) | masks.OnHeads([True, False]) & masks.Summaries(5, 2),
        lambda a: (
            lambda q, k: (
                a["rows"][:, None, :, None]
                | a["columns"][:, None, None, :]
                | np.array([True, False])[:, None, None] & (k % 5 >= 3)
            )
        ),
        arrays=draw(rows=lambda rng: rng.random((2, 37)) < 0.2, columns=lambda rng: rng.random((2, 37)) < 0.2),
    ),
    mask_row(
        "a function over an array",
        lambda a: masks.of(lambda q, k: (k <= q) & (a["group"][q] == a["group"][k])),
        lambda a: lambda q, k: (k <= q) & (a["group"][q] == a["group"][k]),
        arrays=draw(group=lambda rng: rng.integers(0, 3, (37,))),
    ),
    mask_row(
        "a where of two masks",
        lambda a: masks.of(lambda q, k: jnp.where(q % 4 == 0, k <= q, q - k < 5) & (k <= q + 2)),
        lambda a: lambda q, k: np.where(q % 4 == 0, k <= q, q - k < 5) & (k <= q + 2),
    ),
    mask_row("nothing", lambda a: masks.of(lambda q, k: k < 0), lambda a: lambda q, k: k < 0),
]
